"""`mmbench report`."""

from __future__ import annotations

from pathlib import Path

import click

from mmbase.cli import FOLDER, PATH, Command
from mmbench.commands.common import command_line, only_option


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=PATH, default=Path("report"), help="Folder of the report.")
@click.option(
    "--metric",
    help="Metric to compare by.  [default: Recall@20, or if the runs lack it, their --select-by]",
)
@only_option
@click.option(
    "--question",
    "questions",
    multiple=True,
    type=PATH,
    metavar="PAGE.md",
    help="Page of `mmbench ask`; its verdicts are repeated on the pages of its runs.",
)
@click.option(
    "--allow-mixed",
    is_flag=True,
    help="Put all runs of a dataset on one page, even if splits or protocols differ.",
)
def report(
    runs: tuple[Path, ...],
    out: Path,
    metric: str | None,
    only: tuple[str, ...],
    questions: tuple[Path, ...],
    allow_mixed: bool,
) -> None:
    """Write pages that show finished runs: HTML, Markdown, LaTeX, CSV, SVG and PNG.

    RUNS are run folders, or folders that contain run folders; each combination of dataset, split
    and protocol has a page. An HTML page opens from disk and loads nothing from the network. It
    shows a leaderboard with intervals and resolved orders, trade-offs, learning curves, slices,
    cost, controls, what was compared, warnings, a reproducibility checklist, and the command behind
    every number. HTML and pictures need the extra `report`; docs/reporting.md describes the pages.

    \b
    Examples:
      mmbench report runs/
      mmbench report runs/ --only protocol=strict --out report/strict
      mmbench report runs/tiktok --out report/tiktok --metric nDCG@20
      mmbench report runs/questions --question questions/missing-demo.md
    """
    from mmbench.interface.reporting import report as reported

    done = reported(
        runs,
        out,
        metric,
        only=only,
        questions=questions,
        allow_mixed=allow_mixed,
        command=command_line(),
    )
    click.echo(done.path.as_posix())
