"""`mmbench data`: look at a dataset, split and filter it, look for leaks; `import` and `export` are a module of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mmbench.commands.common import columns_option, refuse_options
from mmbench.commands.exchange import export, import_
from mmbench.errors import UsageError


@click.group()
def data() -> None:
    """Split and filter a dataset, look for leaks, show what is in it, exchange it with other frameworks.

    \b
    Examples:
      mmbench data stats my/catalogue
      mmbench data split my/catalogue --test 0.2 --valid 0.1 --name random-42
      mmbench data validate my/catalogue --split random-42
    """


data.add_command(import_)
data.add_command(export)


@data.command(short_help="Show counts of a split, its digest, and what was left out.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--split", help="Split name or random[:TEST,VALID[,SEED]].")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@columns_option
def stats(folder: Path, split: str | None, as_json: bool, columns: dict[str, str]) -> None:
    """Show counts of a dataset's split, its digest, and what was left out.

    \b
    Examples:
      mmbench data stats data/demo
      mmbench data stats my/catalogue --split random:0.2,0.1
    """
    from mmbench.data.dataset import load_split
    from mmbench.data.filters import describe
    from mmbench.data.splitting import as_rows, read_source
    from mmbench.data.tables import find_table

    loaded = load_split(folder, split, columns)
    whole = find_table(folder, ("interactions",)) is not None and not as_json
    interactions = describe(as_rows(read_source(folder, columns).table)) if whole else None
    training, test = loaded.training, loaded.test
    train = training.train
    counts = {
        "dataset": training.name,
        "split": training.split,
        "users": train.n_users,
        "items": train.n_items,
        "train": train.n_edges,
        "valid": int(training.of_trained_users(training.valid).users.size),
        "test": int(training.of_trained_users(test.rows).users.size),
        "density": train.n_edges / (train.n_users * train.n_items),
        "items_per_user": train.n_edges / train.n_users,
        "users_per_item": train.n_edges / train.n_items,
        "digest": training.digest,
        "notes": list(training.notes),
    }
    if as_json:
        click.echo(json.dumps(counts, ensure_ascii=False))
        return
    for key, value in counts.items():
        if key != "notes":
            click.echo(f"{key:<15} {f'{value:.6g}' if isinstance(value, float) else value}")
    for note in training.notes:
        click.echo(f"note            {note}")
    if interactions is not None:
        _show_counts([("interactions", interactions)])


_SHARE = click.FloatRange(0, 1, max_open=True)

_filters_option = click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="NAME:OPTION",
    help="kcore:5, kcore:USER,ITEM, min-user:5, min-item:5, min-rating:4, dedup:first|last|max; in "
    "this order.",
)


@data.command(short_help="Split the interactions and write how it was done.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--method", default="random", show_default=True, help="See above.")
@click.option(
    "--test",
    "test_ratio",
    type=_SHARE,
    default=0.2,
    show_default=True,
    help="Share that becomes test.",
)
@click.option(
    "--valid", "valid_ratio", type=_SHARE, default=0.2, show_default=True, help="Share of the rest."
)
@click.option("--seed", type=int, default=42, show_default=True, help="Of what is drawn.")
@click.option(
    "--k", type=click.IntRange(min=1), help="leave-k-out: rows per user and part.  [default: 1]"
)
@click.option(
    "--last/--any",
    "last",
    default=None,
    help="leave-k-out: the latest rows, or any.  [default: last]",
)
@click.option("--test-from", type=float, help="global-temporal: first timestamp of test.")
@click.option("--valid-from", type=float, help="global-temporal: first timestamp of validation.")
@_filters_option
@click.option(
    "--name", default=None, help="Folder under splits/.  [default: METHOD-TEST-VALID-SEED]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@columns_option
def split(
    folder: Path,
    method: str,
    test_ratio: float,
    valid_ratio: float,
    seed: int,
    k: int | None,
    last: bool | None,
    test_from: float | None,
    valid_from: float | None,
    filters: tuple[str, ...],
    name: str | None,
    as_json: bool,
    columns: dict[str, str],
) -> None:
    """Split the interactions and write splits/NAME/{train,valid,test}.tsv, and split.json, which says how.

    \b
    Methods:
      random           a share of each user's rows; row for row as the Elliot framework
      eighths          8:1:1 of each user's rows, the rule behind LATTICE's data
      global-random    a share of all rows
      leave-k-out      k rows of each user; --k 1 is leave-one-out
      temporal         the latest share of each user's rows
      global-temporal  what is later than one instant for all
      cold-items       all rows of a share of the items

    \b
    Examples:
      mmbench data split my/catalogue
      mmbench data split my/catalogue --test 0.2 --valid 0.1 --seed 42 --name elliot
      mmbench data split my/catalogue --method leave-k-out --filter kcore:5 --name loo
      mmbench data split my/catalogue --method cold-items --test 0.1 --valid 0.1
    """
    from mmbench.data.filters import parse_filter
    from mmbench.data.splitting import make_split

    if method in ("eighths", "leave-k-out"):
        refuse_options(("test_ratio", "valid_ratio"), f"has no meaning for --method {method}")
    parsed = [parse_filter(text) for text in filters]
    name = name or "-".join(
        [method, f"{test_ratio:g}", f"{valid_ratio:g}", str(seed), *([str(k)] if k else [])]
    )
    if Path(name).name != name or name.startswith("."):
        raise UsageError(f"--name {name}: a plain folder name, please")
    given = {"k": k, "last": last, "test_from": test_from, "valid_from": valid_from}
    options = {key: value for key, value in given.items() if value is not None}
    record, there = make_split(
        folder,
        name,
        method,
        parsed,
        columns,
        test_ratio=test_ratio,
        valid_ratio=valid_ratio,
        seed=seed,
        **options,
    )
    target = folder / "splits" / name
    if as_json:
        click.echo(
            json.dumps({"path": str(target), "already": there, **record}, ensure_ascii=False)
        )
        return
    if filters:
        _show_counts(list(record["statistics"].items()))
    counts = ", ".join(f"{part} {number}" for part, number in record["counts"].items())
    click.echo(f"{target}: {counts}{' (there already)' if there else ''}")


@data.command(name="filter", short_help="Keep some interactions, and show what each filter does.")
@click.argument("folder", type=click.Path(path_type=Path))
@_filters_option
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Dataset folder to make."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@columns_option
def filter_(
    folder: Path, filters: tuple[str, ...], out: Path, as_json: bool, columns: dict[str, str]
) -> None:
    """Keep some of the interactions, and show what each filter does to them.

    \b
    Examples:
      mmbench data filter my/catalogue --filter min-rating:4 --filter dedup:last --filter kcore:5 --out my/core
    """
    from mmbench.data.filters import parse_filter
    from mmbench.data.splitting import filter_dataset

    if not filters:
        raise UsageError("--filter is missing; e.g. --filter kcore:5")
    counts = filter_dataset(folder, out, [parse_filter(text) for text in filters], columns)
    if as_json:
        click.echo(json.dumps({"path": str(out), "statistics": dict(counts)}, ensure_ascii=False))
        return
    _show_counts(counts)
    click.echo(out.as_posix())


@data.command(short_help="Look for what a split gives away.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--split", help="Split name or random[:TEST,VALID[,SEED]].")
@click.option("--strict", is_flag=True, help="Exit code 1 if something leaks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@columns_option
def validate(
    folder: Path, split: str | None, strict: bool, as_json: bool, columns: dict[str, str]
) -> int:
    """Look for what a split gives away: pairs in two parts, training from the future, content made of held-out rows.

    \b
    Examples:
      mmbench data validate my/catalogue
      mmbench data validate my/catalogue --split loo --strict
    """
    import dataclasses

    from mmbench.data.dataset import read_split
    from mmbench.data.leakage import find_leaks

    tables = read_split(folder, split, columns)
    findings = find_leaks(tables, folder / "features")
    leaks = sum(one.count > 0 for one in findings if one.leak)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "split": tables.name,
                    "leaks": leaks,
                    "findings": list(map(dataclasses.asdict, findings)),
                }
            )
        )
    else:
        click.echo(f"split {tables.name}")
        for one in findings:
            mark = "LEAK" if one.leak and one.count else "ok" if not one.count else "note"
            click.echo(
                f"  {mark:<5}{one.count:>10,}  "
                f"{one.what}{f' ({one.example})' if one.example else ''}"
            )
        click.echo(f"{leaks} of {sum(one.leak for one in findings)} kinds of leaks found")
    return 1 if strict and leaks else 0


def _plain(key: str, value: float) -> str:
    """A count or a share; an instant in full, as `--test-from` takes it."""
    return repr(value).removesuffix(".0") if key.endswith("timestamp") else f"{value:,.6g}"


def _show_counts(counts: Sequence[tuple[str, Mapping[str, float | int]]]) -> None:
    """What filters did: a row per count, a column per step."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mmbench.analysis.report.tables import stdout_console

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name, _ in counts:
        table.add_column(name, justify="right")
    for key in counts[0][1]:
        table.add_row(
            key, *(_plain(key, values[key]) if key in values else "-" for _, values in counts)
        )
    stdout_console().print(table)
