"""Options and small steps that several commands share."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase.cli import DEFAULT_DATA, PATH, Function, parse_pairs, refuse_options
from mmbench.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmbase.progress import Progress
    from mmbench.runs.batch import Executor

DEMO_FEATURES = (("visual", "colour-hog"), ("textual", "tfidf-lsa"), ("audio", "mfcc"))
"""Encoders without weights, for the demonstration catalogue when a model needs features."""


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


def make_demo(*, needs_features: bool, progress: Progress) -> Path:
    """Return the default dataset folder; make it, and its features, if they are absent.

    The extraction tool runs as a process of its own: the two tools meet only on disk.

    Raises:
        DataError: The demonstration catalogue cannot be made here.
    """
    if not DEFAULT_DATA.exists():
        progress.note(f"{DEFAULT_DATA} is not there yet: making the demonstration catalogue")
        _mmx("demo", "--out", str(DEFAULT_DATA))
    if needs_features and not any((DEFAULT_DATA / "features").glob("*/*.h5")):
        progress.note(f"{DEFAULT_DATA} has no features yet: extracting handcrafted ones")
        for modality, model in DEMO_FEATURES:
            encoder = ("--modality", modality, "--model", model)
            _mmx("extract", *encoder, "--data", str(DEFAULT_DATA), accept=(0, 3))
    return DEFAULT_DATA


def _mmx(*arguments: str, accept: tuple[int, ...] = (0,)) -> None:
    command = [sys.executable, "-m", "mmx", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in accept:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        told = f"mmx {' '.join(arguments)} failed: {lines[-1]}"
        raise DataError(f"{told}; or give a dataset of your own with --data DIR")


def require_content(options: Mapping[str, Any], *, needs_features: bool, draws: bool) -> None:
    """Refuse options on content that would change nothing.

    Args:
        options: Of `recipe_options`.
        needs_features: Whether one of the models uses content, or the policy drops items.
        draws: Whether the policy depends on a seed.

    Raises:
        UsageError: There is one.
    """
    treated = [name for name in ("mask", "control") if options[name]]
    if treated and not needs_features:
        raise UsageError(f"--{treated[0]}: none of these models uses content")
    if options["pattern"] and not options["mask"]:
        raise UsageError("--pattern: there is no mask that has one; e.g. --mask visual=0.3")
    if options["mask_seed"] is not None and not (treated or draws):
        raise UsageError("--mask-seed: nothing is drawn; it is of --mask, --control and random")


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
