"""The exceptions of mmbench; those it shares with mmx are in `mmbase.errors`."""

from __future__ import annotations

from mmbase.errors import DataError, ToolError, UsageError, unknown_name

__all__ = [
    "DataError",
    "Diverged",
    "NotFiniteError",
    "ShapeError",
    "SomeFailed",
    "ToolError",
    "TrainingError",
    "UsageError",
    "unknown_name",
]


class TrainingError(ToolError):
    """Training cannot go on: a loss that is not finite, or a run folder that does not fit."""


class Diverged(TrainingError):
    """A loss or a score is not a finite number: the settings are to blame, not the machine."""


class NotFiniteError(DataError):
    """A score is NaN."""


class SomeFailed(TrainingError):
    """Some trainings failed; all others are finished and usable."""

    exit_code = 3


class ShapeError(ToolError, ValueError):
    """Arrays whose shapes do not fit together: a mistake in code, not in data."""
