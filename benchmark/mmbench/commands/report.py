"""`mmbench report`."""

from __future__ import annotations

from pathlib import Path

import click

from mmbase.cli import FOLDER, PATH, Command
from mmbench.commands.common import command_line, only_option


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=PATH, default=Path("report"), help="Folder of the report.")
@click.option("--metric", default="Recall@20", help="Metric of the comparison.")
@only_option
@click.option("--allow-mixed", is_flag=True, help="One page per dataset, whatever its runs are of.")
def report(
    runs: tuple[Path, ...], out: Path, metric: str, only: tuple[str, ...], allow_mixed: bool
) -> None:
    """Write tables, plots and which differences are resolved, as Markdown, HTML, LaTeX and CSV.

    RUNS are run folders, or folders that hold some; each dataset, split and protocol has a page.
    Every row says which run folders it is from.

    \b
    Examples:
      mmbench report runs/
      mmbench report runs/ --only protocol=strict --out report/strict
      mmbench report runs/tiktok --out report/tiktok --metric nDCG@20
    """
    from mmbench.interface.reporting import report as reported

    done = reported(runs, out, metric, only=only, allow_mixed=allow_mixed, command=command_line())
    click.echo(done.path.as_posix())
