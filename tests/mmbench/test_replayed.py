"""Steps of models captured and replayed by a device that plays a GPU: the same training.

A graph here is the list of the operations that a step did. A replay does them again with the same
tensors, whatever Python would do by now: a number or a tensor that a step should have read anew is
found on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch
from tests.elsewhere import ELSEWHERE, There, elsewhere
from tests.mmbench.models.test_conformance import TRAINED, kind, trainer_of
from tests.mmbench.models.test_other_devices import STEADY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmbench.core.interactions import TrainSet
from mmbench.models.base import Content, TrainsContent
from mmbench.trainer import Trainer


class Tape(TorchDispatchMode):
    """Records operations, which run at once: the first replay is the run that was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        out = [x for x in tree_flatten(result)[0] if isinstance(x, There)]
        if out or func._schema.is_mutable:
            self.done.append((func, args, kwargs, out))
        return result

    def pool(self) -> int:
        return 0

    def capture_begin(self, **options: object) -> None:
        self.__enter__()

    def capture_end(self) -> None:
        self.__exit__(None, None, None)

    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:
            return
        with torch.no_grad():
            for func, args, kwargs, out in self.done:
                again = tree_flatten(func(*args, **kwargs))[0]
                found = [x for x in again if isinstance(x, There)]
                for old, new in zip(out, found, strict=True):
                    if new is not old:
                        old.held.copy_(new.held)


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The stand-in device, with graphs."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    trainer = import_module("mmbench.trainer")
    monkeypatch.setattr(trainer, "capturable", lambda device: device == ELSEWHERE)
    with elsewhere() as device:
        yield device


# Without Triton, a `RowTable` counts its steps in Python, and so no such step is ever captured.
WITH_TABLES = {name for name, _ in TRAINED if issubclass(kind(name), TrainsContent)}


@pytest.mark.parametrize("name", [name for name in dict(TRAINED) if name not in WITH_TABLES])
def test_replayed_steps_are_those_taken_call_by_call(
    name: str, gpu: torch.device, block_train: TrainSet, block_features: Content
) -> None:
    def train(captured: bool) -> tuple[Trainer, list[dict[str, float]]]:
        by_user = name == "next-item" or kind(name).in_order  # fewer steps an epoch
        size, epochs = (10, 10) if by_user else (32, 4)
        settings = {**STEADY.get(name, {}), "batch_size": size}
        here = trainer_of(name, block_train, block_features, epochs, **settings)
        model = here.model.to(gpu)
        trainer = Trainer(
            model, block_train, here.config, here.validate, metric="x", every=99, patience=None,
            seed=3,
        )  # fmt: skip
        if not captured:
            trainer._captured = None
        return trainer, [record.loss for record in trainer.run()]

    found, losses = train(True)
    expected, wanted = train(False)
    assert found._captured is not None
    assert found._captured.reason == ""
    # Whole batches and the last one of an epoch; histories are of any length.
    graphs = [graph for graph, _ in found._captured._graphs.values()]
    assert len(graphs) >= (1 if name == "next-item" else 2)
    assert max(graph.replays for graph in graphs) > 2  # type: ignore[attr-defined]
    assert losses == [pytest.approx(loss, rel=1e-4, abs=1e-5) for loss in wanted]
    for key, value in expected.tensors().items():
        torch.testing.assert_close(
            found.tensors()[key].cpu(), value.cpu(), rtol=1e-4, atol=1e-5,
            msg=lambda text, key=key: f"{key}: {text}",
        )  # fmt: skip


def test_a_number_that_a_step_reads_in_python_is_noticed(
    gpu: torch.device, block_train: TrainSet, block_features: Content
) -> None:
    """Such a model is trained wrongly where its steps are captured; here that shows."""

    def last_loss(captured: bool) -> float:
        here = trainer_of("bpr-mf", block_train, block_features, 4)
        model, steps = here.model.to(gpu), iter(range(999))
        loss = model.loss
        model.loss = lambda batch: {k: x * next(steps) for k, x in loss(batch).items()}
        trainer = Trainer(
            model, block_train, here.config, here.validate, metric="x", every=99, patience=None,
            seed=3,
        )  # fmt: skip
        if not captured:
            trainer._captured = None
        return [record.loss["bpr"] for record in trainer.run()][-1]

    assert last_loss(True) != pytest.approx(last_loss(False), rel=0.1)
