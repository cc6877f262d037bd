"""The result of a finished run, as it is read from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mmbase.tabular import Tabular
from mmbench.config import Recipe
from mmbench.runs.fit import in_words


@dataclass(frozen=True, eq=False, repr=False)
class Result(Tabular):
    """A finished run.

    Attributes:
        path: The run folder.
        recipe: Its recipe; for a grid, with the chosen settings.
        valid: Validation metrics of the chosen epoch.
        test: Test metrics of the same epoch.
        best_epoch: That epoch.
        tried: The settings that validation chose from a grid.
        slices: Split to slices, as `SliceScores.as_json` gives them.
        cost: `s/epoch`, `train s`, `evaluation s`, `peak GiB`, `GPU GiB`, `energy J` of training,
            `id weights` and `other weights` that are trained; None where unknown or not measurable.
        trials: The outcome of each trial of a grid or search; see `runs.search.trials_of`.
        no_hits: Splits on which no hit is possible, so that metrics of hits have no value.
    """

    path: Path
    recipe: Recipe
    valid: dict[str, float | None]
    test: dict[str, float | None]
    best_epoch: int
    tried: tuple[str, ...] = ()
    slices: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    cost: Mapping[str, float | None] = field(default_factory=dict)
    trials: Sequence[Mapping[str, Any]] = ()
    no_hits: Sequence[str] = ()

    @property
    def title(self) -> str:
        """The run's folder and the epoch whose model was scored."""
        return f"{self.path.name}: seed {self.recipe.seed}, epoch {self.best_epoch}"

    def to_pandas(self) -> pd.DataFrame:
        """Return a row per split, `valid` and `test`, and a column per metric."""
        values = {"valid": self.valid, "test": self.test}
        return pd.DataFrame.from_dict(values, orient="index").rename_axis("split")

    @property
    def unfinished(self) -> bool:
        """Whether the last epoch is the best one of several validated, so that more may help."""
        every, epochs = self.recipe.evaluation.every, self.recipe.settings.epochs
        return every < epochs == self.best_epoch

    @property
    def failed(self) -> list[tuple[str, str]]:
        """The settings of trials that failed, in words, and why."""
        return [
            (", ".join(f"{name}={in_words(value)}" for name, value in one["settings"].items()), why)
            for one in self.trials
            if (why := one.get("failed"))
        ]
