"""Writers that are killed, see crash_trials.py, which forks and sends SIGKILL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crash_trials.py")
JOBS = ["dense", "ragged", "retry-dense", "retry-ragged", "restart-dense"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run(job: str, mode: str, trials: int) -> dict[str, object]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), job, mode, str(trials)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("job", JOBS)
def test_killed_at_lines_spread_over_its_whole_life(job: str) -> None:
    result = run(job, "lines", 16)
    assert result["failures"] == []
    assert result["killed"] == 16


@pytest.mark.parametrize("job", JOBS)
def test_killed_at_changes_of_files_spread_over_its_whole_life(job: str) -> None:
    result = run(job, "calls", 24)
    assert result["failures"] == []
    assert result["killed"] == 24


@pytest.mark.parametrize("job", ["dense", "ragged"])
def test_killed_at_random_instants(job: str) -> None:
    result = run(job, "random", 20)
    assert result["failures"] == []
    assert result["killed"] >= 5  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "trials"), [("lines", 400), ("calls", 10_000)])
@pytest.mark.parametrize("job", JOBS)
def test_killed_at_many_lines_and_every_change(job: str, mode: str, trials: int) -> None:
    """Every line is `crash_trials.py JOB lines N` with the N that it prints as `events`."""
    assert run(job, mode, trials)["failures"] == []
