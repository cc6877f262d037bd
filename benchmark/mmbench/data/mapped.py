"""Room for vectors: in memory, or of large sets in a file that is mapped."""

from __future__ import annotations

import os
import tempfile

import numpy as np
from numpy.typing import NDArray

from mmbench.data.caches import cache_folder

MAPPED_BYTES = 1 << 29
"""From this size on vectors lie in a file: the system keeps in memory what is in use."""


def room(n_rows: int, dim: int) -> NDArray[np.float32]:
    """Return an array (n_rows, dim) to be filled.

    A large one is mapped from a file without a name in the cache's folder, which is gone with the
    process. Without such a folder, without room on its disk, and where the system can't reserve
    that room, the array is in memory.
    """
    size, folder = 4 * n_rows * dim, cache_folder()
    if size < MAPPED_BYTES or folder is None or not hasattr(os, "posix_fallocate"):
        return np.empty((n_rows, dim), np.float32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # Reserved first: where a mapped file has no room, writing ends the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float32, "r+", shape=(n_rows, dim)).view(np.ndarray)
    except OSError:
        return np.empty((n_rows, dim), np.float32)
