"""One recipe to one finished run: load, train, select on validation, score test once, save.

A run resumes at any point.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from mmbase import gemm
from mmbase.process import cpu_seconds, forget_peak_memory
from mmbase.progress import Progress
from mmbench.config import Evaluation, Recipe, read_recipe, write_recipe
from mmbench.data.dataset import TrainingData
from mmbench.data.features import load_presence
from mmbench.errors import DataError, TrainingError, UsageError
from mmbench.evaluation.protocol import Scored, Setting, check, lists_for_both, score_both
from mmbench.evaluation.scoring import Scores
from mmbench.models import model_class
from mmbench.models.base import Recommender
from mmbench.ops.ann import faiss
from mmbench.ops.id_table import IdTable
from mmbench.runs.devices import choose_device
from mmbench.runs.documents import CURE
from mmbench.runs.fit import as_begun, begin, build, fit_one
from mmbench.runs.folder import FORMAT, FORMAT_VERSION, RunFolder
from mmbench.runs.inputs import Inputs, digests_of, load_inputs
from mmbench.runs.record import record_of
from mmbench.runs.result import Result as Result
from mmbench.runs.search import fit_trials, trials_of
from mmbench.runs.start import in_a_sentence, read_source, shapes_of
from mmbench.runs.trackers import publish

ROW_GROUP = 1 << 17
"""Rows of a group of per_user.parquet: a reader of many users may take one after the other."""


def run_folder(out: Path, recipe: Recipe, inputs: Inputs) -> RunFolder:
    """Return the folder `<dataset>-<model>-<digest>`; all that decides a run's numbers counts."""
    name = f"{inputs.split.training.name}-{recipe.model}-{recipe.digest(inputs.digests)}"
    return RunFolder(out / name)


def run(
    recipe: Recipe, inputs: Inputs, folder: RunFolder, *, progress: Progress, restart: bool = False
) -> Result:
    """Do what is left of a run and return its result; a finished run is read, not repeated.

    Raises:
        TrainingError: The run is being written by another process.
        Diverged: The training did, or every trial.
    """
    if folder.complete and not restart:
        return read_result(folder.path)  # nothing is written, not even a lock
    with locked(folder):
        if restart:
            folder.clear()
        if not folder.complete:
            write_recipe(folder.recipe_path, recipe)
            forget_peak_memory()
            setting = inputs.setting_of(recipe)
            check_data(recipe, inputs)
            with as_begun(folder):
                chosen, chosen_folder = fit(recipe, setting, folder, progress)
            _finish(chosen, chosen_folder, inputs, folder)
            publish(read_result(folder.path), progress)
    return read_result(folder.path)


def check_data(recipe: Recipe, inputs: Inputs) -> str:
    """Refuse a device that is not here, what can't be scored or selected on, a start that can't be.

    See `evaluation.protocol.check` and `runs.start`.

    Returns:
        What is carried from another run, and what starts afresh, in words; empty if nothing is.
    """
    setting = inputs.setting_of(recipe)
    if "ann" in recipe.approximate:
        faiss()
    choose_device(recipe, setting)
    selects = model_class(recipe.model).trained and bool(recipe.settings.epochs or recipe.searched)
    check(setting, inputs.split.test, selects=selects)
    if recipe.start_from is None:
        return ""
    source, told = read_source(recipe.start_from), {}
    source.require_same(recipe, inputs.features, inputs.split.training.digest)
    for trial in shapes_of(recipe):  # now, and not after some trainings
        told = source.carry(build(trial, setting), trial)
    return in_a_sentence(told)


def fit(
    recipe: Recipe, setting: Setting, folder: RunFolder, progress: Progress, *, jobs: int = 1
) -> tuple[Recipe, RunFolder]:
    """Train a recipe, or the trials of its grid or search; see `fit_one` and `fit_trials`.

    Returns:
        The recipe, with the settings that validation chose, and the folder of its checkpoint.
    """
    if recipe.searched:
        return fit_trials(recipe, setting, folder, progress, jobs=jobs)
    fit_one(recipe, setting, folder, progress, jobs=jobs)
    return recipe, folder


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
    """Read the result of a run folder; a DataError where it is not finished."""
    folder = RunFolder(path)
    if not folder.complete and folder.recipe_path.is_file():
        raise DataError(
            f"{path}: the run is not finished; go on with `mmbench train --resume {path}`"
        )
    metrics, record = folder.read_json("metrics.json"), folder.read_json("run.json")
    recipe = read_recipe(folder.recipe_path)
    return Result(
        path,
        chosen_recipe(recipe, record, path),
        metrics["valid"],
        metrics["test"],
        metrics["best_epoch"],
        recipe.searched,
        metrics.get("slices", {}),
        cost_of(record),
        record.get("trials", ()),
        record["protocol"].get("no_hit_possible", ()),
    )


def cost_of(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the costs in a run's record; see `Result.cost`."""
    timings, energy = record["timings"], record["timings"].get("train_energy_j")
    peaks = [record["peak_memory_bytes"], record["peak_gpu_memory_bytes"]]
    weights = record.get("parameters") or {}
    return {
        "s/epoch": timings["train_s_per_epoch"],
        "train s": timings.get("train_s"),
        "evaluation s": timings["evaluation_s"],
        "peak GiB": None if peaks[0] is None else peaks[0] / 2**30,
        "GPU GiB": None if peaks[1] is None else peaks[1] / 2**30,
        "energy J": sum(energy.values()) if isinstance(energy, dict) else None,
        "id weights": weights.get("ids"),
        "other weights": weights.get("others"),
    }


def chosen_recipe(recipe: Recipe, record: Mapping[str, Any], path: Path) -> Recipe:
    """Return the recipe of the finished run at `path` with the settings that validation chose.

    Raises:
        DataError: The record lacks one of them, or it is out of range.
    """
    settings, where = record["settings"], f"{path / 'run.json'}: settings"
    for name in recipe.searched:
        if name not in settings:
            raise DataError(f"{where}.{name}: is absent, and the recipe searched it; {CURE}")
    try:
        return recipe.trial({name: settings[name] for name in recipe.searched})
    except UsageError as error:
        raise DataError(f"{where}: {error}; {CURE}") from error


def resume_inputs(path: Path, data: Path | None = None) -> tuple[Recipe, Inputs, RunFolder]:
    """Load what an unfinished run needs to go on, or what a finished one was made of.

    A finished run's record names its data; an unfinished run's folder name does.

    Raises:
        DataError: The dataset has changed since the run began.
    """
    folder = RunFolder(path)
    recipe = read_recipe(folder.recipe_path)
    if data is not None:
        recipe = recipe.model_copy(update={"data": str(data)})
    elif not Path(recipe.data).is_dir():
        raise DataError(
            f"{path}: its dataset {recipe.data} is not there; say where it is now: --data DIR"
        )
    recipe, inputs = load_inputs(recipe)
    if folder.complete:
        same = digests_of(folder.read_json("run.json")) == inputs.digests
    else:
        same = path.resolve().name.endswith(recipe.digest(inputs.digests))
    if not same:
        renamed = "; or give the folder the name back that it had, if it was renamed"
        raise DataError(
            f"{path}: the interactions, split or features in {recipe.data} differ from those the "
            "run began with; start a new run, restore the data, or say where they are: --data DIR"
            f"{'' if folder.complete else renamed}"
        )
    return recipe, inputs, folder


def _finish(recipe: Recipe, trained: RunFolder, inputs: Inputs, folder: RunFolder) -> None:
    """Score the chosen model on validation and, the only time, on test; write the run's record."""
    setting = inputs.setting_of(recipe)
    begin(folder)
    outcome = trained.read_json("trained.json")
    model = build(recipe, setting)
    trained.load_model(model, outcome["best_epoch"])
    start, start_cpu = time.perf_counter(), cpu_seconds()
    lists = lists_for_both(model, setting)
    scored = score_both(lists, setting, inputs.split.test, setting.present)
    end, end_cpu, chosen, scores = time.perf_counter(), cpu_seconds(), None, scored.scores
    if trained.path != folder.path:
        chosen = int(trained.path.name)
        folder.save_checkpoint(model.weights(), outcome["best_epoch"])
        folder.keep_checkpoint(outcome["best_epoch"])  # one may be there, if this was killed before
    seconds = [line["seconds"] for line in trained.history() if line["epoch"] > 0]
    timings = {
        "evaluation_s": end - start,
        "evaluation_cpu_s": end_cpu - start_cpu,
        "train_s_per_epoch": statistics.median(seconds) if seconds else None,
        "train_s": sum(seconds),
        "train_cpu_s": outcome["cpu_s"],
        "train_energy_j": outcome.get("energy_j"),
    }
    _write_per_user(folder, setting.training, scores)
    selected = {"split": "valid", "metric": outcome["metric"], "value": outcome["value"]}
    record = record_of(recipe, inputs, timings, chosen, scores, outcome)
    record["parameters"] = model.parameter_counts()
    deferred = [name for name, one in model.named_modules() if isinstance(one, IdTable)]
    if deferred:
        record["deferred"] = deferred
    if model.recalls:
        record["ann"] = model.recalls
    if chosen is not None:
        record["trials"] = trials_of(read_recipe(folder.recipe_path), folder)
    folder.write_json("run.json", record)
    folder.remove_leavings()
    folder.write_json(
        "metrics.json",
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "best_epoch": outcome["best_epoch"],
            "selected_by": selected,
            "valid": scores["valid"].overall,
            "test": scores["test"].overall,
            "slices": {
                name: [one.as_json() for one in slices] for name, slices in scored.slices.items()
            },
        },
    )


def _write_per_user(
    folder: RunFolder, training: TrainingData, scores: Mapping[str, Scores]
) -> None:
    """Per-user values as Parquet: user_id, split, one column per metric@cut-off, by row groups."""
    user_ids = training.user_ids.astype(object)
    frames = [
        pd.DataFrame({"user_id": user_ids[one.users], "split": split, **one.per_user})
        for split, one in scores.items()
    ]
    partial = folder.path / "per_user.parquet.partial"
    whole = pd.concat(frames, ignore_index=True)
    whole.to_parquet(partial, index=False, row_group_size=ROW_GROUP)
    partial.replace(folder.path / "per_user.parquet")


def load_model(
    path: Path, data: Path | None = None, evaluation: Evaluation | None = None
) -> tuple[Recommender, Recipe, Inputs]:
    """Load a finished run's model, its chosen recipe, and its data.

    Args:
        path: The run folder.
        data: The dataset folder, if it has moved.
        evaluation: How to rank and score; None: as the run did.

    Raises:
        DataError: The folder is no finished run, or its data has changed.
    """
    result = read_result(path)
    recipe, inputs, folder = resume_inputs(path, data)
    evaluation = evaluation or recipe.evaluation
    if model_class(recipe.model).uses_categories:
        column = recipe.evaluation.categories
        if evaluation.categories not in (None, column):
            raise UsageError(f"{path}: {recipe.model} was trained with --categories {column}")
        evaluation = evaluation.model_copy(update={"categories": column})
    chosen = result.recipe.model_copy(update={"data": recipe.data, "evaluation": evaluation})
    if evaluation != recipe.evaluation:
        chosen, inputs = load_inputs(chosen)
    products = folder.read_json("run.json").get("device", {}).get("products", {})
    with suppress(RuntimeError):  # a build of torch without the run's kernel scores with its own
        gemm.use(products.get("gemm"))
    model = build(chosen, inputs.setting_of(chosen), finished=True)
    folder.load_model(model, result.best_epoch)
    return model.train(False), chosen, inputs


def evaluate_run(
    path: Path, evaluation: Evaluation, data: Path | None = None, *, slices: bool = False
) -> Scored:
    """Rank again with a finished run's model and score both splits; errors as in `load_model`."""
    model, recipe, inputs = load_model(path, data, evaluation)
    setting, present = inputs.setting_of(recipe), None
    if slices:
        present = setting.present or load_presence(
            Path(recipe.data) / "features", setting.training.item_ids.tolist()
        )
    scored = score_both(lists_for_both(model, setting), setting, inputs.split.test, present)
    return replace(scored, protocol=setting.describe())


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the results as JSON values, in order."""
    return [
        {
            "run": str(result.path),
            "model": result.recipe.model,
            "seed": result.recipe.seed,
            "settings": result.recipe.settings.model_dump(mode="json"),
            "best_epoch": result.best_epoch,
            "protocol": result.recipe.evaluation.protocol,
            **({"trials": list(result.trials)} if result.trials else {}),
            **({"no_hit_possible": list(result.no_hits)} if result.no_hits else {}),
            "valid": result.valid,
            "test": result.test,
            "cost": dict(result.cost),
        }
        for result in results
    ]
