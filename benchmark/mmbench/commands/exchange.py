"""`mmbench data import` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase.cli import FOLDER, PATH, Command
from mmbench.commands.common import columns_option
from mmbench.errors import UsageError

if TYPE_CHECKING:
    from mmbench.data.exchange.bundle import Bundle

_out_option = click.option("--out", type=PATH, required=True, help="Folder to make.")
_READ = click.Choice(["auto", "mmrec", "recbole", "elliot", "microlens", "lightgcn", "ducho"])
_WRITTEN = click.Choice(["mmrec", "recbole", "elliot"])
_MISSING = click.Choice(["error", "mean", "zero"])


@click.command(name="import", cls=Command)
@click.argument("folder", type=FOLDER)
@_out_option
@click.option(
    "--format", "layout_name", type=_READ, default="auto", help="Layout of FOLDER; auto: detected."
)
def import_(folder: Path, out: Path, layout_name: str) -> None:
    """Make a dataset folder out of another framework's.

    Interactions, the split, item texts and content vectors, as far as the layout has them; ids are
    the original ones where the folder says what they are. Ducho's tree holds features alone and
    goes into a dataset folder that is there already.

    \b
    Examples:
      mmbench data import MMRec/data/baby --out data/baby
      mmbench data import --format recbole ml-100k --out data/ml-100k
      mmbench data import --format ducho results/ --out data/baby
    """
    from mmbench.data.exchange import LAYOUTS, layout
    from mmbench.data.exchange.bundle import carved
    from mmbench.data.exchange.folder import write_dataset, write_features

    name, module = layout(layout_name, folder)
    bundle = module.read(folder)
    if set(bundle.parts) == {"train", "test"}:
        bundle = carved(bundle)
    if bundle.parts:
        write_dataset(bundle, out)
    else:
        write_features(bundle, out)
    rows = _rows(bundle)
    click.echo(f"{out}: from {name}{': ' + rows if rows else ''}")
    for one in bundle.vectors:
        absent = int((~one.present).sum())
        shape = f"{len(one.ids):,} items x {one.matrix.shape[1]:,}"
        click.echo(f"  {one.modality}/{one.name}: {shape}, {absent:,} missing")
    notes = [*bundle.notes]
    if name != "ducho" and LAYOUTS["ducho"].detect(folder):
        adds = f"mmbench data import --format ducho {folder} --out {out}"
        notes.append(f"it holds a tree of Ducho's, too: {adds} adds it")
    for note in notes:
        click.echo(f"  note: {note}")


@click.command(name="export", cls=Command)
@click.argument("folder", type=PATH)
@click.option("--format", "layout_name", type=_WRITTEN, required=True, help="Layout to write.")
@_out_option
@click.option("--split", help="Split name, or random[:TEST,VALID[,SEED]].  [default: the only one]")
@click.option("--features", multiple=True, metavar="MODALITY=NAME", help="Feature sets to write.")
@click.option("--missing", type=_MISSING, default="error", help="Replacement of an absent vector.")
@columns_option
def export(*, folder: Path, layout_name: str, out: Path, missing: str, **options: Any) -> None:
    """Write a dataset in the layout of another framework, to run that framework on the same data.

    What the layout cannot hold stands in mmbench-export.json, so that `mmbench data import` gives
    the same dataset back.

    \b
    Examples:
      mmbench data export data/baby --format mmrec --features visual=resnet50 --out MMRec/data/baby
      mmbench data export data/baby --format elliot --split elliot --missing mean --out baby
      mmbench data export data/baby --format recbole --out baby
    """
    from dataclasses import replace

    from mmbench.data.exchange import layout
    from mmbench.data.exchange.folder import read_dataset
    from mmbench.data.features import parse_wanted
    from mmbench.data.folders import new_folder

    wanted = parse_wanted(options["features"])
    if wanted and layout_name == "recbole":
        raise UsageError("--features: RecBole's files have no place for vectors; leave it out")
    bundle = read_dataset(folder, options["split"], wanted, options["columns"])
    # MMRec and RecBole look for files that are named like their folder.
    bundle = replace(bundle, name=out.resolve().name)
    with new_folder(out) as partial:
        layout(layout_name, folder)[1].write(bundle, partial, missing)
    click.echo(f"{out}: {layout_name}: {_rows(bundle)}; {len(bundle.vectors)} feature sets")


def _rows(bundle: Bundle) -> str:
    return ", ".join(f"{part} {len(table):,}" for part, table in bundle.parts.items())
