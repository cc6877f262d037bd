"""Nearest neighbours computed once: files named after a digest of everything that went into them.

A file can't be stale: other vectors, another k or another way of computing give another name.
Deleting the folder is always safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
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


def neighbour_cache() -> NeighbourCache | None:
    """The cache in `cache_folder()`; None where there is to be none."""
    folder = cache_folder()
    return None if folder is None else NeighbourCache(folder)


class NeighbourCache:
    """Finds nearest neighbours, on disk if they were computed before.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "neighbours"

    def __call__(self, modality: str, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest rows by cosine and their cosines; see `mmbench.models.base.Neighbours`.

        A file that can't be read or written is passed over: the neighbours are then computed, or
        not kept.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        path = self.folder / f"{self._digest(vectors, k)}.safetensors"
        try:
            found = load_file(path, device=str(vectors.device))
            return found["indices"], found["values"]
        except (OSError, SafetensorError, KeyError):
            indices, values = cosine_knn(vectors, k)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"indices": indices.contiguous(), "values": values.contiguous()}, partial)
            partial.replace(path)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        return indices, values

    @staticmethod
    def _digest(vectors: Tensor, k: int) -> str:
        state = hashlib.blake2b(
            f"{VERSION}\0{k}\0{tuple(vectors.shape)}\0{vectors.dtype}".encode(), digest_size=16
        )
        for block in torch.split(vectors.detach().cpu().contiguous(), 4096):
            state.update(block.numpy().data)
        return state.hexdigest()
