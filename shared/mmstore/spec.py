"""The names, versions and limits of the feature-set format; `FORMAT.md` defines their meaning."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

# Value of the root attribute `format`.
FORMAT: Final = "mmstore.feature-set"
# The version that this library writes, `major.minor`.
FORMAT_VERSION: Final = "1.0"
# The only major version that this library reads.
MAJOR: Final = 1
# The newest minor of `MAJOR` that this library knows; it reads a newer one with a warning.
NEWEST_MINOR: Final = 0
ITEM: Final = "item"
INTERACTION: Final = "interaction"
SOURCES: Final = (ITEM, INTERACTION)

DENSE: Final = "dense"
RAGGED: Final = "ragged"
LAYOUTS: Final = (DENSE, RAGGED)

DTYPES: Final = ("float16", "float32")

# The datasets that identify the rows, by source.
ID_DATASETS: Final = {ITEM: ("ids",), INTERACTION: ("user_ids", "item_ids")}
FEATURES: Final = "features"
STATUS: Final = "status"
OFFSETS: Final = "offsets"
ERRORS: Final = "errors"
ERROR_ROW: Final = "errors/row"
ERROR_MESSAGE: Final = "errors/message"

# Where the vectors of each row of an unfinished ragged set lie in the log.
START: Final = "writing/start"
LENGTH: Final = "writing/length"

SUFFIX: Final = ".h5"
PARTIAL_SUFFIX: Final = ".partial"

# The key of `provenance` that holds the creation time; it never makes two plans differ.
CREATED: Final = "created"
# Prefixes of keys that hold versions of programs; a finished set may differ in them.
VERSIONS: Final = ("provenance.libraries.", "provenance.tool.version.")
# A stored error message is cut to this many bytes of UTF-8.
MAX_MESSAGE_BYTES: Final = 500
# An HDF5 attribute holds at most 64 KiB, its own header included.
MAX_PROVENANCE_BYTES: Final = 60_000
# How much is read or written at once where a whole file is streamed.
BLOCK_BYTES: Final = 1 << 24


class Status(IntEnum):
    """The state of one row."""

    # Not computed yet; only in unfinished sets.
    PENDING = 0
    # The row has a finite vector (ragged: at least one).
    OK = 1
    # The item has no such content.
    MISSING = 2
    # The item has content that could not be turned into a vector; `/errors` has the reason.
    CORRUPT = 3
