"""The exceptions of mmx; those it shares with mmbench are in `mmbase.errors`."""

from __future__ import annotations

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
    "INSTALL_EXTRA", "ContentError", "DataError", "EncoderError", "Interrupted", "ToolError",
    "UsageError", "unknown_name",
]  # fmt: skip


class EncoderError(ToolError):
    """An encoder that cannot be built: absent weights, a missing extra, an unknown layer."""
