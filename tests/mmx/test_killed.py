"""Commands that were killed at a change of a file: the same command ends with the same bytes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow.parquet  # noqa: F401 - imported once, and not in every fork
import pytest
from tests.killing import check_killed, forked

from mmbase.cli import run
from mmbase.extraction_cost import ExtractionCost, write_cost
from mmx.cli import cli

extract = import_module("mmx.extraction.extract")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
EXPORT = ("store", "export", "st/visual/a.h5", "-q", "--format")
EXTRACT = (
    *("extract", "-q", "--modality", "textual", "--model", "tfidf-lsa", "--data", "data"),
    *("--out", "ex", "--restart"),
)
COMMANDS = {
    "demo": ("demo", "-q", "--out", "d", "--items", "24", "--users", "5"),
    "import": (
        *("store", "import", "-q", "--format", "npy", "--modality", "visual", "--name", "b"),
        *("a.npy", "--ids", "ids.txt", "--out", "st"),
    ),
    "npy": (*EXPORT, "npy", "--out", "x.npy"),
    "safetensors": (*EXPORT, "safetensors", "--out", "x.safetensors"),
    "parquet": (*EXPORT, "parquet", "--out", "x.parquet"),
    "csv": (*EXPORT, "csv", "--out", "x.csv"),
    "npy-folder": (*EXPORT, "npy-folder", "--out", "x", "--mapping", "map.tsv"),
    "extract --restart": EXTRACT,
}


def trial(name: str, tmp_path: Path, trials: int) -> None:
    base = tmp_path / "base"
    base.mkdir()
    np.save(base / "a.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    (base / "ids.txt").write_text("".join(f"i{row}\n" for row in range(4)))
    (base / "data").mkdir()
    rows = "".join(f"i{row}\twords {row % 3}\n" for row in range(40))
    (base / "data" / "items.tsv").write_text("item_id\ttitle\n" + rows)
    first = tuple("a" if part == "b" else part for part in COMMANDS["import"])
    assert forked(lambda: run(cli, first), base)[0] == 0
    if "--restart" in COMMANDS[name]:  # something else is there, to be replaced
        with contextlib.chdir(base):  # in this process: forks need not import it all again
            assert run(cli, [*EXTRACT[:-1], "--store-dtype", "float16"]) == 0
    # An export refuses what is complete.
    check_killed(lambda: run(cli, COMMANDS[name]), base, trials, again=(0, 1))


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    # What an extraction cost depends on when it was killed; everything else does not.
    monkeypatch.setattr(extract, "write_cost", _without_seconds)


def _without_seconds(features: Path, cost: ExtractionCost) -> None:
    write_cost(features, replace(cost, seconds=0.0, measured=0))


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_some_changes(name: str, tmp_path: Path) -> None:
    trial(name, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_change(name: str, tmp_path: Path) -> None:
    trial(name, tmp_path, 10_000)
