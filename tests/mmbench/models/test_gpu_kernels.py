"""Every model with the kernels of NVIDIA GPUs, by Triton's interpreter: the same training."""

from __future__ import annotations

import pytest
import torch
from tests.mmbench.conftest import known
from tests.mmbench.interpreted import interpreted
from tests.mmbench.models.test_conformance import TRAINED
from tests.mmbench.models.test_other_devices import STEADY, trained

from mmbench.core.interactions import TrainSet
from mmbench.models.base import Content


@pytest.mark.parametrize("name", dict(TRAINED))
def test_training_gives_the_same_model(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    settings: dict[str, object] = {**STEADY.get(name, {}), "epochs": 2, "batch_size": 64}
    here = trained(name, block_train, block_features, settings, "cpu")
    with interpreted():
        there = trained(name, block_train, block_features, settings, "cpu")
        weights, scores = there.weights(), there.train(False).scorer(known(block_train))
        with torch.no_grad():
            found = scores(torch.arange(block_train.n_users))
    for key, value in here.weights().items():
        torch.testing.assert_close(
            weights[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    with torch.no_grad():
        expected = here.train(False).scorer(known(block_train))(torch.arange(block_train.n_users))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
