"""Sequences through the commands: import, split, train, evaluate, recommend; order all the way."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mmbench.cli import cli

N_USERS, N_ITEMS = 14, 9


def sequences() -> dict[str, list[str]]:
    rng = np.random.default_rng(2)
    long = {f"u{user:02d}": [f"i{item}" for item in rng.integers(0, N_ITEMS, 4 + user % 4)]
            for user in range(N_USERS)}  # fmt: skip
    return {**long, "short": ["i1", "i1"]}


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Rows backwards, so that their order is not that of the positions."""
    rows = [
        f"{user}\t{item}\t{place}"
        for user, own in sequences().items()
        for place, item in enumerate(own)
    ]
    table = "\n".join(["user_id\titem_id\tposition", *reversed(rows), ""])
    (tmp_path / "log.tsv.gz").write_bytes(gzip.compress(table.encode()))
    items = [f"i{item}\ttitle {item}" for item in range(N_ITEMS + 1)]
    (tmp_path / "items.tsv").write_text("\n".join(["item_id\ttitle", *items, ""]))
    return [str(tmp_path / name) for name in ("log.tsv.gz", "items.tsv")]


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, list(words))
    told = done.stdout + " ".join(done.stderr.split())
    assert done.exit_code == code, told
    return told


def read(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


ASKED = ("--metrics", "HR,NDCG,MRR", "--cutoffs", "3")
NEXT = ("--protocol", "next-item", *ASKED, "-q", "--select-by", "NDCG@3")


def test_from_a_table_of_sequences_to_lists(sources: list[str], tmp_path: Path) -> None:
    data = tmp_path / "d"
    told = run("data", "import", *sources, "--out", str(data))
    n_rows = sum(map(len, sequences().values()))
    assert f"{n_rows} interactions" in told and "positions 0 to 6" in told
    table = read(data / "interactions.tsv")
    assert table[0] == ["user_id", "item_id", "position"] and len(table) == n_rows + 1

    told = run("data", "split", str(data), "--method", "leave-one-out")
    short = "too few rows for any to be held out: 1 of 15 users; theirs are all in training"
    assert f"train {n_rows - 28}, valid 14, test 14" in told and short in " ".join(told.split())
    for part, end in (("valid", -2), ("test", -1)):
        header, *rows = read(data / "splits" / "leave-one-out" / f"{part}.tsv")
        assert header == ["user_id", "item_id", "position"]
        expected = {user: own[end] for user, own in sequences().items() if user != "short"}
        assert {user: item for user, item, _ in rows} == expected
    why = run("data", "split", str(data), "--method", "global-temporal", code=1)
    assert "these rows have positions in their user's sequence" in why
    stats = json.loads(run("data", "stats", str(data), "--split", "leave-one-out", "--json"))
    assert stats["interactions"]["last position"] == 6
    assert "earliest test row of anybody" not in run("data", "validate", str(data))

    runs = str(tmp_path / "runs")
    command = ("train", "--data", str(data), "--model", "item-knn", "--out", runs, *NEXT)
    document = json.loads(run(*command, "--slices", "--json"))
    slices = {(one["family"], one["slice"]): one["rows"] for one in document["slices"]["test"]}
    again = sum(own[-1] in own[:-1] for user, own in sequences().items() if user != "short")
    assert slices["target", "repeated"] == again and slices["target", "new"] == 14 - again
    here = json.loads(run("evaluate", document["run"], *ASKED, "--json"))
    assert {key: here["test"][key] for key in document["test"]} == document["test"]
    assert here["protocol"]["histories"]["test"].startswith("the user's training and validation")
    masked = json.loads(run("evaluate", document["run"], *ASKED, "--repeats", "masked", "--json"))
    assert masked["protocol"]["masked"]["test"] == "the user's training and validation items"
    assert masked["test"] != here["test"]
    command = (*command, "--repeats", "masked")
    own = json.loads(run(*command, "--json"))["run"]
    again_masked = json.loads(run("evaluate", own, *ASKED, "--json"))
    assert again_masked["test"] == masked["test"]  # by the protocol of the run
    strict = json.loads(run("evaluate", document["run"], *ASKED, "--protocol", "strict", "--json"))
    assert strict["protocol"]["name"] == "strict" and "repeats" not in strict["protocol"]

    lists = tmp_path / "lists.jsonl"
    run("recommend", document["run"], "-k", "3", "--out", str(lists), "--quiet")
    found: dict[str, Any] = {}
    for line in lists.read_text().splitlines():
        one = json.loads(line)
        found[one["user_id"]] = one["item_ids"]
    target = {user: own[-1] for user, own in sequences().items() if user != "short"}
    hits = sum(item in found[user] for user, item in target.items()) / 14
    assert document["test"]["HitRate@3"] == pytest.approx(hits)  # what test has scored
    assert any(set(found[user]) & set(own[:-1]) for user, own in sequences().items())


def test_the_split_is_made_on_the_fly_too(sources: list[str], tmp_path: Path) -> None:
    data, runs = tmp_path / "d", str(tmp_path / "runs")
    run("data", "import", *sources, "--out", str(data))
    command = ("train", "--data", str(data), "--model", "most-popular", "--out", runs, *NEXT)
    first = json.loads(run(*command, "--split", "leave-one-out", "--json"))
    run("data", "split", str(data), "--method", "leave-one-out")
    assert json.loads(run(*command, "--split", "leave-one-out", "--json")) == first
    (data / "splits" / "leave-one-out").rename(data / "splits" / "other")
    why = run(*command, "--split", "random:0.3,0.3", code=1)
    assert "--protocol next-item takes one row of each; --split leave-one-out" in why


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--repeats", "masked"), "--protocol next-item has it"),
        (("--protocol", "next"), "next-item"),
        (("--protocol", "next-item", "--repeats", "all"), "allowed"),
        (("--split", "leave-one-out"), "needs timestamps or positions"),
    ],
)
def test_mistakes_end_in_a_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    data = tmp_path / "d"
    data.mkdir()
    rows = [f"u{row % 3}\ti{row}" for row in range(12)]
    (data / "interactions.tsv").write_text("\n".join(["user_id\titem_id", *rows, ""]))
    command = ("train", "--data", str(data), "--model", "item-knn", "--out", str(tmp_path / "r"))
    told = run(*command, *words, code=1 if "--split" in words else 2)
    assert message in told and "Traceback" not in told
    assert not (tmp_path / "r").exists()


def test_a_position_stands_behind_a_time(tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    rows = [f"u{user}\ti{row}\t{9 - row}\t{row}" for user in range(3) for row in range(4)]
    header = "user_id\titem_id\tposition\ttimestamp"
    (data / "interactions.tsv").write_text("\n".join([header, *rows, ""]))
    run("data", "split", str(data), "--method", "leave-one-out")
    test = read(data / "splits" / "leave-one-out" / "test.tsv")
    assert test[0][-1] == "timestamp" and {row[1] for row in test[1:]} == {"i3"}
