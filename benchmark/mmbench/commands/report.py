"""`mmbench report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbase.cli import FOLDER, PATH, Command
from mmbench.commands.common import command_line
from mmbench.errors import ToolError

if TYPE_CHECKING:
    from mmbench.analysis.report.results import Reproduction
    from mmbench.runs.finished_runs import FinishedRun, System


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=PATH, default=Path("report"), help="Folder of the report.")
@click.option("--metric", default="Recall@20", help="Metric of the comparison.")
@click.option("--allow-mixed", is_flag=True, help="Accept different splits or protocols.")
def report(runs: tuple[Path, ...], out: Path, metric: str, allow_mixed: bool) -> None:
    """Write tables, plots and which differences are resolved, as Markdown, HTML, LaTeX and CSV.

    RUNS are run folders, or folders that hold some; each dataset has a page. Every row says which
    run folders it is from.

    \b
    Examples:
      mmbench report runs/
      mmbench report runs/tiktok --out report/tiktok --metric nDCG@20
    """
    from mmbench.analysis.report.reproduction import write
    from mmbench.metrics import spelled
    from mmbench.runs.finished_runs import find_runs, group, require_comparable

    metric = spelled(metric)
    by_dataset: dict[str, list[FinishedRun]] = {}
    for run in find_runs(runs):
        by_dataset.setdefault(run.record["dataset"]["name"], []).append(run)
    parts = []
    for name, members in sorted(by_dataset.items()):
        if not allow_mixed:
            require_comparable(members)
        parts.append(_part(name, members, group(members), metric))
    write(parts, out)
    click.echo((out / "index.md").as_posix())


def _part(
    name: str, members: Sequence[FinishedRun], systems: Sequence[System], metric: str
) -> Reproduction:
    from mmbench.analysis.compare import compare, users_in_words
    from mmbench.analysis.report.results import Reproduction, data_fact, line_of

    record = members[0].record
    protocol = record["protocol"]
    facts = [data_fact(record), f"protocol `{protocol['name']}`; {protocol['selection']}"]
    lines = [
        line_of(system.label, [run.path for run in system.runs], {}, _settings(system))
        for system in systems
    ]
    sentences: list[str] = []
    if len(systems) > 1:
        try:
            outcome = compare(systems, [metric])
        except ToolError as error:
            sentences = [f"not compared: {error}"]
        else:
            how = f"randomisation test over {users_in_words(outcome)}, Holm correction"
            sentences = [*(one.verdict for one in outcome), f"{how}; see `mmbench compare`"]
    return Reproduction(name, "", command_line(), facts, [], lines, sentences)


def _settings(system: System) -> str:
    default = type(system.runs[0].recipe.settings)().model_dump()
    known = [run.recipe.settings.model_dump() for run in system.runs]
    values = {name: list(dict.fromkeys(str(one[name]) for one in known)) for name in default}
    changed = [name for name, texts in values.items() if texts != [str(default[name])]]
    return ", ".join(f"{name}={' / '.join(values[name])}" for name in changed)
