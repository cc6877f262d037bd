"""The cache of what is costly and follows from vectors alone: nearest neighbours."""

from __future__ import annotations

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from mmbench.ops.knn import cosine_knn

VERSION = "cosine-knn 1"
"""Changes whenever `cosine_knn` may give other neighbours for the same vectors."""


def cache_folder() -> Path | None:
    """`$MMBENCH_CACHE` (`off`: none), else `mmbench` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    if given := os.environ.get("MMBENCH_CACHE"):
        return None if given == "off" else Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmbench"


def neighbour_cache(device: torch.device | None = None) -> NeighbourCache:
    """Return the cache in `cache_folder()`, which computes on the device; see `NeighbourCache`."""
    return NeighbourCache(cache_folder(), device)


class NeighbourCache:
    """Nearest neighbours, computed once: files named after a digest of all that went into them.

    A file can't be stale: other vectors, another k or another way of computing give another name.
    The device is not part of it: lists found on one serve on all. Deleting the folder is always
    safe.

    Args:
        folder: Where the files are; None: nothing is kept.
        device: Where neighbours are searched; None: where the vectors are.
    """

    def __init__(self, folder: Path | None, device: torch.device | None = None) -> None:
        self.folder = None if folder is None else folder / "neighbours"
        self._device = device

    def __call__(self, modality: str, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k nearest rows by cosine and their cosines; see `models.base.Neighbours`.

        They are where the vectors are. A file that can't be read is computed anew; one that can't
        be written is not kept.
        """
        if self.folder is None:
            return self._search(vectors, k)
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        path = self.folder / f"{self._digest(vectors, k)}.safetensors"
        try:
            found = load_file(path, device=str(vectors.device))
            return found["indices"], found["values"]
        except (OSError, SafetensorError, KeyError):
            indices, values = self._search(vectors, k)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"indices": indices.contiguous(), "values": values.contiguous()}, partial)
            partial.replace(path)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        return indices, values

    def _search(self, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        indices, values = cosine_knn(vectors.to(self._device or vectors.device), k)
        return indices.to(vectors.device), values.to(vectors.device)

    @staticmethod
    def _digest(vectors: Tensor, k: int) -> str:
        state = hashlib.blake2b(
            f"{VERSION}\0{k}\0{tuple(vectors.shape)}\0{vectors.dtype}".encode(), digest_size=16
        )
        # Blocks are digested beside each other, in an order that is always the same: one thread
        # would take longer than a GPU takes for the search.
        blocks = torch.split(vectors.detach().cpu().contiguous(), 1024)
        with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(blocks)))) as threads:
            for digest in threads.map(_digest_of, blocks):
                state.update(digest)
        return state.hexdigest()


def _digest_of(block: Tensor) -> bytes:
    return hashlib.blake2b(block.numpy().data).digest()
