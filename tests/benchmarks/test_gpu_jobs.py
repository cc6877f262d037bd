"""That the measurement of several trainings at once runs; on a GPU it is a command of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.benchmarks.gpu_jobs import RATES, jobs

pytestmark = pytest.mark.slow


def test_a_grid_is_measured(tmp_path: Path) -> None:
    found = jobs("cpu", True, tmp_path, "2")
    assert (found["jobs"], found["trainings"]) == (2, len(RATES))
    assert found["epochs_per_s"] == 2 / found["s_per_epoch"] > 0
    assert found["wall_s"] > 4 * found["s_per_epoch"]
    assert "peak_gpu_mib" not in found
    with pytest.raises(RuntimeError, match="no such device"):
        jobs("tpu", True, tmp_path, "1")
