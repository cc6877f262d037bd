"""CPU seconds of the operations of training, beside plain ways and this machine's roofline.

Item graphs (exact neighbours), the product with the user-item graph, and exact Adam on item
features, at the sizes of Amazon Clothing with stand-in vectors of the real widths. Each test prints
ratios of what it measured itself.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbase.process import tune_process
from mmbench.core.interactions import TrainSet
from mmbench.ops import dense, sparse
from mmbench.ops.graph import bipartite, symmetric_normalised
from mmbench.ops.knn import cosine_knn
from mmbench.ops.row_table import RowTable
from mmbench.trainer import Adam

pytestmark = [pytest.mark.slow, pytest.mark.benchmark(timer=time.process_time)]

N_USERS, N_ITEMS, N_EDGES, DIM, BATCH = 39_387, 23_016, 197_338, 64, 1024
DIMS = {"visual": 4096, "textual": 1024}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    tune_process()
    torch.set_num_threads(1)


def median_seconds(function: Callable[[], object], rounds: int) -> float:
    """CPU seconds of one call, the first one not counted."""
    function()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def gemm_gflops() -> float:
    """The rate of a large single-precision product by the routine that training uses."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    return 2 * 2048**3 / 1e9 / median_seconds(lambda: dense.product(a, b), 5)


def bandwidth() -> float:
    """GB/s, read and written, of adding to a vector that no cache holds."""
    x = torch.zeros(1 << 27)
    return 2 * 4 * x.numel() / 1e9 / median_seconds(lambda: x.add_(1.0), 5)


def training_pairs() -> TrainSet:
    rng = np.random.default_rng(0)
    items = (N_ITEMS * rng.random(4 * N_EDGES) ** 2.5).astype(np.int64)
    keys = rng.permutation(np.unique(rng.integers(0, N_USERS, items.size) * N_ITEMS + items))[
        :N_EDGES
    ]
    return TrainSet.from_pairs(keys // N_ITEMS, keys % N_ITEMS, N_USERS, N_ITEMS)


@pytest.mark.parametrize("modality", DIMS)
def test_item_graph(modality: str, benchmark: Any) -> None:
    x = torch.randn(N_ITEMS, DIMS[modality], generator=torch.Generator().manual_seed(1))
    rate = gemm_gflops()
    benchmark.pedantic(lambda: cosine_knn(x, 20), rounds=1)
    seconds = benchmark.stats.stats.median
    # Cosines are symmetric: half of the products is all that is needed.
    least = N_ITEMS**2 * DIMS[modality] / 1e9 / rate
    print(
        f"{modality} {DIMS[modality]}: {seconds:.1f} CPU s; products alone {least:.1f} at "
        f"{rate:.0f} GFLOP/s"
    )
    assert seconds < 3 * least + 5


def test_graph_product(benchmark: Any) -> None:
    matrix = symmetric_normalised(bipartite(training_pairs()))
    pattern, n = matrix.pattern, matrix.shape[0]
    x = torch.randn(n, DIM, generator=torch.Generator().manual_seed(1), requires_grad=True)
    grad = torch.randn(n, DIM, generator=torch.Generator().manual_seed(2))

    def there_and_back(product: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(product(x), x, grad)

    sparse._hear_of_the_beta_state()
    with torch.sparse.check_sparse_tensor_invariants(True):
        csr = torch.sparse_csr_tensor(pattern.indptr, pattern.indices, matrix.values, pattern.shape)
        coo = torch.sparse_coo_tensor(
            torch.stack([pattern.row, pattern.indices]), matrix.values, pattern.shape
        )
    coo = coo.coalesce()
    others = {
        " COO": median_seconds(there_and_back(lambda y: torch.sparse.mm(coo, y)), 7),
        " CSR": median_seconds(there_and_back(lambda y: csr @ y), 7),
    }
    if importlib.util.find_spec("torch_sparse"):
        sparse.use("torch-sparse")
        others["-sparse"] = median_seconds(there_and_back(lambda y: matrix @ y), 7)
        sparse.use("torch")
    benchmark.pedantic(there_and_back(lambda y: matrix @ y), rounds=15, warmup_rounds=2)
    ours = benchmark.stats.stats.median
    rate = bandwidth()
    # Forward and backward: a row of x for each entry, the entries themselves, and the result.
    moved = 2 * (pattern.nnz * (4 * DIM + 12) + 2 * 4 * n * DIM) / 1e9
    print(
        f"{pattern.nnz:,} entries x {DIM}, forward and backward: {1e3 * ours:.1f} CPU ms; "
        + ", ".join(
            f"torch{name} {1e3 * value:.1f} ({value / ours:.1f}x)" for name, value in others.items()
        )
        + f"; from memory alone {1e3 * moved / rate:.1f} at {rate:.1f} GB/s"
    )
    assert ours < min(others.values())


def test_adam_on_item_features(benchmark: Any) -> None:
    """Steps that use the items of a batch of BM3: one positive of each edge."""
    train = training_pairs()
    vectors = torch.rand(N_ITEMS, sum(DIMS.values()), generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(2)
    table = RowTable(vectors.clone())
    model = nn.ModuleDict({"features": table})
    optimiser = Adam(model)
    optimiser.schedule(1e-3, 80)

    def step() -> None:
        rows = torch.from_numpy(np.unique(train.items[rng.integers(0, train.n_edges, BATCH)]))
        optimiser.zero_grad()
        table.rows(rows).sum().backward()
        optimiser.step()

    for _ in range(40):  # until the gaps between two uses of a row are what they stay
        step()
    dense = nn.Parameter(vectors)
    dense.grad = torch.zeros_like(vectors)
    plain = torch.optim.Adam([dense], lr=1e-3, fused=True)
    others = median_seconds(plain.step, 5)
    benchmark.pedantic(step, rounds=40)
    ours = benchmark.stats.stats.mean
    rate = bandwidth()
    print(
        f"Adam on {N_ITEMS:,} x {vectors.shape[1]:,}, a batch of {BATCH}: {1e3 * ours:.0f} CPU ms; "
        f"torch's fused update {1e3 * others:.0f} ({others / ours:.1f}x), "
        f"its traffic of 28 bytes an entry {28e3 * vectors.numel() / 1e9 / rate:.0f} at {rate:.1f} "
        "GB/s"
    )
    assert ours < others
