"""Energy of a piece of work, from the meters that the machine lets us read."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

POWERCAP = Path("/sys/class/powercap")
_PERIOD_S = 1.0  # between two readings of a GPU's power


class EnergyMeter:
    """Energy of the processors, and of the GPU that does the work, while the block runs.

    Processors: the package counters of Linux powercap (Intel and AMD RAPL), in microjoules. An
    NVIDIA GPU: its power, read once a second and integrated. Other programs' share is included.

    Args:
        gpu: UUID of the GPU that does the work; without its reading there is no energy at all.
        powercap: Where the processors' counters are.

    Attributes:
        joules: Energy by meter, after the block; empty if unknown.
        reason: Why it is unknown; else empty.
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
            self._watcher = threading.Thread(target=self._watch, args=(self._gpu,), daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        used = difference(self._before, counters(self._powercap))
        if used:
            self.joules["cpu"] = sum(used.values())
        if self._watcher is not None:
            self._stop.set()
            self._watcher.join()
        if self._gpu and "gpu" not in self.joules:
            self.joules.clear()
            self.reason = "the GPU's power could not be read"
        elif not self.joules:
            locked = any(self._powercap.glob("*-rapl:*"))
            self.reason = (
                f"no permission to read {self._powercap}" if locked else "no meter on this machine"
            )

    def describe(self) -> dict[str, float] | str:
        """Joules by meter, or the reason why they are unknown: for the run's record."""
        return dict(self.joules) or self.reason

    def _watch(self, gpu: str) -> None:
        last, joules, stopped = time.monotonic(), 0.0, False
        while not stopped:
            stopped = self._stop.wait(_PERIOD_S)  # the last, shorter period counts, too
            watts, now = _watts(gpu), time.monotonic()
            if watts is None:
                return
            joules += watts * (now - last)
            last = now
        self.joules["gpu"] = joules


def counters(powercap: Path = POWERCAP) -> dict[str, tuple[int, int]]:
    """Return each readable processor package's microjoules so far, and where they wrap around."""
    found = {}
    for zone in sorted(powercap.glob("*-rapl:*")):
        if zone.name.count(":") == 1:  # a package, and not a part of one
            try:
                now = int((zone / "energy_uj").read_text())
                found[zone.name] = (now, int((zone / "max_energy_range_uj").read_text()))
            except (OSError, ValueError):
                continue
    return found


def difference(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Return the joules between two readings; a counter may have wrapped around once."""
    out = {}
    for zone, (start, most) in before.items():
        if zone in after:
            end = after[zone][0]
            out[zone] = (end - start + (most if end < start else 0)) / 1e6
    return out


def _watts(gpu: str) -> float | None:
    query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            ["nvidia-smi", "-i", gpu, *query],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
