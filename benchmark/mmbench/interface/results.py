"""What the calls return: frozen, and shown as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pandas as pd

from mmbase.dataset import find_table
from mmbase.tabular import Tabular
from mmbench.analysis.compare import Comparison
from mmbench.analysis.controls import ContentGain
from mmbench.config import Evaluation
from mmbench.data.dataset import Split, TestData, TrainingData
from mmbench.data.files import read_known
from mmbench.data.filters import describe
from mmbench.data.splits import Rows
from mmbench.evaluation.protocol import Scored
from mmbench.evaluation.scoring import Scores, SliceScores
from mmbench.runs.finished_runs import System
from mmbench.runs.kinds import Facts, labels, treatment_of
from mmbench.runs.result import Result


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Tabular):
    """A dataset folder, with one of its splits read and indexed.

    Attributes:
        path: The folder.
        split: The rows by number; see `mmbench.data.dataset.Split`.
        columns: The columns that were named by hand.
    """

    path: Path
    split: Split
    columns: Mapping[str, str]

    @property
    def title(self) -> str:
        """Name, split and the counts that one asks for first."""
        one = self.counts
        return (
            f"{one['dataset']}, split {one['split']}: {one['users']:,} users, {one['items']:,} "
            f"items; {one['train']:,} train, {one['valid']:,} valid, {one['test']:,} test"
        )

    @property
    def training(self) -> TrainingData:
        """All that training and selection may see: ids, pairs, validation rows, digests, notes."""
        return self.split.training

    @property
    def test(self) -> TestData:
        """The test rows."""
        return self.split.test

    @property
    def counts(self) -> dict[str, Any]:
        """Users, items and rows of each part, density, digest; `notes` on how it was read."""
        training, train = self.training, self.training.train
        return {
            "dataset": training.name,
            "split": training.split,
            "users": train.n_users,
            "items": train.n_items,
            "train": train.n_edges,
            "valid": int(training.of_trained_users(training.valid).users.size),
            "test": int(training.of_trained_users(self.test.rows).users.size),
            "density": train.n_edges / (train.n_users * train.n_items),
            "items_per_user": train.n_edges / train.n_users,
            "users_per_item": train.n_edges / train.n_items,
            "digest": training.digest,
            "notes": list(training.notes),
        }

    def interactions(self) -> dict[str, float | int] | None:
        """Read the whole table of interactions, and count; None where only a split is there."""
        whole = find_table(self.path, ("interactions",))
        return describe(Rows.of(read_known(self.path, whole, self.columns))) if whole else None

    def to_pandas(self) -> pd.DataFrame:
        """Return the distinct pairs of all parts: columns user_id, item_id and part."""
        training = self.training
        train, valid, test = training.train, training.valid, self.test.rows
        pairs = {"train": (train.users, train.items)}
        pairs |= {"valid": (valid.users, valid.items), "test": (test.users, test.items)}
        frames = [
            pd.DataFrame(
                {
                    "user_id": training.user_ids[users],
                    "item_id": training.item_ids[items],
                    "part": part,
                }
            )
            for part, (users, items) in pairs.items()
        ]
        return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True, eq=False, repr=False)
class Runs(Tabular, Sequence[Result]):
    """Finished runs, in the order in which they were asked for.

    Attributes:
        results: A result each; `runs[0]` and `for run in runs` give them, too.
    """

    results: tuple[Result, ...]

    @overload
    def __getitem__(self, place: int) -> Result: ...
    @overload
    def __getitem__(self, place: slice) -> Runs: ...
    def __getitem__(self, place: int | slice) -> Result | Runs:
        """Return a result, or several as `Runs`."""
        found = self.results[place]
        return found if isinstance(found, Result) else Runs(found)

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self.results)

    @property
    def title(self) -> str:
        """How many runs there are, and what is shown of them."""
        return f"{len(self)} run{'s' * (len(self) != 1)}, test"

    @property
    def labels(self) -> list[str]:
        """Each run's model, with what distinguishes it from other runs of that model.

        Seeds, and settings that validation chose, do not.
        """
        models = [run.recipe.model for run in self]
        if len(set(models)) == len(self):  # nothing to tell apart
            return models
        facts = []
        for run in self:
            recipe = run.recipe
            settings = {name: value for name, value in recipe.settings if name not in run.tried}
            numeric = {
                "approximate": recipe.approximate,
                "sparse": recipe.sparse_backend,
                "start_from": recipe.start_from and Path(recipe.start_from.run).name,
            }
            told = treatment_of(recipe)
            facts.append(
                Facts(recipe.model, recipe.features, settings, frozenset(), numeric, treatment=told)
            )
        return labels(facts)

    def to_pandas(self, split: str = "test") -> pd.DataFrame:
        """Return a row per run: model, seed, epoch, settings that were chosen, metrics, folder.

        Args:
            split: `test`, or `valid`: whose metrics.
        """
        rows = [
            {
                "model": label,
                "seed": run.recipe.seed,
                "best_epoch": run.best_epoch,
                **{name: getattr(run.recipe.settings, name) for name in run.tried},
                **(run.test if split == "test" else run.valid),
                "run": run.path.name,
            }
            for label, run in zip(self.labels, self, strict=True)
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False, repr=False)
class Evaluated(Tabular):
    """Metrics of a finished run, or of lists made anywhere else.

    Attributes:
        label: The run folder, or the name of the file.
        evaluation: How it was scored.
        scored: What `valid` and `test` score, and how candidates and users were chosen.
    """

    label: str
    evaluation: Evaluation
    scored: Scored

    @property
    def title(self) -> str:
        """What was scored, and by which protocol."""
        return f"{self.label}, protocol {self.evaluation.protocol}"

    @property
    def scores(self) -> Mapping[str, Scores]:
        """`valid` and `test`: overall values, per-user values, numbers of users."""
        return self.scored.scores

    @property
    def slices(self) -> Mapping[str, Sequence[SliceScores]]:
        """The same by popularity, activity, cold items and modalities; empty if not asked for."""
        return self.scored.slices

    @property
    def notes(self) -> tuple[str, ...]:
        """What should be known about the data and the lists, one line each."""
        return self.scored.notes

    def to_pandas(self) -> pd.DataFrame:
        """Return a row per split, `valid` and `test`, and a column per metric."""
        values = {name: one.overall for name, one in self.scores.items()}
        return pd.DataFrame.from_dict(values, orient="index").rename_axis("split")


@dataclass(frozen=True, eq=False, repr=False)
class Comparisons(Tabular):
    """Systems, runs that differ in their seed alone, compared by paired tests.

    Attributes:
        systems: The systems, labelled.
        metrics: Names with cut-off.
        split: The part whose metrics count.
        how: `test`, `correction` and `alpha`.
        comparisons: An outcome per pair of systems and metric; `verdict` is it in words.
        gains: What content adds over the control of the same model, where there is one.
        kinds: The datasets, splits and protocols that the runs are of, in words.
        agreement: Mean Kendall's tau between the orders at two seeds, by metric; None: unknown.
    """

    systems: Sequence[System]
    metrics: Sequence[str]
    split: str
    how: Mapping[str, Any]
    comparisons: Sequence[Comparison]
    gains: Sequence[ContentGain]
    kinds: Sequence[str]
    agreement: Mapping[str, float | None]

    @property
    def title(self) -> str:
        """What was compared, and how."""
        how = self.how
        return (
            f"{'; '.join(self.kinds)}: {how['test']} test over users, {how['correction']} "
            f"correction, alpha {how['alpha']:g}"
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return a row per pair of systems and metric; see `mmbench.analysis.compare`."""
        rows = [
            {
                "metric": one.metric,
                "first": one.first,
                "second": one.second,
                "difference": one.difference,
                "low": one.interval[0],
                "high": one.interval[1],
                "p": one.p,
                "p_seeds": one.p_seeds,
                "effect": one.effect,
                "superiority": one.superiority,
                "better": one.better,
                "verdict": one.verdict,
            }
            for one in self.comparisons
        ]
        return pd.DataFrame(rows)
