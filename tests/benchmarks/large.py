"""Made-up data of any size, written a block at a time: a dataset folder with vectors.

    python -m tests.benchmarks.large --users 100000 --out DIR

U users, U / 2 items and 20 U interactions: how many items a user has, and how many users an item
has, follow power laws; who has what follows from the items' places in a row of groups, so that
models find something. One feature set `visual/made-up` of 512 numbers that says the group.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmstore.writer import FeatureSetWriter

BLOCK = 20_000  # users, or items, at once
GROUPS = 64
PER_USER, LEAST = 20, 5  # rows; LEAST before the best draws are taken
TAIL = 2.5  # item = n r^2.5, r uniform: the first hundredth has 16 % of the draws
FOREIGN = 0.3  # share of a user's rows outside their group


@dataclass(frozen=True)
class Large:
    """Sizes of one made-up dataset; everything follows from them and the seed."""

    n_users: int
    dim: int = 512
    seed: int = 0

    @property
    def n_items(self) -> int:
        return self.n_users // 2

    @property
    def n_rows(self) -> int:
        return PER_USER * self.n_users

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Users and items of the rows of some users, each pair once, users ascending."""
        for start in range(0, self.n_users, BLOCK):
            rng = np.random.default_rng([self.seed, start])
            n = min(BLOCK, self.n_users - start)
            # Pareto above LEAST with mean PER_USER, cut at 1,000.
            shape = PER_USER / (PER_USER - LEAST)
            count = np.minimum(LEAST * (1 - rng.random(n)) ** (-1 / shape), 1_000)
            count = np.ceil(count * (1.6 * PER_USER * n / count.sum())).astype(np.int64)
            users = np.repeat(np.arange(n), count)
            items = (self.n_items * rng.random(users.size) ** TAIL).astype(np.int64)
            # Item i is of group i mod GROUPS: its nearest one of the user's group.
            own = rng.integers(0, GROUPS, n)[users]
            at_home = rng.random(users.size) > FOREIGN
            items[at_home] += (own - items % GROUPS)[at_home]
            keys = np.unique(users * self.n_items + items.clip(0, self.n_items - 1))
            keys = np.sort(rng.permutation(keys)[: PER_USER * n])
            yield start + keys // self.n_items, keys % self.n_items

    def vectors(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Items, and their vectors (n, dim): one of each group, and noise."""
        centres = np.random.default_rng(self.seed).standard_normal((GROUPS, self.dim), np.float32)
        for start in range(0, self.n_items, BLOCK):
            rng = np.random.default_rng([self.seed, start, 1])
            items = np.arange(start, min(start + BLOCK, self.n_items))
            noise = rng.standard_normal((items.size, self.dim), np.float32)
            yield items, centres[items % GROUPS] + noise

    def write(self, folder: Path) -> Path:
        """Write the dataset, unless it is there."""
        target, interactions = folder, folder / "interactions.parquet"
        if interactions.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string())])
        partial = folder / "interactions.partial"
        with pq.ParquetWriter(partial, schema) as writer:
            for users, items in self.blocks():
                columns = [names(prefix, rows) for prefix, rows in (("u", users), ("i", items))]
                writer.write_table(pa.table(columns, schema=schema))
        set_of_all = folder / "features" / "visual" / "made-up.h5"
        ids = names("i", np.arange(self.n_items)).to_pylist()
        provenance = {"model": "made up", "seed": self.seed}
        with FeatureSetWriter(
            set_of_all, modality="visual", dim=self.dim, ids=ids, provenance=provenance
        ) as vectors:
            for items, block in () if vectors.finished else self.vectors():
                vectors.write(items, block)
            vectors.finish()
        partial.replace(interactions)
        return target


def names(prefix: str, rows: NDArray[np.int64]) -> pa.Array:
    """`u0000012` and the like: as text they sort as the numbers do."""
    distinct, place = np.unique(rows, return_inverse=True)
    texts = pa.array([f"{prefix}{row:07d}" for row in distinct.tolist()])
    return texts.take(pa.array(place))


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    print(Large(asked.users, asked.dim).write(asked.out))


if __name__ == "__main__":
    main()
