"""The exceptions of mmbench; those it shares with mmx are in `mmbase.errors`."""

from __future__ import annotations

from mmbase.errors import DataError, ToolError, UsageError, unknown_name

__all__ = ["DataError", "ShapeError", "ToolError", "TrainingError", "UsageError", "unknown_name"]


class TrainingError(ToolError):
    """Training cannot go on: a loss that is not finite, or a run folder that does not fit."""


class ShapeError(ToolError, ValueError):
    """Arrays whose shapes do not fit together: a mistake in code, not in data."""
