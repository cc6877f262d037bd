"""Verdicts of answered questions: read back from the pages of `mmbench ask`."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from mmbench.analysis.report.results import Answered
from mmbench.errors import DataError


def answers(pages: Sequence[Path], runs: Collection[str]) -> list[Answered]:
    """Return the verdicts of the pages that are about some of these runs.

    Args:
        pages: Pages of `mmbench ask`, each with its CSV beside it.
        runs: Names of run folders.

    Raises:
        DataError: A page is none, or its CSV is missing or none.
    """
    found = [(_verdicts(page), _runs(page.with_suffix(".csv"))) for page in pages]
    return [told for told, of in found if of & set(runs)]


def _verdicts(page: Path) -> Answered:
    text = _read(page)
    title, _, rest = text.partition("\n")
    told = rest.partition("\n## Answer\n")[2].partition("\n## ")[0]
    lines = [line.removeprefix("- ") for line in told.splitlines() if line.startswith("- ")]
    if not title.startswith("# ") or not lines:
        raise DataError(f"{page}: no page of `mmbench ask`: it has no title or no section Answer")
    return Answered(title.removeprefix("# "), lines)


def _runs(values: Path) -> set[str]:
    rows = list(csv.DictReader(_read(values).splitlines()))
    if not rows or "run" not in rows[0]:
        raise DataError(f"{values}: no values of `mmbench ask`: it has no column run")
    return {row["run"] for row in rows}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
