"""What a feature set of many rows costs: written, opened, joined by id, verified.

    python -m tests.benchmarks.store_rows --rows 10000000 --dim 16 --join 1000000

Prints a line of JSON for each: CPU and wall seconds, and peak memory of the process so far.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmbase.process import peak_memory_bytes
from mmstore.reader import FeatureSet
from mmstore.writer import FeatureSetWriter

BLOCK = 1 << 16


def ids_of(rows: np.ndarray) -> np.ndarray:
    """`i00000012` and the like, as bytes."""
    return np.char.add(b"i", np.char.zfill(rows.astype("S8"), 8))


def write(path: Path, n: int, dim: int) -> None:
    """A set of n rows, a block at a time."""
    ids = np.concatenate(
        [ids_of(np.arange(start, min(start + BLOCK, n))) for start in range(0, n, BLOCK)]
    )
    with FeatureSetWriter(path, modality="visual", dim=dim, ids=ids, provenance={}) as vectors:
        for start in range(0, n, BLOCK):
            rows = np.arange(start, min(start + BLOCK, n))
            noise = np.random.default_rng(start).standard_normal((rows.size, dim), np.float32)
            vectors.write(rows, noise)
        vectors.finish()


def main() -> None:
    """Measure each part in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--join", type=int, default=1_000_000)
    asked = parser.parse_args()

    def timed(name: str, work: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        found = work()
        told = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        told["peak_gib"] = (peak_memory_bytes() or 0) / 2**30
        rounded = {key: round(value, 2) for key, value in told.items()}
        print(json.dumps({"what": name, **rounded, "found": str(found)}), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "visual" / "many.h5"
        timed("write", lambda: write(path, asked.rows, asked.dim))
        wanted = np.random.default_rng(0).permutation(asked.rows)[: asked.join]
        asked_ids = ids_of(wanted)
        with FeatureSet(path) as features:
            timed("open", lambda: (len(features), features.counts()))
            timed("join", lambda: features.matrix(asked_ids)[1].sum())
            timed("verify", features.verify)


if __name__ == "__main__":
    main()
