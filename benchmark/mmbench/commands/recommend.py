"""`mmbench recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmbase import cli
from mmbase.cli import FOLDER, PATH, Command
from mmbase.layout import counted
from mmbench.commands.common import named_users
from mmbench.errors import UsageError


@click.command(cls=Command)
@click.argument("run", type=FOLDER)
@click.option("--out", type=PATH, help="File to write: .parquet, .tsv, .csv or .jsonl.")
@click.option("-k", "k", type=click.IntRange(min=1), default=20, help="Items per user.")
@click.option("--users", help="File with one user id a line, or ids and commas.  [default: all]")
@click.option(
    "--history",
    type=PATH,
    help="Table of users, who need not be in training, and the items that they have; for models "
    "that know a user by that alone.",
)
@click.option("--include-seen", is_flag=True, help="List items that the user has, too.")
@click.option("--embeddings", type=PATH, help="Folder for user and item representations.")
@click.option("--data", type=PATH, help="Dataset folder, if it has moved.")
@cli.json_option
@cli.quiet_option
def recommend(
    *, run: Path, out: Path | None, embeddings: Path | None, as_json: bool, **options: Any
) -> None:
    """Write the recommendations of a finished run, with original ids and scores.

    As at test, the user's training items are left out, under the protocol strict the validation
    items too; there, models that score through content list items that training has not seen.
    Under the protocol next-item the lists are what follows the user's training and validation
    items, which may be listed again. `mmbench evaluate --recs` scores the file like any other.

    With --history, lists are for the users of that table instead, by what they have there.

    \b
    Examples:
      mmbench recommend runs/demo-vbpr-0123456789 --out recs.parquet
      mmbench recommend runs/demo-vbpr-0123456789 --users u1,u2 -k 5 --out recs.tsv
      mmbench recommend runs/demo-content-knn-0123456789 --history visitors.tsv --out recs.tsv
      mmbench recommend runs/demo-freedom-0123456789 --embeddings freedom/
    """
    from mmbench.analysis import recommend as lists
    from mmbench.interface.scoring import recommend as recommended

    if out is None and embeddings is None:
        raise UsageError("--out is missing, e.g. --out recs.parquet; or --embeddings FOLDER")
    if out is None:
        why = "is about lists, and needs --out; --embeddings writes everybody"
        cli.refuse_options(("k", "users", "history", "include_seen"), why)
    trained = lists.load_run(run, options["data"])
    document: dict[str, object] = {"run": str(run)}
    if embeddings is not None:
        shape = lists.export_embeddings(trained, embeddings)
        document["embeddings"] = {"path": str(embeddings), **shape}
    if out is not None:
        users, progress = options["users"], cli.progress(quiet=options["quiet"])
        how = {name: options[name] for name in ("k", "history", "include_seen")}
        named = None if users is None else named_users(users)
        found = recommended(trained, users=named, progress=progress, **how)
        n_users, n_rows = int(found.rows.size), found.write(out)
        if found.unknown:
            document["unknown_users"] = found.unknown
        document |= {"path": str(out), "users": n_users, "rows": n_rows}
        told = f"{counted(n_rows, 'row')} for {counted(n_users, 'user')}"
    if as_json:
        cli.echo_json(document, "mmbench.recommendations 1.0")
        return
    if out is not None:
        click.echo(f"{out}: {told}")
    if embeddings is not None:
        click.echo(embeddings.as_posix())
