"""One recipe to one finished run: load, train, select on validation, score test once, save. Resumable at any point."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mmbase.process import cpu_seconds, forget_peak_memory
from mmbase.progress import Progress
from mmbench.config import Evaluation, Recipe, read_recipe, write_recipe
from mmbench.core.interactions import HeldOut, TrainSet
from mmbench.data.dataset import Split, TestData, TrainingData, load_split
from mmbench.data.features import ItemFeatures, load_presence
from mmbench.data.lists import read_lists
from mmbench.errors import DataError, TrainingError
from mmbench.evaluation.evaluate import RankedLists, Scores
from mmbench.evaluation.protocol import (
    describe,
    lists_for_both,
    rows_to_score,
    score,
    validation_rows,
)
from mmbench.evaluation.slices import Slice, SliceScores, make_slices, score_slices
from mmbench.runs.fit import build, fit
from mmbench.runs.folder import FORMAT, FORMAT_VERSION, RunFolder
from mmbench.runs.inputs import Inputs, digests_of, load_inputs, side_data
from mmbench.runs.record import run_record, write_per_user


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run.

    Attributes:
        path: The run folder.
        recipe: Its recipe; for a grid, with the chosen settings.
        valid: Validation metrics of the chosen epoch.
        test: Test metrics of the same epoch.
        best_epoch: That epoch.
        tried: The settings that validation chose from a grid.
        slices: Split to slices, as `SliceScores.as_json` gives them.
        cost: `s/epoch`, `evaluation s`, `peak GiB`, `GPU GiB`, `energy J` of training; None where
            unknown or not measurable.
    """

    path: Path
    recipe: Recipe
    valid: dict[str, float | None]
    test: dict[str, float | None]
    best_epoch: int
    tried: tuple[str, ...] = ()
    slices: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    cost: Mapping[str, float | None] = field(default_factory=dict)


def run_folder(out: Path, recipe: Recipe, inputs: Inputs) -> RunFolder:
    """Where a run of this recipe on this data lives: `<dataset>-<model>-<digest of everything that decides its numbers>`."""
    name = f"{inputs.split.training.name}-{recipe.model}-{recipe.digest(inputs.digests)}"
    return RunFolder(out / name)


def run(
    recipe: Recipe, inputs: Inputs, folder: RunFolder, *, progress: Progress, restart: bool = False
) -> Result:
    """Do what is left of a run and return its result; a finished run is read, not repeated.

    Raises:
        TrainingError: The run is being written by another process, or the training diverged.
    """
    if folder.complete and not restart:
        return read_result(folder.path)  # wherever it is kept: nothing is written, not even a lock
    with locked(folder):
        if restart:
            folder.clear()
        if not folder.complete:
            write_recipe(folder.recipe_path, recipe)
            forget_peak_memory()
            chosen, chosen_folder = fit(
                recipe, inputs.split.training, inputs.features, folder, progress
            )
            _finish(chosen, chosen_folder, inputs, folder)
    return read_result(folder.path)


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keep other processes from writing a run.

    Raises:
        TrainingError: Another process is writing it.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise TrainingError(
            f"{folder.path}: another process is writing this run; wait for it or stop it"
        ) from error
    with lock:
        yield


def read_result(path: Path) -> Result:
    """The result of a finished run folder.

    Raises:
        DataError: The folder is no finished run.
    """
    folder = RunFolder(path)
    if not folder.complete and folder.recipe_path.is_file():
        raise DataError(
            f"{path}: the run is not finished; go on with `mmbench train --resume {path}`"
        )
    metrics, record = folder.read_json("metrics.json"), folder.read_json("run.json")
    recipe = read_recipe(folder.recipe_path)
    return Result(
        path,
        chosen_recipe(recipe, record),
        metrics["valid"],
        metrics["test"],
        metrics["best_epoch"],
        recipe.searched,
        metrics.get("slices", {}),
        cost_of(record),
    )


def cost_of(record: Mapping[str, Any]) -> dict[str, float | None]:
    """What a run cost, from its record; see `Result.cost`."""
    timings, energy = record["timings"], record["timings"].get("train_energy_j")
    peaks = [record["peak_memory_bytes"], record["peak_gpu_memory_bytes"]]
    return {
        "s/epoch": timings["train_s_per_epoch"],
        "evaluation s": timings["evaluation_s"],
        "peak GiB": None if peaks[0] is None else peaks[0] / 2**30,
        "GPU GiB": None if peaks[1] is None else peaks[1] / 2**30,
        "energy J": sum(energy.values()) if isinstance(energy, dict) else None,
    }


def chosen_recipe(recipe: Recipe, record: Mapping[str, Any]) -> Recipe:
    """A finished run's recipe with the settings that validation chose, as `run.json` has them."""
    return recipe.trial({name: record["settings"][name] for name in recipe.searched})


def resume_inputs(path: Path, data: Path | None = None) -> tuple[Recipe, Inputs, RunFolder]:
    """What an unfinished run needs to go on, or what a finished one was made of.

    A finished run says itself which data it is from; of an unfinished one the folder's name does.

    Raises:
        DataError: The dataset has changed since the run began.
    """
    folder = RunFolder(path)
    recipe = read_recipe(folder.recipe_path)
    if data is not None:
        recipe = recipe.model_copy(update={"data": str(data)})
    recipe, inputs = load_inputs(recipe)
    if folder.complete:
        same = digests_of(folder.read_json("run.json")) == inputs.digests
    else:
        same = path.resolve().name.endswith(recipe.digest(inputs.digests))
    if not same:
        renamed = (
            ""
            if folder.complete
            else "; or give the folder the name back that it had, if it was renamed"
        )
        raise DataError(
            f"{path}: the interactions, split or features in {recipe.data} differ from those the "
            "run began with; "
            f"start a new run, or restore the data{renamed}"
        )
    return recipe, inputs, folder


def _finish(recipe: Recipe, trained: RunFolder, inputs: Inputs, folder: RunFolder) -> None:
    """Score the chosen model on validation and, the only time, on test; write the run's record."""
    training = inputs.split.training
    outcome = trained.read_json("trained.json")
    model = build(recipe, training, inputs.features)
    model.load_weights(trained.load_checkpoint(outcome["best_epoch"]))
    start, start_cpu = time.perf_counter(), cpu_seconds()
    lists = lists_for_both(model, training, inputs.features, recipe.evaluation)
    scored = _score_both(lists, inputs.split, recipe.evaluation, _present(inputs.features))
    scores = scored.scores
    timings: dict[str, Any] = {
        "evaluation_s": time.perf_counter() - start,
        "evaluation_cpu_s": cpu_seconds() - start_cpu,
    }
    if trained.path != folder.path:
        folder.save_checkpoint(model.weights(), outcome["best_epoch"])
    seconds = [line["seconds"] for line in trained.history() if line["epoch"] > 0]
    timings["train_s_per_epoch"] = statistics.median(seconds) if seconds else None
    timings["train_s"] = sum(seconds)
    timings["train_cpu_s"] = outcome["cpu_s"]
    timings["train_energy_j"] = outcome.get("energy_j")
    write_per_user(folder, training, scores)
    chosen = int(trained.path.name) if trained.path != folder.path else None
    folder.write_json("run.json", run_record(recipe, inputs, timings, chosen, scores, outcome))
    folder.write_json(
        "metrics.json",
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "best_epoch": outcome["best_epoch"],
            "selected_by": {
                "split": "valid",
                "metric": outcome["metric"],
                "value": outcome["value"],
            },
            "valid": scores["valid"].overall,
            "test": scores["test"].overall,
            "slices": {
                name: [one.as_json() for one in slices] for name, slices in scored.slices.items()
            },
        },
    )


@dataclass(frozen=True, eq=False)
class Scored:
    """What an evaluation found.

    Attributes:
        scores: The metrics on `valid` and on `test`.
        slices: The same on their slices; empty if they were not asked for.
        protocol: Every choice that was made, see `mmbench.evaluation.protocol.describe`.
        notes: What should be known about the data and the lists, one line each.
    """

    scores: dict[str, Scores]
    slices: dict[str, list[SliceScores]]
    protocol: dict[str, Any]
    notes: tuple[str, ...] = ()


def evaluate_run(
    path: Path, evaluation: Evaluation, data: Path | None = None, *, slices: bool = False
) -> Scored:
    """Rank again with a finished run's model and score both held-out splits, by the run's protocol or another.

    Raises:
        DataError: The folder is no finished run, or its data has changed.
    """
    result = read_result(path)
    recipe, inputs, folder = resume_inputs(path, data)
    chosen = result.recipe.model_copy(update={"data": recipe.data, "evaluation": evaluation})
    if evaluation != recipe.evaluation:
        chosen, inputs = load_inputs(chosen)
    evaluation, training = chosen.evaluation, inputs.split.training
    model = build(chosen, training, inputs.features, finished=True)
    model.load_weights(folder.load_checkpoint(result.best_epoch))
    present = None
    if slices:
        present = _present(inputs.features) or load_presence(
            Path(chosen.data) / "features", training.all_item_ids
        )
    lists = lists_for_both(model, training, inputs.features, evaluation)
    return replace(
        _score_both(lists, inputs.split, evaluation, present),
        protocol=describe(evaluation, training, type(model)),
    )


def evaluate_lists(
    recs: Path,
    data: Path,
    split: str | None,
    evaluation: Evaluation,
    columns: Mapping[str, str] | None = None,
    *,
    slices: bool = False,
) -> Scored:
    """Score lists made anywhere else on both held-out splits.

    Raises:
        DataError: The lists can't be read or do not belong to the dataset.
    """
    loaded = load_split(data, split, columns, catalogue=evaluation.protocol == "strict")
    evaluation, loaded, _ = side_data(data, evaluation, loaded, columns)
    training = loaded.training
    users, items, notes = read_lists(recs, loaded, max(evaluation.cutoffs))
    present = load_presence(data / "features", training.all_item_ids) if slices else None
    seen = _n_listed(users, items, training.train)
    if seen:
        notes.append(
            f"{seen} listed items are training positives of their user; no model here lists such"
        )
    known = _n_listed(users, items, training.valid) if evaluation.protocol == "strict" else 0
    if known:
        notes.append(
            f"{known} listed items are validation positives of their user; at test they count as "
            "misses"
        )
    lists = RankedLists(users, items)
    scored = _score_both((lists, lists), loaded, evaluation, present)
    return replace(
        scored, protocol=describe(evaluation, training, None), notes=(*training.notes, *notes)
    )


def _n_listed(users: NDArray[np.int64], items: NDArray[np.int64], rows: HeldOut | TrainSet) -> int:
    """How many of the pairs are in their user's list."""
    n_items = 1 + max(int(items.max(initial=0)), int(rows.items.max(initial=0)))
    listed = (users[:, None] * n_items + items)[items >= 0]
    return int(np.isin(listed, rows.users * n_items + rows.items).sum())


def _score_both(
    lists: tuple[RankedLists, RankedLists],
    split: Split,
    evaluation: Evaluation,
    present: Mapping[str, NDArray[np.bool_]] | None,
) -> Scored:
    """Score validation and test; with slices where presence is given."""
    training = split.training
    slices: list[Slice] = []
    if present is not None:
        slices = make_slices(training.train, training.n_item_rows, training.n_user_rows, present)
    valid = _score_rows(
        lists[0], training, validation_rows(training, evaluation), evaluation, slices
    )
    tested = _score_test(lists[1], training, split.test, evaluation, slices)
    sliced = {"valid": valid[1], "test": tested[1]} if slices else {}
    return Scored({"valid": valid[0], "test": tested[0]}, sliced, {})


def _score_test(
    lists: RankedLists,
    training: TrainingData,
    test: TestData,
    evaluation: Evaluation,
    slices: Sequence[Slice],
) -> tuple[Scores, list[SliceScores]]:
    """The only place where test rows meet lists."""
    return _score_rows(
        lists, training, rows_to_score(test.rows, test.of_others, evaluation), evaluation, slices
    )


def _score_rows(
    lists: RankedLists,
    training: TrainingData,
    rows: HeldOut,
    evaluation: Evaluation,
    slices: Sequence[Slice],
) -> tuple[Scores, list[SliceScores]]:
    """Metrics of held-out rows, all together and slice by slice."""
    of = partial(score, lists, training, evaluation=evaluation)
    return of(rows), score_slices(slices, rows, of)


def _present(features: Mapping[str, ItemFeatures]) -> dict[str, NDArray[np.bool_]]:
    """Which item rows have a vector of their own, by modality."""
    return {
        modality: np.append(one.present, one.other_present) for modality, one in features.items()
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
            "protocol": result.recipe.evaluation.protocol,
            "valid": result.valid,
            "test": result.test,
            "cost": dict(result.cost),
        }
        for result in results
    ]
