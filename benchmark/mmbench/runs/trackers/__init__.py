"""The registry of trackers: programs of others that show trainings while they run.

One more is one class (`mmbench.runs.trackers.base.Sink`) and one line in `TRACKERS`. What is
tracked decides no number: it is no part of a recipe, and a tracker that fails is left out from then
on, with one warning. Which are asked for stands in `$MMBENCH_TRACK`, which the processes of a
command inherit.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmbase.errors import install_extra
from mmbase.progress import Progress, Silent
from mmbench.config import Recipe
from mmbench.errors import UsageError, unknown_name
from mmbench.runs.trackers.base import Sink, Tracked

if TYPE_CHECKING:
    from mmbench.runs.result import Result
    from mmbench.trainer import EpochRecord

TRACKERS: dict[str, str] = {
    "tensorboard": "mmbench.runs.trackers.tensorboard:TensorBoard",
    "mlflow": "mmbench.runs.trackers.mlflow:MLflow",
    "wandb": "mmbench.runs.trackers.wandb:WeightsAndBiases",
}

VARIABLE = "MMBENCH_TRACK"
"""Trackers by name, with a place after a colon, and commas between them."""

_failed: set[str] = set()  # trackers that failed in this process and are not asked again


@contextmanager
def tracking(asked: Sequence[str], progress: Progress) -> Iterator[None]:
    """Track the runs of the block, also those in other processes of this machine.

    Args:
        asked: Names of `TRACKERS`, each perhaps with a place: `tensorboard:logs`. Empty: those of
            the environment.
        progress: Told where to look.

    Raises:
        UsageError: There is no such tracker, or its library is not installed.
    """
    before = os.environ.get(VARIABLE)
    if asked:
        os.environ[VARIABLE] = ",".join(asked)
    _failed.clear()
    try:
        for name, place in wanted().items():
            progress.note(f"tracked: {_kind(name).where(place)}")
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def wanted() -> dict[str, str]:
    """Return the trackers that the environment asks for, each with its place, which may be empty.

    Raises:
        UsageError: There is no such tracker.
    """
    found = {}
    for one in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        name, _, place = one.partition(":")
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
        found[name] = place
    return found


def follow(
    epochs: Iterator[EpochRecord], recipe: Recipe, folder: Path, progress: Progress
) -> Iterator[EpochRecord]:
    """Yield the epochs of a training; those that are done are told to the trackers.

    Args:
        epochs: As the trainer yields them.
        recipe: What is trained.
        folder: Of the run, or of a trial below it.
        progress: Told once if a tracker fails.
    """
    with _sinks(_tracked(folder, recipe), progress) as tell:
        for record in epochs:
            yield record
            values: dict[str, float | None] = {f"loss/{k}": v for k, v in record.loss.items()}
            values |= {f"valid/{k}": v for k, v in (record.valid or {}).items()}
            tell(values, record.epoch)


def publish(result: Result, progress: Progress) -> None:
    """Tell the trackers what a run that has just been finished came to, on test too."""
    with _sinks(_tracked(result.path, result.recipe), progress) as tell:
        parts = {"valid": result.valid, "test": result.test}
        final = {f"{part}/{k}": v for part, of in parts.items() for k, v in of.items()}
        tell(final, result.best_epoch, final=True)


def _tracked(folder: Path, recipe: Recipe) -> Tracked:
    """Return name and parameters of a run; a trial's name is that of its run and a number."""
    trial = folder.parent.name == "trials"
    name = f"{folder.parent.parent.name}/{folder.name}" if trial else folder.name
    group = folder.parent.parent.name if trial else folder.name
    return Tracked(name, group, dict(_flat(recipe.dump())))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


@contextmanager
def _sinks(run: Tracked, progress: Progress) -> Iterator[Callable[..., None]]:
    """Yield a function that tells values to the trackers, none of which can stop the caller."""
    sinks: dict[str, Sink] = {}

    def attempt(name: str, action: Callable[[], None]) -> None:
        if name in _failed:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the training goes on
            _failed.add(name)
            reason = " ".join((str(error) or type(error).__name__).split())[:300]
            _warn(f"{name} failed and is left out from now on: {reason}", progress)

    def tell(values: Mapping[str, float | None], epoch: int, *, final: bool = False) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        for name, sink in sinks.items():
            attempt(name, partial(sink.final if final else sink.log, known, epoch))

    def begin(name: str, place: str) -> None:
        sinks[name] = _kind(name)(run, place)

    try:
        asked = wanted()
    except UsageError as error:
        asked = {}
        if VARIABLE not in _failed:
            _failed.add(VARIABLE)
            _warn(f"{VARIABLE}: {error}", progress)
    for name, place in asked.items():
        attempt(name, lambda n=name, p=place: begin(n, p))  # type: ignore[misc]
    try:
        yield tell
    finally:
        for name, sink in sinks.items():
            attempt(name, sink.close)


def _warn(text: str, progress: Progress) -> None:
    """Warn, in a process without progress of its own on stderr all the same."""
    if type(progress) is Silent:
        logging.getLogger(__name__).warning("warning: %s", text)
    else:
        progress.warn(text)


def _kind(name: str) -> type[Sink]:
    """Import a tracker.

    Raises:
        UsageError: Its library is not installed.
    """
    module, _, attribute = TRACKERS[name].partition(":")
    kind = cast("type[Sink]", getattr(importlib.import_module(module), attribute))
    try:
        importlib.import_module(kind.library)
    except ImportError as error:
        raise UsageError(
            f"--track {name}: {kind.library} is not installed; run: {install_extra('track')}"
        ) from error
    return kind
