"""Which steps are taken call by call, captured and replayed; by a device that plays a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.core.sampling import Pairs
from mmbench.ops.capture import Captured, DrawnAhead


class Gpu:
    """Runs what is launched, or records it while a graph is captured.

    Attributes:
        log: What happened, in order: `take N` for a step of N rows that ran call by call,
            `capture` and `replay`.
        total: Sum of what steps have read.
        waits: Whether a step waits for the device, which no capture allows.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.streams: list[str] = []
        self.total, self.waits = 0, False
        self.graph: Graph | None = None

    def take(self, batch: Pairs) -> None:
        """A step: adds up what it reads when the device runs it."""

        def kernel() -> None:
            self.total += int(batch.users.sum()) + int(batch.clock[1])

        if self.graph is not None:
            self.graph.kernels.append(kernel)
            if self.waits:
                raise RuntimeError("operation not permitted when stream is capturing")
        else:
            self.log.append(f"take {len(batch.users)}")
            kernel()


class Graph:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.kernels = gpu, list[Callable[[], None]]()

    def pool(self) -> int:
        return 0

    def capture_begin(self, **options: Any) -> None:
        assert self.gpu.graph is None
        self.gpu.graph = self
        if options.get("pool") is not None:
            self.gpu.log.append("capture")

    def capture_end(self) -> None:
        self.gpu.graph = None

    def replay(self) -> None:
        self.gpu.log.append("replay")
        for kernel in self.kernels:
            kernel()


class Stream:
    def __init__(self, gpu: Gpu, name: str) -> None:
        self.gpu, self.name = gpu, name

    def wait_stream(self, other: Stream) -> None:
        self.gpu.streams.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """In place of `torch.cuda`."""
    made = Gpu()
    default = Stream(made, "default")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        made.streams.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(made, "own"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(made))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: default)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return made


class Run:
    """Epochs of some sizes of batches, with numbers that differ between all batches."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.captured = gpu, Captured(gpu.take, torch.device("cpu"))
        self.expected = self.step = 0
        self.batches: list[tuple[Tensor, Tensor]] = []

    def epoch(self, *sizes: int) -> list[str]:
        """What happened in an epoch of batches of these sizes."""
        self.gpu.log.clear()
        for place, size in enumerate(sizes):
            self.step += 1
            users = torch.arange(size) + 100 * self.step
            clock = torch.tensor([1, self.step])
            self.expected += int(users.sum()) + self.step
            self.batches.append((users, users.clone()))
            ends = place == 0, place == len(sizes) - 1
            self.captured(Pairs(7, clock, *ends, users, users + 1))
            assert all(torch.equal(*both) for both in self.batches), "a batch has been overwritten"
            assert self.gpu.total == self.expected, f"step {self.step} of {size} rows"
        return list(self.gpu.log)


@pytest.fixture
def run(gpu: Gpu) -> Run:
    return Run(gpu)


def test_three_steps_are_taken_before_the_first_capture(run: Run) -> None:
    assert run.epoch(4, 4, 4, 4, 4, 4)[:5] == ["take 4"] * 3 + ["capture", "replay"]
    # The last batch says that it is the last one: a model may do something else with it.
    assert run.gpu.log[5:] == ["replay", "take 4"]


def test_a_further_shape_is_taken_once_before_its_capture(run: Run) -> None:
    assert run.epoch(4, 4, 4, 4, 2) == ["take 4"] * 3 + ["capture", "replay", "take 2"]
    # An epoch's first step may differ from all others, too.
    again = ["capture", "replay"]
    assert run.epoch(4, 4, 2) == [*again, "replay", *again]
    assert run.epoch(4, 4, 2) == ["replay"] * 3
    assert run.epoch(4, 3, 2) == ["replay", "take 3", "replay"]


def test_short_epochs_are_captured_too(run: Run) -> None:
    assert [run.epoch(4) for _ in range(5)] == [["take 4"]] * 3 + [["capture", "replay"]] + [
        ["replay"]
    ]


def test_other_seeds_are_other_steps(run: Run) -> None:
    """A number of Python that a step reads is part of what has been captured."""
    run.epoch(4, 4, 4, 4, 4)
    users = torch.arange(4)
    run.captured(Pairs(8, torch.tensor([1, 1]), False, False, users, users))
    assert run.gpu.log[-1] == "take 4"


def test_what_has_been_forgotten_is_captured_anew(run: Run) -> None:
    run.epoch(4, 4, 4, 4, 2)
    run.epoch(4, 4, 2)
    run.captured.forget()
    assert run.epoch(4, 4, 2) == ["capture", "replay"] * 3


def test_a_step_that_cannot_be_captured_is_taken_call_by_call(run: Run) -> None:
    run.gpu.waits = True
    with pytest.warns(UserWarning, match="training step by step: operation not permitted"):
        log = run.epoch(4, 4, 4, 4, 4, 4)
    assert log == ["take 4"] * 3 + ["capture"] + ["take 4"] * 3
    assert run.captured.reason.startswith("operation not permitted")
    run.captured.forget()
    assert run.epoch(4, 2) == ["take 4", "take 2"]  # and says so once


def test_no_garbage_is_collected_during_a_capture(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs of an earlier training may be among it: to free them breaks the capture."""
    take, seen = run.gpu.take, []

    def watched(batch: Pairs) -> None:
        seen.append((run.gpu.graph is not None, gc.isenabled()))
        take(batch)

    run.captured._take = watched
    run.epoch(4, 4, 4, 4, 2)
    assert seen == [(False, True)] * 3 + [(True, False), (False, True)]
    assert gc.isenabled()
    monkeypatch.setattr(gc, "isenabled", lambda: False)  # who has it off keeps it off
    monkeypatch.setattr(gc, "enable", pytest.fail)
    run.epoch(4, 4, 2)


def test_steps_run_between_the_work_of_the_default_stream(run: Run) -> None:
    for size in (4, 4, 4, 4):
        run.gpu.streams.clear()
        run.epoch(size)
        assert run.gpu.streams == ["own waits for default", "on own", "default waits for own"]


class Sampler:
    """Batches that are numbers, drawn when the first is asked for."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int) -> Iterator[Any]:
        self.log.append(f"draw {epoch}")
        for step in range(4):
            yield 10 * epoch + step


def test_the_next_epoch_is_drawn_while_this_one_runs(gpu: Gpu) -> None:
    ahead = DrawnAhead(Sampler(gpu.streams), torch.device("cpu"))
    for epoch in (1, 2):
        for batch in ahead.epoch(epoch):
            gpu.streams.append(str(batch))
    # On a stream of its own, which has waited once for the tables of the sampler.
    assert gpu.streams == [
        "default waits for own", "draw 1", "10", "11", "12",
        "own waits for default", "on own", "draw 2", "13",
        "default waits for own", "20", "21", "22", "on own", "draw 3", "23",
    ]  # fmt: skip


def test_an_epoch_that_was_not_expected_is_drawn(gpu: Gpu) -> None:
    """A resume goes back."""
    ahead = DrawnAhead(Sampler(gpu.streams), torch.device("cpu"))
    assert list(ahead.epoch(1)) == [10, 11, 12, 13]
    assert list(ahead.epoch(7)) == [70, 71, 72, 73]
    assert list(ahead.epoch(2)) == [20, 21, 22, 23]
