"""Flips random bits of real files and reads them: python flip_trials.py TRIALS [SEED].

Either reading raises a StoreError, and then verify() has something to say, or the content is what
it was. Prints how often the damage was noticed and how often it changed nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from mmstore import FeatureSet, StoreError
from mmstore.spec import DENSE, RAGGED
from mmstore.testing import random_content

IDS = [f"item {row}" for row in range(12)]


def content_of(path: Path) -> object:
    with FeatureSet(path) as found:
        if found.layout == DENSE:
            features, present = found.matrix(IDS)
            return features.tobytes(), present.tobytes()
        return [None if vectors is None else vectors.tobytes() for vectors in found.ragged(IDS)]


def main(trials: int, seed: int) -> None:
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # equal bytes, so that equal seeds do equal damage
    rng = np.random.default_rng(seed)
    counts = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        for layout in (DENSE, RAGGED):
            path = Path(folder) / f"{layout}.h5"
            random_content(6, IDS, layout=layout, absent=0.5).save(path)
            good, expected = path.read_bytes(), content_of(path)
            for _ in range(trials):
                bad = bytearray(good)
                for at in rng.integers(0, len(bad), int(rng.integers(1, 9))):
                    bad[at] ^= 1 << int(rng.integers(8))
                path.write_bytes(bad)
                problems = FeatureSet(path).verify()
                try:
                    got = content_of(path)
                except StoreError:
                    assert problems, "the reader noticed what verify did not"
                else:
                    assert problems or got == expected, "nobody noticed"
                counts[not problems] += 1
    print(*counts)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
