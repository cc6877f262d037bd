"""Options and small steps that several commands share."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbench.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmbench.progress import Progress
    from mmbench.runs.batch import Executor

DEFAULT_DATA = Path("data/demo")

DEMO_FEATURES = (("visual", "colour-hog"), ("textual", "tfidf-lsa"), ("audio", "mfcc"))
"""Encoders that need no weights: what the demonstration catalogue is given when a model needs features."""


def _parse_columns(
    ctx: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    pairs = [value.partition("=") for value in split_list(values)]
    if any(not (role and equals and name) for role, equals, name in pairs):
        raise click.BadParameter("expected ROLE=NAME, e.g. user_id=customer", ctx, parameter)
    return {role: name for role, _, name in pairs}


columns_option = click.option(
    "--columns",
    multiple=True,
    callback=_parse_columns,
    metavar="ROLE=NAME",
    help="Which column is user_id, item_id, rating, timestamp, where the names are not understood.",
)
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where run folders go.",
)
metrics_option = click.option(
    "--metrics",
    default="paper",
    show_default=True,
    help="Names, `paper` (six) or `all`; see `mmbench metrics`.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")

jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trainings at once (models, seeds, trials of a grid), each a process with its share of "
    "the threads.",
)


def side_options(command: Callable[..., object]) -> Callable[..., object]:
    """What metrics may look at besides interactions: `--diversity-features` and `--categories`."""
    content = click.option(
        "--diversity-features",
        metavar="MODALITY[=NAME]",
        help="Feature set in which ILD and Unexpectedness measure distances, e.g. visual=resnet50.",
    )
    topics = click.option(
        "--categories",
        metavar="COLUMN",
        help="Column of items.tsv for Miscalibration and SRecall; `a|b`: two categories.",
    )
    return content(topics(command))


def refuse_options(names: Collection[str], why: str) -> None:
    """Refuse options that were typed and would change nothing; call it from within a command.

    Args:
        names: The parameters' names (`test_ratio`, not `--test`).
        why: Completes `--test: `.

    Raises:
        UsageError: One of them was given.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        given = (
            context.get_parameter_source(parameter.name or "")
            is click.core.ParameterSource.COMMANDLINE
        )
        if given and parameter.name in names:
            raise UsageError(f"{parameter.opts[0]}: {why}")


def command_line() -> str:
    """What was typed, for a report that says how it is made again."""
    return shlex.join(["mmbench", *sys.argv[1:]])


def split_list(values: Sequence[str]) -> list[str]:
    """Comma-separated and repeated values as one list."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def require_demo(data: Path | None, *, needs_features: bool, progress: Progress) -> Path:
    """The dataset folder; the default one is generated, and given features, when it lacks them.

    The extraction tool runs as a process of its own: the two tools meet only on disk.

    Raises:
        DataError: The demonstration catalogue cannot be made here.
    """
    if data is not None:
        return data
    if not DEFAULT_DATA.exists():
        progress.note(
            f"{DEFAULT_DATA} is not there yet: making the synthetic demonstration catalogue"
        )
        _mmx("demo", "--out", str(DEFAULT_DATA))
    if needs_features and not any((DEFAULT_DATA / "features").glob("*/*.h5")):
        progress.note(
            f"{DEFAULT_DATA} has no features yet: extracting handcrafted ones (no weights needed)"
        )
        for modality, model in DEMO_FEATURES:
            _mmx(
                "extract",
                "--modality",
                modality,
                "--model",
                model,
                "--data",
                str(DEFAULT_DATA),
                accept=(0, 3),
            )
    return DEFAULT_DATA


def _mmx(*arguments: str, accept: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmx", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in accept:
        reason = (
            done.stderr.strip().splitlines()[-1]
            if done.stderr.strip()
            else f"exit code {done.returncode}"
        )
        raise DataError(
            f"mmx {' '.join(arguments)} failed: {reason}; or give a dataset of your own with "
            "--data DIR"
        )


def local_executor(jobs: int, progress: Progress) -> Executor:
    """Return the executor of trainings for `--jobs`: this process, or several others."""
    if jobs == 1:
        from mmbench.runs.batch import InProcess

        return InProcess(progress)
    from mmbench.runs.executors import ProcessExecutor

    return ProcessExecutor(jobs, progress)


def integers(text: str, option: str) -> tuple[int, ...]:
    """`1,2,3` as numbers.

    Raises:
        UsageError: A part is no whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected whole numbers separated by commas") from error
