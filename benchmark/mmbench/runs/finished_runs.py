"""Finished runs, and systems: runs that differ in their seed alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from mmbench.config import RECIPE_FILE, Recipe, read_recipe
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.models import model_class
from mmbench.runs.documents import CURE
from mmbench.runs.folder import RunFolder
from mmbench.runs.kinds import (
    TREATMENT,
    Facts,
    conditions,
    kind_in_words,
    kind_of,
    labels,
    treatment_of,
)
from mmbench.runs.run import chosen_recipe


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """The content of a run folder.

    Attributes:
        path: The folder.
        recipe: The recipe; of a search, with the chosen settings.
        asked: The recipe as given, with the search.
        record: `run.json`.
        metrics: `metrics.json`.
    """

    path: Path
    recipe: Recipe
    asked: Recipe
    record: dict[str, Any]
    metrics: dict[str, Any]

    def per_user(self, split: str, metric: str) -> pd.Series:
        """Return the values by user id; users outside the metric's population are left out.

        Raises:
            UsageError: The metric has no per-user values in this run.
        """
        path = self.path / "per_user.parquet"
        try:
            # Without what pandas noted beside the columns: it would be believed.
            frame: pd.DataFrame = parquet.read_table(path).to_pandas(ignore_metadata=True)
        except (OSError, ValueError, NotImplementedError, pa.ArrowException) as error:
            raise DataError(
                f"{path}: cannot be read ({str(error).splitlines()[0]}); train anew with --restart"
            ) from error
        if not {"split", "user_id"} <= set(frame.columns):
            raise DataError(f"{path}: damaged: has no columns user_id and split; {CURE}")
        if metric not in frame.columns:
            known = [name for name in frame.columns if "@" in str(name)]
            raise unknown_name("per-user metric of this run", metric, known)
        values = frame.loc[frame["split"] == split].set_index("user_id")[metric].dropna()
        if values.index.has_duplicates or not pd.api.types.is_numeric_dtype(values):
            what = f"{metric} on {split} is not one number for each user"
            raise DataError(f"{path}: damaged: {what}; {CURE}")
        return values.sort_index()


@dataclass(frozen=True, eq=False)
class System:
    """Runs that differ in their seed alone.

    Attributes:
        label: The model's name, with the settings that tell it from others of the same model.
        runs: The runs, by seed.
    """

    label: str
    runs: Sequence[FinishedRun]

    @property
    def exact(self) -> bool:
        """Whether the model has no randomness, so that one run says everything."""
        return not model_class(self.runs[0].recipe.model).uses_seed

    def values(self, split: str, metric: str) -> list[float]:
        """Return one value per seed.

        Raises:
            UsageError: The runs do not have that metric.
            DataError: It is not defined in one of them.
        """
        out = []
        for run in self.runs:
            values = run.metrics[split]
            if metric not in values:
                error = unknown_name(f"metric of {run.path}", metric, values)
                raise UsageError(
                    f"{error} Other metrics have to be asked for in training: --metrics, --cutoffs."
                )
            if (value := values[metric]) is None:
                raise DataError(f"{run.path}: {metric} is not defined on {split}")
            out.append(float(value))
        return out

    def by_seed(self, split: str, metric: str) -> pd.DataFrame:
        """Return the values by user id, a column per seed; NaN if a user lacks one at a seed."""
        columns = [run.per_user(split, metric).rename(seed) for seed, run in enumerate(self.runs)]
        return pd.concat(columns, axis=1).sort_index()


_APART = ("seed", "data", "device", "settings", "grid", "search", "columns", "start_from")
"""Keys of a recipe that tell no systems apart, or not by themselves."""


def find_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    """Read the finished runs among run folders and folders of run folders.

    Raises:
        DataError: A path holds no finished run, or one cannot be read.
    """
    found: dict[Path, FinishedRun] = {}
    for path in paths:
        folders = sorted(recipe.parent for recipe in path.glob(f"*/{RECIPE_FILE}"))
        if (path / RECIPE_FILE).is_file():
            folders = [path]
        finished = [folder for folder in folders if RunFolder(folder).complete]
        if not finished:
            raise DataError(
                f"{path}: no finished run here; give run folders, or a folder that holds some"
            )
        found |= {folder.resolve(): _read(folder) for folder in finished}
    return list(found.values())


def group(runs: Sequence[FinishedRun]) -> list[System]:
    """Group runs that differ in their seed alone, in order of first appearance.

    A setting that was searched and the same one given are one system. If the same search chose
    different settings at different seeds, the search is part of the system.

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
    named = zip(labels([_facts(members) for members in groups]), groups, strict=True)
    return [System(label, members) for label, members in named]


def one_each(runs: Sequence[FinishedRun]) -> list[System]:
    """Make each run a system labelled by its seed, to compare the seeds of one model."""
    return [System(f"{run.recipe.model} seed {run.recipe.seed}", [run]) for run in runs]


def require_comparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs whose numbers do not belong in one table.

    Raises:
        DataError: Dataset, split, protocol, masks or relevance differ; the message names them.
    """
    kinds = {kind_in_words(kind_of(run)): run for run in reversed(runs)}
    if len(kinds) > 1:
        counts = Counter(kind_in_words(kind_of(run)) for run in runs)
        told = (f"{kind}: {counts[kind]} runs, {run.path} for one" for kind, run in kinds.items())
        raise DataError(
            f"runs of {len(kinds)} kinds, whose numbers do not belong in one table; choose with "
            "--only dataset=…, split=… or protocol=…, or insist with --allow-mixed\n"
            + "\n".join(f"  {line}" for line in sorted(told))
        )
    expected = conditions(runs[0])
    for run in runs[1:]:
        for condition, got in conditions(run).items():
            if got != expected[condition]:
                raise DataError(
                    f"{run.path} and {runs[0].path}: {condition} differs ({got} and "
                    f"{expected[condition]}), so their numbers do not belong in one table; "
                    "compare runs of the same kind, or insist with --allow-mixed"
                )


def _read(folder: Path) -> FinishedRun:
    record, metrics = (RunFolder(folder).read_json(name) for name in ("run.json", "metrics.json"))
    asked = read_recipe(folder / RECIPE_FILE)
    return FinishedRun(folder, chosen_recipe(asked, record, folder), asked, record, metrics)


def _as_chosen(run: FinishedRun) -> str:
    return json.dumps([_settings([run]), _others([run])], sort_keys=True, default=str)


def _as_asked(run: FinishedRun) -> str:
    given = {n: v for n, v in _settings([run]).items() if n not in run.asked.searched}
    return json.dumps([given, _others([run]), _search([run])], sort_keys=True, default=str)


def _settings(members: Sequence[FinishedRun]) -> dict[str, Any]:
    """The settings; `searched` for those that differ between seeds."""
    first, *others = (run.recipe.settings.model_dump(mode="json") for run in members)
    return {
        name: value if all(other[name] == value for other in others) else "searched"
        for name, value in first.items()
    }


def _search(members: Sequence[FinishedRun]) -> dict[str, Any]:
    asked = members[0].asked.dump()
    return {"grid": asked["grid"], "search": asked["search"]}


def _others(members: Sequence[FinishedRun]) -> dict[str, Any]:
    """The recipe without seed and settings, by plain names: `every`, `visual` and so on."""
    run, data = members[0], members[0].record["dataset"]
    flat: dict[str, Any] = {"data": data["name"], "digest": data["digest"]}
    for name, value in run.recipe.dump().items():
        if name in TREATMENT:
            flat[name] = value
        elif name not in _APART:
            flat |= value if isinstance(value, dict) else {name: value}
    if (start := run.record.get("start_from")) is not None:
        flat["start_from"] = start["system"]
    return flat


def _facts(members: Sequence[FinishedRun]) -> Facts:
    run = members[0]
    others = {**_others(members), **_search(members)}
    for name in ("data", "split", "protocol", *TREATMENT, *run.recipe.features):
        others.pop(name, None)
    settings, searched = _settings(members), frozenset(run.asked.searched)
    features = run.recipe.features
    kind, treatment = kind_of(run), treatment_of(run.recipe)
    return Facts(run.recipe.model, features, settings, searched, others, kind, treatment)
