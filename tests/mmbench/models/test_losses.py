"""The losses of an epoch: means over its batches, and the step where one is not finite."""

from __future__ import annotations

import pytest
import torch
from tests.mmbench.models.test_conformance import make

from mmbench.core.interactions import TrainSet
from mmbench.errors import Diverged
from mmbench.models.base import Content
from mmbench.trainer import Trainer


def trainer(train: TrainSet, content: Content) -> Trainer:
    model, config = make("bpr-mf", train, content, batch_size=16, epochs=2)
    return Trainer(
        model, train, config, lambda _: {"x": 0.0}, metric="x", every=9, patience=None, seed=3
    )


def test_an_epochs_loss_is_the_mean_over_its_batches(
    block_train: TrainSet, block_features: Content
) -> None:
    ours, seen = trainer(block_train, block_features), []
    loss = ours.model.loss

    def kept(batch: object) -> dict[str, torch.Tensor]:
        terms = loss(batch)
        seen.append(terms["bpr"].item())
        return terms

    ours.model.loss = kept  # type: ignore[method-assign]
    record = next(ours.run())
    assert len(seen) == len(ours.sampler) > 2
    assert record.loss["bpr"] == pytest.approx(sum(seen) / len(seen), rel=1e-6)


def test_the_step_and_the_term_that_are_not_finite_are_named(
    block_train: TrainSet, block_features: Content
) -> None:
    ours, n = trainer(block_train, block_features), 0
    loss = ours.model.loss

    def breaks(batch: object) -> dict[str, torch.Tensor]:
        nonlocal n
        n += 1
        terms = loss(batch)
        return {**terms, "l2": terms["l2"] * float("inf")} if n == 3 else terms

    ours.model.loss = breaks  # type: ignore[method-assign]
    with pytest.raises(Diverged, match="epoch 1, step 2: loss term 'l2' is inf"):
        next(ours.run())
