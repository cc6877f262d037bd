"""Splits that others made without a validation part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mmbench.commands.data import data
from mmbench.data.files import read_split
from mmbench.data.tables import read_interactions
from mmbench.errors import DataError


def run(*arguments: str) -> Any:
    return CliRunner().invoke(data, arguments, standalone_mode=False)


def given(folder: Path, *, valid: bool = False) -> Path:
    """Write a train and a test part, as LightGCN's data have them."""
    folder.mkdir()
    rows = [f"u{user}\ti{item}\t{100 * user + item}" for user in range(6) for item in range(10)]
    parts = {"train": [row for row in rows if "i9" not in row], "test": rows[9::10]}
    if valid:
        parts["valid"] = parts["train"][:3]
    for part, own in parts.items():
        text = "\n".join(["user_id\titem_id\ttimestamp", *own])
        (folder / f"{part}.tsv").write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("options", "valid"),
    [
        (("--valid", "0.2"), 12),
        (("--method", "leave-k-out"), 6),
        (("--method", "temporal", "--valid", "0.1"), 6),
        (("--method", "global-temporal", "--valid-from", "500"), 9),
    ],
)
def test_a_validation_part_is_carved_out_of_train(
    tmp_path: Path, options: tuple[str, ...], valid: int
) -> None:
    folder = given(tmp_path / "d")
    with pytest.raises(DataError, match=r"mmbench data split .* --carve given --valid 0\.1"):
        read_split(folder)
    for there in ("", "(there already)"):
        done = run("split", str(folder), "--carve", "given", "--name", "carved", *options)
        assert done.exception is None
        assert there in done.output
    parts = read_split(folder, "carved").parts
    assert {part: len(table) for part, table in parts.items()} == {
        "train": 54 - valid, "valid": valid, "test": 6,
    }  # fmt: skip
    before = read_interactions(folder / "train.tsv")
    after = [table for part, table in parts.items() if part != "test"]
    assert sorted(before.timestamps.tolist()) == sorted(
        np.concatenate([table.timestamps for table in after]).tolist()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--carve", "given"), "has a validation part, valid.tsv"),
        (("--carve", "absent"), "unknown split 'absent'"),
        (("--carve", "given", "--test", "0.1"), "--test: has no meaning with --carve"),
        (("--carve", "given", "--filter", "kcore:2"), "--filter: has no meaning with --carve"),
    ],
)
def test_what_cannot_be_carved(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    folder = given(tmp_path / "d", valid=True)
    assert message in str(run("split", str(folder), *options).exception)


def test_a_split_without_a_validation_part_is_no_choice(tmp_path: Path) -> None:
    folder = given(tmp_path / "d")
    run("split", str(folder), "--carve", "given", "--valid", "0.2", "--name", "carved")
    assert read_split(folder).name == "carved"
