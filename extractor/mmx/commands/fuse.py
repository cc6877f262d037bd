"""The command `mmx fuse`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from mmx.commands.lookup import check_names, find_set, opened, store_at
from mmx.commands.options import console, debug_option, store_option
from mmx.errors import UsageError

if TYPE_CHECKING:
    from mmx.vectors.fusion import How


@click.command()
@click.argument("sets", metavar="MODALITY/NAME...", nargs=-1, required=True)
@click.option(
    "--how",
    type=click.Choice(["concat", "sum", "mean", "mul"]),
    default="concat",
    show_default=True,
    help="What becomes of an item's vectors.",
)
@click.option(
    "--scaling",
    type=click.Choice(["none", "l2"]),
    default="none",
    show_default=True,
    help="Of each vector, before.",
)
@click.option("--name", metavar="NAME", help="Name of the new set  [the names and HOW].")
@click.option("--modality", metavar="M", help="Its modality  [theirs, or fused].")
@store_option
@click.option("--restart", is_flag=True, help="Replace a set of this name that was made otherwise.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@debug_option
@click.pass_context
def fuse(
    ctx: click.Context, /, *, sets: tuple[str, ...], how: str, scaling: str, name: str | None, modality: str | None,
    root: Path, restart: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Join several feature sets of the same items into one, matched by id.

    An item has a vector where all sets have one. concat puts the vectors one after the other; sum,
    mean and mul work number by number and need vectors of one length.

    \b
    EXAMPLES
      mmx fuse visual/clip-vit-b-32 textual/clip-vit-b-32 --how mean --scaling l2
      mmx fuse visual/resnet50 textual/all-minilm-l6-v2 --name both --store data/mine/features
    """
    from mmx.vectors.fusion import fuse as make

    paths = [find_set(target, root) for target in sets]
    if modality is None:
        modalities = set()
        for path in paths:
            with opened(path) as features:
                modalities.add(features.modality)
        modality = modalities.pop() if len(modalities) == 1 else "fused"
    name = name or "-".join([*(path.stem for path in paths), how])
    check_names(modality, name)
    if len(paths) < 2:
        raise UsageError("MODALITY/NAME: a fusion needs two sets or more")
    with console(quiet=quiet) as progress:
        done = make(
            paths, store_at(root).root, how=cast("How", how), name=name, modality=modality, unit=scaling == "l2", restart=restart,
            progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(done), "path": done.path.as_posix()}))
    else:
        click.echo(done.path.as_posix())
    if not quiet and not as_json:
        state = "it was there already" if done.already else how
        counts = f"{done.ok:,} ok, {done.missing:,} missing, {done.corrupt:,} corrupt"
        click.echo(f"{done.dim} numbers per item, {counts}; {state}", err=True)
    ctx.exit(3 if done.corrupt else 0)
