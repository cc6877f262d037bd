"""mmx: batch extraction of visual, textual and audio features from raw item content.

The names below are the Python interface; docs/python.md describes it. They are imported when they
are first used, so that `import mmx` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mmbase import __version__

if TYPE_CHECKING:
    from mmx import encoders, errors
    from mmx.demo import write_demo
    from mmx.extraction.summary import Summary
    from mmx.interface import Extraction, extract

_PLACES = {
    "Extraction": "mmx.interface",
    "Summary": "mmx.extraction.summary",
    "extract": "mmx.interface",
    "write_demo": "mmx.demo",
}

__all__ = ["Extraction", "Summary", "__version__", "encoders", "errors", "extract", "write_demo"]


def __getattr__(name: str) -> object:
    if name in ("encoders", "errors"):
        return import_module(f"mmx.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'mmx' has no attribute {name!r}")
    value: object = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value  # the next look-up finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
