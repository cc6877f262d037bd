"""What limits a run is measured: a planted slow part must be named, wherever contents load."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.mmx.extraction.elsewhere_loaded import Lengths, SlowDisk, burn, slow_reads
from tests.mmx.extraction.test_processes import catalogue

from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder
from mmx.encoders.compute import DeviceTimes, _Timeline
from mmx.extraction import disk, plan
from mmx.extraction.extract import extract
from mmx.extraction.passes import PassClock
from mmx.extraction.summary import Summary

PLANTED: dict[str, Callable[[], Encoder]] = {
    "disk": lambda: SlowDisk(0.02),
    "decode": lambda: Lengths(load_s=0.02),
    "device": lambda: Lengths(encode_s=0.2),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Fewer files than those of which all are measured."""
    return catalogue(tmp_path / "data", 30)


def go(root: Path, loading: str, device: str, encoder: Encoder) -> Summary:
    encoder.device = device
    run = RunConfig(
        data=root, out=root / "out", device="auto", workers=2, restart=True,
        loading=loading,  # type: ignore[arg-type]
    )  # fmt: skip
    config = SetConfig(modality="visual", model="resnet18", batch_size=5, name="x")
    return extract(run, config, build=lambda *_, **__: encoder)


@pytest.mark.parametrize("part", PLANTED)
@pytest.mark.parametrize("loading", ["threads", "processes"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_slow_part_is_named(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, part: str, loading: str, device: str
) -> None:
    monkeypatch.setattr(plan, "resolve_device", lambda _: device)
    for name in ("_read_into", "_is_in_memory"):
        monkeypatch.setattr(disk, name, getattr(disk, name))  # put back at the end
    encoder = PLANTED[part]()
    if part == "disk":
        slow_reads(0.02)
    elif part == "device" and device == "cuda":
        encoder = Lengths(sleep_s=0.2)  # it computes elsewhere
    summary = go(pictures, loading, device, encoder)
    stages = summary.stages
    assert stages.loading.how == loading
    name, share = stages.bottleneck().split(" ")
    assert name == part, stages
    assert float(share.strip("(%)")) > 60, stages
    assert f"limited by {part}" in summary.as_text()
    document = summary.as_json()["this_run"]
    assert document["bottleneck"] == stages.bottleneck()
    busy = document["seconds"][f"{part}_busy"]
    expected = {"disk": 30 * 0.02 / 2, "decode": 30 * 0.02 / 2, "device": 6 * 0.2 / 2}[part]
    if part == "device" and device == "cuda":
        expected *= 2  # one device
    if part == "decode" and device == "cuda" and loading == "threads":
        expected *= 2  # the interpreter lock lets one compute at a time
    assert 0.6 * expected < busy < 2 * expected


def test_threads_that_wait_for_the_interpreter_lock_wait_for_no_disk(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "resolve_device", lambda _: "cuda")
    config = SetConfig(modality="visual", model="resnet18", batch_size=5, name="x")
    run = RunConfig(data=pictures, out=pictures / "out", workers=8, loading="threads")
    encoder = Lengths(load_s=0.01, sleep_s=0.01)
    encoder.device = "cuda"
    stages = extract(run, config, build=lambda *_, **__: encoder).stages
    assert stages.bottleneck().startswith("decode")
    assert stages.decode_busy_s > 2 * stages.disk_busy_s


def test_reads_are_measured_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 600_000)  # three reads
    stop = threading.Event()
    assert disk.Disk().wait_s(tmp_path / "absent") == 0
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: [burn(0.001) for _ in iter(stop.is_set, True)])
        try:
            cached = sum(disk.Disk().wait_s(file) for _ in range(20)) / 20
        finally:
            stop.set()
    for name in ("_read_into", "_is_in_memory"):
        monkeypatch.setattr(disk, name, getattr(disk, name))
    slow_reads(0.01)
    slow = sum(disk.Disk().wait_s(file) for _ in range(20)) / 20
    assert slow == pytest.approx(0.03, rel=0.3)
    assert abs(cached) < 0.5 * slow


def test_only_what_is_not_in_memory_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    buffer = bytearray(1 << 18)
    for n_bytes in (0, 1, 1 << 18, 600_000):
        file.write_bytes(b"x" * n_bytes)
        with file.open("rb") as stream:
            found = disk._is_in_memory(stream.fileno(), buffer)
            try:
                os.preadv(stream.fileno(), [buffer], 0, os.RWF_NOWAIT)
            except (AttributeError, OSError):
                pytest.skip("this file system does not say what is in memory")
            assert found


def test_of_many_files_some_are_measured_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    reads: list[float] = []
    monkeypatch.setattr(disk, "_is_in_memory", lambda *_: False)
    monkeypatch.setattr(disk, "_read_into", lambda *_: reads.append(time.sleep(0.002) or 1.0) or 1)
    some = disk.Disk()
    total = sum(some.wait_s(file) for _ in range(320))
    assert len(reads) == 32 + (320 - 32) // 8
    assert total == pytest.approx(320 * 0.002, rel=0.5)


class Moment:
    """A CUDA event, in milliseconds."""

    def __init__(self, at: float) -> None:
        self.at = at

    def elapsed_time(self, other: Moment) -> float:
        """Milliseconds to a later event."""
        return other.at - self.at


def test_passes_that_overlap_keep_a_device_busy_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Timeline, "MOVES_AFTER_MS", 40)
    line = _Timeline(Moment(100))
    passes = [(100, 110), (105, 120), (112, 118), (130, 150), (140, 160), (141, 150), (200, 210)]
    times = [line.add(Moment(start), Moment(end)) for start, end in passes]
    alone_ms = [round(1e3 * added.alone_s) for added in times]
    assert alone_ms == [10, 10, 0, 20, 10, 0, 10]
    assert [round(1e3 * added.whole_s) for added in times] == [10, 15, 6, 20, 20, 9, 10]


def test_passes_whose_launches_waited_count_like_those_that_did_not() -> None:
    clock = PassClock()
    shape = (128, 224)
    assert clock.device_s(shape, DeviceTimes(0.025, 0.025)) == 0.025
    assert clock.device_s(shape, DeviceTimes(0.25, 0.2)) == 0.025
    assert clock.device_s(shape, DeviceTimes(0.024, 0.001)) == pytest.approx(0.001)  # covered
    other = (64, 224)
    assert clock.device_s(other, DeviceTimes(0.9, 0.8)) == 0.8  # nothing to compare with
    assert clock.device_s(other, DeviceTimes(0.02, 0.02)) == pytest.approx(2 * 0.02 - 0.8)
    assert clock.device_s(other, DeviceTimes(0.02, 0.0)) == 0.0
