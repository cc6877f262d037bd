"""No model holds an array of items x items, users x items or nodes x nodes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.mmbench.conftest import known, reviews_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Init
from mmbench.evaluation.ranking import rank
from mmbench.models import MODELS, model_class
from mmbench.models.base import Content
from mmbench.ops.knn import cosine_knn
from mmbench.trainer import Trainer

N_USERS, N_ITEMS, N_EDGES = 3_000, 2_000, 9_000
LIMIT = min(N_ITEMS * N_ITEMS, N_USERS * N_ITEMS) // 2
"""Numbers in one array: half of the smallest square, and far above anything that may be there."""


BLOCK_BYTES = 1 << 20
"""What blocked searches and rankings may take; their default would hold everything here."""


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, by the memory it stands on."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.operation = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                numbers = leaf.untyped_storage().nbytes() // leaf.element_size()
                if numbers > self.numbers:
                    self.numbers, self.operation = numbers, str(func)
        return out


def watched(work: Callable[[], object]) -> tuple[int, str]:
    """The largest array that `work` makes, in numbers (NumPy's of four bytes), and its maker."""
    tracemalloc.start()
    with Largest() as largest:
        work()
    peak = tracemalloc.get_traced_memory()[1] // 4
    tracemalloc.stop()
    return (
        (peak, "NumPy, all arrays together")
        if peak > largest.numbers
        else (largest.numbers, largest.operation)
    )


@pytest.fixture(scope="module")
def train() -> TrainSet:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, N_USERS, N_EDGES), rng.integers(0, N_ITEMS, N_EDGES)
    return TrainSet.from_pairs(users, items, N_USERS, N_ITEMS)


@pytest.fixture(scope="module")
def features(train: TrainSet) -> Content:
    generator = torch.Generator().manual_seed(0)
    vectors = {m: torch.randn(N_ITEMS, 16, generator=generator) for m in ("visual", "textual")}
    return Content.complete(
        vectors,
        lambda modality, x, k: cosine_knn(x, k, block_bytes=BLOCK_BYTES),
        reviews_of(train, {"visual": 16, "textual": 16}),
    )


@pytest.mark.parametrize("name", MODELS)
def test_arrays_stay_linear(
    name: str, train: TrainSet, features: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    small: dict[str, int] = {"embedding_dim": 8, "batch_size": 2048}
    small |= {"epochs": 1} if model_class(name).trained else {}
    small |= {"neighbours": 10} if "neighbours" in model_class(name).Config.model_fields else {}
    config = model_class(name).Config(**small)
    monkeypatch.setattr(
        "mmbench.models.neighbours.cosine_knn", partial(cosine_knn, block_bytes=BLOCK_BYTES)
    )
    if name == "lattice":
        monkeypatch.setattr("mmbench.models.lattice._BLOCK_BYTES", BLOCK_BYTES)

    def work() -> None:
        model = model_class(name)(train, features, config, Init(0))  # type: ignore[call-arg]
        trainer = Trainer(
            model, train, config, lambda _: {"x": 0.0}, metric="x", every=1, patience=None, seed=0
        )
        list(trainer.run())
        with torch.inference_mode():
            rank(
                model.train(False).scorer(known(train)),
                train,
                np.arange(N_USERS),
                k=20,
                block_bytes=BLOCK_BYTES,
            )

    watched(work)  # what is compiled or imported on first use is not the model's
    numbers, what = watched(work)
    assert numbers < LIMIT, f"{what} made an array of {numbers:,} numbers (at most {LIMIT:,})"


@pytest.mark.parametrize("where", ["torch", "numpy"])
def test_a_dense_model_would_be_noticed(where: str, features: Content) -> None:
    x = features["visual"].vectors
    dense = {"torch": lambda: x @ x.T, "numpy": lambda: x.numpy() @ x.numpy().T}[where]
    numbers, _ = watched(dense)
    assert numbers >= N_ITEMS * N_ITEMS
