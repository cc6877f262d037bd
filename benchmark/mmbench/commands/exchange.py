"""`mmbench data import` and `export`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase.cli import PATH, Command, refuse_options
from mmbase.layout import counted
from mmbench.commands.common import columns_option
from mmbench.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmbench.data.exchange.bundle import Bundle

_out_option = click.option("--out", type=PATH, required=True, help="Folder to make.")
_READ = click.Choice(["auto", "mmrec", "recbole", "elliot", "microlens", "lightgcn", "ducho"])
_WRITTEN = click.Choice(["mmrec", "recbole", "elliot"])
_MISSING = click.Choice(["error", "mean", "zero"])


@click.command(name="import", cls=Command)
@click.argument("sources", metavar="FOLDER|FILE...", type=PATH, nargs=-1, required=True)
@_out_option
@click.option(
    "--format", "layout_name", type=_READ, default="auto", help="Layout of FOLDER; auto: detected."
)
@columns_option
@click.option("--drop-empty", is_flag=True, help="Leave out rows of FILEs without user or item.")
@click.option("--preview", is_flag=True, help="Show how FILEs are understood, and write nothing.")
def import_(
    *,
    sources: tuple[Path, ...],
    out: Path,
    layout_name: str,
    columns: dict[str, str],
    drop_empty: bool,
    preview: bool,
) -> None:
    """Make a dataset folder out of tables of your own, or of another framework's folder.

    FILEs are tables (CSV, TSV, Parquet, JSON lines, Arrow; also .gz and .zst): those with users and
    items are interactions, those with items alone are texts. Separators, encodings, times and the
    usual names of columns are found out and shown; --columns says what is not. The folder has our
    names of columns, so that no command needs options for it.

    Of a FOLDER, interactions, the split, item texts and content vectors are read, as far as the
    layout has them; ids are the original ones where the folder says what they are. Ducho's tree
    holds features alone and goes into a dataset folder that is there already.

    \b
    Examples:
      mmbench data import orders.csv products.csv --out data/shop
      mmbench data import log.parquet --columns user_id=who,item_id=what --preview --out data/log
      mmbench data import MMRec/data/baby --out data/baby
      mmbench data import --format recbole ml-100k --out data/ml-100k
      mmbench data import --format ducho results/ --out data/baby
    """
    folders = [path for path in sources if path.is_dir() and path.suffix != ".parquet"]
    if not folders:
        _import_tables(sources, out, columns, drop_empty=drop_empty, preview=preview)
        return
    refuse_options(("columns", "drop_empty", "preview"), "goes with files, not with a folder")
    if len(sources) > 1:
        raise UsageError(f"{folders[0]}: a folder is imported alone; give one folder, or files")
    _import_folder(folders[0], out, layout_name)


def _import_tables(
    paths: tuple[Path, ...], out: Path, columns: dict[str, str], *, drop_empty: bool, preview: bool
) -> None:
    from mmbench.data.exchange.folder import write_dataset
    from mmbench.data.exchange.tables import read_tables, summary

    refuse_options(("layout_name",), "goes with a folder, not with files")
    if out.exists() and not preview:
        raise DataError(f"{out}: exists already; choose another place, or remove it")
    bundle, told = read_tables(paths, columns, drop_empty=drop_empty)
    for one in told:
        rows = f", {counted(one.rows, 'row')}" if one.rows else ""
        click.echo(f"{one.path.name}: {one.kind}{rows}")
        table = [(ours, "" if ours == theirs else theirs, _short(first))
                 for ours, theirs, first in one.columns]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            click.echo(f"  {'  '.join(cells)}".rstrip())
        if one.unread:
            click.echo(f"  not read: {', '.join(one.unread)}")
        if one.dropped:
            click.echo(f"  dropped: {counted(one.dropped, 'row')} without a user or an item")
        for note in one.notes:
            click.echo(f"  note: {note}")
    if not preview:
        files = [
            {"file": one.path.name, "kind": one.kind, "rows": one.rows, "dropped": one.dropped,
             "columns": {ours: theirs for ours, theirs, _ in one.columns}}
            for one in told
        ]  # fmt: skip
        write_dataset(replace(bundle, name=out.resolve().name), out, {"imported": files})
    click.echo(f"{out}{' (not written)' if preview else ''}: {summary(bundle)}")
    for note in _about_texts(bundle):
        click.echo(f"  note: {note}")


def _about_texts(bundle: Bundle) -> list[str]:
    """Say which columns `mmx extract` will take for texts, where their names do not tell."""
    from mmbench.data.exchange.bundle import texts_of

    found = [] if bundle.items is None else texts_of(bundle.items)
    told = "which mmx extract takes (--text-columns names others)"
    return [f"texts, by the look of their cells: {' + '.join(found)}, {told}"] if found else []


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:39]}…"


def _import_folder(folder: Path, out: Path, layout_name: str) -> None:
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
        shape = f"{counted(len(one.ids), 'item')} x {one.matrix.shape[1]:,}"
        click.echo(f"  {one.modality}/{one.name}: {shape}, {absent:,} missing")
    notes = [*bundle.notes, *(_about_texts(bundle) if bundle.parts else ())]
    if name != "ducho" and LAYOUTS["ducho"].detect(folder):
        adds = f"mmbench data import --format ducho {folder} --out {out}"
        notes.append(f"it holds a tree of Ducho's, too: {adds} adds it")
    for note in notes:
        click.echo(f"  note: {note}")


@click.command(name="export", cls=Command)
@click.argument("folder", type=PATH)
@click.option("--format", "layout_name", type=_WRITTEN, required=True, help="Layout to write.")
@_out_option
@click.option(
    "--split",
    help="Split name, random[:TEST,VALID[,SEED]] or leave-one-out.  [default: the only one]",
)
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
    from mmbench.data.exchange import layout
    from mmbench.data.exchange.folder import read_dataset
    from mmbench.data.features import parse_wanted
    from mmbench.data.files import new_folder

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
