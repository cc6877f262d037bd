"""Finished runs as they are read back, and systems: runs that differ in their seed alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mmbench.config import RECIPE_FILE, Recipe, read_recipe
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.models import model_class
from mmbench.runs.folder import RunFolder
from mmbench.runs.run import chosen_recipe


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run folder that has been read.

    Attributes:
        path: The folder.
        recipe: What was run; for a grid, with the chosen settings.
        asked: The recipe as it was given, with what was to be searched.
        record: `run.json`.
        metrics: `metrics.json`.
    """

    path: Path
    recipe: Recipe
    asked: Recipe
    record: dict[str, Any]
    metrics: dict[str, Any]

    def per_user(self, split: str, metric: str) -> pd.Series:
        """The users' values, by user id; users outside the metric's population are left out.

        Raises:
            UsageError: The metric has no per-user values in this run.
        """
        path = self.path / "per_user.parquet"
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: cannot be read ({reason}); train anew with --restart"
            ) from error
        if metric not in frame.columns:
            known = [name for name in frame.columns if "@" in name]
            raise unknown_name("per-user metric of this run", metric, known)
        return frame.loc[frame["split"] == split].set_index("user_id")[metric].dropna().sort_index()


@dataclass(frozen=True, eq=False)
class System:
    """Runs that differ in their seed alone.

    Attributes:
        label: The model's name, with what tells it from others of the same model.
        runs: The runs, by seed.
    """

    label: str
    runs: Sequence[FinishedRun]

    @property
    def exact(self) -> bool:
        """Whether the model has no randomness, so that one run is all there is to know."""
        return not model_class(self.runs[0].recipe.model).uses_seed

    def values(self, split: str, metric: str) -> list[float]:
        """One value a seed.

        Raises:
            UsageError: The runs do not have that metric.
        """
        out = []
        for run in self.runs:
            if metric not in run.metrics[split]:
                error = unknown_name(f"metric of {run.path}", metric, run.metrics[split])
                raise UsageError(
                    f"{error} Other metrics have to be asked for in training: --metrics, --cutoffs."
                )
            value = run.metrics[split][metric]
            if value is None:
                raise DataError(f"{run.path}: {metric} is not defined on {split}")
            out.append(float(value))
        return out

    def by_seed(self, split: str, metric: str) -> pd.DataFrame:
        """The users' values by user id, a column a seed; NaN where a user has none at a seed but has one at another."""
        columns = [run.per_user(split, metric).rename(seed) for seed, run in enumerate(self.runs)]
        return pd.concat(columns, axis=1).sort_index()


def find_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    """The finished runs among run folders and folders of run folders.

    Raises:
        DataError: A path holds no finished run, or one cannot be read.
    """
    found: dict[Path, FinishedRun] = {}
    for path in paths:
        folders = (
            [path]
            if (path / RECIPE_FILE).is_file()
            else sorted(p.parent for p in path.glob(f"*/{RECIPE_FILE}"))
        )
        finished = [folder for folder in folders if (folder / "metrics.json").is_file()]
        if not finished:
            raise DataError(
                f"{path}: no finished run here; give run folders, or a folder that holds some"
            )
        for folder in finished:
            found[folder.resolve()] = _read(folder)
    return list(found.values())


def group(runs: Sequence[FinishedRun]) -> list[System]:
    """Runs by what was run apart from the seed, in order of first appearance, with labels that tell them apart.

    A run that was searched for and then done by itself counts once. Where the same search chose
    other settings at other seeds, choosing is part of the system.

    Raises:
        DataError: Two runs of one recipe and seed have different results.
    """
    chosen: dict[str, set[str]] = {}
    for run in runs:
        chosen.setdefault(_as_asked(run), set()).add(_as_chosen(run))
    by_recipe: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        key = _as_chosen(run) if len(chosen[_as_asked(run)]) == 1 else _as_asked(run)
        same = by_recipe.setdefault(key, {}).setdefault(run.recipe.seed, run)
        if same.metrics["test"] != run.metrics["test"]:
            raise DataError(
                f"{run.path} and {same.path}: the same recipe and seed, but other results; leave "
                "one out"
            )
    groups = [[members[seed] for seed in sorted(members)] for members in by_recipe.values()]
    return [System(_label(members, groups), members) for members in groups]


def one_each(runs: Sequence[FinishedRun]) -> list[System]:
    """Each run as a system of its own, labelled by its seed: for comparing the seeds of one model with each other."""
    return [System(f"{run.recipe.model} seed {run.recipe.seed}", [run]) for run in runs]


def require_comparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs whose numbers do not belong into one table.

    Raises:
        DataError: Data, split, protocol, masks or relevance differ; the message says what and
            where.
    """
    first = runs[0]
    for run in runs[1:]:
        for what, mine in _conditions(first).items():
            theirs = _conditions(run)[what]
            if mine != theirs:
                raise DataError(
                    f"{run.path} and {first.path}: {what} differs ({theirs} and {mine}), so their "
                    "numbers do not belong "
                    "into one table; compare runs of the same kind, or insist with --allow-mixed"
                )


def _read(folder: Path) -> FinishedRun:
    record, metrics = (RunFolder(folder).read_json(name) for name in ("run.json", "metrics.json"))
    asked = read_recipe(folder / RECIPE_FILE)
    return FinishedRun(folder, chosen_recipe(asked, record), asked, record, metrics)


def _as_chosen(run: FinishedRun) -> str:
    # A searched and a given setting are the same model.
    return json.dumps([_settings([run]), _others([run])], sort_keys=True, default=str)


def _as_asked(run: FinishedRun) -> str:
    searched = run.asked.searched
    given = {name: value for name, value in _settings([run]).items() if name not in searched}
    return json.dumps([given, _others([run]), _search([run])], sort_keys=True, default=str)


def _settings(members: Sequence[FinishedRun]) -> dict[str, Any]:
    """The settings; `searched` where a search chose by the seed."""
    first, *others = (run.recipe.settings.model_dump(mode="json") for run in members)
    return {
        name: value if all(other[name] == value for other in others) else "searched"
        for name, value in first.items()
    }


def _search(members: Sequence[FinishedRun]) -> dict[str, Any]:
    asked = members[0].asked.dump()
    return {"grid": asked["grid"], "search": asked["search"]}


def _others(members: Sequence[FinishedRun]) -> dict[str, Any]:
    """What was run apart from seed and settings, by plain names: `every`, `visual` and so on."""
    run = members[0]
    flat: dict[str, Any] = {
        "data": run.record["dataset"]["name"],
        "digest": run.record["dataset"]["digest"],
    }
    for name, value in run.recipe.dump().items():
        if name not in ("seed", "data", "device", "settings", "grid", "search", "columns"):
            flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _label(members: Sequence[FinishedRun], groups: Sequence[Sequence[FinishedRun]]) -> str:
    """The model's name, and where several groups share it, in what they differ: settings, else anything else."""
    model = members[0].recipe.model
    different: dict[str, Any] = {}
    for rival in (
        other for other in groups if other is not members and other[0].recipe.model == model
    ):
        told_by = next((one for one in (_settings, _others) if one(rival) != one(members)), _search)
        mine, theirs = told_by(members), told_by(rival)
        different |= {
            name: mine.get(name)
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        }
    if not different:
        return model
    parts = (
        f"{name}={f'{v:.6g}' if isinstance(v, float) else v}"
        for name, v in sorted(different.items())
    )
    return f"{model}({', '.join(parts)})"


def _conditions(run: FinishedRun) -> dict[str, Any]:
    data, protocol = run.record["dataset"], run.record["protocol"]
    return {
        "the dataset's digest": data["digest"],
        "the test digest": data["test_digest"],
        "the protocol": protocol["name"],
        "the candidates": protocol.get("candidates"),
        "the catalogue's digest": protocol.get("digests", {}).get("catalogue"),
        "the mask": protocol.get("masked"),
        "the relevance threshold": run.recipe.evaluation.threshold,
    }
