"""The exceptions of mmx; those it shares with mmbench are in `mmbase.errors`."""

from __future__ import annotations

from typing import Any

from mmbase.errors import (
    INSTALL_EXTRA,
    ContentError,
    DataError,
    Interrupted,
    ToolError,
    UsageError,
    unknown_name,
)

__all__ = [
    "INSTALL_EXTRA", "ContentError", "DataError", "EncoderError", "Interrupted", "SomeSetsFailed",
    "ToolError", "UsageError", "unknown_name",
]  # fmt: skip


class EncoderError(ToolError):
    """An encoder that cannot be built: absent weights, a missing extra, an unknown layer."""


class SomeSetsFailed(ToolError):
    """Some of several feature sets could not be made; all others are there.

    Attributes:
        extraction: The `mmx.Extraction`: what was made, and what failed.
    """

    extraction: Any = None
