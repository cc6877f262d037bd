"""mmstore: the on-disk feature format that mmx writes and mmbench reads.

`FeatureStore(root)` lists and opens sets, `FeatureSet(path)` reads one, `FeatureSetWriter(path,
...)` writes one. `FORMAT.md` beside this file is the normative description of the format. Classes
that need numpy or h5py are loaded on first use, so `import mmstore` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mmstore.errors import (
    DamagedFeatureSet,
    IncompleteFeatureSet,
    InvalidIds,
    InvalidInput,
    NotAFeatureSet,
    ProvenanceMismatch,
    StoreAccess,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreWarning,
    UnknownFeatureSet,
    UnsupportedVersion,
)
from mmstore.spec import FORMAT, FORMAT_VERSION, Status

if TYPE_CHECKING:
    from mmstore.ids import Pairs
    from mmstore.reader import FeatureSet
    from mmstore.store import FeatureStore
    from mmstore.writer import FeatureSetWriter

_LAZY = {
    "FeatureSet": "mmstore.reader",
    "FeatureStore": "mmstore.store",
    "FeatureSetWriter": "mmstore.writer",
    "Pairs": "mmstore.ids",
}

__all__ = ["FORMAT", "FORMAT_VERSION", "FeatureSet", "FeatureSetWriter", "FeatureStore", "Pairs"]
__all__ += ["DamagedFeatureSet", "IncompleteFeatureSet", "InvalidIds", "InvalidInput"]
__all__ += [
    "NotAFeatureSet",
    "ProvenanceMismatch",
    "Status",
    "StoreAccess",
    "StoreError",
    "StoreFull",
]
__all__ += ["StoreLocked", "StoreWarning", "UnknownFeatureSet", "UnsupportedVersion"]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'mmstore' has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # the next look-up finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
