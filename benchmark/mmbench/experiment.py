"""One recipe to one finished run: load, train, select on validation, score test once, save. Resumable at any point."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from mmbench import __version__
from mmbench.config import RECIPE_FILE, Evaluation, Recipe, read_recipe, write_recipe
from mmbench.core.init import Init
from mmbench.core.interactions import HeldOut
from mmbench.core.runtime import cpu_seconds, peak_memory_bytes
from mmbench.data.cache import neighbour_cache
from mmbench.data.dataset import Split, TestData, TrainingData, load_split
from mmbench.data.features import ItemFeatures, load_features
from mmbench.data.lists import read_lists
from mmbench.errors import DataError, TrainingError, UsageError
from mmbench.evaluate import Evaluation as Scores
from mmbench.evaluate import RankedLists, evaluate, rank
from mmbench.metrics import resolve
from mmbench.models import model_class
from mmbench.models.base import Features, Recommender
from mmbench.progress import Progress
from mmbench.results import FORMAT, FORMAT_VERSION, RunFolder
from mmbench.train import EpochRecord, Trainer

SAVE_EVERY_S = float(os.environ.get("MMBENCH_SAVE_EVERY_S", "10"))
"""Least seconds between two saves of an unfinished training's state."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a recipe names, loaded: the split and the features of its training items."""

    split: Split
    features: Mapping[str, ItemFeatures]

    @property
    def digests(self) -> dict[str, Any]:
        """What a run's name depends on besides its recipe."""
        return {
            "training": self.split.training.digest,
            "test": self.split.test.digest,
            "features": {modality: features.digest for modality, features in self.features.items()},
        }


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run.

    Attributes:
        path: The run folder.
        recipe: Its recipe; for a grid, with the chosen settings.
        valid: Validation metrics of the chosen epoch.
        test: Test metrics of the same epoch.
        best_epoch: That epoch.
        seconds_per_epoch: Median training seconds; None for a model that is not trained.
        tried: The settings that validation chose from a grid.
    """

    path: Path
    recipe: Recipe
    valid: dict[str, float | None]
    test: dict[str, float | None]
    best_epoch: int
    seconds_per_epoch: float | None
    tried: tuple[str, ...] = ()


def load_inputs(
    recipe: Recipe, columns: Mapping[str, str] | None = None, like: Inputs | None = None
) -> tuple[Recipe, Inputs]:
    """Load what a recipe names, and spell out in the recipe what it left to be found: split and feature sets.

    Args:
        recipe: What is wanted.
        columns: Column roles of the interaction files.
        like: Inputs of another recipe on the same data, split and feature sets: what it holds is not read again.

    Raises:
        DataError: The dataset or the store lacks what the recipe needs.
    """
    data = Path(recipe.data)
    split = load_split(data, recipe.split, columns) if like is None else like.split
    features: Mapping[str, ItemFeatures] = {}
    if model_class(recipe.model).uses_features:
        if like is not None and like.features:
            features = like.features
        else:
            features = load_features(
                data / "features",
                split.training.item_ids.tolist(),
                recipe.features,
                missing=recipe.missing,
                scaling=recipe.scaling,
            )
    names = {modality: one.name for modality, one in features.items()}
    return recipe.model_copy(update={"split": split.training.split, "features": names}), Inputs(split, features)


def run_folder(out: Path, recipe: Recipe, inputs: Inputs) -> RunFolder:
    """Where a run of this recipe on this data lives: `<dataset>-<model>-<digest of everything that decides its numbers>`."""
    name = f"{inputs.split.training.name}-{recipe.model}-{recipe.digest(inputs.digests)}"
    return RunFolder(out / name)


def run(recipe: Recipe, inputs: Inputs, folder: RunFolder, *, progress: Progress, restart: bool = False) -> Result:
    """Do what is left of a run and return its result; a finished run is read, not repeated.

    Raises:
        TrainingError: The run is being written by another process, or the training diverged.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise TrainingError(f"{folder.path}: another process is writing this run; wait for it or stop it") from error
    with lock:
        if restart:
            _clear(folder)
        if not folder.complete:
            write_recipe(folder.recipe_path, recipe)
            chosen, chosen_folder = _train(recipe, inputs, folder, progress)
            _finish(chosen, chosen_folder, inputs, folder, trials=recipe.grid)
    return read_result(folder.path)


def read_result(path: Path) -> Result:
    """The result of a finished run folder.

    Raises:
        DataError: The folder is no finished run.
    """
    folder = RunFolder(path)
    if not folder.complete and folder.recipe_path.is_file():
        raise DataError(f"{path}: the run is not finished; go on with `mmbench train --resume {path}`")
    metrics, record = folder.read_json("metrics.json"), folder.read_json("run.json")
    recipe = read_recipe(folder.recipe_path)
    tried = tuple(recipe.grid)
    if recipe.grid:
        recipe = recipe.trials()[record["chosen_trial"]]
    return Result(
        path,
        recipe,
        metrics["valid"],
        metrics["test"],
        metrics["best_epoch"],
        record["timings"]["train_s_per_epoch"],
        tried,
    )


def resume_inputs(path: Path, data: Path | None = None) -> tuple[Recipe, Inputs, RunFolder]:
    """What an unfinished run needs to go on.

    Raises:
        DataError: The dataset has changed since the run began.
    """
    recipe = read_recipe(path / RECIPE_FILE)
    if data is not None:
        recipe = recipe.model_copy(update={"data": str(data)})
    recipe, inputs = load_inputs(recipe)
    digest = recipe.digest(inputs.digests)
    if not path.resolve().name.endswith(digest):
        raise DataError(
            f"{path}: the interactions, split or features in {recipe.data} differ from those the run began with; "
            "start a new run, or restore the data"
        )
    return recipe, inputs, RunFolder(path)


def build(recipe: Recipe, training: TrainingData, features: Mapping[str, ItemFeatures]) -> Recommender:
    """The recipe's model with its initial values, on its device."""
    device = choose_device(recipe.device)
    vectors = {modality: torch.from_numpy(one.vectors) for modality, one in features.items()}
    given = Features(vectors, neighbour_cache())
    model = model_class(recipe.model)(training.train, given, recipe.settings, Init(recipe.seed))
    return model.to(device)


def choose_device(name: str) -> torch.device:
    """The torch device of `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        UsageError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name}: not available here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device


def rank_all(
    model: Recommender, training: TrainingData, evaluation: Evaluation, users: np.ndarray | None = None
) -> RankedLists:
    """The ranked list of every user, or of some, as long as the longest cut-off; training positives are masked."""
    model.train(False)
    longest = max(*evaluation.cutoffs, int(evaluation.select_by.partition("@")[2]))
    rows = np.arange(training.train.n_users) if users is None else users
    with torch.inference_mode():
        return rank(
            model.scorer(),
            training.train,
            rows,
            k=longest,
            device=next(iter(model.state_dict().values()), torch.empty(0)).device,
        )


def score(lists: RankedLists, training: TrainingData, held_out: HeldOut, evaluation: Evaluation) -> Scores:
    """All metrics of the recipe on one held-out split."""
    return evaluate(
        lists,
        training.train,
        held_out,
        metrics=resolve(evaluation.metrics),
        cutoffs=evaluation.cutoffs,
        threshold=evaluation.threshold,
    )


def _train(recipe: Recipe, inputs: Inputs, folder: RunFolder, progress: Progress) -> tuple[Recipe, RunFolder]:
    """Train the recipe, or each trial of its grid; the chosen recipe and where its checkpoint is.

    Only training and validation data are passed on from here.
    """
    training = inputs.split.training
    if not recipe.grid:
        _train_one(recipe, training, inputs.features, folder, progress)
        return recipe, folder
    best: tuple[float, Recipe, RunFolder] | None = None
    trials = recipe.trials()
    for number, trial in enumerate(trials):
        trial_folder = RunFolder(folder.path / "trials" / f"{number:03d}")
        trial_folder.path.mkdir(parents=True, exist_ok=True)
        write_recipe(trial_folder.recipe_path, trial)
        settings = ", ".join(f"{name}={getattr(trial.settings, name):g}" for name in recipe.grid)
        value = _train_one(
            trial,
            training,
            inputs.features,
            trial_folder,
            progress,
            label=f"trial {number + 1}/{len(trials)} {settings}",
        )
        if best is None or value > best[0]:
            best = (value, trial, trial_folder)
    assert best is not None
    return best[1], best[2]


def _train_one(
    recipe: Recipe,
    training: TrainingData,
    features: Mapping[str, ItemFeatures],
    folder: RunFolder,
    progress: Progress,
    label: str = "",
) -> float:
    """Train one configuration to its end and leave the best epoch's model in the folder; its validation value."""
    selected = recipe.evaluation.select_by
    name, _, cutoff = selected.partition("@")
    with_selected = recipe.evaluation.model_copy(
        update={
            "metrics": tuple(dict.fromkeys([*recipe.evaluation.metrics, name])),
            "cutoffs": tuple(sorted({*recipe.evaluation.cutoffs, int(cutoff)})),
        }
    )
    key = f"{resolve([name])[0].name}@{cutoff}"

    def validate(model: Recommender) -> dict[str, float | None]:
        held_out = training.valid
        lists = rank_all(model, training, with_selected, np.unique(held_out.users))
        return score(lists, training, held_out, with_selected).overall

    if folder.path.joinpath("trained.json").is_file():
        return float(folder.read_json("trained.json")["value"])
    model = build(recipe, training, features)
    trainer = Trainer(
        model,
        training.train,
        recipe.settings,
        validate,
        metric=key,
        every=recipe.evaluation.every,
        patience=recipe.evaluation.patience,
        seed=recipe.seed,
    )
    state = folder.load_state()
    if state is not None:
        trainer.restore(*state)
        progress.note(f"{folder.path}: going on after epoch {trainer.progress.epoch}")
    folder.truncate_history(trainer.progress.epoch if state is not None else -1)
    saved, start_cpu = time.monotonic(), cpu_seconds()
    with progress.task(
        label or f"{recipe.model} seed {recipe.seed}", trainer.epochs or 1, trainer.progress.epoch
    ) as task:
        for record in trainer.run():
            folder.append_history(record)
            if record.improved:
                folder.save_checkpoint(model.weights(), record.epoch)
            if time.monotonic() - saved >= SAVE_EVERY_S and trainer.epochs:
                folder.save_state(trainer.tensors(), trainer.progress)
                saved = time.monotonic()
            task.advance(1, _describe(record, key, trainer.progress.best_value))
    stand = trainer.progress
    folder.write_json(
        "trained.json",
        {
            "best_epoch": stand.best_epoch,
            "epochs": stand.epoch,
            "metric": key,
            "value": stand.best_value,
            "cpu_s": cpu_seconds() - start_cpu,
        },
    )
    folder.drop_state()
    return stand.best_value


def _finish(recipe: Recipe, trained: RunFolder, inputs: Inputs, folder: RunFolder, trials: Mapping[str, Any]) -> None:
    """Score the chosen model on validation and, the only time, on test; write the run's record."""
    training = inputs.split.training
    outcome = trained.read_json("trained.json")
    model = build(recipe, training, inputs.features)
    model.load_weights(trained.load_checkpoint(outcome["best_epoch"]))
    start, start_cpu = time.perf_counter(), cpu_seconds()
    lists = rank_all(model, training, recipe.evaluation)
    scores = _both(lists, inputs.split, recipe.evaluation)
    valid, tested = scores["valid"], scores["test"]
    timings: dict[str, float | None] = {
        "evaluation_s": time.perf_counter() - start,
        "evaluation_cpu_s": cpu_seconds() - start_cpu,
    }
    if trained.path != folder.path:
        folder.save_checkpoint(model.weights(), outcome["best_epoch"])
    seconds = [line["seconds"] for line in trained.history() if line["epoch"] > 0]
    timings["train_s_per_epoch"] = statistics.median(seconds) if seconds else None
    timings["train_s"] = sum(seconds)
    timings["train_cpu_s"] = outcome["cpu_s"]
    _write_per_user(folder, training, scores)
    chosen = int(trained.path.name) if trials else None
    folder.write_json("run.json", _record(recipe, inputs, timings, chosen, scores))
    folder.write_json(
        "metrics.json",
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "best_epoch": outcome["best_epoch"],
            "selected_by": {"split": "valid", "metric": outcome["metric"], "value": outcome["value"]},
            "valid": valid.overall,
            "test": tested.overall,
        },
    )


def _score_test(lists: RankedLists, training: TrainingData, test: TestData, evaluation: Evaluation) -> Scores:
    """The only place where test rows meet a model's lists."""
    return score(lists, training, test.rows, evaluation)


def _write_per_user(folder: RunFolder, training: TrainingData, scores: Mapping[str, Scores]) -> None:
    """Per-user values as Parquet: user_id, split, one column per metric@cut-off."""
    import pandas as pd

    frames = [
        pd.DataFrame({"user_id": training.user_ids[one.users], "split": split, **one.per_user})
        for split, one in scores.items()
    ]
    partial = folder.path / "per_user.parquet.partial"
    pd.concat(frames, ignore_index=True).to_parquet(partial, index=False)
    partial.replace(folder.path / "per_user.parquet")


def _record(
    recipe: Recipe, inputs: Inputs, timings: Mapping[str, Any], chosen: int | None, scores: Mapping[str, Scores]
) -> dict[str, Any]:
    """What ran on what."""
    training = inputs.split.training
    device = choose_device(recipe.device)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool": {"name": "mmbench", "version": __version__},
        "libraries": {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "pandas", "h5py")},
        "python": platform.python_version(),
        "device": {"type": str(device), "name": _device_name(device), "threads": torch.get_num_threads()},
        "dataset": {
            "name": training.name,
            "split": training.split,
            "digest": training.digest,
            "test_digest": inputs.split.test.digest,
            "n_users": training.train.n_users,
            "n_items": training.train.n_items,
            "n_train": training.train.n_edges,
            "n_valid": int(training.valid.users.size),
            "n_test": int(inputs.split.test.rows.users.size),
            "notes": list(training.notes),
        },
        "features": {
            modality: {
                "name": one.name,
                "digest": one.digest,
                "dim": int(one.vectors.shape[1]),
                "present": int(one.present.sum()),
                "missing": int((~one.present).sum()),
                "missing_policy": recipe.missing,
                "scaling": recipe.scaling,
                "provenance": dict(one.provenance),
            }
            for modality, one in inputs.features.items()
        },
        "seeds": {"run": recipe.seed},
        "settings": recipe.settings.model_dump(mode="json"),
        "chosen_trial": chosen,
        "protocol": {
            "name": recipe.evaluation.protocol,
            "candidates": "items that occur in training",
            "masked": "the user's training items, for validation and for test",
            "selection": f"first best {recipe.evaluation.select_by} on validation, every {recipe.evaluation.every} epochs",
            "test_scored": "once, after selection",
            "ties": "score descending, then item id ascending",
            "users_evaluated": {split: int(one.n_evaluated) for split, one in scores.items()},
        },
        "timings": dict(timings),
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _describe(record: EpochRecord, key: str, best: float) -> str:
    loss = sum(record.loss.values())
    return f"loss {loss:.4f}  best {key} {best:.4f}" if best > float("-inf") else f"loss {loss:.4f}"


def _clear(folder: RunFolder) -> None:
    """Remove what an earlier run left, and nothing else."""
    import shutil

    for name in ("run.json", "metrics.json", "trained.json", "history.jsonl", "per_user.parquet"):
        (folder.path / name).unlink(missing_ok=True)
    for path in (folder.checkpoint_path, folder.state_path):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder.path / "trials", ignore_errors=True)


def evaluate_run(path: Path, evaluation: Evaluation, data: Path | None = None) -> dict[str, Scores]:
    """Rank again with a finished run's model and score both held-out splits.

    Raises:
        DataError: The folder is no finished run, or its data has changed.
    """
    result = read_result(path)
    recipe, inputs, folder = resume_inputs(path, data)
    chosen = result.recipe.model_copy(update={"data": recipe.data})
    model = build(chosen, inputs.split.training, inputs.features)
    model.load_weights(folder.load_checkpoint(result.best_epoch))
    lists = rank_all(model, inputs.split.training, evaluation)
    return _both(lists, inputs.split, evaluation)


def evaluate_lists(
    recs: Path, data: Path, split: str | None, evaluation: Evaluation, columns: Mapping[str, str] | None = None
) -> tuple[dict[str, Scores], list[str]]:
    """Score lists made anywhere else on both held-out splits; the scores and what should be known about the lists.

    Raises:
        DataError: The lists can't be read or do not belong to the dataset.
    """
    loaded = load_split(data, split, columns)
    users, items, notes = read_lists(recs, loaded, max(evaluation.cutoffs))
    return _both(RankedLists(users, items), loaded, evaluation), [*loaded.training.notes, *notes]


def _both(lists: RankedLists, split: Split, evaluation: Evaluation) -> dict[str, Scores]:
    training = split.training
    return {
        "valid": score(lists, training, training.valid, evaluation),
        "test": _score_test(lists, training, split.test, evaluation),
    }


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results as JSON values, in order."""
    return [
        {
            "run": str(result.path),
            "model": result.recipe.model,
            "seed": result.recipe.seed,
            "settings": result.recipe.settings.model_dump(mode="json"),
            "best_epoch": result.best_epoch,
            "valid": result.valid,
            "test": result.test,
        }
        for result in results
    ]
