"""Options and small steps that several commands share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase.cli import PATH, Function, parse_pairs, refuse_options
from mmbench.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmbase.progress import Progress
    from mmbench.runs.batch import Executor

columns_option = click.option(
    "--columns",
    multiple=True,
    callback=parse_pairs,
    metavar="ROLE=NAME",
    help="Column that is user_id, item_id, rating, timestamp, where the names are not understood.",
)
out_option = click.option("--out", type=PATH, default=Path("runs"), help="Folder of the runs.")
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Trainings at once (models, seeds, trials of a grid), each a process with its share of "
    "the threads.  [default: 1; on Ray as many as there is room for]",
)
_engine_options = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="Where trainings run: on this machine, or on a Ray cluster (extra ray).",
    ),
    click.option(
        "--address",
        metavar="auto|HOST[:PORT]",
        help="Ray: the cluster.  [default: one of this machine's processors, for the command]",
    ),
    click.option(
        "--cpus",
        type=click.IntRange(min=1),
        help="Ray: processors, and threads, of a training.  [default: 1]",
    ),
)
restart_option = click.option("--restart", is_flag=True, help="Train anew even what is finished.")
only_option = click.option(
    "--only",
    multiple=True,
    metavar="NAME=VALUE",
    help="Runs of this dataset, split or protocol alone: split=loo, protocol=strict.",
)
slices_option = click.option(
    "--slices",
    is_flag=True,
    help="Metrics by popularity, activity, cold items and modalities, too.",
)


def engine_options(function: Function) -> Function:
    """Add the options that say where trainings run; see `executor_of`."""
    for option in (*reversed(_engine_options), jobs_option):
        function = option(function)
    return function


def executor_of(options: Mapping[str, Any], progress: Progress) -> Executor:
    """Return the executor that `engine_options` ask for.

    Raises:
        UsageError: An option belongs to the other engine.
    """
    from mmbench.runs.batch import local_executor

    jobs = options["jobs"]
    if options["engine"] == "local":
        refuse_options({"address", "cpus"}, "belongs to --engine ray")
        return local_executor(jobs or 1, progress)
    from mmbench.runs.on_ray import RayExecutor

    return RayExecutor(progress, options["address"], jobs, options["cpus"] or 1)


def command_line() -> str:
    """Return the command line as typed, for a report that says how to repeat it."""
    return shlex.join(["mmbench", *sys.argv[1:]])


def named_users(users: str) -> list[str]:
    """Return the ids that `--users` names: one a line of a file, or separated by commas.

    Raises:
        DataError: The file is no text.
        UsageError: There is no id.
    """
    path, named = Path(users), users.split(",")
    try:
        if path.is_file():
            named = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError:  # a long list is no possible name of a file
        pass
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; expected one user id a line") from error
    found = [user for user in named if user.strip()]
    if not found:
        told = "expected a file with one a line, or ids separated by commas"
        raise UsageError(f"--users {users}: no user ids; {told}")
    return found
