"""Commands that were killed at a change of a file: the same command ends with the same bytes.

Clocks stand still in here, so that records hold no times.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.killing import check_killed
from tests.mmbench.conftest import write_dataset

from mmbase.cli import run
from mmbase.pages import rendering
from mmbench.cli import cli
from mmbench.runs import fit, record
from mmbench.runs import run as run_module

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
TRAIN = (
    *("train", "-q", "--data", "toy", "--split", "random", "--every", "1"),
    *("--metrics", "Recall", "--cutoffs", "20", "--set", "epochs=3", "--model"),
)
STUDY = """
dataset: toy
features: {visual: toy}
split: own
split_rule: random:0.2,0.2,1
models:
  bpr-mf: {best: {epochs: 2}, published: {"@20": {Recall: 0.1}}}
  vbpr: {best: {epochs: 2}}
"""
COMMANDS = {
    "train": (*TRAIN, "vbpr", "--out", "new"),
    "grid": (*TRAIN, "bpr-mf", "--grid", "bpr-mf.lr=0.01,0.1", "--out", "new"),
    "restart": (*TRAIN, "bpr-mf", "--out", "runs", "--restart"),
    "recommend": ("recommend", "-q", "RUN", "--out", "recs.parquet", "--embeddings", "emb"),
    "recommend tsv": ("recommend", "-q", "RUN", "--out", "recs.tsv"),
    "report": ("report", "runs", "--out", "report"),
    "reproduce": (
        *("reproduce", "-q", "study.yaml", "--data", "toy", "--out", "new"),
        *("--report", "report"),
    ),
    "stand-in": (
        *("reproduce", "-q", "study.yaml", "--data", "toy", "--split-dir", "given", "--split"),
        *("other", "--stand-in", "--out", "new", "--report", "report"),
    ),
    "split": ("data", "split", "toy", "--name", "b"),
    "filter": ("data", "filter", "toy", "--filter", "kcore:2", "--out", "core"),
    "export": (
        *("data", "export", "toy", "--format", "mmrec", "--split", "a", "--out", "mm"),
        *("--features", "visual=toy", "--missing", "zero"),
    ),
    "import": ("data", "import", "mmrec", "--out", "toy2"),
    "import tables": ("data", "import", "toy/interactions.tsv", "--out", "toy2"),
}
EXPENSIVE = {"restart", "stand-in", "recommend tsv"}  # and like others


def _call(*arguments: str) -> int:
    torch.set_num_threads(1)  # threads of the parent are not here
    return run(cli, arguments)


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SOURCE_DATE_EPOCH", "MMBENCH_SAVE_EVERY_S"):
        monkeypatch.setenv(variable, "0")
    for clock in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, clock, lambda: 0.0)
    for module in (fit, run_module):
        monkeypatch.setattr(module, "cpu_seconds", lambda: 0.0)
    for module in (fit, record):
        monkeypatch.setattr(module, "peak_memory_bytes", lambda: 1)
    monkeypatch.setattr(fit, "_energy", lambda *_, **__: None)


@pytest.fixture(scope="module", autouse=True)
def _plain_pictures() -> Iterator[None]:
    """What draws has threads, and a process that has begun to draw can't be forked."""
    drawing: Any = ModuleType("vl_convert")
    drawing.__spec__ = ModuleSpec("vl_convert", None)
    drawing.javascript_bundle = lambda snippet: snippet
    drawing.vegalite_to_svg = lambda spec: f"<svg>{len(str(spec))}</svg>"
    drawing.svg_to_png = lambda svg, scale: svg.encode() * scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vl_convert", drawing)
        yield
    rendering._chart_library.cache_clear()  # it has the stand-in's


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a split, a run, and another layout of the data."""
    base = tmp_path_factory.mktemp("killed") / "base"
    write_dataset(base / "toy", users=12, items=12)
    (base / "study.yaml").write_text(STUDY)
    export = COMMANDS["export"]
    for command in (
        ("data", "split", "toy", "--name", "a"),
        tuple("mmrec" if part == "mm" else part for part in export),
        (*TRAIN, "vbpr", "--out", "../others"),
        (*TRAIN, "bpr-mf", "--out", "runs"),
        ("report", "runs", "--out", "../report"),
    ):
        with contextlib.chdir(base):  # in this process: forks need not import it all again
            assert _call(*command) == 0
    given = base / "given"
    given.mkdir()
    for part in ("train", "valid", "test"):
        (given / f"{part}.tsv").write_bytes((base / f"toy/splits/a/{part}.tsv").read_bytes())
    return base


def trial(name: str, prepared: Path, tmp_path: Path, trials: int) -> None:
    base = tmp_path / "base"
    shutil.copytree(prepared, base)
    (finished,) = (base / "runs").iterdir()
    parts = [f"runs/{finished.name}" if part == "RUN" else part for part in COMMANDS[name]]
    check_killed(lambda: _call(*parts), base, trials, again=(0, 1))


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - EXPENSIVE))
def test_killed_at_some_changes(name: str, prepared: Path, tmp_path: Path) -> None:
    trial(name, prepared, tmp_path, 1 if name in ("train", "reproduce") else 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_change(name: str, prepared: Path, tmp_path: Path) -> None:
    trial(name, prepared, tmp_path, 10_000)
