"""A training step never waits for its device: all that it does can be captured and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.elsewhere import elsewhere
from tests.mmbench.models.test_conformance import OF_USERS, TRAINED, trainer_of
from tests.mmbench.synchronising import Synchronising
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.models.base import Content
from mmbench.trainer import Trainer


def waited(trainer: Trainer) -> list[str]:
    """What waited for the device in two epochs, the very first step apart."""
    counted = Synchronising()
    trainer.model.train()
    for epoch in (1, 2):
        trainer.model.start_epoch(epoch, trainer.seed)
        trainer.optimiser.schedule(0.01, len(trainer.sampler))
        for step, batch in enumerate(trainer.sampler.epoch(epoch)):
            if step or epoch > 1:
                with counted:
                    trainer._take(batch)
            else:
                trainer._take(batch)
        assert step, "one step alone shows nothing"
    return counted.names


def trainer_there(
    name: str, train: TrainSet, features: Content, device: torch.device, **settings: object
) -> Trainer:
    """A trainer whose model has been moved to `device`."""
    here = trainer_of(name, train, features, 2, **settings)
    return Trainer(
        here.model.to(device), train, here.config, here.validate, metric="x", every=9,
        patience=None, seed=3,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "preset"), TRAINED)
def test_a_step_waits_for_nothing(
    name: str, preset: dict[str, object], block_train: TrainSet, block_features: Content
) -> None:
    settings = {**preset, "batch_size": 10 if name in OF_USERS else 48}
    with elsewhere() as device:
        trainer = trainer_there(name, block_train, block_features, device, **settings)
        assert waited(trainer) == []


class _Looks(torch.autograd.Function):
    """Its backward looks at the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad if grad.sum().item() else None


def _copied(x: Tensor) -> Tensor:
    return x * torch.tensor([2.0, 3.0], device=x.device).sum()


def _fetched(x: Tensor) -> Tensor:
    x.detach().to("cpu")
    return x


@pytest.mark.parametrize(
    ("look", "name"),
    [
        (lambda x: x * x.item(), "_local_scalar_dense"),
        (lambda x: x if x > 0 else -x, "_local_scalar_dense"),
        (lambda x: x * int(x), "_local_scalar_dense"),
        (_Looks.apply, "_local_scalar_dense"),
        (lambda x: x[None].detach().nonzero().sum() + x, "nonzero"),
        (lambda x: x[None][x[None] > 0].sum(), "index"),
        (lambda x: x[None].masked_select(x[None] > 0).sum(), "masked_select"),
        (lambda x: x * x[None].detach().unique().numel(), "_unique2"),
        (lambda x: x * torch.bincount(x[None].detach().long()).numel(), "bincount"),
        (lambda x: x[None].repeat_interleave(x[None].detach().long()).sum(), "repeat_interleave"),
        (_copied, "_to_copy between devices"),
        (_fetched, "_to_copy between devices"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_look_at_a_value_is_noticed(
    look: Callable[[Tensor], Tensor], name: str, block_train: TrainSet, block_features: Content
) -> None:
    with elsewhere() as device:
        trainer = trainer_there("bpr-mf", block_train, block_features, device, batch_size=48)
        loss = trainer.model.loss
        trainer.model.loss = lambda batch: {k: look(x) for k, x in loss(batch).items()}
        assert name in waited(trainer)
