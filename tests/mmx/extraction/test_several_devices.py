"""Windows shared among devices: which device computes a row never depends on what was done."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from mmstore import FeatureSet
from mmx.cli import cli
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, EncoderSpec
from mmx.errors import UsageError
from mmx.extraction import plan
from mmx.extraction.executors import Executor, LocalExecutor, SerialExecutor
from mmx.extraction.extract import extract
from mmx.extraction.summary import Summary

N = 700


class OnDevice(Encoder):
    """Length of each text, and on which device it was encoded where that is asked for."""

    concurrent = True

    def __init__(self, device: str, *, tells: bool = False, fails_at: int = -1) -> None:
        self.spec = EncoderSpec(
            name="on-device", modality="textual", backend="test", model_id="on-device", dim=2,
            layer="only", pooling="none", preprocessing={}, weights="none", weights_sha256=None,
            licence=None, precision="fp32",
        )  # fmt: skip
        self.device, self.tells, self.fails_at = device, tells, fails_at
        self.batches: list[int] = []
        self.lock = threading.Lock()
        self.inside = 0

    def load(self, content: Path | str) -> str:
        return str(content)

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        with self.lock:
            self.batches.append(len(batch))
            self.inside += 1
            if len(self.batches) == self.fails_at:
                raise ZeroDivisionError
        time.sleep(0.002)
        number = float(self.device[-1]) if self.tells else 0.0
        with self.lock:
            self.inside -= 1
        return np.array([[len(text), number] for text in batch], dtype=np.float32)


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plan, "WINDOW_BATCHES", {"textual": 4})
    monkeypatch.setattr(plan, "resolve_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    rows = "".join(f"i{k:04d}\t{'x' * (1 + k * 7 % 23)}\n" for k in range(N))
    (tmp_path / "items.tsv").write_text("item_id\ttitle\n" + rows, encoding="utf-8")
    return tmp_path


def go(
    root: Path, device: str, built: list[OnDevice], executor: Executor | None = None, **more: Any
) -> Summary:
    def build(model: str, *, device: str, **_: Any) -> Encoder:
        built.append(OnDevice(device, **more))
        return built[-1]

    run = RunConfig(data=root, out=root / device.replace(":", "").replace(",", "-"), device=device)
    config = SetConfig(modality="textual", model="any/model", batch_size=8, name="x")
    return extract(run, config, build=build, executor=executor)


@pytest.mark.parametrize("executor", [None, LocalExecutor(2), SerialExecutor()])
def test_the_set_is_that_of_one_device(texts: Path, executor: Executor | None) -> None:
    one, several = list[OnDevice](), list[OnDevice]()
    expected = go(texts, "cuda:0", one)
    found = go(texts, "cuda:0,cuda:1", several, executor)
    assert found.digest == expected.digest
    assert [encoder.device for encoder in several] == ["cuda:0", "cuda:1"]
    halves = [sum(encoder.batches) for encoder in several]
    assert sum(halves) == N
    assert abs(halves[0] - halves[1]) <= 32  # one window
    assert (found.stages.n_devices, expected.stages.n_devices) == (2, 1)
    assert found.as_json()["this_run"]["devices"] == 2


def test_a_row_belongs_to_a_device_whatever_was_done_before(texts: Path) -> None:
    def numbers(path: Path) -> list[float]:
        with FeatureSet(path) as features:
            return [float(x) for x in features.matrix([f"i{k:04d}" for k in range(N)])[0][:, 1]]

    whole = go(texts, "cuda:all", [], tells=True)
    assert numbers(whole.path) == [row // 32 % 3 for row in range(N)]
    failed = texts / "cudaall-again"
    (texts / "cudaall").rename(failed)
    with pytest.raises(ZeroDivisionError):
        go(texts, "cuda:all", [], tells=True, fails_at=4)
    built: list[OnDevice] = []
    rest = go(texts, "cuda:all", built, tells=True)
    assert rest.digest == whole.digest
    assert sum(sum(encoder.batches) for encoder in built) < N


def test_devices_compute_at_the_same_time(texts: Path) -> None:
    built: list[OnDevice] = []
    together = []

    class Watching(OnDevice):
        def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
            time.sleep(0.004)
            together.append(sum(encoder.inside > 0 for encoder in built))
            return super().encode(batch)

    def build(model: str, *, device: str, **_: Any) -> Encoder:
        built.append(Watching(device))
        return built[-1]

    run = RunConfig(data=texts, out=texts / "out", device="cuda:0,cuda:1")
    config = SetConfig(modality="textual", model="any/model", batch_size=8)
    extract(run, config, build=build)
    assert sum(count >= 1 for count in together) > len(together) // 3


def test_a_finished_set_builds_no_more_encoders(texts: Path) -> None:
    go(texts, "cuda:0,cuda:1", [])
    built: list[OnDevice] = []
    assert go(texts, "cuda:0,cuda:1", built).already_complete
    assert len(built) == 1


def test_encoders_that_need_no_torch_stay_on_the_processor(texts: Path) -> None:
    run = RunConfig(data=texts, out=texts / "out", device="cuda:0,cuda:1")
    summary = extract(run, SetConfig(modality="textual", model="tfidf-lsa"))
    assert (summary.stages.device, summary.stages.n_devices) == ("cpu", 1)


@pytest.mark.parametrize(
    "device",
    [
        "auto",
        "cpu",
        "mps",
        "cuda",
        "cuda:0",
        "cuda:12",
        "cuda:all",
        "cuda:0,cuda:1",
        "cuda:3,cuda:0",
    ],
)
def test_devices_that_can_be_named(device: str) -> None:
    assert RunConfig(device=device).device == device


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "several are cuda:all"),
        ("cuda:", "several are cuda:all"),
        ("cuda:-1", "several are cuda:all"),
        ("cuda:0,", "several are cuda:all"),
        ("cuda:0,cpu", "several are cuda:all"),
        ("cuda,cuda:1", "several are cuda:all"),
        ("cuda:all,cuda:0", "several are cuda:all"),
        ("cuda:0,1", "several are cuda:all"),
        ("cuda:0, cuda:1", "several are cuda:all"),
        ("cuda:1,cuda:1", "each device is named once"),
        ("cuda:1,cuda:01", "each device is named once"),
    ],
)
def test_devices_that_cannot(device: str, message: str) -> None:
    arguments = ["extract", "--modality", "visual", "--model", "resnet18", "--device", device]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "--device" in result.stderr
    assert message in " ".join(result.stderr.split())
    assert repr(device) in result.stderr


@pytest.mark.parametrize("device", ["cuda:all", "cuda:0,cuda:1"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there are CUDA devices here")
def test_devices_that_are_not_here(device: str) -> None:
    run = RunConfig(device=device)
    with pytest.raises(UsageError, match=r"--device cuda(:0)?: not on this machine \(0 cuda"):
        plan.batch_size_of(run, SetConfig(modality="visual", model="resnet18"))
