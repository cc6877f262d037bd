"""The k best of each row, and item graphs as a training gets them, on a GPU.

    python -m tests.benchmarks.gpu_lists [--device cuda] [--tiny]

prints lines of JSON. The selection is measured beside `torch.topk`, which does not order ties; item
graphs through the cache of neighbours, from vectors that are not on the device yet.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks.test_training import SIZES

from mmbench.data.caches import NeighbourCache
from mmbench.ops.dense import unchecked_top_k

K = 20
NEIGHBOURS = 10
ROUNDS = 5


def selection(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Milliseconds per block of scores at Clothing size: 64 MiB, 256 MiB, 1 GiB; distinct, tied.

    Returns:
        Per block: `rows`, `items`, `ties`, `top_k_ms` and `torch_topk_ms`.
    """
    n_items = 300 if tiny else SIZES["clothing"].n_items
    found = []
    for rows in (8,) if tiny else (728, 2_915, 11_661):
        generator = torch.Generator(device).manual_seed(0)
        scores = torch.randn(rows, n_items, generator=generator, device=device)
        for ties in (False, True):
            if ties:
                scores.mul_(10).round_()
            times = {
                "top_k_ms": _median_ms(lambda x=scores: unchecked_top_k(x, K), device),
                "torch_topk_ms": _median_ms(lambda x=scores: x.topk(K, dim=1), device),
            }
            found.append({"rows": rows, "items": n_items, "ties": ties, **times})
    return found


def item_graphs(device: str, tiny: bool, work: Path) -> dict[str, Any]:
    """Seconds of the neighbours of all modalities at Clothing size, first found and then read.

    Returns:
        `shape` of each modality; `found_s`, digests, the copy to the device and files included;
        `read_s`; and `digest_s`, the part of either that is neither search nor file.
    """
    generator = torch.Generator().manual_seed(1)
    size = SIZES["clothing"]
    vectors = {
        m: torch.randn(*((60, 16) if tiny else (size.n_items, dim)), generator=generator)
        for m, dim in size.dims.items()
    }
    NeighbourCache(None, torch.device(device))("warm", torch.randn(600, 64), NEIGHBOURS)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        find = NeighbourCache(Path(folder), torch.device(device))

        def graphs() -> None:
            for modality, x in vectors.items():
                find(modality, x, NEIGHBOURS)

        found_s, read_s = _seconds(graphs, device), _seconds(graphs, device)
    digest_s = _seconds(
        lambda: [NeighbourCache._digest(x, NEIGHBOURS) for x in vectors.values()], device
    )
    return {
        "shapes": {m: list(x.shape) for m, x in vectors.items()},
        "found_s": found_s,
        "read_s": read_s,
        "digest_s": digest_s,
    }


def _seconds(function: Callable[[], object], device: str) -> float:
    """Wall time until the device has done it."""
    _synchronise(device)
    start = time.perf_counter()
    function()
    _synchronise(device)
    return time.perf_counter() - start


def _median_ms(function: Callable[[], object], device: str) -> float:
    function()  # compiles, loads libraries, asks for memory
    return 1e3 * sorted(_seconds(function, device) for _ in range(ROUNDS))[ROUNDS // 2]


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    """Print what was measured, a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    for row in selection(asked.device, asked.tiny):
        print(json.dumps({"measure": "selection", "device": asked.device, **row}), flush=True)
    with tempfile.TemporaryDirectory() as work:
        row = item_graphs(asked.device, asked.tiny, Path(work))
    print(json.dumps({"measure": "item graphs", "device": asked.device, **row}), flush=True)


if __name__ == "__main__":
    main()
