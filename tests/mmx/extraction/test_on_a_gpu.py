"""What needs a card: streams, page-locked memory, events, and sets that don't depend on them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, EncoderSpec, compute, create
from mmx.encoders.batching import pad_batch
from mmx.encoders.compute import device_times, forward_pass, stacked
from mmx.extraction import executors
from mmx.extraction.extract import extract
from mmx.extraction.processes import portable
from mmx.extraction.summary import Summary

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    rng = np.random.default_rng(4)
    for k in range(96):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(root / "images" / f"{k:03d}.jpg")
    ids = "".join(f"{k:03d}\n" for k in range(96))
    (root / "items.tsv").write_text(f"item_id\n{ids}", encoding="utf-8")
    return root


def go(root: Path, out: Path, device: str, loading: str = "threads", **more: Any) -> Summary:
    run = RunConfig(
        data=root, out=out, device=device, workers=2, loading=loading  # type: ignore[arg-type]
    )  # fmt: skip
    config = SetConfig(modality="visual", model="resnet18", weights="random", batch_size=8)
    return extract(run, config, **more)


@pytest.mark.parametrize("size", [None, 3, 7])
def test_arrays_are_stacked_as_on_the_processor(size: int | None) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) for _ in range(5)]
    found = stacked(arrays, CPU, size)
    assert np.array_equal(found.numpy(), pad_batch(np.stack(arrays), size))


def test_passes_on_a_processor_take_no_time_of_a_gpu() -> None:
    before = device_times()
    with forward_pass(CPU, "fp32"):
        torch.ones(3) + 1
    assert device_times() == before


@pytest.mark.parametrize(("gib", "passes"), [(None, 2), (24, 2), (40, 3), (80, 3)])
def test_a_large_gpu_has_a_pass_more(
    gib: int | None, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mocked(monkeypatch, "is_initialized", lambda: gib is not None)
    mocked(monkeypatch, "mem_get_info", lambda: (0, (gib or 0) << 30))
    assert executors._passes_on_gpu() == passes


def mocked(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    monkeypatch.setattr(torch.cuda, name, value)


def test_a_pass_within_a_pass_is_counted_once_and_an_error_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from contextlib import nullcontext

    now = 0.0

    class Event:
        """The time of its recording; every event lies 5 ms after the one before."""

        def __init__(self, *, enable_timing: bool, blocking: bool = False) -> None:
            assert enable_timing

        def record(self, stream: Any = None) -> None:
            nonlocal now
            now += 5
            self.at = now

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    class Stream:
        device_index = 77

        def __init__(self, device: Any) -> None:
            self.waited_for: list[Any] = []

        def wait_stream(self, other: Any) -> None:
            self.waited_for.append(other)

    mocked(monkeypatch, "Event", Event)
    mocked(monkeypatch, "Stream", Stream)
    mocked(monkeypatch, "stream", nullcontext)
    mocked(monkeypatch, "current_stream", lambda device: "default")
    device = torch.device("cuda")
    found: list[Any] = []

    def passes() -> None:
        with compute._on_own_stream(device), compute._on_own_stream(device):
            pass
        found.append(device_times())
        with pytest.raises(ZeroDivisionError), compute._on_own_stream(device):
            raise ZeroDivisionError
        assert compute._thread.began is None
        with compute._on_own_stream(device):
            compute._mark_start()  # nothing was there to do before
        found.append(device_times())
        (stream,) = compute._thread.streams.values()
        found.append(stream)

    thread = threading.Thread(target=passes)
    thread.start()
    thread.join()
    compute._timelines.pop(77, None)
    assert [round(1e3 * times.whole_s) for times in found[:2]] == [5, 10]
    assert found[2].waited_for == ["default"] * 3
    assert device_times() == compute.DeviceTimes()  # of another thread


class TestOnAGpu:
    """Each of these takes seconds, most of them to start CUDA and to load the network."""

    pytestmark = on_a_gpu

    def test_each_thread_has_a_stream_and_events_tell_its_time(self) -> None:
        device = torch.device("cuda")
        x = torch.rand(4096, 4096, device=device)
        (x @ x).sum().item()
        barrier = threading.Barrier(2)

        def work(_: int) -> tuple[int, float, float]:
            barrier.wait(10)
            before = device_times()
            with forward_pass(device, "fp32"):
                stream = torch.cuda.current_stream(device).cuda_stream
                y = x
                for _ in range(20):
                    y = (x @ y).clamp_(0, 1)
                y.sum().cpu()
            took = device_times() - before
            return stream, took.whole_s, took.alone_s

        began = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            (a, b) = pool.map(work, range(2))
        wall_s = time.perf_counter() - began
        default = torch.cuda.default_stream(device).cuda_stream
        assert len({a[0], b[0], default}) == 3
        assert a[1] > 0.005 and b[1] > 0.005  # 20 products of 137 GFLOP
        assert a[2] + b[2] <= wall_s
        assert a[2] + b[2] >= max(a[1], b[1]) * 0.99

    def test_idle_time_of_the_host_before_the_copy_does_not_count(self) -> None:
        device = torch.device("cuda")
        arrays = [np.zeros((224, 224, 3), np.uint8)] * 64
        before = device_times()
        with forward_pass(device, "fp32"):
            time.sleep(0.3)  # as for a batch that is put together
            stacked(arrays, device).sum().item()
        assert (device_times() - before).whole_s < 0.2

    @pytest.mark.parametrize("size", [None, 3, 7])
    def test_batches_go_through_page_locked_memory(
        self, size: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = torch.device("cuda")
        rng = np.random.default_rng(1)
        pinned: list[bool] = []
        empty = torch.empty

        def watched(*shape: Any, **more: Any) -> Any:
            pinned.append(more.get("pin_memory", False))
            return empty(*shape, **more)

        monkeypatch.setattr(torch, "empty", watched)
        for _ in range(20):  # the memory is used again, not before its copy is done
            arrays = [rng.integers(0, 256, (50, 60, 3), dtype=np.uint8) for _ in range(5)]
            with forward_pass(device, "fp32"):
                there = stacked(arrays, device, size)
                found = there.cpu().numpy()
            assert there.device.type == "cuda"
            assert np.array_equal(found, pad_batch(np.stack(arrays), size))
        assert all(pinned) and pinned

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_passes_are_replayed_with_the_bits_of_called_ones(self, precision: str) -> None:
        encoder: Any = create(
            "resnet18", modality="visual", weights="random", device="cuda", precision=precision
        )
        encoder.batch_size = 8
        rng = np.random.default_rng(0)
        batches = [rng.integers(0, 256, (8, 224, 224, 3), dtype=np.uint8) for _ in range(40)]
        encoder.replays.reason = "not yet"
        called = [encoder.encode(list(batch)) for batch in batches]
        encoder.replays.reason = ""
        with ThreadPoolExecutor(3) as pool:
            replayed = list(pool.map(lambda batch: encoder.encode(list(batch)), batches))
        assert all(np.array_equal(*both) for both in zip(called, replayed, strict=True))
        assert encoder.replays.reason == ""
        assert encoder.replays.n_replayed >= 20

    def test_threads_and_processes_give_the_same_set(self, pictures: Path, tmp_path: Path) -> None:
        threads = go(pictures, tmp_path / "a", "cuda", "threads")
        processes = go(pictures, tmp_path / "b", "cuda", "processes")
        assert threads.digest == processes.digest
        assert processes.stages.loading.how == "processes"
        for summary in (threads, processes):
            assert 0 < summary.stages.device_busy_s < summary.stages.loop_s

    def test_an_encoder_on_a_gpu_travels_without_it(self) -> None:
        encoder = create("resnet18", modality="visual", weights="random", device="cuda")
        assert len(portable([encoder], None)) < 100_000

    def test_all_devices_give_the_set_of_one(self, pictures: Path, tmp_path: Path) -> None:
        one = go(pictures, tmp_path / "a", "cuda:0")
        every = go(pictures, tmp_path / "b", "cuda:all")
        assert every.stages.n_devices == torch.cuda.device_count()
        assert every.digest == one.digest

    @pytest.mark.parametrize("part", ["device", "decode"])
    @pytest.mark.parametrize("workers", [2, 8])
    def test_the_slow_part_is_named(
        self, pictures: Path, tmp_path: Path, part: str, workers: int
    ) -> None:
        class Slow(Encoder):
            concurrent = True
            device = "cuda"

            def __init__(self) -> None:
                self.spec = EncoderSpec(
                    name="slow", modality="visual", backend="test", model_id="slow", dim=1,
                    layer="only", pooling="none", preprocessing={}, weights="none",
                    weights_sha256=None, licence=None, precision="fp32",
                )  # fmt: skip
                self.x = torch.rand(4096, 4096, device="cuda")
                self.encode([np.zeros(1, np.float32)])  # starts the libraries

            def load(self, content: Path | str) -> NDArray[np.float32]:
                began = time.thread_time()
                while part == "decode" and time.thread_time() - began < 0.01:
                    pass
                return np.zeros(1, np.float32)

            def encode(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
                with forward_pass(torch.device("cuda"), "fp32"):
                    y = self.x
                    for _ in range(40 if part == "device" else 1):
                        y = (self.x @ y).clamp_(0, 1)
                    return np.full((len(batch), 1), float(y[0, 0].cpu()), np.float32)

        run = RunConfig(
            data=pictures, out=tmp_path, device="cuda", workers=workers, loading="threads"
        )
        config = SetConfig(modality="visual", model="resnet18", batch_size=8)
        summary = extract(run, config, build=lambda *_, **__: Slow())
        assert summary.stages.bottleneck().startswith(part), summary.as_json()["this_run"]
