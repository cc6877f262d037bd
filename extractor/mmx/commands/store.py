"""The commands `mmx store …`: look into feature stores, and move features in and out of them.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mmbase.cli import PATH, LazyGroup, echo_json, json_option, progress
from mmbase.layout import counted
from mmx.commands.exchange import export, import_, merge
from mmx.commands.sets import (
    DEFAULT_STORE,
    find_set,
    opened,
    store_at,
    store_option,
)
from mmx.errors import DataError

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
@click.option(
    "--html",
    type=PATH,
    metavar="FILE",
    help="Write an HTML page instead: coverage, vector lengths, constant and duplicate vectors, "
    "examples of each status, and a map with pictures (needs the extra report).",
)
@json_option
def info(*, target: str, root: Path, html: Path | None, as_json: bool) -> None:
    """Describe a feature set: counts, how the vectors were made, and why items failed.

    \b
    EXAMPLES
      mmx store info visual/resnet50
      mmx store info data/office/features/visual/resnet50.h5 --json
      mmx store info visual/resnet50 --html resnet50.html
    """
    if html is not None:
        _info_page(target, root, html, as_json=as_json)
        return
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


def _info_page(target: str, root: Path, out: Path, *, as_json: bool) -> None:
    from mmbase.pages import require_extra

    require_extra("mmx store info --html")
    from mmx.vectors.page.write import write_page

    with opened(find_set(target, root)) as features:
        command = shlex.join(["mmx", *sys.argv[1:]])
        made = write_page(features, out, command, progress(quiet=as_json))
    if as_json:
        echo_json(made, "mmx.page 1.0")
        return
    shown = counted(made["points"], "item"), counted(made["pictures"], "picture")
    click.echo(f"{out.as_posix()}: a map of {shown[0]}, {shown[1]}, {made['bytes'] / 1e6:.1f} MB")


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


for command in (import_, export, merge):
    store.add_command(command)


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
