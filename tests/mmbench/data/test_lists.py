"""Ranked lists in every format, and how their rows become rankings."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmbench.data.dataset import Split, load_split
from mmbench.data.lists import read_lists
from mmbench.errors import DataError, UsageError

ROWS = [("u1", "007"), ("u2", "7"), ("u1", "b"), ("u1", "7")]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    for part in ("train", "valid", "test"):
        rows = [f"{user}\t{item}" for user in ("u1", "u2") for item in ("007", "7", "b")]
        (tmp_path / f"{part}.tsv").write_text("user_id\titem_id\n" + "\n".join(rows))
    return load_split(tmp_path)


def read(path: Path, split: Split, longest: int) -> tuple[Any, Any, list[str]]:
    training = split.training
    users = training.user_ids[: training.train.n_users]
    return read_lists(path, users, training.item_ids, longest)


def listed(path: Path, split: Split, longest: int = 3) -> dict[str, list[str]]:
    users, lists, _ = read(path, split, longest)
    ids = split.training.item_ids
    return {
        str(split.training.user_ids[user]): [str(ids[item]) for item in row[row >= 0]]
        for user, row in zip(users, lists, strict=True)
    }


@pytest.mark.parametrize(
    "name", ["a.tsv", "a.csv", "a.tsv.gz", "a.out", "a.parquet", "a.jsonl", "lists.jsonl"]
)
@pytest.mark.parametrize("header", [True, False])
def test_every_format_gives_the_same_lists(
    tmp_path: Path, split: Split, name: str, header: bool
) -> None:
    path, frame = tmp_path / name, pd.DataFrame(ROWS, columns=["userId", "ITEM_ID"])
    if name == "a.parquet":
        frame.to_parquet(path)
    elif name == "a.jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif name == "lists.jsonl":
        lists = {"u1": ["007", "b", None, "7"], "u2": ["7"]}
        rows = [json.dumps({"user_id": user, "item_ids": own}) for user, own in lists.items()]
        path.write_text("\n".join(rows))
    else:
        sep = "," if ".csv" in name else "\t"
        text = frame.to_csv(sep=sep, index=False, header=header).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert listed(path, split) == {"u1": ["007", "b", "7"], "u2": ["7"]}
    assert listed(path, split, 1) == {"u1": ["007"], "u2": ["7"]}


@pytest.mark.parametrize("suffix", ["tsv", "parquet"])
def test_ranks_sort_and_scores_do_not(tmp_path: Path, split: Split, suffix: str) -> None:
    frame = pd.DataFrame(ROWS, columns=["user", "item"]).assign(score=[1, 2, 3, 4])
    for column, expected in (("score", ["007", "b", "7"]), ("rank", ["7", "b", "007"])):
        path, own = tmp_path / f"{column}.{suffix}", frame.assign(rank=[3, 1, 2, 1])
        own = own[["user", "item", column]]
        if suffix == "tsv":
            own.to_csv(path, sep="\t", index=False)
        else:
            own.to_parquet(path)
        assert listed(path, split)["u1"] == expected
    assert "1 list has a score that is larger" in read(tmp_path / f"score.{suffix}", split, 3)[2][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1\t007\nu1\n", r"line 2: 1 cell \(expected 2, as in the first line"),
        ("user\titem\trank\nu1\t007\tfirst\n", "line 2: rank is no number"),
        ("user\titem\n", "no lists"),
        ("", "empty"),
    ],
)
def test_files_that_are_no_lists(tmp_path: Path, split: Split, text: str, message: str) -> None:
    (tmp_path / "lists.tsv").write_text(text)
    with pytest.raises(DataError, match=rf"lists\.tsv.*{message}"):
        read(tmp_path / "lists.tsv", split, 3)
    assert np.all(read(tmp_path / "test.tsv", split, 3)[0] == [0, 1])


@pytest.mark.parametrize("name", ["score", "prediction", "logit"])
def test_a_column_that_rises_is_said_whatever_its_name(
    tmp_path: Path, split: Split, name: str
) -> None:
    path = tmp_path / "lists.csv"
    path.write_text(f"uid,iid,note,{name}\nu1,007,x,1\nu1,7,y,2\nu2,b,z,3\n")
    assert listed(path, split)["u1"] == ["007", "7"]
    assert f"1 list has a {name} that is larger" in read(path, split, 3)[2][0]


def test_lists_of_unknown_users_are_left_out_and_counted(tmp_path: Path, split: Split) -> None:
    path = tmp_path / "lists.tsv"
    path.write_text("u9\t7\t9\nu1\tb\t3\nu8\tb\t2\nu1\t7\t2\n")
    assert listed(path, split) == {"u1": ["b", "7"]}
    notes = read(path, split, 3)[2]
    assert notes[0] == (
        "2 users do not occur in the training data, e.g. 'u9'; their lists are left out"
    )
    path.write_text("u9\t7\nu8\tb\n")
    with pytest.raises(DataError, match=r"2 users do not occur.*e.g. 'u9' \(there: 'u1'\)"):
        read(path, split, 3)


def test_columns_in_any_order_need_a_header(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        rows = "".join(f"{user}\t{item}\n" for user in "123" for item in "123")
        (tmp_path / f"{part}.tsv").write_text("user_id\titem_id\n" + rows)
    split, path = load_split(tmp_path), tmp_path / "lists.tsv"
    reversed_rows = "2\t1\n3\t1\n2\t3\n1\t3\n"
    path.write_text(reversed_rows)
    with pytest.raises(UsageError, match="look like those of the second column"):
        read(path, split, 3)
    path.write_text("item\tuser\n" + reversed_rows)
    assert listed(path, split) == {"1": ["2", "3"], "3": ["2", "1"]}
    path.write_text("1\t2\n1\t3\n3\t2\n3\t1\n")
    assert listed(path, split) == {"1": ["2", "3"], "3": ["2", "1"]}


def test_equal_ranks_are_said(tmp_path: Path, split: Split) -> None:
    path = tmp_path / "ranks.csv"
    path.write_text("user,item,rank\nu1,007,1\nu1,b,1\nu2,b,1\nu2,7,2\n")
    assert listed(path, split, 2) == {"u1": ["007", "b"], "u2": ["b", "7"]}
    assert read(path, split, 2)[2] == [
        "1 list has a rank twice; such items are in the order of the rows"
    ]
