"""`mmbench report`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbase.cli import FOLDER, PATH, Command
from mmbench.commands.common import command_line, only_option
from mmbench.errors import ToolError

if TYPE_CHECKING:
    from mmbench.analysis.compare import Comparison
    from mmbench.analysis.controls import ContentGain
    from mmbench.analysis.report.results import Reproduction
    from mmbench.runs.finished_runs import FinishedRun, System

_ALL_PAIRS = 12
"""Systems up to which all pairs are compared; more are compared with the best only."""


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=PATH, default=Path("report"), help="Folder of the report.")
@click.option("--metric", default="Recall@20", help="Metric of the comparison.")
@only_option
@click.option(
    "--question",
    "questions",
    multiple=True,
    type=PATH,
    metavar="PAGE.md",
    help="A page of `mmbench ask` whose verdicts the pages of its runs repeat.",
)
@click.option("--allow-mixed", is_flag=True, help="One page per dataset, whatever its runs are of.")
def report(
    runs: tuple[Path, ...],
    out: Path,
    metric: str,
    only: tuple[str, ...],
    questions: tuple[Path, ...],
    allow_mixed: bool,
) -> None:
    """Write pages that show finished runs: HTML, Markdown, LaTeX, CSV, SVG and PNG.

    RUNS are run folders, or folders that hold some; each dataset, split and protocol has a page.
    An HTML page opens from its file and asks no host for anything: leaderboard with intervals and
    resolved orders, trade-offs, learning curves, slices, cost, controls, what was compared,
    warnings, a reproducibility checklist, and the command behind every number. HTML and pictures
    need the extra `report`; what a page holds is in docs/reporting.md.

    \b
    Examples:
      mmbench report runs/
      mmbench report runs/ --only protocol=strict --out report/strict
      mmbench report runs/tiktok --out report/tiktok --metric nDCG@20
      mmbench report runs/questions --question questions/missing-demo.md
    """
    from mmbench.analysis.report.answered import answers
    from mmbench.analysis.report.reproduction import write
    from mmbench.metrics import spelled
    from mmbench.runs import kinds
    from mmbench.runs.finished_runs import find_runs

    metric = spelled(metric)
    pages = kinds.by_kind(kinds.only(find_runs(runs), only))
    if allow_mixed:
        by_dataset: dict[str, list[FinishedRun]] = {}
        for members in pages:
            by_dataset.setdefault(kinds.kind_of(members[0])["dataset"], []).extend(members)
        pages = list(by_dataset.values())
    parts = _parts(pages, metric)
    if questions:
        of = [{run.path.name for run in members} for members in pages]
        told = [answers(questions, names) for names in of]
        parts = [replace(part, answers=own) for part, own in zip(parts, told, strict=True)]
    click.echo(write(parts, out).as_posix())


def _parts(pages: Sequence[Sequence[FinishedRun]], metric: str) -> list[Reproduction]:
    """Return a part per page; a digest distinguishes two of one dataset, split and protocol."""
    from mmbench.runs.kinds import conditions, digest_of, kind_of

    kinds = [kind_of(members[0]) for members in pages]
    datasets = [kind["dataset"] for kind in kinds]
    parts: list[Reproduction] = []
    for members, kind in zip(pages, kinds, strict=True):
        told, names = f"split {kind['split']}, protocol {kind['protocol']}", list(kind.values())
        if kinds.count(kind) > 1:
            names.append(digest_of(conditions(members[0])))
            told += f", kind {names[-1]}"
        stem = re.sub(r"[^\w.=-]+", "-", "-".join(names))
        if datasets.count(kind["dataset"]) == 1:
            stem = ""
        taken = sum(part.page == stem for part in parts)
        parts.append(_part(members, told, f"{stem}-{taken + 1}" if taken else stem, metric))
    return parts


def _part(members: Sequence[FinishedRun], kind: str, stem: str, metric: str) -> Reproduction:
    from mmbench.analysis.compare import compare, users_in_words
    from mmbench.analysis.controls import content_gains
    from mmbench.analysis.report.board import ordered
    from mmbench.analysis.report.results import (
        Reproduction,
        data_fact,
        feature_facts,
        line_of,
        protocol_fact,
    )
    from mmbench.runs.finished_runs import group
    from mmbench.runs.kinds import conditions, kind_of

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
        command_line(),
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
