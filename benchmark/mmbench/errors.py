"""The exceptions of mmbench; those it shares with mmx are in `mmbase.errors`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmbase.errors import DataError, ToolError, UsageError, unknown_name

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "DataError",
    "Diverged",
    "NotFiniteError",
    "ShapeError",
    "SomeFailed",
    "ToolError",
    "TrainingError",
    "UsageError",
    "first_problem",
    "unknown_name",
    "validation_in_words",
]


class TrainingError(ToolError):
    """Training cannot go on: a loss that is not finite, or a run folder that does not fit."""


class Diverged(TrainingError):
    """A loss or a score is not a finite number: the settings are to blame, not the machine."""


class NotFiniteError(DataError):
    """A score is NaN."""


class SomeFailed(TrainingError):
    """Some trainings failed; all others are finished and usable.

    Attributes:
        finished: The results of the others, where they were asked for.
    """

    exit_code = 3
    finished: Sequence[Any] = ()


class ShapeError(ToolError, ValueError):
    """Arrays whose shapes do not fit together: a mistake in code, not in data."""


def validation_in_words(error: ValidationError) -> str:
    """Return the first problem in one line: `dataset.n_users: got 'x', expected an integer`."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(map(str, problem["loc"])) or "the document"
    if problem["type"] == "missing":
        return f"{key}: is absent"
    told = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    got = ascii(problem["input"])
    return f"{key}: got {got if len(got) <= 60 else got[:60] + '…'}, expected {told}"


def first_problem(error: ValidationError, whole: str) -> str:
    """Return `key: message` of the first validation error; `whole` names the document."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"])) or whole
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
