"""That the measurements that are commands of their own on a GPU run, on the CPU and in small."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tests.benchmarks import gpu_stages
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


@pytest.mark.slow
def test_where_an_extraction_spends_its_time_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lines.json"
    given = gpu_stages.arguments([
        "--tiny", "--device", "cpu", "--limit", "300", "--out", str(out),
        "--cases", "minilm-fp32,resnet50-bf16-nvjpeg,no-such-case",
    ])  # fmt: skip
    gpu_stages.measure(given, time.monotonic())
    titles, skipped, unknown = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert (titles["n"], titles["graphs"]["passes"]) == (16, 0)
    assert titles["steps"]["load: tokenise"]["calls"] >= 1
    assert titles["before_loop_s"] >= 0
    assert skipped == {"case": "resnet50-bf16-nvjpeg", "skipped": "nvjpeg needs a GPU"}
    assert "no-such-case" in unknown["error"]
    assert len(capsys.readouterr().out.splitlines()) == 3
