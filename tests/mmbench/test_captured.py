"""Captured steps on a GPU: the same training as step by step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.mmbench.models.test_conformance import OF_USERS, TRAINED, trainer_of
from tests.mmbench.models.test_other_devices import STEADY
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Batch
from mmbench.models.base import Content
from mmbench.trainer import Trainer

pytestmark = pytest.mark.gpu


def on_gpu(name: str, train: TrainSet, features: Content, epochs: int) -> Trainer:
    """A trainer on the GPU, with several steps an epoch, the last one of a smaller batch."""
    size = 10 if name in OF_USERS else 32
    settings = {**STEADY.get(name, {}), "batch_size": size}
    here = trainer_of(name, train, features, epochs, **settings)
    model = here.model.to("cuda")
    return Trainer(
        model, train, here.config, here.validate, metric="x", every=999, patience=None, seed=3
    )


def step_by_step(name: str, train: TrainSet, features: Content, epochs: int) -> Trainer:
    trainer = on_gpu(name, train, features, epochs)
    trainer._captured = None
    return trainer


def same(found: Trainer, expected: Trainer) -> None:
    tensors = found.tensors()
    assert tensors.keys() == expected.tensors().keys()
    for key, value in expected.tensors().items():
        torch.testing.assert_close(
            tensors[key], value, rtol=1e-4, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


def captures(trainer: Trainer) -> int:
    """How many shapes of batches have been captured; nothing spoke against it."""
    assert trainer._captured is not None
    assert trainer._captured.reason == ""
    return len(trainer._captured._graphs)


@pytest.mark.parametrize("name", dict(TRAINED))
def test_captured_steps_are_those_taken_call_by_call(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    captured = on_gpu(name, block_train, block_features, 5)
    expected = step_by_step(name, block_train, block_features, 5)
    losses = [record.loss for record in captured.run()]
    assert losses == [pytest.approx(each.loss, rel=1e-3, abs=1e-4) for each in expected.run()]
    # Whole batches and the last one of an epoch; histories are of any length.
    assert captures(captured) >= (1 if name == "next-item" else 2)
    same(captured, expected)


@pytest.mark.parametrize("name", dict(TRAINED))
def test_a_resume_between_replays_goes_on_as_if_nothing_had_been(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    whole = on_gpu(name, block_train, block_features, 6)
    list(whole.run())

    first = on_gpu(name, block_train, block_features, 6)
    for record in first.run():
        if record.epoch == 3:
            saved = {key: value.cpu().clone() for key, value in first.tensors().items()}
            progress = replace(first.progress)
        if record.epoch == 5:
            break
    assert captures(first)
    resumed = on_gpu(name, block_train, block_features, 6)
    resumed.restore(saved, replace(progress))
    assert [record.epoch for record in resumed.run()] == [4, 5, 6]
    assert captures(resumed) or name == "next-item"
    same(resumed, whole)
    # What the first one has captured before reads tensors that a restore replaces.
    first.restore(saved, replace(progress))
    assert [record.epoch for record in first.run()] == [4, 5, 6]
    same(first, whole)


def through(trainer: Trainer, look: Callable[[int, Tensor], None]) -> None:
    """Let the model's loss call `look` with the number of the call, from 1, and each term."""
    loss, calls = trainer.model.loss, 0

    def looked(batch: Batch) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        terms = loss(batch)
        for term in terms.values():
            look(calls, term)
        return terms

    trainer.model.loss = looked  # type: ignore[method-assign]


def test_a_model_that_waits_for_the_device_is_trained_step_by_step(
    block_train: TrainSet, block_features: Content
) -> None:
    waiting = on_gpu("vbpr", block_train, block_features, 3)
    expected = step_by_step("vbpr", block_train, block_features, 3)
    seen: list[float] = []
    through(waiting, lambda _, term: seen.append(term.item()))
    with pytest.warns(UserWarning, match="training step by step"):
        list(waiting.run())
    list(expected.run())
    assert waiting._captured is not None
    assert waiting._captured.reason
    assert len(seen) >= 3 * len(waiting.sampler)
    same(waiting, expected)


@pytest.mark.parametrize("call", [1, 4])  # taken; to be captured
def test_a_step_without_enough_memory_is_the_usual_error(
    call: int, block_train: TrainSet, block_features: Content
) -> None:
    trainer = on_gpu("bpr-mf", block_train, block_features, 3)

    def allocate(calls: int, term: Tensor) -> None:
        if calls >= call:
            torch.empty(1 << 50, dtype=torch.uint8, device=term.device)  # 1 PiB

    through(trainer, allocate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the step can't be captured
        with pytest.raises(torch.cuda.OutOfMemoryError):
            list(trainer.run())
    torch.ones(1, device="cuda").add_(1).cpu()  # the device goes on
