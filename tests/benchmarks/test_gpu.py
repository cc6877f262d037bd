"""The program behind `make bench-gpu`, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.benchmarks import gpu
from tests.benchmarks.gpu_training import profiled, union_ns
from tests.conftest import REPOSITORY
from tests.processes import server


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu", *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_without_a_gpu_it_says_so_in_one_line_and_is_content(tmp_path: Path) -> None:
    done = program("--out", str(tmp_path / "found.json"), CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert "no CUDA device" in done.stdout
    assert not (tmp_path / "found.json").exists()


@pytest.mark.slow
def test_every_part_runs_on_a_processor(tmp_path: Path) -> None:
    for library in ("sentence_transformers", "torchvision"):
        pytest.importorskip(library)
    out = tmp_path / "new" / "found.json"
    given = ("--tiny", "--device", "cpu", "--sizes", "office", "--out", str(out))
    done = program(*given, "--commit", "abc")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    asked = [
        case for case in gpu.cases(tiny=True) if case.arguments.get("size", "office") == "office"
    ]
    assert {case.part for case in asked} == set(gpu.PARTS)
    assert [(row["part"], row["measure"]) for row in rows[1:]] == [
        (case.part, case.measure) for case in asked
    ]
    assert [row["measure"] for row in rows if "skipped" in row] == ["nvjpeg"]
    timed = [row for row in rows if row["measure"] == "training"]
    assert {(row["model"], row["precision"]) for row in timed} == {
        *((name, "fp32") for name in gpu.MODELS),
        *((name, "tf32") for name in gpu.WITH_TF32),
    }
    for row in timed:
        per_epoch = row["ms_per_step"] * row["steps"] / 1e3
        assert row["s_per_epoch"] > 0
        assert row["s_per_epoch"] == pytest.approx(per_epoch, abs=1e-3)
    tables = program("--show", str(out)).stdout
    assert tables.strip() == done.stdout[done.stdout.index(tables[:20]) :].strip()
    assert max(map(len, tables.splitlines())) <= gpu.WIDTH
    assert "commit abc" in tables


@pytest.mark.usefixtures("forked")
def test_parts_models_and_sizes_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--tiny", "--device", "cpu", "--only", "training,knn"]
    assert gpu.main([*given, "--models", "bpr-mf,vbpr", "--sizes", "office"]) == 0
    before, _, _ = capsys.readouterr().out.partition("\n\n")
    assert [line.partition(":")[0] for line in before.splitlines()] == [
        "machine",
        "knn visual",
        "knn textual",
        "training vbpr office fp32",
        "training bpr-mf office fp32",
        "profiled step vbpr office fp32",
        "profiled step bpr-mf office fp32",
    ]
    with pytest.raises(SystemExit):
        gpu.main(["--only", "trainning"])
    assert "'trainning' is none of training, extraction" in capsys.readouterr().err


def test_a_run_that_is_cut_off_keeps_what_it_has(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--tiny", "--device", "cpu"]
    with subprocess.Popen(
        [*command, "--only", "knn,training", "--out", str(out)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("training"):
            assert line
        process.terminate()
        rest = process.stdout.read()
    assert process.returncode == 130
    rows = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
    assert rows[1]["s_per_epoch"] > 0
    assert f"{rows[1]['model']:<13}{rows[1]['size']:<9}" in rest  # in the table


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that measures imports nothing again; that of a run that is cut off does."""
    monkeypatch.setattr(gpu, "multiprocessing", SimpleNamespace(get_context=lambda kind: context))
    context = server()


@pytest.fixture
def bench(tmp_path: Path, forked: None) -> Any:
    bench = gpu.Bench(gpu.Setup("cpu", True, tmp_path), 300)
    yield bench
    bench.stop()


def test_a_failure_is_recorded_and_the_next_case_runs(bench: gpu.Bench) -> None:
    bad = bench.run(gpu.Case("knn", "knn", 60, {"modality": "smell"}))
    assert bad["error"] == "KeyError: 'smell'"
    assert "gpu_training.py" in bad["traceback"]
    late = bench.run(gpu.Case("evaluation", "evaluation", 0))
    assert late["error"] == "not finished after 0 s (exit code None)"
    assert bench.run(gpu.Case("evaluation", "evaluation", 60))["paper_s"] > 0
    bench._process.kill()  # as a fault in a kernel does it
    assert "(exit code" in bench.run(gpu.Case("knn", "knn", 60, {"modality": "visual"}))["error"]
    assert bench.run(gpu.Case("knn", "knn", 60, {"modality": "visual"}))["s"] >= 0
    bench.until = 0
    assert "no time was left" in bench.run(gpu.Case("evaluation", "evaluation", 60))["skipped"]


@pytest.mark.parametrize(
    ("step", "items"),
    [(lambda x: x.sum().item(), 1), (lambda x: bool(x.sum() > 0), 1), (lambda x: x + 1, 0)],
    ids=["item", "bool", "none"],
)
def test_values_read_into_python_are_counted(step: Callable[[Any], object], items: int) -> None:
    x = torch.ones(8)
    found = profiled(lambda: [step(x) for _ in range(10)], "cpu", 10)
    assert found["items"] == items


def test_what_overlaps_counts_once() -> None:
    assert union_ns([]) == 0
    assert union_ns([(10, 20), (15, 18), (30, 31), (19, 25)]) == 16
