"""What feature sets cost: seconds, device and bytes, beside what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmbase.extraction_cost import ExtractionCost, read_cost
from mmbench.analysis.question import Cell, in_words
from mmbench.analysis.report.pages import Block, Table
from mmbench.runs.finished_runs import FinishedRun

Done = Sequence[tuple[Cell, FinishedRun]]


def costs_table(done: Done) -> list[Block]:
    """Return the table of all feature sets of the runs."""
    rows: dict[str, list[str]] = {}
    for _, run in done:
        for modality, one in run.record["features"].items():
            if one["digest"] in rows:
                continue
            made, path = one.get("provenance", {}), _path(run, modality, one["name"])
            cost = read_cost(path, one["digest"])
            seconds = cost.of_set if cost else None
            per = seconds / cost.items * 1000 if cost and cost.items and seconds else None
            rows[one["digest"]] = [
                f"{modality} `{one['name']}`",
                str(made.get("model_id") or made.get("extractor") or "not recorded"),
                f"{one['dim']:,}",
                "not recorded" if seconds is None else f"{seconds:.1f}",
                "not recorded" if per is None else f"{per:.1f}",
                cost.device if cost else str(made.get("device") or "not recorded"),
                f"{path.stat().st_size:,}" if path.is_file() else "not recorded",
            ]
    head = ["set", "encoder", "numbers per item", "seconds", "seconds per 1,000 items", "device"]
    about = (
        "Seconds are wall-clock seconds of `mmx extract` on the machine where it ran, start of the "
        "encoder included; imported vectors, and sets made before seconds were kept, have none."
    )
    return [about, Table([*head, "bytes on disk"], list(rows.values()))]


def extra_seconds(done: Done) -> Callable[[Any, Any], float | None]:
    """Return a function: how many seconds one level of `features` took more than another.

    It returns None where the seconds of a set are not recorded.
    """
    known: dict[str, float | None] = {}
    for cell, run in done:
        sets = run.record["features"]
        costs: list[ExtractionCost | None] = [
            read_cost(_path(run, modality, one["name"]), one["digest"])
            for modality, one in sets.items()
        ]
        seconds = [cost.of_set if cost else None for cost in costs]
        whole = [one for one in seconds if one is not None]
        known[in_words(cell.levels.get("features"))] = (
            sum(whole) if len(whole) == len(seconds) else None
        )

    def extra(level: Mapping[str, str], reference: Mapping[str, str]) -> float | None:
        a, b = (known.get(in_words(one)) for one in (level, reference))
        return None if a is None or b is None else a - b

    return extra


def _path(run: FinishedRun, modality: str, name: str) -> Path:
    return Path(run.recipe.data) / "features" / modality / f"{name}.h5"
