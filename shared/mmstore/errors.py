"""The exception tree of the store.

Messages read `where: what (got, expected); how to fix`. Errors of the operating system and of HDF5
are translated by `mmstore.hdf5.translated`, so a caller needs to catch `StoreError` only.
"""

from __future__ import annotations

from collections.abc import Sequence


class StoreError(Exception):
    """Base of all errors that mmstore raises on purpose."""


class InvalidInput(StoreError, ValueError):
    """An argument can't be stored: a bad name, shape, row number, dtype or provenance."""


class InvalidIds(InvalidInput):
    """Ids that are empty, not text, not UTF-8, hold NUL, or occur twice."""


class NotAFeatureSet(StoreError):
    """The path is a folder, an empty file, not HDF5, or HDF5 of another format."""


class UnsupportedVersion(StoreError):
    """The file's major version is not one that this library reads."""


class DamagedFeatureSet(StoreError):
    """The file claims to be a feature set and breaks the rules of the format."""


class IncompleteFeatureSet(StoreError):
    """Rows are still pending."""


class UnknownFeatureSet(StoreError):
    """No such set in the store, or the name is ambiguous."""


class ProvenanceMismatch(StoreError):
    """A file of another plan is in the way; `keys` has what differs, such as `ids`."""

    def __init__(self, message: str, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class StoreAccess(StoreError):
    """The operating system refused: permission, a missing folder, an input/output error."""


class StoreFull(StoreAccess):
    """No space left, or a quota or file-size limit was reached; what was flushed is kept."""


class StoreLocked(StoreError):
    """Another writer holds this set."""


class StoreWarning(UserWarning):
    """A file of a newer minor version, or an unfinished set that could not be continued."""


def damaged(what: str) -> DamagedFeatureSet:
    """Return the error for a file beyond repair; `what` begins with the path."""
    cure = "extract it again with --restart, or copy it again from where it came"
    return DamagedFeatureSet(f"{what}; {cure}")
