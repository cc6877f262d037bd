"""`mmx demo`: the synthetic catalogue."""

from __future__ import annotations

from pathlib import Path

import click

from mmbase.cli import DEFAULT_DATA, PATH, Command, progress, quiet_option, verbose_option

_SEED = click.IntRange(0, 2**32 - 1)


@click.command(cls=Command)
@click.option("--out", metavar="DIR", type=PATH, default=DEFAULT_DATA, help="Folder to make.")
@click.option("--items", metavar="N", type=int, default=800, help="Number of items, at least 24.")
@click.option("--users", metavar="N", type=int, default=1500, help="Number of users, at least 5.")
@click.option(
    "--seed", metavar="N", type=_SEED, default=7, help="Seed of items, users and interactions."
)
@click.option(
    "--space",
    metavar="N",
    type=_SEED,
    help="Seed of the hidden styles and of how they show.  [default: --seed]",
)
@quiet_option
@verbose_option
def demo(
    *, out: Path, items: int, users: int, seed: int, space: int | None, quiet: bool, verbose: bool
) -> None:
    """Generate the synthetic demo catalogue: items with content, and users who like some of them.

    \b
    EXAMPLES
      mmx demo
      mmx demo --out /tmp/small --items 100 --users 200
      mmx demo --out data/other --seed 8 --space 7
    """
    from mmx.demo import write_demo

    reporter = progress(quiet=quiet, verbose=verbose)
    write_demo(out, items=items, users=users, seed=seed, space=space, progress=reporter)
    click.echo(out.as_posix())
