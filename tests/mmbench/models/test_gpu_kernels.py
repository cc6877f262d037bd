"""Every model with the kernels of NVIDIA GPUs, by Triton's interpreter: the same training."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from tests.mmbench.conftest import known, reviews_of
from tests.mmbench.interpreted import interpreted
from tests.mmbench.models.test_conformance import TRAINED
from tests.mmbench.models.test_other_devices import STEADY, trained

from mmbench.core.interactions import TrainSet
from mmbench.models.base import Content

CANCELLING = {"content-style": "score.layers.*.bias"}
"""Weights with a gradient that is zero where a unit is open for both items of a triple: Adam moves
them by what rounding leaves. Their scores are compared."""
MOVING = ("freedom", "lattice")
"""Models that rebuild a graph at each epoch, in the memory of the one before."""


@pytest.fixture
def small_train() -> TrainSet:
    """8 users, 6 items, 20 pairs: the interpreter runs the rows of a result one by one."""
    pairs = [(u, i) for u in range(8) for i in range(6) if (u + i) % 2 == 0 and (u, i) != (0, 0)]
    users, items = np.array(pairs[:20]).T
    return TrainSet.from_pairs(users, items, 8, 6)


@pytest.fixture
def small_features(small_train: TrainSet) -> Content:
    """Two modalities for its items, and reviews."""
    draw = torch.Generator().manual_seed(2)
    return Content.complete(
        {"visual": torch.randn(6, 4, generator=draw), "textual": torch.randn(6, 3, generator=draw)},
        edges=reviews_of(small_train, {"visual": 4, "textual": 3}),
        categories=torch.arange(6) % 2,
    )


@pytest.mark.parametrize("name", dict(TRAINED))
def test_training_gives_the_same_model(
    name: str, small_train: TrainSet, small_features: Content
) -> None:
    # Two steps, the second one with a smaller batch.
    settings: dict[str, object] = {
        **STEADY.get(name, {}),
        "embedding_dim": 4,
        "epochs": 1 + (name in MOVING),
        "batch_size": 12,
    }
    here = trained(name, small_train, small_features, settings, "cpu")
    with interpreted():
        there = trained(name, small_train, small_features, settings, "cpu")
        weights, scores = there.weights(), there.train(False).scorer(known(small_train))
        with torch.no_grad():
            found = scores(torch.arange(small_train.n_users))
    for key, value in here.weights().items():
        if fnmatchcase(key, CANCELLING.get(name, "")):
            continue
        torch.testing.assert_close(
            weights[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    with torch.no_grad():
        expected = here.train(False).scorer(known(small_train))(torch.arange(small_train.n_users))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
