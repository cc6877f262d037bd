"""Commands that take rows of a set in which one number was altered: exit 1, the file is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.mmbench.conftest import write_dataset

import mmbench.cli as mmbench
import mmx.cli as mmx
from mmbase.cli import run
from mmstore import FeatureSet

TRAIN = ("train", "-q", "--data", "toy", "--out", "runs", "--set", "epochs=1", "--model", "vbpr")
FEATURES = ("--features", "visual=toy")
COMMANDS = {
    "train": (mmbench, (*TRAIN, *FEATURES)),
    "data export": (
        mmbench,
        (
            *("data", "export", "toy", "--format", "mmrec", "--out", "out", "--split", "random"),
            *(*FEATURES, "--missing", "zero"),
        ),
    ),
    "fuse": (
        mmx,
        ("fuse", "-q", "visual/toy", "textual/words", "--data", "toy", "--name", "out"),
    ),
    "store diff": (
        mmx,
        ("store", "diff", "toy/features/visual/toy.h5", "copy.h5"),
    ),
    **{
        f"store export {name}": (
            mmx,
            ("store", "export", "toy/features/visual/toy.h5", "--format", name, "--out", "out"),
        )
        for name in ("npy", "safetensors", "parquet", "csv", "npy-folder")
    },
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    write_dataset(root / "toy", users=12, items=12)
    shutil.copy(root / "toy/features/visual/toy.h5", root / "copy.h5")
    return root


def alter(path: Path) -> None:
    """Change one bit of the first vector that is there."""
    row = FeatureSet(path).matrix(["B001X"])[0].tobytes()
    data = bytearray(path.read_bytes())
    assert data.count(row) == 1
    data[data.index(row)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_altered_row_is_taken_by_no_command(
    name: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool, command = COMMANDS[name]
    root = shutil.copytree(whole, tmp_path / "root")
    monkeypatch.chdir(root)
    alter(root / "toy/features/visual/toy.h5")
    before = {path for path in root.rglob("*") if path.suffix != ".lock"}
    assert run(tool.cli, command) == 1
    out, told = capsys.readouterr()
    assert not out
    assert "visual/toy.h5: content_digest differs" in told
    assert "was altered" in told and "Traceback" not in told
    left = {path for path in root.rglob("*") if path.suffix != ".lock"} - before
    assert not {path for path in left if path.is_file()}
    assert not (root / "runs").exists() or not list((root / "runs").iterdir())
