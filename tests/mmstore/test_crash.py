"""Writers that are killed, see crash_trials.py, which forks and sends SIGKILL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("crash_trials.py")
JOBS = ["dense", "ragged", "retry-dense", "retry-ragged", "restart-dense"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run(job: str, **trials: int) -> dict[str, dict[str, Any]]:
    """What came of so many trials of each mode; one process for all, which imports once."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    asked = [str(part) for pair in trials.items() for part in pair]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), job, *asked],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    found = map(json.loads, done.stdout.splitlines())
    return {result["mode"]: result for result in found}


@cache
def some(job: str) -> dict[str, dict[str, Any]]:
    """A few trials of each mode."""
    return run(job, lines=16, calls=24, **({"random": 20} if job in ("dense", "ragged") else {}))


@pytest.mark.parametrize("job", JOBS)
def test_killed_at_lines_spread_over_its_whole_life(job: str) -> None:
    result = some(job)["lines"]
    assert result["failures"] == []
    assert result["killed"] == 16


@pytest.mark.parametrize("job", JOBS)
def test_killed_at_changes_of_files_spread_over_its_whole_life(job: str) -> None:
    result = some(job)["calls"]
    assert result["failures"] == []
    assert result["killed"] == 24


@pytest.mark.parametrize("job", ["dense", "ragged"])
def test_killed_at_random_instants(job: str) -> None:
    result = some(job)["random"]
    assert result["failures"] == []
    assert result["killed"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "trials"), [("lines", 400), ("calls", 10_000)])
@pytest.mark.parametrize("job", JOBS)
def test_killed_at_many_lines_and_every_change(job: str, mode: str, trials: int) -> None:
    """Every line is `crash_trials.py JOB lines N` with the N that it prints as `events`."""
    assert run(job, **{mode: trials})[mode]["failures"] == []
