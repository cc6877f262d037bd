"""CPU seconds per training epoch at the published settings, and the peak memory of the process.

Synthetic data of the sizes of Amazon Office, TikTok and Amazon Clothing, with stand-in vectors of
the real widths. How an item graph's raw neighbours are found is measured elsewhere; here they are
random. For one model and size:

    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_training.py -m slow --benchmark-enable
    -s -k 'freedom and office'
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbase.process import peak_memory_bytes, tune_process
from mmbench.config import make_settings
from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Batch, Init
from mmbench.models import model_class
from mmbench.models.base import Content
from mmbench.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.benchmark(timer=time.process_time)]


@dataclass(frozen=True)
class Size:
    n_users: int
    n_items: int
    n_edges: int
    dims: dict[str, int]


SIZES = {
    "office": Size(4_905, 2_414, 31_118, {"visual": 4096, "textual": 1024}),
    "tiktok": Size(9_298, 6_245, 59_541, {"visual": 128, "acoustic": 128}),
    "clothing": Size(39_387, 23_016, 197_338, {"visual": 4096, "textual": 1024}),
}
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {  # where it is not the default
    ("bm3", "clothing"): {"lr": 1e-2, "n_layers": 2, "dropout": 0.3, "reg_weight": 0.1},
    ("grcn", "clothing"): {"lr": 0.1},
    ("lgmrec", "clothing"): {
        "n_hyper_layers": 2,
        "n_hyperedges": 64,
        "keep_rate": 0.2,
        "alpha": 0.2,
    },
    **{("layergcn", size): {"batch_size": 2048} for size in SIZES},
}
CELLS: dict[str, dict[str, Any]] = {  # of the schema
    "schema-joint": {"representation": "joint"},
    "schema-coordinate": {},
    "schema-content": {"side": "both", "ids": "none"},
    "schema-attention": {"operator": "attention", "query": "user"},
    "schema-mlp": {"backbone": "mlp"},
    "schema-lightgcn": {"backbone": "lightgcn"},
}
OWN_DIMS = {"content-style": {"colour": 512, "shape": 4096, "class": 128}}
"""Of models whose content is not the datasets'."""
REVIEWS = {"textual": 768}
"""Widths of the vectors of interactions, for models that take them."""
MODELS = (
    *("lightgcn", "layergcn", "simgcl", "vbpr", "mmgcn", "grcn", "lattice", "bm3", "freedom"),
    *("mgcn", "lgmrec", "slmrec", "dualgnn", "smore", "dragon", "egcf", "content-style"),
    *("sasrec", "gru4rec", *CELLS),
)
SCALED = {
    *((name, "clothing") for name in ("mmgcn", "grcn", "mgcn", "smore", "lgmrec", "dualgnn")),
    *((name, "clothing") for name in ("dragon", "egcf", "schema-lightgcn")),
    *(("content-style", size) for size in SIZES),
}
"""Where an epoch takes minutes: the median of five steps is multiplied by the steps of an epoch."""
MODELS = (
    *("lightgcn", "vbpr", "mmgcn", "grcn", "lattice", "bm3", "freedom", "sasrec", "gru4rec"),
    "lightgcn",
    "simgcl",
    "layergcn",
    "vbpr",
    "deepstyle",
    "mmgcn",
    "grcn",
    "lattice",
    "bm3",
    "freedom",
    *CELLS,
)


def interactions(size: Size, rng: np.random.Generator) -> TrainSet:
    """Exactly so many pairs, items with a long tail."""
    n = 4 * size.n_edges
    items = (size.n_items * rng.random(n) ** 2.5).astype(np.int64)
    keys = rng.permutation(np.unique(rng.integers(0, size.n_users, n) * size.n_items + items))[
        : size.n_edges
    ]
    return TrainSet.from_pairs(
        keys // size.n_items, keys % size.n_items, size.n_users, size.n_items
    )


def random_neighbours(modality: str, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Each row itself and others at random."""
    n, generator = len(vectors), torch.Generator().manual_seed(len(modality))
    others = torch.randint(0, n, (n, k - 1), generator=generator)
    cosines = torch.rand(n, k, generator=generator).sort(1, descending=True).values
    return torch.cat([torch.arange(n)[:, None], others], 1), cosines


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_epoch(name: str, size: str, benchmark: Any) -> None:
    tune_process()
    torch.set_num_threads(1)
    train = interactions(SIZES[size], np.random.default_rng(0))
    generator = torch.Generator().manual_seed(1)
    kind = "schema" if name in CELLS else name
    rows, dims = train.n_items, OWN_DIMS.get(name, SIZES[size].dims)
    if model_class(kind).content_of == "interaction":
        rows, dims = train.n_edges, REVIEWS
    vectors = {m: torch.rand(rows, dim, generator=generator) for m, dim in dims.items()}
    own = CELLS.get(name) or PUBLISHED.get((name, size), {})
    config = make_settings(kind, {"epochs": 9, **own})
    content = Content.complete(vectors, random_neighbours)
    if dims is REVIEWS:
        content = Content({}, edges=vectors)
    model = model_class(kind)(train, content, config, Init(1))  # type: ignore[call-arg]
    trainer = Trainer(
        model, train, config, lambda _: {"x": 0.0}, metric="x", every=99, patience=None, seed=1
    )
    if (name, size) in SCALED:
        model.start_epoch(1, 1)
        batches = trainer.sampler.epoch(1)
        trainer.optimiser.schedule(config.lr, len(trainer.sampler))
        step(trainer, next(batches))  # compiles, and fills the moments
        benchmark.pedantic(lambda: step(trainer, next(batches)), rounds=5)
        seconds = benchmark.stats.stats.median * len(trainer.sampler)
    else:
        epochs = trainer.run()
        next(epochs)
        benchmark.pedantic(
            lambda: next(epochs), rounds=1 if size == "clothing" or name == "mmgcn" else 3
        )
        seconds = benchmark.stats.stats.min
    peak = (peak_memory_bytes() or 0) / 2**30
    print(
        f"{name}, {size}: {seconds:.2f} CPU s per epoch; peak memory of the process {peak:.2f} GiB"
    )


def step(trainer: Trainer, batch: Batch) -> None:
    """What the trainer does with one batch."""
    trainer.optimiser.zero_grad()
    torch.stack(list(trainer.model.loss(batch).values())).sum().backward()
    trainer.optimiser.step()
