"""Passes that are captured and replayed, on stand-ins for CUDA graphs."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.mmx.encoders.tiny_models import sentence_model
from torch import Tensor

from mmx.encoders import create, replaying
from mmx.encoders.batching import usual_width
from mmx.encoders.replaying import BEFORE, MAX_GRAPHS, OF_A_SHAPE, Passes, Replays

Run = Callable[[Mapping[str, Tensor]], Tensor]


class Graphs:
    """Stands in for a GPU: a replay computes from the captured inputs into the captured output."""

    def __init__(self) -> None:
        self.n_captures = self.n_replays = 0
        self.change = 0.0  # that a replay adds
        self.failure: Exception | None = None

    def captured(
        self, run: Run, inputs: Mapping[str, Tensor], pool: object
    ) -> tuple[Callable[[], None], Tensor]:
        self.n_captures += 1
        if self.failure is not None:
            raise self.failure
        output = torch.zeros_like(run(inputs))

        def replay() -> None:
            self.n_replays += 1
            output.copy_(run(inputs) + self.change)

        return replay, output


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    found = Graphs()
    monkeypatch.setattr(replaying, "_is_on_a_gpu", lambda x: True)
    monkeypatch.setattr(replaying, "_new_pool", object)
    monkeypatch.setattr(replaying, "_captured", found.captured)
    return found


def doubled(inputs: Mapping[str, Tensor]) -> Tensor:
    return inputs["x"] * 2


def through(replays: Replays, x: Tensor, run: Run = doubled, **more: Any) -> Tensor:
    with replaying.passes.one():
        return replays(run, {"x": x}, **more).clone()


def test_each_shape_is_captured_after_it_was_called_and_replays_what_it_gets(
    graphs: Graphs,
) -> None:
    replays = Replays()
    for k in range(20):
        size = 3 + k % 2
        x = torch.arange(size) + float(k)
        assert torch.equal(through(replays, x), 2 * x)
    assert graphs.n_captures == replays.n_captured == 2
    assert replays.n_passes == 20
    assert replays.n_replayed == 20 - BEFORE - 2 * OF_A_SHAPE
    assert replays.reason == ""
    nan = torch.full((5,), torch.nan)
    for _ in range(3):
        assert through(replays, nan).isnan().all()
    assert replays.n_captured == 3


def test_a_graph_that_gives_other_bits_is_not_used(graphs: Graphs) -> None:
    replays, graphs.change = Replays(), 1e-6
    for k in range(6):
        x = torch.ones(3) + k
        assert torch.equal(through(replays, x), 2 * x)
    assert replays.n_replayed == replays.n_captured == 0
    assert graphs.n_captures == 1
    assert replays.reason == "a captured pass gives other bits"


def test_what_cannot_be_captured_is_called_and_says_why(graphs: Graphs) -> None:
    replays, graphs.failure = Replays(), RuntimeError("operation not permitted\n when capturing")
    for k in range(6):
        assert torch.equal(through(replays, torch.ones(3) * k), torch.ones(3) * 2 * k)
    assert replays.reason == "operation not permitted when capturing"
    assert (graphs.n_captures, replays.n_replayed, replays.n_passes) == (1, 0, 6)


def test_what_is_unusual_is_called_and_the_number_of_graphs_is_bounded(graphs: Graphs) -> None:
    replays = Replays()
    for _ in range(6):
        through(replays, torch.ones(3), usual=False)
    assert graphs.n_captures == 0
    for size in range(1, MAX_GRAPHS + 5):
        for _ in range(4):
            through(replays, torch.ones(size))
    assert replays.n_captured == MAX_GRAPHS


def test_once_memory_ran_out_graphs_give_theirs_back(graphs: Graphs) -> None:
    replays, full = Replays(), False

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return doubled(inputs)

    for _ in range(5):
        through(replays, torch.ones(3), run)
    assert replays.n_replayed == 2
    full = True
    with (
        ThreadPoolExecutor(1) as other,
        pytest.raises(torch.OutOfMemoryError),
    ):
        other.submit(through, replays, torch.ones(4), run).result()
    full = False
    for _ in range(5):
        through(replays, torch.ones(3), run)
    assert replays.n_replayed == 2
    assert replays.reason == "memory ran out"
    assert replays._thread.graphs == {}


def test_threads_have_graphs_of_their_own(graphs: Graphs) -> None:
    replays = Replays()
    barrier = threading.Barrier(3)

    def work(number: int) -> bool:
        barrier.wait(10)
        rights = []
        for k in range(40):
            x = torch.full((4,), 100.0 * number + k)
            rights.append(torch.equal(through(replays, x), 2 * x))
        return all(rights)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(3)))
    assert replays.n_captured == 3
    assert replays.n_passes == 120


def test_a_capture_is_alone_and_only_one_thread_captures() -> None:
    passes = Passes()
    log: list[str] = []
    inside = threading.Event()

    def other() -> None:
        with passes.one():
            inside.set()
            time.sleep(0.05)
            with passes.alone() as alone:  # the other thread waits to capture already
                log.append(f"other {alone}")
        with passes.one():
            log.append("later")

    thread = threading.Thread(target=other)
    with passes.one():
        thread.start()
        assert inside.wait(10)
        with passes.alone() as alone:
            log.append(f"mine {alone}")
            time.sleep(0.05)
            log.append("done")
    thread.join(10)
    assert log == ["other False", "mine True", "done", "later"]


def test_graphs_stay_in_their_process(graphs: Graphs) -> None:
    replays = Replays()
    for _ in range(5):
        through(replays, torch.ones(3))
    other = pickle.loads(pickle.dumps(replays))
    assert (other.n_captured, replays.n_captured) == (0, 1)


def test_pictures_are_replayed_with_the_bits_of_called_passes(graphs: Graphs) -> None:
    encoder = create("resnet18", modality="visual", weights="random", device="cpu")
    encoder.batch_size = 2
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8) for _ in range(4)]
    batches[3] = batches[3][:1]  # filled up
    assert encoder.replays is not None
    encoder.replays.reason = "not yet"
    called = [encoder.encode(list(batch)) for batch in batches]
    encoder.replays.reason = ""
    with replaying.passes.one():
        replayed = [encoder.encode(list(batch)).copy() for batch in batches]
    assert encoder.replays.n_replayed == 3
    for one, other in zip(called, replayed, strict=True):
        assert np.array_equal(one, other)


def test_texts_are_replayed_where_some_are_padded(graphs: Graphs, tmp_path: Path) -> None:
    encoder: Any = create(str(sentence_model(tmp_path / "tiny")), modality="textual", device="cpu")
    encoder.batch_size = 3
    texts = [["red", "blue lamp", "the blue chair"], ["a", "silk shoe", "a red lamp"]] * 5
    alike = [["red", "blue", "lamp"]] * 5  # of one length
    short = [["red", "blue lamp"]] * 5
    batches = [[encoder.load(text) for text in batch] for batch in [*texts, *alike, *short]]
    encoder.replays.reason = "not yet"
    called = [encoder.encode(batch).copy() for batch in batches]
    assert encoder.replays.n_passes == 1 + len(batches)  # one told the length of vectors
    encoder.replays.reason = ""
    with replaying.passes.one():
        replayed = [encoder.encode(batch).copy() for batch in batches]
    assert (encoder.replays.n_captured, encoder.replays.n_replayed) == (1, len(texts) - 1)
    for one, other in zip(called, replayed, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("longest", "most", "width"),
    [(1, 256, 8), (8, 256, 8), (9, 256, 16), (64, 256, 64), (65, 256, 96), (250, 256, 256),
     (250, 255, 255), (9, 10, 10), (9, 0, 9), (300, 256, 300)],
)  # fmt: skip
def test_widths_are_few(longest: int, most: int, width: int) -> None:
    assert usual_width(longest, most) == width
