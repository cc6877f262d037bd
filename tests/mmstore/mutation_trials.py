"""Mutates files of feature sets and reads them: python mutation_trials.py FIRST LAST

One trial per seed in [FIRST, LAST): flipped bits, other bytes, zeros, swapped words, copied pieces,
a cut, an insertion, or a word that could be another address. A reader must refuse the file or hand
out the rows that were written. Prints how many it refused and how many damages did not matter, as
JSON; a trial that takes 30 s ends the process with the traceback of where it hangs.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

import mmstore.validate  # noqa: F401 - everything is imported before the trials
from mmstore import FeatureSet, Status, StoreError
from mmstore.spec import DENSE, RAGGED
from mmstore.testing import random_content

IDS = [f"item {row}" for row in range(12)]


def mutated(good: bytes, rng: random.Random) -> bytes:
    data, n = bytearray(good), len(good)

    def word() -> int:
        return 8 * rng.randrange(n // 8)

    at, other, length = rng.randrange(n - 256), rng.randrange(n - 256), rng.randint(1, 256)
    match rng.randrange(8):
        case 0:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(n)] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.randrange(256)
        case 2:
            data[at : at + length] = bytes(length)
        case 3:
            a, b = word(), word()
            data[a : a + 8], data[b : b + 8] = data[b : b + 8], data[a : a + 8]
        case 4:
            data[at : at + length] = data[other : other + length]
        case 5:
            del data[at:]
        case 6:
            data[at:at] = rng.randbytes(length)
        case _:
            a = word()
            values = (0, 2**64 - 1, rng.randrange(n), word())
            data[a : a + 8] = rng.choice(values).to_bytes(8, "little")
    return bytes(data)


def rows_of(path: Path) -> object:
    with FeatureSet(path) as found:
        ids, status = found.ids.tolist(), found.status.tolist()
        errors = [row for row, _ in found.errors()]
        assert errors == [row for row, state in enumerate(status) if state == Status.CORRUPT]
        if found.layout == RAGGED:
            vectors = [None if one is None else one.tobytes() for one in found.ragged(IDS)]
            return ids, status, vectors
        return ids, status, [one.tobytes() for one in found.matrix(IDS)]


def main(first: int, last: int) -> dict[str, int]:
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # equal bytes, so that equal seeds do equal damage
    warnings.simplefilter("ignore")
    counts = {"refused": 0, "harmless": 0}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MMSTORE_CACHE"] = f"{folder}/cache"
        made = []
        for layout in (DENSE, RAGGED):
            path = Path(folder) / f"{layout}.h5"
            random_content(6, IDS, layout=layout).save(path)
            made.append((path, path.read_bytes(), rows_of(path)))
        for seed in range(first, last):
            path, good, expected = made[seed % 2]
            path.write_bytes(mutated(good, random.Random(seed)))
            faulthandler.dump_traceback_later(30, exit=True)
            try:
                got = rows_of(path)
            except StoreError:
                counts["refused"] += 1
            else:
                assert got == expected, f"seed {seed}: other rows, and nobody noticed"
                counts["harmless"] += 1
    return counts


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
