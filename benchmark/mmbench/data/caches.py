"""The cache of what is costly and follows from vectors: nearest neighbours, filled vectors."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbench.data.missing.base import Gaps, Policy, Vectors
from mmbench.ops import ann
from mmbench.ops.knn import cosine_knn

VERSION = "cosine-knn 1"
"""Changes whenever `cosine_knn` may give other neighbours for the same vectors."""


def cache_folder() -> Path | None:
    """`$MMBENCH_CACHE` (`off`: none), else `mmbench` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    if given := os.environ.get("MMBENCH_CACHE"):
        return None if given == "off" else Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmbench"


def _read(path: Path, names: Sequence[str], device: torch.device) -> dict[str, Tensor] | None:
    """The tensors of a file; None where they can't be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path, device=str(device))
    except (OSError, SafetensorError):
        return None
    return found if set(names) <= set(found) else None


def _keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file in one step; where it can't be written there is none."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: one.contiguous() for name, one in tensors.items()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


FILLED_VERSION = "filled 1"
"""Changes whenever a policy may fill other numbers."""


def filled(policy: Policy, gaps: Gaps, folder: Path | None) -> Vectors:
    """Return `policy.fill(gaps)`, computed once where that is costly: then filled rows are kept.

    Files are named after a digest of all that goes into them, as those of `NeighbourCache` are.

    Args:
        policy: The policy.
        gaps: The vectors, filled in place.
        folder: The cache's; None: nothing is kept.
    """
    absent = np.flatnonzero(~gaps.present)
    if folder is None or not policy.COSTLY or not absent.size:
        return policy.fill(gaps)
    path = folder / "filled" / f"{_digest_of_gaps(policy, gaps)}.safetensors"
    found = _read(path, ("rows",), torch.device("cpu"))
    shape = (absent.size, gaps.vectors.shape[1])
    if found is not None and found["rows"].shape == shape and found["rows"].isfinite().all():
        gaps.vectors[absent] = found["rows"].numpy()
        return gaps.vectors
    vectors = policy.fill(gaps)
    _keep(path, {"rows": torch.from_numpy(vectors[absent])})
    return vectors


def _digest_of_gaps(policy: Policy, gaps: Gaps) -> str:
    """Digest the policy, the training pairs, the ids, and the vectors that are there."""
    state = hashlib.blake2b(
        f"{FILLED_VERSION}\0{policy.spelled}\0{gaps.seed}\0{gaps.modality}\0{gaps.n_trained}"
        f"\0{gaps.vectors.shape}".encode(),
        digest_size=16,
    )
    state.update("\0".join(gaps.item_ids).encode())
    state.update(np.packbits(gaps.present).data)
    if gaps.train is not None:
        state.update(f"\0{gaps.train.n_users}\0".encode())
        state.update(np.ascontiguousarray(gaps.train.keys).data)
    for start in range(0, len(gaps.vectors), 1024):
        part = slice(start, start + 1024)
        state.update(_digest_of(torch.from_numpy(gaps.vectors[part][gaps.present[part]])))
    return state.hexdigest()


def neighbour_cache(
    device: torch.device | None = None, *, approximate: bool = False
) -> NeighbourCache:
    """Return the cache in `cache_folder()`, which computes on the device; see `NeighbourCache`."""
    return NeighbourCache(cache_folder(), device, approximate=approximate)


class NeighbourCache:
    """Nearest neighbours, computed once: files named after a digest of all that went into them.

    A file can't be stale: other vectors, another k or another way of computing give another name.
    The device is not part of it: lists found on one serve on all. Deleting the folder is always
    safe.

    Args:
        folder: Where the files are; None: nothing is kept.
        device: Where neighbours are searched; None: where the vectors are.
        approximate: Search through faiss; see `mmbench.ops.ann`.

    Attributes:
        recalls: Of an approximate search what was found, by modality; see `mmbench.ops.ann.recall`.
    """

    def __init__(
        self,
        folder: Path | None,
        device: torch.device | None = None,
        *,
        approximate: bool = False,
    ) -> None:
        self.folder = None if folder is None else folder / "neighbours"
        self._device, self.approximate = device, approximate
        self.recalls: dict[str, dict[str, Any]] = {}

    def __call__(self, modality: str, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k nearest rows by cosine and their cosines; see `models.base.Neighbours`.

        They are where the vectors are. A file that can't be read is computed anew; one that can't
        be written is not kept.
        """
        version = f"{ann.VERSION} {ann.faiss().__version__}" if self.approximate else VERSION
        path, found = None, None
        if self.folder is not None:
            path = self.folder / f"{self._digest(vectors, k, version)}.safetensors"
            found = _read(path, ("indices", "values"), vectors.device)
        if found is None:
            indices, values = self._search(vectors, k)
            found = {"indices": indices, "values": values}
            if path is not None:
                _keep(path, found)
        if self.approximate:
            self.recalls[modality] = ann.recall(vectors, found["indices"])
        return found["indices"], found["values"]

    def _search(self, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self.approximate:
            return ann.approximate_knn(vectors, k)
        indices, values = cosine_knn(vectors.to(self._device or vectors.device), k)
        return indices.to(vectors.device), values.to(vectors.device)

    @staticmethod
    def _digest(vectors: Tensor, k: int, version: str = VERSION) -> str:
        state = hashlib.blake2b(
            f"{version}\0{k}\0{tuple(vectors.shape)}\0{vectors.dtype}".encode(), digest_size=16
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
