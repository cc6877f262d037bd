"""CPU seconds and memory of the policies on the graph of items, at the size of Amazon Clothing.

Its training pairs where the development data are there, else as many drawn ones; half of the items
have no vector, the others 4,096 random numbers. No array of items x items fits into the bound.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.conftest import REPOSITORY

from mmbase.process import forget_peak_memory, peak_memory_bytes, tune_process
from mmbench.core.interactions import TrainSet
from mmbench.data.missing import policy_of
from mmbench.data.missing.base import Gaps

pytestmark = pytest.mark.slow

N_USERS, N_ITEMS, N_EDGES, DIM = 39_387, 23_016, 197_338, 4096
POLICIES = [
    "neighbours", "multihop", "propagation", "heat", "pagerank", "heat:form=paper",
    "pagerank:form=paper",
]  # fmt: skip


@pytest.fixture(scope="module")
def train() -> TrainSet:
    given = Path(os.environ.get("MMX_TEST_DATA", REPOSITORY.parent / "shared"))
    path = given / "data/amazon-clothing/train.tsv"
    if path.is_file():
        table = pd.read_csv(path, sep="\t", header=None, usecols=[0, 1])
        users, items = (pd.factorize(table[column], sort=True)[0] for column in (0, 1))
        return TrainSet.from_pairs(users, items, users.max() + 1, items.max() + 1)
    rng = np.random.default_rng(0)
    popular = 1 / np.arange(1, N_ITEMS + 1) ** 0.6
    items = rng.choice(N_ITEMS, N_EDGES, p=popular / popular.sum())
    return TrainSet.from_pairs(rng.integers(0, N_USERS, N_EDGES), items, N_USERS, N_ITEMS)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_on_clothing(name: str, train: TrainSet) -> None:
    tune_process()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((train.n_items, DIM), dtype=np.float32)
    present = rng.random(train.n_items) < 0.5
    vectors[~present] = np.nan
    ids = [f"{item}" for item in range(train.n_items)]
    gaps = Gaps(vectors, present, train.n_items, ids, 0, "visual", train)
    small = Gaps(vectors[:, :64].copy(), present, train.n_items, ids, 0, "visual", train)
    policy_of("heat").fill(small)  # compiles
    forget_peak_memory()
    start = time.process_time()
    filled = policy_of(name).fill(gaps)
    seconds, peak = time.process_time() - start, (peak_memory_bytes() or 0) / 2**30
    print(f"{name}: {seconds:.1f} CPU s, peak {peak:.2f} GiB")
    assert np.isfinite(filled).all()
    assert seconds < 60 and peak < 3
