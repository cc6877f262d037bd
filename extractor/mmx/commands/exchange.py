"""`mmx store import`, `export`, `merge`: vectors into and out of sets, and several sets in one.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmbase.cli import PATH, Command, echo_json, json_option, progress, quiet_option
from mmbase.layout import counted
from mmx.commands.sets import check_names, find_set, opened, store_at, store_option
from mmx.errors import UsageError

IMPORT_FORMATS = ("npy", "npy-folder", "parquet", "hdf5", "safetensors")
EXPORT_FORMATS = ("npy", "npy-folder", "parquet", "safetensors", "csv")


@click.command(
    "import", cls=Command, short_help="Make a feature set out of vectors that are there already."
)
@click.argument("file", metavar="FILE|FOLDER", type=PATH)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(IMPORT_FORMATS),
    required=True,
    help="Format of FILE.",
)
@click.option(
    "--modality", metavar="M", required=True, help="visual, textual, audio, or any lower-case name."
)
@click.option("--name", metavar="NAME", required=True, help="Name of the new set.")
@click.option("--out", metavar="DIR", type=PATH, help="The store.  [default: DATA/features]")
@click.option("--ids", metavar="FILE|KEY", type=PATH, help="Item of each row; see above.")
@click.option("--id-column", metavar="C", help="Column of ids, in --ids or in a Parquet FILE.")
@click.option("--row-column", metavar="C", help="Column of row numbers (from 0) in --ids.")
@click.option(
    "--data", metavar="DIR", type=PATH, help="Row i is item i: if its item ids are exactly 0 … n-1."
)
@click.option(
    "--column",
    metavar="C",
    multiple=True,
    help="Column of numbers, or a pattern such as 'f*', in a Parquet FILE.",
)
@click.option("--tensor", metavar="NAME", help="Tensor in a safetensors FILE that holds several.")
@click.option("--dataset", metavar="KEY", help="Dataset, or group, in an HDF5 FILE.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="Type of the stored vectors.",
)
@click.option("--nan-is-missing", is_flag=True, help="Rows with NaN are missing, not an error.")
@click.option("--zero-is-missing", is_flag=True, help="Rows of zeros are missing, not vectors.")
@click.option("--restart", is_flag=True, help="Replace a set of this name that was made otherwise.")
@json_option
@quiet_option
def import_(
    *,
    file: Path,
    format_name: str,
    modality: str,
    name: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Make a feature set out of vectors that are there already.

    \b
    FORMATS
      npy          one array, items x dimensions; needs --ids (or --data)
      npy-folder   a folder of <id>.npy, one vector each (a.v1.npy is item a.v1)
      parquet      an id column, and a list column or numeric columns of one kind; or a folder of
                   such parts
      hdf5         a 2-D dataset whose --ids is another KEY or a FILE, or a group of one vector per
                   item, named by it (--dataset / is the whole file)
      safetensors  one 2-D tensor; needs --ids (or --data)

    \b
    IDS (--ids FILE) is one of
      one id per line, in row order; the first line may be item_id, asin or another usual name
      a table with a header: --id-column C, and --row-column C unless it keeps the row order
      two columns, id and row number from 0
      for npy-folder: two columns, id and file name

    \b
    EXAMPLES
      mmx store import --format npy --modality visual --name vgg16 image_feat.npy --ids ids.txt \\
          --out data/mine/features
      mmx store import --format npy --modality visual --name image image_feat.npy --data data/tiktok
      mmx store import --format npy --modality textual --name minilm text_feat.npy \\
          --ids i_id_mapping.csv --id-column asin --row-column itemID --out data/baby/features
      mmx store import --format npy-folder --modality audio --name vggish vectors/ \\
          --out data/mine/features
      mmx store import --format parquet --modality textual --name mpnet emb.parquet \\
          --id-column asin --out f
      mmx store import --format hdf5 --modality visual --name vgg features.h5 --dataset features \\
          --ids filenames --out data/mine/features
    """
    from mmx.vectors.importers import import_features
    from mmx.vectors.sources import Source

    source = Source(
        file, *(options.pop(name) for name in ("ids", "id_column", "row_column", "data", "column",
                                               "tensor", "dataset"))
    )  # fmt: skip
    if out is None:
        if source.data is None:
            raise UsageError("--out: which store? --out DIR/features")
        out = source.data / "features"
    check_names(modality, name)
    done = import_features(
        format_name,
        source,
        out,
        modality=modality,
        name=name,
        progress=progress(quiet=quiet),
        **options,
    )
    if as_json:
        result = {
            "path": done.path.as_posix(),
            "content_digest": done.digest,
            "rows": done.rows,
            "missing": done.missing,
            "dim": done.dim,
            "already_complete": done.already,
        }
        echo_json(result, "mmx.import 1.0")
        return
    click.echo(done.path.as_posix())
    if not quiet:
        state = "was imported before, nothing to do" if done.already else "imported"
        click.echo(
            f"{counted(done.rows, 'row')} ({done.missing:,} missing) of {done.dim} numbers {state}",
            err=True,
        )


@click.command(cls=Command, short_help="Write a feature set in a format of other programs.")
@click.argument("target", metavar="PATH|MODALITY/NAME")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(EXPORT_FORMATS),
    required=True,
    help="Format to write.",
)
@click.option(
    "--out", metavar="PATH", type=PATH, required=True, help="File, or folder for npy-folder."
)
@click.option(
    "--absent",
    type=click.Choice(["skip", "nan", "zero"]),
    default="skip",
    help="Rows without a vector: left out, written as NaN, or as zeros.",
)
@click.option(
    "--mapping",
    metavar="FILE",
    type=PATH,
    help="npy-folder: number the files, and list the ids here.",
)
@store_option
@quiet_option
def export(
    *,
    target: str,
    format_name: str,
    out: Path,
    absent: str,
    mapping: Path | None,
    root: Path,
    quiet: bool,
) -> None:
    """Write a feature set for other programs; `mmx store import` gives the same vectors back.

    The ids of npy and safetensors go beside the file, one per line: OUT's name ending in .ids.txt.

    \b
    EXAMPLES
      mmx store export visual/resnet50 --format npy --out resnet50.npy
      mmx store export visual/resnet50 --format npy-folder --out vectors/
      mmx store export textual/minilm --store data/office --format parquet --out minilm.parquet
      mmx store export visual/resnet50 --format npy --absent nan --out all-rows.npy
    """
    from mmx.vectors.exporters import export_features

    with opened(find_set(target, root)) as features:
        done = export_features(features, format_name, out, absent=absent, mapping=mapping)
    click.echo(done.path.as_posix())
    if not quiet:
        where = f"; ids: {done.ids}" if done.ids else ""
        skipped = (
            f"; {counted(done.left_out, 'row')} without a vector left out" if done.left_out else ""
        )
        click.echo(f"{counted(done.rows, 'row')}{where}{skipped}", err=True)


@click.command(
    cls=Command, short_help="Join sets of the same making, such as shards of a catalogue."
)
@click.argument("targets", metavar="PATH|MODALITY/NAME...", nargs=-1, required=True)
@click.option("--name", metavar="NAME", required=True, help="Name of the new set.")
@click.option("--out", metavar="DIR", type=PATH, help="Store of the new set.  [default: --store]")
@click.option("--restart", is_flag=True, help="Replace a set of that name.")
@store_option
@json_option
@quiet_option
def merge(
    *,
    targets: tuple[str, ...],
    name: str,
    out: Path | None,
    restart: bool,
    root: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make one feature set of several that the same encoder made of different items.

    Rows are those of the first set, then those of the second that it lacks, and so on, bit for bit.
    Sets that were made otherwise, or that have different vectors for an item, are refused.

    \b
    EXAMPLES
      mmx store merge visual/part-1 visual/part-2 --store shards --name resnet50 --out features
      mmx store merge a/visual/resnet50.h5 b/visual/resnet50.h5 --name resnet50 --out features
    """
    from mmx.vectors.merge import merge as merge_sets

    paths = [find_set(target, root) for target in targets]
    check_names(paths[0].parent.name, name)
    done = merge_sets(
        paths,
        out or store_at(root).root,
        name=name,
        restart=restart,
        progress=progress(quiet=quiet),
    )
    if as_json:
        result = {
            "path": done.path.as_posix(),
            "content_digest": done.digest,
            "items": {"ok": done.ok, "missing": done.missing, "corrupt": done.corrupt},
            "repeated": done.repeated,
            "already_complete": done.already,
        }
        echo_json(result, "mmx.merge 1.0")
        return
    click.echo(done.path.as_posix())
    if not quiet:
        state = "was merged before, nothing to do" if done.already else "merged"
        click.echo(
            f"{done.ok:,} ok, {done.missing:,} missing, {done.corrupt:,} corrupt "
            f"({done.repeated:,} in several sets): {state}",
            err=True,
        )
