"""Runs of one model that differ in their content: knock-outs, and shares of missing vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmbase.pages import Cell, Column, Table
from mmbench.analysis.report.board import standing
from mmbench.analysis.report.results import Reproduction
from mmbench.analysis.report.tables import number
from mmbench.runs.finished_runs import System
from mmbench.runs.kinds import in_short

_NEVER = ("seed", "data", "device", "columns", "mask_seed")


class Variants:
    """The systems of a page by what they share."""

    def __init__(self, part: Reproduction) -> None:
        self._part = part

    def _alike(self, *apart: str) -> list[list[System]]:
        """Group the systems that are equal but for the keys `apart` and what was searched."""
        groups: dict[str, list[System]] = {}
        for system in self._part.systems:
            plain: dict[str, Any] = system.runs[0].asked.dump()
            for name in (*_NEVER, *apart):
                plain.pop(name, None)
            for name in system.runs[0].asked.searched:
                plain["settings"].pop(name, None)
            groups.setdefault(json.dumps(plain, sort_keys=True, default=str), []).append(system)
        return list(groups.values())

    def knock_outs(self) -> Table | None:
        """Return the systems beside the one of their model that has all of their modalities."""
        rows: list[list[Cell | str]] = []
        for group in self._alike("features"):
            sets = {system.label: dict(system.runs[0].recipe.features) for system in group}
            whole = max(group, key=lambda one: len(sets[one.label]))
            full = sets[whole.label]
            with_all = standing(whole, self._part.metric, users=False)
            less = [one for one in group if sets[one.label].items() < full.items()]
            if not less or with_all is None:
                continue
            rows.append(
                [
                    whole.label,
                    "+".join(full),
                    "–",
                    Cell(number(with_all.mean), with_all.mean),
                    "",
                    "",
                ]
            )
            for one in less:
                own = standing(one, self._part.metric, users=False)
                if own is None:
                    continue
                lost = own.mean - with_all.mean
                without = [m for m in full if m not in sets[one.label]]
                share = f"{lost / with_all.mean:+.1%}" if with_all.mean else "–"
                rows.append([
                    one.label, "+".join(sets[one.label]) or "none", ", ".join(without),
                    Cell(number(own.mean), own.mean), Cell(f"{lost:+.4f}", lost), Cell(share, lost),
                ])  # fmt: skip
        if not rows:
            return None
        head = [Column(name, numeric=False) for name in ("system", "content", "without")]
        head += [Column(self._part.metric), Column("difference"), Column("relative")]
        return Table(
            "Knock-outs: the same model with fewer modalities",
            head,
            rows,
            sortable=False,
            hidden_caption=True,
        )

    def by_share(self) -> list[dict[str, Any]]:
        """Return the metric by the share of vectors taken away, for models with several shares."""
        out: list[dict[str, Any]] = []
        for group in self._alike("mask", "pattern"):
            by_pattern: dict[str, list[tuple[float, System]]] = {}
            for system in group:
                recipe = system.runs[0].recipe
                share = share_of(recipe.mask, recipe.features)
                if share is not None and not recipe.control:
                    by_pattern.setdefault(recipe.pattern if share else "", []).append(
                        (share, system)
                    )
            none = by_pattern.pop("", [])
            for pattern, own in by_pattern.items():
                points = sorted([*none, *own], key=lambda one: one[0])
                if len({share for share, _ in points}) > 1:
                    out += self._line(points, pattern)
        return out

    def _line(self, points: list[tuple[float, System]], pattern: str) -> list[dict[str, Any]]:
        recipe = points[0][1].runs[0].recipe
        policy = in_short(recipe.treatment.policy.short)
        name = f"{recipe.model}, missing={policy}" + (f", {pattern}" if pattern != "random" else "")
        rows = []
        for share, system in points:
            found = standing(system, self._part.metric, users=False)
            if found is not None:
                seeds = list(found.seeds)
                row = {"system": name, "x": share, "y": found.mean, "n": len(seeds)}
                rows.append({**row, "low": min(seeds), "high": max(seeds)})
        return rows


def share_of(mask: Mapping[str, float], features: Mapping[str, str]) -> float | None:
    """Return the share that was taken from all modalities alike; None if it is not one number."""
    if not features:
        return None
    shares = {mask.get(modality, 0.0) for modality in features}
    return shares.pop() if len(shares) == 1 else None
