"""Write a report of finished runs."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmbench.analysis.compare import Comparison, compare, users_in_words
from mmbench.analysis.controls import ContentGain, content_gains
from mmbench.analysis.report.answered import answers
from mmbench.analysis.report.board import ordered
from mmbench.analysis.report.reproduction import write
from mmbench.analysis.report.results import (
    Reproduction,
    data_fact,
    feature_facts,
    file_name,
    line_of,
    protocol_fact,
)
from mmbench.errors import ToolError
from mmbench.interface.choices import Place
from mmbench.interface.comparing import Places, Wanted, chosen_runs
from mmbench.metrics import spelled
from mmbench.runs import kinds as kinds_of
from mmbench.runs.finished_runs import FinishedRun, System, group
from mmbench.runs.kinds import conditions, digest_of, kind_of

_ALL_PAIRS = 12
"""Systems up to which all pairs are compared; more are compared with the best only."""


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: Its first page, for a browser; without the extra `report` Markdown.
    """

    path: Path

    def _repr_html_(self) -> str:
        """Return a link to the page that a browser shows."""
        page = html.escape(self.path.with_suffix(".html").as_posix(), quote=True)
        return f'<a href="{page}">{page}</a>'


def report(
    runs: Places,
    out: Place = "report",
    metric: str | None = None,
    *,
    only: Wanted = (),
    questions: Sequence[Place] = (),
    allow_mixed: bool = False,
    command: str = "mmbench.report",
) -> Report:
    """Write pages that show finished runs: HTML, Markdown, LaTeX, CSV, SVG and PNG.

    Each dataset, split and protocol has a page; see `mmbench report`.

    Args:
        runs: Run folders, folders that hold some, or the results of `train`.
        out: Folder of the report.
        metric: Metric of the comparison, with cut-off. None: of each page Recall@20, or where some
            run lacks it, what the runs were selected by.
        only: Runs of this dataset, split or protocol alone.
        questions: Pages of `mmbench ask` whose verdicts the pages of their runs repeat.
        allow_mixed: One page per dataset, whatever its runs are of.
        command: What the report says that made it.

    Raises:
        UsageError: There is no such metric, or no run is of that dataset, split or protocol.
        DataError: A place holds no finished run, or one cannot be read; or a page of `questions`
            is none.
    """
    metric = None if metric is None else spelled(metric)
    pages = kinds_of.by_kind(chosen_runs(runs, only))
    if allow_mixed:
        by_dataset: dict[str, list[FinishedRun]] = {}
        for members in pages:
            by_dataset.setdefault(kind_of(members[0])["dataset"], []).extend(members)
        pages = list(by_dataset.values())
    parts = _parts(pages, metric, command)
    if questions:
        asked = [Path(page) for page in questions]
        told = [answers(asked, {run.path.name for run in members}) for members in pages]
        parts = [replace(part, answers=own) for part, own in zip(parts, told, strict=True)]
    return Report(write(parts, Path(out)))


def _parts(
    pages: Sequence[Sequence[FinishedRun]], metric: str | None, command: str
) -> list[Reproduction]:
    """Return a part per page; a digest distinguishes two of one dataset, split and protocol."""
    kinds = [kind_of(members[0]) for members in pages]
    datasets = [kind["dataset"] for kind in kinds]
    parts: list[Reproduction] = []
    for members, kind in zip(pages, kinds, strict=True):
        told, names = f"split {kind['split']}, protocol {kind['protocol']}", list(kind.values())
        if kinds.count(kind) > 1:
            names.append(digest_of(conditions(members[0])))
            told += f", kind {names[-1]}"
        alone = datasets.count(kind["dataset"]) == 1
        page = first = file_name(kind["dataset"] if alone else "-".join(names))
        taken = {part.page.casefold() for part in parts}  # some file systems know no case
        numbers = itertools.count(2)
        while page.casefold() in taken:
            page = f"{first}-{next(numbers)}"
        parts.append(_part(members, told, page, metric or _metric_of(members), command))
    return parts


def _metric_of(members: Sequence[FinishedRun]) -> str:
    usual = "Recall@20"
    if all(usual in run.metrics["test"] for run in members):
        return usual
    return str(members[0].metrics["selected_by"]["metric"])


def _part(
    members: Sequence[FinishedRun], kind: str, stem: str, metric: str, command: str
) -> Reproduction:
    systems = group(members)
    mixed = len({repr(conditions(run)) for run in members}) > 1
    records = [run.record for run in members]
    told = [data_fact(record) for record in records]
    told += [protocol_fact(run.record, run.recipe) for run in members]
    told += [fact for record in records for fact in feature_facts(record)]
    name = kind_of(members[0])["dataset"]
    warnings = ["The runs on this page are of several kinds: their numbers do not compare."]
    lines = [
        line_of(system.label, [run.path for run in system.runs], {}, _settings(system))
        for system in systems
    ]
    sentences: list[str] = []
    outcome: list[Comparison] = []
    gains: list[ContentGain] = []
    if len(systems) > 1:
        try:
            best = ordered(systems, metric)[0].label if len(systems) > _ALL_PAIRS else None
            outcome = compare(systems, [metric], baseline=best)
        except ToolError as error:
            sentences = [f"not compared: {error}"]
        else:
            how = f"randomisation test over {users_in_words(outcome)}, Holm correction"
            if best is not None:
                how = f"compared with the best of {len(systems)} only; {how}"
            gains = content_gains(systems, [metric])
            sentences = [*(one.verdict for one in outcome), f"{how}; see `mmbench compare`"]
    return Reproduction(
        name,
        "",
        command,
        list(dict.fromkeys(told)),
        warnings if mixed else [],
        lines,
        sentences,
        [gain.cells for gain in gains],
        "" if mixed else kind,
        stem,
        metric=metric,
        systems=systems,
        outcome=outcome,
        gains=gains,
    )


def _settings(system: System) -> str:
    default = type(system.runs[0].recipe.settings)().model_dump()
    known = [run.recipe.settings.model_dump() for run in system.runs]
    values = {name: list(dict.fromkeys(str(one[name]) for one in known)) for name in default}
    changed = [name for name, texts in values.items() if texts != [str(default[name])]]
    return ", ".join(f"{name}={' / '.join(values[name])}" for name in changed)
