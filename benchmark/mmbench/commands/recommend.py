"""`mmbench recommend`."""

from __future__ import annotations

from pathlib import Path

import click

from mmbase.cli import (
    FOLDER,
    PATH,
    Command,
    echo_json,
    json_option,
    progress,
    quiet_option,
    refuse_options,
)
from mmbench.errors import DataError, UsageError


@click.command(cls=Command)
@click.argument("run", type=FOLDER)
@click.option("--out", type=PATH, help="File to write: .parquet, .tsv, .csv or .jsonl.")
@click.option("-k", "k", type=click.IntRange(min=1), default=20, help="Items per user.")
@click.option("--users", help="File with one user id a line, or ids and commas.  [default: all]")
@click.option(
    "--include-seen", is_flag=True, help="List items that the user is known to have, too."
)
@click.option("--embeddings", type=PATH, help="Folder for user and item representations.")
@click.option("--data", type=PATH, help="Dataset folder, if it has moved.")
@json_option
@quiet_option
def recommend(
    run: Path,
    out: Path | None,
    k: int,
    users: str | None,
    include_seen: bool,
    embeddings: Path | None,
    data: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the recommendations of a finished run, with original ids and scores.

    As at test, the user's training items are left out, under the protocol strict the validation
    items too; there, models that score through content list items that training has not seen.
    `mmbench evaluate --recs` scores the file like any other.

    \b
    Examples:
      mmbench recommend runs/demo-vbpr-0123456789 --out recs.parquet
      mmbench recommend runs/demo-vbpr-0123456789 --users u1,u2 -k 5 --out recs.tsv
      mmbench recommend runs/demo-freedom-0123456789 --embeddings freedom/
    """
    from mmbench.analysis.recommend import (
        export_embeddings,
        load_run,
        recommendations,
        user_rows,
        write,
    )

    if out is None and embeddings is None:
        raise UsageError("--out is missing, e.g. --out recs.parquet; or --embeddings FOLDER")
    if out is None:
        refuse_options(
            ("k", "users", "include_seen"),
            "is about lists, and needs --out; --embeddings writes everybody",
        )
    trained = load_run(run, data)
    document: dict[str, object] = {"run": str(run)}
    if embeddings is not None:
        document["embeddings"] = {"path": str(embeddings), **export_embeddings(trained, embeddings)}
    if out is not None:
        rows = user_rows(trained, None if users is None else _named(users))
        reporter = progress(quiet=quiet)
        frames = recommendations(trained, rows, k, include_seen=include_seen, progress=reporter)
        document |= {"path": str(out), "users": int(rows.size), "rows": write(frames, out)}
    if as_json:
        echo_json(document)
        return
    if out is not None:
        click.echo(f"{out}: {document['rows']:,} rows for {document['users']:,} users")
    if embeddings is not None:
        click.echo(embeddings.as_posix())


def _named(users: str) -> list[str]:
    path = Path(users)
    try:
        named = (
            path.read_text(encoding="utf-8-sig").split("\n") if path.is_file() else users.split(",")
        )
    except OSError:  # a long list is no possible name of a file
        named = users.split(",")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; expected one user id a line") from error
    found = [user for user in named if user.strip()]
    if not found:
        raise UsageError(
            f"--users {users}: no user ids; expected a file with one a line, or ids separated by "
            "commas"
        )
    return found
