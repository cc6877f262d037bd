"""What a piece of work costs: energy, where the machine has a meter that may be read."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

POWERCAP = Path("/sys/class/powercap")
_PERIOD_S = 1.0  # between two looks at a GPU's power


class EnergyMeter:
    """Energy used by the machine's processors, and by the GPU that does the work, while the block runs.

    Processors: the package counters of Linux powercap (Intel and AMD RAPL), which count microjoules
    and start again from zero. An NVIDIA GPU: power read once a second and summed up. Other
    programs' share is in it.

    Args:
        gpu: UUID of the GPU on which the work is done, if it is; energy without its share would be
            no figure of that work, so there is then none.
        powercap: Where the processors' counters are.

    Attributes:
        joules: Energy by meter, after the block; empty where there is none.
        reason: Why there is none; empty otherwise.
    """

    def __init__(self, *, gpu: str | None = None, powercap: Path = POWERCAP) -> None:
        self._gpu, self._powercap = gpu, powercap
        self.joules: dict[str, float] = {}
        self.reason = ""
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._before = counters(self._powercap)
        if self._gpu and shutil.which("nvidia-smi"):
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        after = counters(self._powercap)
        used = difference(self._before, after)
        if used:
            self.joules["cpu"] = sum(used.values())
        if self._watcher is not None:
            self._stop.set()
            self._watcher.join()
        if self._gpu and "gpu" not in self.joules:
            self.joules.clear()
            self.reason = "the GPU's power could not be read"
        elif not self.joules:
            there = any(self._powercap.glob("*-rapl:*")) if self._powercap.is_dir() else False
            self.reason = (
                f"no permission to read {self._powercap}" if there else "no meter on this machine"
            )

    def describe(self) -> dict[str, float] | str:
        """Joules by meter, or why there are none: for the run's record."""
        return dict(self.joules) or self.reason

    def _watch(self) -> None:
        last, joules, going_on = time.monotonic(), 0.0, True
        while going_on:
            going_on = not self._stop.wait(
                _PERIOD_S
            )  # the last piece, shorter than a period, counts too
            watts = _watts(str(self._gpu))
            now = time.monotonic()
            if watts is None:
                return
            joules += watts * (now - last)
            last = now
        self.joules["gpu"] = joules


def counters(powercap: Path = POWERCAP) -> dict[str, tuple[int, int]]:
    """Microjoules so far and where they start again, of each processor package that may be read."""
    found = {}
    for zone in sorted(powercap.glob("*-rapl:*")) if powercap.is_dir() else ():
        if zone.name.count(":") != 1:  # a part of a package
            continue
        try:
            now, most = (
                int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")
            )
        except (OSError, ValueError):
            continue
        found[zone.name] = (now, most)
    return found


def difference(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Joules between two looks at the counters, each of which started again at most once."""
    out = {}
    for zone, (start, most) in before.items():
        if zone in after:
            spent = after[zone][0] - start
            out[zone] = (spent + most if spent < 0 else spent) / 1e6
    return out


def _watts(gpu: str) -> float | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-i", gpu, "--query-gpu=power.draw", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
