"""Energy from counters that start again, and none where there is no meter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmbench.runs import fit
from mmbench.runs.fit import EnergyMeter, counters, difference


def package(folder: Path, name: str, energy: int, most: int = 1_000_000_000) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{energy}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{most}\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", 1_000_000)
    package(tmp_path, "intel-rapl:1", 999_000_000)
    with EnergyMeter(powercap=tmp_path) as meter:
        package(tmp_path, "intel-rapl:0", 8_500_000)
        package(tmp_path, "intel-rapl:0:0", 900_000_000)
        package(tmp_path, "intel-rapl:1", 1_000_000)  # began again
    assert meter.describe() == {"cpu": pytest.approx(3.5 + 2.0)}


def test_no_meter_is_said(tmp_path: Path) -> None:
    with EnergyMeter(powercap=tmp_path / "absent") as meter:
        pass
    assert meter.describe() == "no meter on this machine"
    (tmp_path / "intel-rapl:0").mkdir()
    with EnergyMeter(powercap=tmp_path) as meter:
        pass
    assert "no permission" in str(meter.describe())
    assert counters(tmp_path) == {}
    assert difference({"a": (1, 10)}, {}) == {}


def test_a_gpus_power_is_summed_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import time

    monkeypatch.setattr(fit, "_PERIOD_S", 0.01)
    monkeypatch.setattr(fit, "_watts", lambda gpu: 100.0)
    monkeypatch.setattr(fit.shutil, "which", lambda name: name)
    with EnergyMeter(gpu="GPU-7", powercap=tmp_path) as meter:
        time.sleep(0.3)
    assert 5 < meter.joules["gpu"] < 60


def test_a_piece_of_work_shorter_than_a_period_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fit, "_watts", lambda gpu: 100.0)
    monkeypatch.setattr(fit.shutil, "which", lambda name: name)
    with EnergyMeter(gpu="GPU-7", powercap=tmp_path) as meter:
        pass
    assert 0 < meter.joules["gpu"] < 60


@pytest.mark.parametrize("tool", [None, "nvidia-smi"])
def test_the_processors_energy_is_not_that_of_work_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str | None
) -> None:
    import time

    readings = iter([100.0])  # and then none
    monkeypatch.setattr(fit, "_PERIOD_S", 0.01)
    monkeypatch.setattr(fit, "_watts", lambda gpu: next(readings, None))
    monkeypatch.setattr(fit.shutil, "which", lambda name: tool)
    package(tmp_path, "intel-rapl:0", 5_000_000)
    with EnergyMeter(gpu="GPU-7", powercap=tmp_path) as meter:
        package(tmp_path, "intel-rapl:0", 8_500_000)
        time.sleep(0.1)
    assert meter.describe() == "the GPU's power could not be read"


def test_only_the_gpu_that_does_the_work_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\n[ "$1 $2" = "-i GPU-7" ] && echo 100.00 || printf "100.00\\n900.00\\n"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert fit._watts("GPU-7") == 100
    with EnergyMeter(gpu="GPU-7", powercap=tmp_path / "absent") as meter:
        pass
    assert set(meter.joules) == {"gpu"}
