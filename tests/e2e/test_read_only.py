"""A dataset folder that may not be written: what needs no writing works, the rest says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.mmbench.conftest import write_dataset
from tests.readonly import read_only

from mmbase import cli as shell
from mmbench.cli import cli as mmbench
from mmstore import FeatureSetWriter
from mmx.cli import cli as mmx

EXTRACT = ["extract", "--modality", "textual", "--model", "tfidf-lsa"]
TRAIN = ["train", "--model", "vbpr", "--set", "epochs=1", "--set", "embedding_dim=4", "-q"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_dataset(tmp_path / "toy")
    words = ("red", "blue", "lamp", "chair", "old", "new", "oak")
    rows = [f"B{item:03d}X\t{words[item % 7]} {words[item % 5]} thing\n" for item in range(30)]
    (folder / "items.tsv").write_text("item_id\ttitle\n" + "".join(rows))
    return folder


def said(capsys: pytest.CaptureFixture[str], tool: str, *arguments: str) -> tuple[int, str]:
    code = shell.run({"mmx": mmx, "mmbench": mmbench}[tool], arguments, prog_name=tool)
    out, err = capsys.readouterr()
    return code, out + err


def test_training_and_extraction_write_elsewhere(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    with read_only(data):
        before = sorted(data.rglob("*"))
        code, told = said(capsys, "mmx", *EXTRACT, "--data", str(data))
        assert code == 1
        assert "Permission denied" in told and "or write elsewhere with --out" in told
        out = str(tmp_path / "features")
        assert said(capsys, "mmx", *EXTRACT, "--data", str(data), "--out", out, "-q")[0] == 0
        runs = ["--data", str(data), "--out", str(tmp_path / "runs")]
        assert said(capsys, "mmbench", *TRAIN, *runs)[0] == 0
        assert said(capsys, "mmbench", "data", "stats", str(data))[0] == 0
        code, told = said(capsys, "mmbench", "data", "split", str(data), "--name", "mine")
        assert code == 1
        assert "splits/mine: cannot be written (Permission denied)" in told
        assert sorted(data.rglob("*")) == before


def test_a_complete_set_is_taken_as_it_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    assert said(capsys, "mmx", *EXTRACT, "--data", str(data), "-q")[0] == 0
    with read_only(data):
        code, told = said(capsys, "mmx", *EXTRACT, "--data", str(data))
        assert code == 0
        assert "nothing to do: the set is complete" in told
        code, told = said(capsys, "mmx", *EXTRACT, "--data", str(data), "--restart")
        assert code == 1 and "Permission denied" in told
        assert CliRunner().invoke(mmx, ["store", "verify", str(data)]).exit_code == 0


def test_an_unfinished_set_is_not_written_without_the_lock(tmp_path: Path) -> None:
    from mmstore.errors import StoreAccess

    path, what = tmp_path / "store/visual/x.h5", {"modality": "visual", "dim": 2}
    how = {**what, "ids": ["a", "b"], "provenance": {"extractor": "x"}}
    writer = FeatureSetWriter(path, **how)  # type: ignore[arg-type]
    writer.write(np.array([0]), np.ones((1, 2), np.float32))
    writer.close()
    with read_only(tmp_path / "store"), pytest.raises(StoreAccess, match="--out"):
        FeatureSetWriter(path, **how)  # type: ignore[arg-type]
    lock = path.with_name("x.h5.lock")  # of another user, in a folder that may be written
    lock.touch()
    with read_only(lock), pytest.raises(StoreAccess, match=r"x\.h5\.lock: Permission denied"):
        FeatureSetWriter(path, **how)  # type: ignore[arg-type]
