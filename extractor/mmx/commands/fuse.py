"""`mmx fuse`: several feature sets as one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbase.cli import Command, echo_json, json_option, progress, quiet_option
from mmx.commands.sets import check_names, find_set, opened, store_at, store_option
from mmx.errors import UsageError

if TYPE_CHECKING:
    from mmx.vectors.fusion import How


@click.command(cls=Command)
@click.argument("sets", metavar="MODALITY/NAME...", nargs=-1, required=True)
@click.option(
    "--how",
    type=click.Choice(["concat", "sum", "mean", "mul"]),
    default="concat",
    help="Combination of an item's vectors.",
)
@click.option(
    "--scaling",
    type=click.Choice(["none", "l2"]),
    default="none",
    help="Scale each vector first; l2: to length 1.",
)
@click.option("--name", metavar="NAME", help="Name of the set.  [default: the names and HOW]")
@click.option("--modality", metavar="M", help="Modality of the set.  [default: theirs, or fused]")
@store_option
@click.option("--restart", is_flag=True, help="Replace a set of this name that was made otherwise.")
@json_option
@quiet_option
@click.pass_context
def fuse(
    ctx: click.Context,
    /,
    *,
    sets: tuple[str, ...],
    how: How,
    scaling: str,
    name: str | None,
    modality: str | None,
    root: Path,
    restart: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Join several feature sets of the same items into one, matched by id.

    An item has a vector where all sets have one. concat puts the vectors one after the other; sum,
    mean and mul work number by number and need vectors of one length.

    \b
    EXAMPLES
      mmx fuse visual/clip-vit-b-32 textual/clip-vit-b-32 --how mean --scaling l2
      mmx fuse visual/resnet50 textual/all-minilm-l6-v2 --name both --data data/mine
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
    done = make(
        paths,
        store_at(root).root,
        how=how,
        name=name,
        modality=modality,
        unit=scaling == "l2",
        restart=restart,
        progress=progress(quiet=quiet),
    )
    if as_json:
        echo_json({**dataclasses.asdict(done), "path": done.path.as_posix()}, "mmx.fusion 1.0")
    else:
        click.echo(done.path.as_posix())
    if not quiet and not as_json:
        state = "it was there already" if done.already else how
        counts = f"{done.ok:,} ok, {done.missing:,} missing, {done.corrupt:,} corrupt"
        click.echo(f"{done.dim} numbers per item, {counts}; {state}", err=True)
    ctx.exit(3 if done.corrupt else 0)
