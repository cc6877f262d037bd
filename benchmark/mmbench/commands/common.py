"""Options and small steps that several commands share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mmbase.cli import DEFAULT_DATA, PATH, Function, parse_pairs, refuse_options
from mmbase.completion import completing
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
        help="Ray cluster.  [default: one of this machine's processors, for the command]",
    ),
    click.option(
        "--cpus",
        type=click.IntRange(min=1),
        help="Ray: processors, and threads, of a training.  [default: 1]",
    ),
)
track_option = click.option(
    "--track",
    multiple=True,
    metavar="NAME[:PLACE]",
    shell_complete=completing(lambda ctx: ("tensorboard", "mlflow", "wandb")),
    help="Show trainings in tensorboard, mlflow or wandb, too (extra track).",
)
restart_option = click.option(
    "--restart", is_flag=True, help="Train again what is finished already."
)
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


def _models(ctx: click.Context) -> Iterable[str]:
    from mmbench.models import MODELS

    return MODELS


def _metrics(ctx: click.Context) -> Iterable[str]:
    from mmbench.metrics import METRICS

    return ("paper", "all", *METRICS)


def _at_cutoffs(ctx: click.Context) -> Iterable[str]:
    from mmbench.metrics import METRICS

    return [f"{name}@{cutoff}" for name in METRICS for cutoff in (10, 20)]


def _policies(ctx: click.Context) -> Iterable[str]:
    from mmbench.data.missing import POLICIES

    return POLICIES


def _controls(ctx: click.Context) -> Iterable[str]:
    from mmbench.data.controls import Control

    return get_args(Control)


def _splits(ctx: click.Context) -> Iterable[str]:
    """Names of the dataset's splits, and of those that are made on the fly."""
    folder = Path(ctx.params.get("data") or DEFAULT_DATA) / "splits"
    return [*sorted(one.name for one in folder.glob("*/")), "random", "leave-one-out"]


model_names = completing(_models)
metric_names = completing(_metrics)
metrics_at_cutoffs = completing(_at_cutoffs)
policy_names = completing(_policies)
control_names = completing(_controls, before="=")
split_names = completing(_splits)


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
