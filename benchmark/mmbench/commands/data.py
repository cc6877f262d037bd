"""`mmbench data`: look at a dataset, split it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mmbench.commands.common import columns_option
from mmbench.commands.exchange import export, import_
from mmbench.errors import UsageError


@click.group()
def data() -> None:
    """Split a dataset, show what is in it, exchange it with other frameworks.

    \b
    Examples:
      mmbench data stats my/catalogue
      mmbench data split my/catalogue --test 0.2 --valid 0.1 --name random-42
    """


data.add_command(import_)
data.add_command(export)


@data.command()
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

    loaded = load_split(folder, split, columns)
    training, test = loaded.training, loaded.test
    train = training.train
    counts = {
        "dataset": training.name,
        "split": training.split,
        "users": train.n_users,
        "items": train.n_items,
        "train": train.n_edges,
        "valid": int(training.valid.users.size),
        "test": int(test.rows.users.size),
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


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--test", "test_ratio", type=float, default=0.2, show_default=True, help="Share of each user's rows.")
@click.option("--valid", "valid_ratio", type=float, default=0.2, show_default=True, help="Share of the remaining rows.")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--name", default=None, help="Folder under splits/.  [default: random-TEST-VALID-SEED]")
@columns_option
def split(
    folder: Path, test_ratio: float, valid_ratio: float, seed: int, name: str | None, columns: dict[str, str]
) -> None:
    """Split each user's interactions at random and write splits/NAME/{train,valid,test}.tsv.

    Row for row the split that the Elliot framework makes with the same ratios and seed.

    \b
    Examples:
      mmbench data split my/catalogue
      mmbench data split my/catalogue --test 0.2 --valid 0.1 --seed 42 --name elliot
    """
    from mmbench.data.dataset import make_random_split, write_split

    name = name or f"random-{test_ratio:g}-{valid_ratio:g}-{seed}"
    if Path(name).name != name or name.startswith("."):
        raise UsageError(f"--name {name}: a plain folder name, please")
    target = folder / "splits" / name
    if target.exists():
        raise UsageError(f"{target}: exists already; choose another --name or remove it")
    tables = make_random_split(folder, test_ratio, valid_ratio, seed, columns)
    write_split(target, tables)
    counts = ", ".join(f"{part} {len(table)}" for part, table in tables.parts.items())
    click.echo(f"{target}: {counts}")
