"""`mmbench data`: statistics, splits, filters and leaks; `commands.exchange` has the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase.cli import PATH, LazyGroup, echo_json, echo_table, json_option, refuse_options
from mmbase.layout import Column, hanging
from mmbench.commands.common import columns_option
from mmbench.errors import UsageError

if TYPE_CHECKING:
    from mmbench.data.leakage import Finding

_PLACE = "mmbench.commands.exchange"
_EXCHANGE = {
    "import": (f"{_PLACE}:import_", "Make a dataset folder out of another framework's."),
    "export": (f"{_PLACE}:export", "Write a dataset in the layout of another framework."),
}
_FOLDER = click.argument("folder", type=PATH)
Names = tuple[str, ...]
_SHARE = click.FloatRange(0, 1, max_open=True)


class _Instant(click.ParamType[Fraction]):
    """A date or a Unix time, as exact seconds since 1970."""

    name = "DATE|SECONDS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Fraction:
        from mmbench.data.times import parse_time

        try:
            return value if isinstance(value, Fraction) else parse_time(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_INSTANT = _Instant()
_split_option = click.option(
    "--split",
    help="Split name, random[:TEST,VALID[,SEED]] or leave-one-out.",
)
_filters_option = click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="NAME:OPTION",
    help="kcore:5, kcore:USER,ITEM, min-user:5, min-item:5, min-rating:4, dedup:first|last|max; in "
    "this order.",
)


@click.group(cls=LazyGroup, lazy=_EXCHANGE)
def data() -> None:
    """Describe, split and filter a dataset, find leaks, exchange it with other frameworks.

    \b
    Examples:
      mmbench data stats my/catalogue
      mmbench data split my/catalogue --test 0.2 --valid 0.1 --name random-42
      mmbench data validate my/catalogue --split random-42
    """


@data.command(short_help="Show counts of a split, its digest, and omitted rows.")
@_FOLDER
@_split_option
@json_option
@columns_option
def stats(folder: Path, split: str | None, as_json: bool, columns: dict[str, str]) -> None:
    """Show counts of a dataset's split, its digest, and omitted rows.

    \b
    Examples:
      mmbench data stats data/demo
      mmbench data stats my/catalogue --split random:0.2,0.1
    """
    from mmbench.interface.data import load_dataset

    dataset = load_dataset(folder, split, columns)
    counts, interactions = dataset.counts, dataset.interactions()
    if as_json:
        whole_counts = {} if interactions is None else {"interactions": interactions}
        echo_json(counts | whole_counts, "mmbench.statistics 1.0")
        return
    notes = [("note", note) for note in counts.pop("notes")]
    for key, value in [*counts.items(), *notes]:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        click.echo(hanging(text, f"{key:<15} "))
    if interactions is not None:
        _show_counts([("interactions", interactions)])


@data.command(short_help="Split the interactions, and record how.")
@_FOLDER
@click.option("--method", default="random", help="How to split, see above.")
@click.option("--test", "test_ratio", type=_SHARE, default=0.2, help="Share of the rows for test.")
@click.option(
    "--valid", "valid_ratio", type=_SHARE, default=0.2, help="Share of the rest for validation."
)
@click.option("--seed", type=int, default=42, help="Seed of random parts.")
@click.option(
    "--k", type=click.IntRange(min=1), help="leave-k-out: rows per user and part.  [default: 1]"
)
@click.option(
    "--last/--any", default=None, help="leave-k-out: the latest rows, or any.  [default: last]"
)
@click.option("--test-from", type=_INSTANT, help="global-temporal: first date of test.")
@click.option("--valid-from", type=_INSTANT, help="global-temporal: first date of validation.")
@click.option(
    "--carve", metavar="SPLIT", help="Keep this split's test; take validation out of its train."
)
@_filters_option
@click.option("--name", help="Folder under splits/.  [default: METHOD-TEST-VALID-SEED]")
@json_option
@columns_option
def split(
    *, folder: Path, method: str, name: str | None, filters: Names, as_json: bool, **options: Any
) -> None:
    """Split the interactions into splits/NAME/{train,valid,test}.tsv; split.json records how.

    \b
    Methods:
      random           a share of each user's rows; row for row as the Elliot framework
      eighths          8:1:1 of each user's rows, the rule behind LATTICE's data
      global-random    a share of all rows
      leave-one-out    the last row of each user for test, the one before for validation
      leave-k-out      k rows of each user, the latest or any
      temporal         the latest share of each user's rows
      global-temporal  what is later than one instant for all
      cold-items       all rows of a share of the items

    \b
    Examples:
      mmbench data split my/catalogue
      mmbench data split my/catalogue --test 0.2 --valid 0.1 --seed 42 --name elliot
      mmbench data split my/catalogue --method leave-one-out
      mmbench data split my/catalogue --method leave-k-out --filter kcore:5 --name loo
      mmbench data split my/catalogue --method global-temporal --test-from 2024-09-01
      mmbench data split my/catalogue --method cold-items --test 0.1 --valid 0.1
      mmbench data split my/catalogue --carve given --valid 0.1 --name carved
    """
    from mmbench.data.filters import parse_filter
    from mmbench.data.splitting import carve_split, make_split

    columns, source = options.pop("columns"), options.pop("carve")
    if method in ("eighths", "leave-one-out", "leave-k-out"):
        refuse_options(("test_ratio", "valid_ratio"), f"has no meaning for --method {method}")
    if name is None and method == "leave-one-out":  # nothing else decides it
        name = method + (f"-of-{source}" if source else "")
    elif name is None:
        shares = (f"{options[part]:g}" for part in ("test_ratio", "valid_ratio"))
        k = [str(options["k"])] if options["k"] else []
        name = "-".join([method, *shares, str(options["seed"]), *k])
        name += f"-of-{source}" if source else ""
    if Path(name).name != name or name.startswith("."):
        raise UsageError(f"--name {name}: a plain folder name, please")
    parsed = [parse_filter(text) for text in filters]
    typed = {key: value for key, value in options.items() if value is not None}
    if source is not None:
        refuse_options(("filters", "test_ratio", "test_from"), "has no meaning with --carve")
        record, there = carve_split(folder, name, source, method, columns, **typed)
    else:
        record, there = make_split(folder, name, method, parsed, columns, **typed)
    target = folder / "splits" / name
    if as_json:
        echo_json({"path": str(target), "already": there, **record}, "mmbench.split 1.0")
        return
    if filters:
        _show_counts(list(record["statistics"].items()))
    counts = ", ".join(f"{part} {number}" for part, number in record["counts"].items())
    click.echo(f"{target}: {counts}{' (there already)' if there else ''}")
    _show_notes(record.get("notes", ()))


@data.command(
    name="filter", short_help="Keep some interactions, and show the effect of each filter."
)
@_FOLDER
@_filters_option
@click.option("--out", type=PATH, required=True, help="Dataset folder to make.")
@json_option
@columns_option
def filter_(
    folder: Path, filters: Names, out: Path, as_json: bool, columns: dict[str, str]
) -> None:
    """Keep some interactions, and show the effect of each filter.

    \b
    Examples:
      mmbench data filter my/catalogue --filter min-rating:4 --filter kcore:5 --out my/core
    """
    from mmbench.data.filters import parse_filter
    from mmbench.data.splitting import filter_dataset

    if not filters:
        raise UsageError("--filter is missing; e.g. --filter kcore:5")
    counts, note = filter_dataset(folder, out, [parse_filter(text) for text in filters], columns)
    notes = [note] if note else []
    if as_json:
        document = {"path": str(out), "statistics": dict(counts), "notes": notes}
        echo_json(document, "mmbench.filter 1.0")
        return
    _show_counts(counts)
    click.echo(out.as_posix())
    _show_notes(notes)


@data.command(short_help="Find mistakes in tables, splits and feature sets.")
@_FOLDER
@_split_option
@click.option("--strict", is_flag=True, help="Exit code 1 if there is a warning or a leak.")
@json_option
@columns_option
def validate(
    folder: Path, split: str | None, strict: bool, as_json: bool, columns: dict[str, str]
) -> int:
    """Find mistakes before a long run does: in tables, ids, splits and feature sets.

    Each finding says what was found, where, and how to fix it, under a name that docs/data.md
    explains. After the findings come the leaks of the split: shared pairs, training rows from the
    future, content of held-out rows.

    Exit code 0: nothing, or notes only; 3: warnings (a run succeeds, but its numbers may not mean
    what they seem to); 1: errors (a run would fail or have wrong numbers).

    \b
    Examples:
      mmbench data validate my/catalogue
      mmbench data validate my/catalogue --split loo --strict
      mmbench data validate my/catalogue --json
    """
    import dataclasses

    from mmbase.checks import kit
    from mmbench.data.checks import CHECKS
    from mmbench.data.checks.reading import read_interactions_of
    from mmbench.data.files import read_split
    from mmbench.data.leakage import find_leaks
    from mmbench.errors import ToolError
    from mmstore.errors import StoreError

    dataset = read_interactions_of(folder, split, columns) if folder.exists() else None
    leaks: list[Finding] = []
    document: dict[str, Any] = {"split": None, "leaks": 0, "findings": [], "notes": []}
    found = kit.examine(CHECKS, dataset) if dataset else []
    try:
        tables = read_split(folder, split, columns)
        leaks = find_leaks(tables, folder / "features")
    except (ToolError, StoreError):
        items_alone = dataset is not None and dataset.catalogue and not dataset.logs
        if kit.worst(found) < kit.ERROR and not items_alone:  # else it is among the findings
            raise
    else:
        told = list(map(dataclasses.asdict, leaks))
        n_leaks = sum(one.count > 0 for one in leaks if one.leak)
        document = {"split": tables.name, "leaks": n_leaks, "findings": told}
        document["notes"] = [*tables.notes]
    if dataset and leaks:
        dataset.leaks = leaks
        found = kit.examine(CHECKS, dataset)
    if as_json:
        echo_json({**document, "problems": kit.as_json(found)}, "mmbench.leaks 1.1")
    else:
        click.echo(kit.as_text(found, len(CHECKS)))
        _show_leaks(document["split"], leaks)
        _show_notes(document["notes"])
    return kit.exit_code(found, strict=strict) or int(strict and document["leaks"] > 0)


def _show_leaks(split: str | None, leaks: Sequence[Finding]) -> None:
    """Print all that was looked for in a split, found or not."""
    if split is None:
        return
    click.echo(f"\nsplit {split}")
    for one in leaks:
        mark = "LEAK" if one.leak and one.count else "ok" if not one.count else "note"
        example = f" ({one.example})" if one.example else ""
        click.echo(hanging(f"{one.what}{example}", f"  {mark:<5}{one.count:>10,}  "))
    n_found = sum(one.leak and one.count > 0 for one in leaks)
    click.echo(f"{n_found} of {sum(one.leak for one in leaks)} kinds of leaks found")


def _plain(key: str, value: float) -> str:
    """Return a count or a share as text; an instant in full, and its day."""
    from mmbench.data.times import day

    if not key.endswith("timestamp"):
        return f"{value:,.6g}"
    text = repr(value).removesuffix(".0")
    return f"{text} ({date})" if (date := day(value)) else text


def _show_notes(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(hanging(note, "note: ", "  "))


def _show_counts(counts: Sequence[tuple[str, Mapping[str, float | int]]]) -> None:
    """Print the effect of filters: a row per count, a column per step."""
    labels = [Column("", list(counts[0][1]), left=True)]
    columns = [
        Column(name, [_plain(key, values[key]) if key in values else "-" for key in counts[0][1]])
        for name, values in counts
    ]
    echo_table(labels, columns)
