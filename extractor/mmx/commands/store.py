"""The commands `mmx store …`: look into feature stores, and move features in and out of them.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mmbase.cli import PATH, LazyGroup, echo_json, json_option, progress, quiet_option
from mmbase.layout import counted
from mmx.commands.sets import (
    DEFAULT_STORE,
    check_names,
    find_set,
    opened,
    store_at,
    store_option,
)
from mmx.errors import DataError, UsageError

IMPORT_FORMATS = ("npy", "npy-folder", "parquet", "hdf5", "safetensors")
EXPORT_FORMATS = ("npy", "npy-folder", "parquet", "safetensors", "csv")
SHOWN = 5  # errors and examples, where there may be thousands


@click.group(cls=LazyGroup)
def store() -> None:
    """List, check, import, export and compare feature sets.

    A feature set is one HDF5 file, STORE/MODALITY/NAME.h5. Commands take its path, or MODALITY/NAME
    together with --store or --data.

    \b
    EXAMPLES
      mmx store ls
      mmx store info visual/resnet50
      mmx store import --format npy --modality visual --name mine v.npy --ids i.txt --out features
    """


# ----------------------------------------------------------------------------------------------
# looking


@store.command(short_help="List the feature sets of a store.")
@click.argument("root", type=PATH, default=DEFAULT_STORE)
@json_option
@click.pass_context
def ls(ctx: click.Context, /, *, root: Path, as_json: bool) -> None:
    """List the feature sets of a store (ROOT: the store, or the dataset folder around it).

    Sets that are still being written, or were left unfinished, are listed as such. Exit code 1 when
    a file is damaged.

    \b
    EXAMPLES
      mmx store ls
      mmx store ls data/office/features --json
    """
    from mmstore import StoreError
    from mmx.vectors.overview import listing, summary

    found = store_at(root)
    root = found.root
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for modality, name in found.sets():
        try:
            with opened(found.path(modality, name)) as features:
                rows.append(summary(features))
        except StoreError as error:
            problems.append(str(error))
    unfinished = [f"{modality}/{name}" for modality, name in found.partials()]
    if as_json:
        document = {"store": root.as_posix(), "sets": rows}
        document |= {"unfinished": unfinished, "problems": problems}
        echo_json(document, "mmx.store 1.0")
    elif rows:
        click.echo(listing(rows))
    if not (rows or unfinished or problems or as_json):
        click.echo(f"{root}: no feature sets; mmx extract or mmx store import make some", err=True)
    for name in unfinished:
        click.echo(
            f"unfinished: {name} (run the command that makes it again, it goes on)", err=True
        )
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    ctx.exit(1 if problems else 0)


@store.command(short_help="Describe a feature set, and why items failed.")
@click.argument("target", metavar="PATH|MODALITY/NAME")
@store_option
@json_option
def info(*, target: str, root: Path, as_json: bool) -> None:
    """Describe a feature set: counts, how the vectors were made, and why items failed.

    \b
    EXAMPLES
      mmx store info visual/resnet50
      mmx store info data/office/features/visual/resnet50.h5 --json
    """
    from mmx.vectors.overview import failures, leaves, one_line, summary

    with opened(find_set(target, root)) as features:
        facts, provenance, errors = summary(features), features.provenance, failures(features)
    if as_json:
        echo_json({**facts, "provenance": provenance, "errors": errors}, "mmx.set 1.0")
        return
    lines = [f"{key:<15} {one_line(value)}" for key, value in facts.items()]
    lines += ["provenance", *(f"  {key}: {one_line(value)}" for key, value in leaves(provenance))]
    if errors:
        lines.append(f"errors ({min(SHOWN, len(errors))} of {len(errors)}; --json shows all)")
        lines += [
            f"  row {error['row']}, {one_line(error['id'])}: {error['message']}"
            for error in errors[:SHOWN]
        ]
    click.echo("\n".join(lines))


@store.command(short_help="Check feature sets in full, against the format and their digest.")
@click.argument("paths", metavar="[PATH|STORE]...", nargs=-1, type=PATH)
@json_option
@click.pass_context
def verify(ctx: click.Context, /, *, paths: tuple[Path, ...], as_json: bool) -> None:
    """Read feature sets in full; check them against the format and their own digest.

    Without an argument the default store is checked. Exit code 1 and a list on stdout when anything
    is wrong.

    \b
    EXAMPLES
      mmx store verify
      mmx store verify data/office/features
      mmx store verify downloaded.h5 another.h5
    """
    from mmstore.validate import verify_apart

    problems: dict[str, list[str]] = {}
    for path in _paths_to_verify(paths or (DEFAULT_STORE,)):
        problems[path.as_posix()] = verify_apart(path)
    n_bad = sum(1 for found in problems.values() if found)
    if as_json:
        echo_json({"sets": problems, "ok": n_bad == 0}, "mmx.verification 1.0")
    else:
        for name, found in problems.items():
            click.echo(
                "\n".join(_located(name, problem) for problem in found) if found else f"{name}: ok"
            )
        click.echo(f"{counted(len(problems), 'set')}, {n_bad} with problems", err=True)
    ctx.exit(1 if n_bad else 0)


@store.command(short_help="Compare two feature sets by id.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@store_option
@click.option(
    "--exit-code", is_flag=True, help="Exit with 1 unless ids, status and vectors are equal."
)
@json_option
@click.pass_context
def diff(
    ctx: click.Context, /, *, first: str, second: str, root: Path, exit_code: bool, as_json: bool
) -> None:
    """Compare two feature sets by id: items of one only, distances, differences in provenance.

    \b
    EXAMPLES
      mmx store diff visual/resnet50 visual/resnet50-random
      mmx store diff old/features/visual/resnet50.h5 new/features/visual/resnet50.h5 --json
    """
    from mmx.vectors.overview import compare, one_line

    with opened(find_set(first, root)) as a, opened(find_set(second, root)) as b:
        result = compare(a, b)
    if as_json:
        echo_json(result, "mmx.difference 1.0")
    else:
        provenance = result.pop("provenance")
        lines = [f"{key:<20} {one_line(value)}" for key, value in result.items() if value != []]
        lines.append(
            f"{'provenance':<20} {f'{len(provenance)} keys differ' if provenance else 'the same'}"
        )
        lines += [
            f"  {key}: {one_line(old)} | {one_line(new)}" for key, (old, new) in provenance.items()
        ]
        click.echo("\n".join(lines))
    ctx.exit(0 if result["equal"] or not exit_code else 1)


# ----------------------------------------------------------------------------------------------
# moving


@store.command("import", short_help="Make a feature set out of vectors that are there already.")
@click.argument("file", metavar="FILE|FOLDER", type=PATH)
@click.option(
    "--format", "format_name", type=click.Choice(IMPORT_FORMATS), required=True, help="Of FILE."
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


@store.command(short_help="Write a feature set in a format of other programs.")
@click.argument("target", metavar="PATH|MODALITY/NAME")
@click.option(
    "--format", "format_name", type=click.Choice(EXPORT_FORMATS), required=True, help="To write."
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


def _paths_to_verify(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            listing = store_at(path)
            inside = [listing.path(modality, name) for modality, name in listing.sets()]
            if not inside:
                raise DataError(
                    f"{path}: no feature sets to verify (expected MODALITY/NAME.h5 inside)"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or store")
    return list(dict.fromkeys(found))


def _located(name: str, problem: str) -> str:
    return problem if problem.startswith(name) else f"{name}: {problem}"
