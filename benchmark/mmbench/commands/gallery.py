"""`mmbench gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmbase import cli
from mmbase.cli import FOLDER, PATH, Command
from mmbase.layout import counted
from mmbench.commands.common import command_line, named_users, only_option


@click.command(cls=Command)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=PATH, default=Path("gallery.html"), help="File of the page.")
@click.option("-k", "k", type=click.IntRange(1, 100), default=10, help="Length of a list.")
@click.option(
    "--users",
    help="Users to show: ids separated by commas, or a file with one id per line.  "
    "[default: a random sample]",
)
@click.option("--n-users", type=click.IntRange(1), default=12, help="Size of the random sample.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    help="Seed of the sample and of the comparison with chance.",
)
@click.option(
    "--history", type=click.IntRange(0), default=10, help="Most training items shown per user."
)
@click.option(
    "--n-items", type=click.IntRange(0), default=24, help="Items to show with their neighbours."
)
@click.option("--items", help="Ids of these items instead, separated by commas.")
@click.option("--neighbours", type=click.IntRange(1, 50), default=5, help="Neighbours per item.")
@click.option(
    "--features",
    multiple=True,
    metavar="MODALITY/NAME",
    help="Feature sets in which to find neighbours.  [default: those of the runs, then others]",
)
@click.option(
    "--title", metavar="COLUMN", help="Column of titles in the items table.  [default: title, …]"
)
@only_option
@click.option("--data", type=PATH, help="Dataset folder, if it has moved.")
@cli.json_option
@cli.quiet_option
def gallery(*, runs: tuple[Path, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Show users' histories and recommendations, and items beside their nearest neighbours.

    Writes one HTML page that opens from disk. It shows histories, held-out items and recommended
    lists with pictures, titles and sounds, in a row for each run, and marks the hits. RUN is a run
    folder, or a folder that contains run folders; all runs must be of one dataset and split. Below
    the lists, items stand beside their nearest neighbours in each feature set, so that you see at a
    glance vectors that belong to other items. A table says whether neighbours have more in common
    than chance would give.

    \b
    Examples:
      mmbench gallery runs/demo-vbpr-0123456789
      mmbench gallery runs/ --only split=loo --n-users 30 -k 20 --out loo.html
      mmbench gallery runs/ --users u1,u2 --items B00A,B00B --features visual/resnet50
    """
    from mmbase.pages import require_extra

    require_extra("mmbench gallery")
    from mmbench.analysis.gallery import make

    cli_progress = cli.progress(quiet=options["quiet"])
    users = named_users(options["users"]) if options["users"] is not None else None
    if users is not None:
        cli.refuse_options({"n_users", "seed"}, "is about users that are drawn; --users names them")
    items = None if options["items"] is None else cli.split_list([options["items"]])
    if items is not None:
        cli.refuse_options({"n_items"}, "is about items that are chosen; --items names them")
    wish = make.Wish(
        k=options["k"],
        users=users,
        n_users=options["n_users"],
        seed=options["seed"],
        history=options["history"],
        items=items,
        n_items=options["n_items"],
        neighbours=options["neighbours"],
        features=cli.split_list(options["features"]),
        title=options["title"],
    )
    made = make.make(
        runs, options["only"], wish, out, options["data"], command_line(), cli_progress
    )
    if as_json:
        cli.echo_json(made, "mmbench.gallery 1.0")
        return
    shown = counted(made["users"], "user"), counted(made["pictures"], "picture")
    click.echo(f"{out.as_posix()}: {shown[0]}, {shown[1]}, {made['bytes'] / 1e6:.1f} MB")
    for one in made["sets"]:
        click.echo(f"{one['name']}: {one['verdict']}")
