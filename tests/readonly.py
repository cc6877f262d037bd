"""Folders that may not be written, for root too, whom permissions do not stop."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_OVERRIDES = 1 << 1 | 1 << 2 | 1 << 3  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Take the permission to write from a folder and all in it; root's override as well."""
    places = [folder, *folder.rglob("*")]
    modes = {place: place.stat().st_mode for place in places}
    for place, mode in modes.items():
        place.chmod(mode & ~0o222)
    given = _without_overrides() if os.geteuid() == 0 else None
    try:
        if os.access(folder / "x", os.F_OK) or _can_write(folder):
            pytest.skip("permissions stop nobody here")
        yield folder
    finally:
        if given is not None:
            _capabilities("capset", given)
        for place, mode in modes.items():
            place.chmod(mode)


def _can_write(folder: Path) -> bool:
    try:
        folder.joinpath(".trial").touch()
    except OSError:
        return False
    return True


def _without_overrides() -> ctypes.Array[ctypes.c_uint32]:
    """Drop the thread's capabilities to ignore permissions; return those it had."""
    before = (ctypes.c_uint32 * 6)()
    _capabilities("capget", before)
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~_OVERRIDES & 0xFFFFFFFF  # the effective ones, of numbers below 32
    _capabilities("capset", less)
    return before


def _capabilities(call: str, data: ctypes.Array[ctypes.c_uint32]) -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    if getattr(ctypes.CDLL(None, use_errno=True), call)(header, data):
        pytest.skip(f"{call}: {os.strerror(ctypes.get_errno())}")
