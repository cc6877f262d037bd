"""Content-style beside the same network out of torch's operations, in one run, on one thread.

OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_content_style.py -m slow
--benchmark-enable -s
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.benchmarks.test_training import OWN_DIMS, SIZES, interactions, step
from tests.mmbench.conftest import known
from torch import Tensor
from torch.nn import functional

from mmbench.config import make_settings
from mmbench.core.sampling import Init
from mmbench.models.base import Content
from mmbench.models.content_style import ContentStyle
from mmbench.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.benchmark(timer=time.process_time)]

N_USERS, N_ITEMS = 64, 600  # of the pairs that are scored one by one


def plain_maps(x: Tensor, side: int, kernels: Tensor, bias: Tensor) -> Tensor:
    maps, weight = x.view(-1, 1, side, side), kernels.view(-1, 1, 3, 3)
    return functional.max_pool2d(functional.conv2d(maps, weight, bias, padding=1).relu(), 2).mean(
        (2, 3)
    )


def every_pair(model: ContentStyle) -> Tensor:
    """Attention and perceptron of every pair, as the authors' evaluation has them."""
    encoders, attention, score = model.encoders, model.attention, model.score.layers
    assert attention is not None
    x = torch.stack([model._encoder(m)(model._vectors(m)[:N_ITEMS]) for m in encoders], 1)
    user = model.user_factors[:N_USERS]
    hidden = (user[:, None, None] * x) @ attention.inner.weight.T + attention.inner.bias
    logits = (hidden.relu() @ attention.middle.T) @ attention.outer.T  # (users, items, K, 1)
    shares = torch.softmax(logits / attention.temperature, 2)
    q = model.item_factors[None, :N_ITEMS] + (shares * x).sum(2)
    y = torch.cat([user[:, None].expand(-1, N_ITEMS, -1), q], 2)
    for layer in score[:-1]:
        y = (y @ layer.weight.T + layer.bias).relu()
    return (y @ score[-1].weight.T)[..., 0]


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """The median of the CPU seconds."""
    found = []
    for _ in range(rounds + 1):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return float(np.median(found[1:]))


@pytest.mark.parametrize("attention", ["product", "sum"])
def test_beside_torchs_operations(
    attention: str, benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    train, draw = interactions(SIZES["office"], np.random.default_rng(0)), torch.Generator()
    vectors = {
        m: torch.rand(train.n_items, dim, generator=draw)
        for m, dim in OWN_DIMS["content-style"].items()
    }
    config: Any = make_settings("content-style", {"epochs": 9, "attention": attention})
    model = ContentStyle(train, Content.complete(vectors), config, Init(1))
    trainer = Trainer(
        model, train, config, lambda _: {"x": 0.0}, metric="x", every=99, patience=None, seed=1
    )
    batches = trainer.sampler.epoch(1)
    trainer.optimiser.schedule(config.lr, len(trainer.sampler))
    ours = seconds(lambda: step(trainer, next(batches)))
    with monkeypatch.context() as patch:
        patch.setattr("mmbench.models.encoding.pooled_maps", plain_maps)
        theirs = seconds(lambda: step(trainer, next(batches)))
    print(f"a step: {ours:.3f} CPU s, with torch's convolution {theirs:.3f}")
    with torch.inference_mode():
        score = model.train(False).scorer(known(train))
        rows = torch.arange(N_USERS)
        per_pair = seconds(lambda: score(rows)) / (N_USERS * train.n_items)
        benchmark.pedantic(lambda: score(rows), rounds=1)
        print(f"{attention}: {1e9 * per_pair:.0f} CPU ns per pair")
        if attention == "product":
            each = seconds(lambda: every_pair(model)) / (N_USERS * N_ITEMS)
            print(f"every pair by itself: {1e9 * each:.0f} CPU ns per pair")
            torch.testing.assert_close(
                score(rows)[:, :N_ITEMS], every_pair(model), rtol=1e-3, atol=1e-6
            )
            assert per_pair < each / 2
    assert ours < theirs / 2
