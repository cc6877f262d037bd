"""That the measurements that are commands of their own on a GPU run, on the CPU and in small."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.benchmarks.gpu_jobs import RATES, jobs
from tests.benchmarks.gpu_lists import item_graphs, selection


def test_selection_and_item_graphs_are_measured(tmp_path: Path) -> None:
    rows = selection("cpu", True)
    assert [row["ties"] for row in rows] == [False, True]
    assert all(row["top_k_ms"] > 0 and row["torch_topk_ms"] > 0 for row in rows)
    found = item_graphs("cpu", True, tmp_path)
    assert all(found[name] > 0 for name in ("found_s", "read_s", "digest_s"))
    assert set(found["shapes"]) == {"visual", "textual"}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_grid_is_measured(tmp_path: Path) -> None:
    found = jobs("cpu", True, tmp_path, "2")
    assert (found["jobs"], found["trainings"]) == (2, len(RATES))
    assert found["epochs_per_s"] == 2 / found["s_per_epoch"] > 0
    assert found["wall_s"] > 4 * found["s_per_epoch"]
    assert "peak_gpu_mib" not in found
    with pytest.raises(RuntimeError, match="no such device"):
        jobs("tpu", True, tmp_path, "1")
