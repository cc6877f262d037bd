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
@click.option("--out", type=PATH, default=Path("gallery.html"), help="The page.")
@click.option("-k", "k", type=click.IntRange(1, 100), default=10, help="Items of a list.")
@click.option(
    "--users", help="File with one user id a line, or ids and commas.  [default: a random sample]"
)
@click.option("--n-users", type=click.IntRange(1), default=12, help="Users that are drawn.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the draw.")
@click.option("--history", type=click.IntRange(0), default=10, help="Training items of a user.")
@click.option("--n-items", type=click.IntRange(0), default=24, help="Items with neighbours.")
@click.option("--items", help="Ids, with commas, of the items with neighbours instead.")
@click.option("--neighbours", type=click.IntRange(1, 50), default=5, help="Neighbours of an item.")
@click.option(
    "--features",
    multiple=True,
    metavar="MODALITY/NAME",
    help="Feature sets to find neighbours in.  [default: those of the runs, then others]",
)
@click.option(
    "--title", metavar="COLUMN", help="Column of titles in the items table.  [default: title, …]"
)
@only_option
@click.option("--data", type=PATH, help="Dataset folder, if it has moved.")
@cli.json_option
@cli.quiet_option
def gallery(*, runs: tuple[Path, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Show what users have, what models recommend to them, and items beside their neighbours.

    One HTML page that opens from a file: histories, held-out items and lists with pictures, titles
    and sounds, hits marked, a row for each run. RUN is a run folder, or a folder that holds some;
    all have to be of one dataset and split. Below, items stand beside the nearest ones in each
    feature set: vectors that belong to other items show at a glance, and a table says whether
    neighbours have more in common than chance would have it.

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
