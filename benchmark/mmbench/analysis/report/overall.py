"""Systems over several datasets: mean ranks, and the difference that ranks must exceed."""

from __future__ import annotations

import itertools
import statistics as stdlib
from collections.abc import Sequence
from dataclasses import dataclass

from mmbase.pages import Cell, Column, Table
from mmbench.analysis import statistics
from mmbench.analysis.report.board import ordered
from mmbench.analysis.report.results import Reproduction


@dataclass(frozen=True)
class MeanRanks:
    """The mean ranks of the systems that every dataset has.

    Attributes:
        metric: What they are ranked by.
        ranks: By system, best first.
        by_dataset: The rank on each dataset, by system.
        datasets: The datasets' names.
        p: Of Friedman's test that all systems are alike.
        critical: Nemenyi's critical difference of two mean ranks at 0.05.
    """

    metric: str
    ranks: dict[str, float]
    by_dataset: dict[str, list[float]]
    datasets: Sequence[str]
    p: float
    critical: float

    def joined(self, system: str) -> list[str]:
        """The other systems whose mean rank does not differ from this one's."""
        mine = self.ranks[system]
        return [n for n, r in self.ranks.items() if n != system and abs(r - mine) < self.critical]

    def table(self) -> Table:
        """The ranks as a table."""
        columns = [Column("system", numeric=False), Column("mean rank", less=True)]
        columns += [Column(name, less=True) for name in self.datasets]
        columns.append(Column("not apart from", numeric=False))
        rows: list[list[Cell | str]] = [
            [
                name,
                Cell(f"{rank:.2f}", rank),
                *(Cell(f"{one:g}", one) for one in self.by_dataset[name]),
                ", ".join(self.joined(name)) or "–",
            ]
            for name, rank in self.ranks.items()
        ]
        return Table(f"Ranks by mean {self.metric}", columns, rows, sorted_by=1)


def mean_ranks(parts: Sequence[Reproduction]) -> MeanRanks | None:
    """Return the ranks over datasets; None with fewer than two, or two systems in common.

    Pages of one dataset (several splits or protocols) are no independent samples: they count as
    one, by the mean of their ranks.
    """
    if not parts or any(part.metric != parts[0].metric for part in parts):
        return None
    values = [{one.label: one.mean for one in ordered(part.systems, part.metric)} for part in parts]
    shared = [name for name in values[0] if all(name in one for one in values)] if values else []
    datasets = list(dict.fromkeys(part.dataset for part in parts))
    if len(shared) < 2 or len(datasets) < 2:
        return None
    of_parts = [
        dict(zip(shared, statistics.ranks([one[n] for n in shared], part.metric_sign), strict=True))
        for part, one in zip(parts, values, strict=True)
    ]
    by_dataset = {
        name: [
            stdlib.fmean(r[name] for p, r in zip(parts, of_parts, strict=True) if p.dataset == d)
            for d in datasets
        ]
        for name in shared
    }
    means = {name: stdlib.fmean(own) for name, own in by_dataset.items()}
    best_first = dict(sorted(means.items(), key=lambda one: one[1]))
    return MeanRanks(
        parts[0].metric,
        best_first,
        by_dataset,
        datasets,
        statistics.friedman(list(by_dataset.values())),
        statistics.nemenyi_difference(len(shared), len(datasets)),
    )


def in_words(found: MeanRanks) -> str:
    """Return what the diagram says, as sentences."""
    n, k = len(found.datasets), len(found.ranks)
    pairs = [(a, b) for a, b in itertools.combinations(found.ranks, 2) if b not in found.joined(a)]
    p = "<0.001" if found.p < 0.001 else f"{found.p:.3f}"
    told = (
        f"{k} systems that all {n} datasets have, ranked by mean {found.metric}. Friedman's test: "
        f"p {p}. Mean ranks that differ by less than {found.critical:.2f} (Nemenyi, 0.05; the grey "
        "bars) are not apart"
    )
    few = "; with so few datasets only large differences can be" if n < 5 else ""
    return f"{told}{few}. {len(pairs)} of {k * (k - 1) // 2} pairs are."
