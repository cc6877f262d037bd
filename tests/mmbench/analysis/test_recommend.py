"""Lists score again as the run did; embeddings give the run's scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from tests.mmbench.conftest import write_dataset

from mmbench.analysis.recommend import SUFFIXES, load_run
from mmbench.commands.recommend import recommend
from mmbench.commands.train import train
from mmbench.config import make_evaluation
from mmbench.errors import DataError, UsageError
from mmbench.evaluation.protocol import evaluate_lists
from mmbench.runs import run as experiment


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recommend")
    write_dataset(folder / "toy")
    rows = ["item_id\ttitle", *(f"B{item:03d}X\tx" for item in range(33))]  # three that nobody has
    (folder / "toy/items.tsv").write_text("\n".join(rows) + "\n")
    for protocol in ("strict", "paper"):
        options = [
            "--data",
            str(folder / "toy"),
            "--out",
            str(folder / protocol),
            "-q",
            "--protocol",
            protocol,
        ]
        options += [
            "--set",
            "epochs=4",
            "--set",
            "embedding_dim=8",
            "--cutoffs",
            "5,10",
            "--select-by",
            "Recall@10",
        ]
        models = "vbpr,bpr-mf,freedom,item-knn,content-knn"
        done = CliRunner().invoke(train, ["--model", models, *options], catch_exceptions=False)
        assert done.exit_code == 0
    return folder


def run_of(place: Path, protocol: str, model: str) -> Path:
    (found,) = (place / protocol).glob(f"toy-{model}-*")
    return found


def call(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(recommend, [*arguments, "--json", "-q"], catch_exceptions=False)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("protocol", ["strict", "paper"])
@pytest.mark.parametrize("model", ["vbpr", "freedom", "item-knn", "content-knn"])
@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".parquet"])
def test_lists_score_as_the_run_did(
    place: Path, tmp_path: Path, protocol: str, model: str, suffix: str
) -> None:
    run, out = run_of(place, protocol, model), tmp_path / f"recs{suffix}"
    call(str(run), "--out", str(out), "-k", "10")
    result = experiment.read_result(run)
    evaluation = make_evaluation(protocol=protocol, cutoffs=(5, 10), select_by="Recall@10")
    scored = evaluate_lists(out, place / "toy", None, evaluation)
    assert scored.scores["test"].overall == result.test


def test_every_format_has_the_same_rows(place: Path, tmp_path: Path) -> None:
    run, frames = run_of(place, "strict", "vbpr"), {}
    for suffix in SUFFIXES:
        out = tmp_path / f"recs{suffix}"
        document = call(str(run), "--out", str(out), "-k", "3", "--users", "u3,u1")
        assert (document["users"], document["rows"]) == (2, 6)
        if suffix == ".parquet":
            frames[suffix] = pd.read_parquet(out)
        elif suffix == ".jsonl":
            lines = [json.loads(line) for line in out.read_text().splitlines()]
            assert [line["user_id"] for line in lines] == ["u3", "u1"]
            assert [len(line["item_ids"]) for line in lines] == [3, 3]
        else:
            frames[suffix] = pd.read_csv(out, sep="," if suffix == ".csv" else "\t")
    for frame in frames.values():
        assert frame["item_id"].tolist() == frames[".parquet"]["item_id"].tolist()
        np.testing.assert_allclose(frame["score"], frames[".parquet"]["score"], rtol=1e-6)
        assert frame["rank"].tolist() == [1, 2, 3, 1, 2, 3]
        assert (frame["score"].diff().iloc[[1, 2, 4, 5]] <= 0).all()
    assert not list(tmp_path.glob("*.partial"))


def test_seen_items_come_back_on_request_and_unseen_ones_through_content(
    place: Path, tmp_path: Path
) -> None:
    seen = (
        pd.read_csv(place / "toy/interactions.tsv", sep="\t").groupby("user_id")["item_id"].agg(set)
    )
    run = run_of(place, "strict", "content-knn")
    out = tmp_path / "all.parquet"
    call(str(run), "--out", str(out), "-k", "40", "--include-seen")
    everything = pd.read_parquet(out).groupby("user_id")["item_id"].agg(set)
    assert all(seen[user] <= everything[user] for user in everything.index)
    assert {"B030X", "B032X"} <= everything["u0"]


def lists_of(path: Path) -> dict[str, list[tuple[str, float]]]:
    rows = pd.read_csv(path, sep="\t", dtype={"user_id": str})
    return {
        user: list(zip(own["item_id"], own["score"], strict=True))
        for user, own in rows.groupby("user_id")
    }


@pytest.mark.parametrize("model", ["item-knn", "content-knn"])
def test_a_history_file_with_training_rows_gives_the_lists_of_training(
    place: Path, tmp_path: Path, model: str
) -> None:
    run, out = run_of(place, "paper", model), tmp_path / "recs.tsv"
    call(str(run), "--out", str(out), "-k", "5", "--users", "u1,u2")
    expected = lists_of(out)
    training = load_run(run).setting.training
    rows = [
        f"{'new' if user == 1 else 'u2'}\t{training.item_ids[item]}"
        for user in (1, 2)
        for row, item in zip(training.train.users, training.train.items, strict=True)
        if training.user_ids[row] == f"u{user}"
    ]
    history = tmp_path / "visitors.tsv"
    history.write_text("\n".join(["user_id\titem_id", *rows[::-1]]) + "\n")
    document = call(str(run), "--out", str(out), "-k", "5", "--history", str(history))
    assert document["users"] == 2
    assert lists_of(out) == {"new": expected["u1"], "u2": expected["u2"]}


def test_histories_decide_alone_and_what_they_lack_is_said(place: Path, tmp_path: Path) -> None:
    run, out, history = run_of(place, "strict", "content-knn"), tmp_path / "r.tsv", tmp_path / "h"
    # B030X is in the catalogue and not in training: it is masked, and says nothing of a user.
    rows = ["a\tB001X", "a\tB030X", "b\tB002X", "u1\tB001X", "c\tB030X", "a\tZZZ"]
    history.write_text("\n".join(["user_id\titem_id", *rows]) + "\n")
    arguments = [str(run), "--out", str(out), "-k", "40", "--history", str(history)]
    done = CliRunner().invoke(recommend, [*arguments, "-q"], catch_exceptions=False)
    said = " ".join(done.stderr.split())
    assert "1 row of an item that the run does not list: passed over" in said
    assert "1 of the users has no rows of items that training has seen" in said and "'c'" in said
    found = {user: dict(own) for user, own in lists_of(out).items()}
    assert set(found) == {"a", "b", "u1"}
    assert not {"B001X", "B030X"} & set(found["a"])
    assert {item: s for item, s in found["u1"].items() if item != "B030X"} == found["a"]
    everything = call(*arguments, "--include-seen", "--users", "a")
    assert everything["users"] == 1 and {"B001X", "B030X"} <= set(dict(lists_of(out)["a"]))


@pytest.mark.parametrize(
    ("model", "rows", "words", "error", "message"),
    [
        ("vbpr", "a\tB001X", (), UsageError, "has learned its own users"),
        ("item-knn", "a\tZZZ", (), DataError, "'ZZZ' there, 'B000X' in training"),
        ("item-knn", "a\tB001X", ("--users", "z"), DataError, "only known users"),
        ("item-knn", None, (), DataError, "history.tsv"),
    ],
)
def test_histories_that_cannot_be_served(
    place: Path, tmp_path: Path, model: str, rows: str | None, words: tuple[str, ...],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    history, out = tmp_path / "history.tsv", tmp_path / "out" / "r.tsv"
    if rows is not None:
        history.write_text(f"user_id\titem_id\n{rows}\n")
    arguments = [str(run_of(place, "strict", model)), "--out", str(out), "--history", str(history)]
    done = CliRunner().invoke(recommend, [*arguments, *words, "-q"])
    assert isinstance(done.exception, error) and message in str(done.exception)
    assert not out.parent.exists()


@pytest.mark.parametrize("model", ["bpr-mf", "vbpr", "freedom"])
def test_embeddings_give_the_scores(place: Path, tmp_path: Path, model: str) -> None:
    run, out = run_of(place, "paper", model), tmp_path / "recs.parquet"
    document = call(str(run), "--embeddings", str(tmp_path / "e"), "--out", str(out), "-k", "5")
    users, items = np.load(tmp_path / "e/users.npy"), np.load(tmp_path / "e/items.npy")
    assert document["embeddings"]["dim"] == users.shape[1] == items.shape[1]
    names = [(tmp_path / f"e/{kind}.txt").read_text().split() for kind in ("users", "items")]
    for row in pd.read_parquet(out).itertuples():
        score = users[names[0].index(row.user_id)] @ items[names[1].index(row.item_id)]
        assert score == pytest.approx(row.score, rel=1e-4, abs=1e-5)
    again = CliRunner().invoke(recommend, [str(run), "--embeddings", str(tmp_path / "e")])
    assert again.exit_code == 0  # the same is there already, from a command that was killed, say
    (tmp_path / "e/users.txt").write_text("others\n")
    done = CliRunner().invoke(recommend, [str(run), "--embeddings", str(tmp_path / "e")])
    assert isinstance(done.exception, DataError)
    assert (tmp_path / "e/users.txt").read_text() == "others\n"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], UsageError, "--out is missing"),
        (["--out", "x.xlsx"], UsageError, ".parquet"),
        (["--out", "x.tsv", "--users", "nobody"], DataError, "nobody"),
        (["--embeddings", "e"], UsageError, "no inner products"),
    ],
)
def test_mistakes(
    place: Path, tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    arguments = [
        str(tmp_path / part) if part in ("x.xlsx", "x.tsv", "e") else part for part in arguments
    ]
    done = CliRunner().invoke(
        recommend, [str(run_of(place, "paper", "item-knn")), *arguments, "-q"]
    )
    assert isinstance(done.exception, error)
    assert message in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_ids_with_quotes_and_lists_as_json_lines_are_read_back(tmp_path: Path) -> None:
    toy = write_dataset(tmp_path / "toy")
    rows = (
        (toy / "interactions.tsv")
        .read_text()
        .replace("B001X", 'the "best" one')
        .replace("u7\t", '"u7"\t')
    )
    (toy / "interactions.tsv").write_text(rows)
    options = ["--model", "most-popular", "--data", str(toy), "--out", str(tmp_path / "runs"), "-q"]
    assert CliRunner().invoke(train, options, catch_exceptions=False).exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    result = experiment.read_result(run)
    for suffix in SUFFIXES:
        out = tmp_path / f"recs{suffix}"
        call(str(run), "--out", str(out))
        scored = evaluate_lists(out, toy, None, result.recipe.evaluation)
        assert scored.scores["test"].overall == result.test


def test_an_id_that_tsv_cannot_hold(tmp_path: Path) -> None:
    toy = write_dataset(tmp_path / "toy")
    frame = pd.read_csv(toy / "interactions.tsv", sep="\t")
    (toy / "interactions.tsv").unlink()
    frame.assign(user_id="tab\t" + frame["user_id"]).to_parquet(toy / "interactions.parquet")
    options = ["--model", "most-popular", "--data", str(toy), "--out", str(tmp_path / "runs"), "-q"]
    assert CliRunner().invoke(train, options, catch_exceptions=False).exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    with pytest.raises(DataError, match="an id holds a tab"):
        call(str(run), "--out", str(tmp_path / "recs.tsv"))
    assert not list(tmp_path.glob("recs*"))


def test_many_users_may_be_named_and_lists_end_with_the_candidates(
    place: Path, tmp_path: Path
) -> None:
    run, out = run_of(place, "strict", "vbpr"), tmp_path / "recs.parquet"
    users = ",".join(f"u{user}" for user in [*range(40)] * 10)
    assert call(str(run), "--out", str(out), "--users", users, "-k", str(10**12))["users"] == 40
    (tmp_path / "users.txt").write_bytes(b"\xef\xbb\xbfu1\r\nu2\r\n\r\n")
    assert call(str(run), "--out", str(out), "--users", str(tmp_path / "users.txt"))["users"] == 2
    for content, message in ((b"\n", "no user ids"), (b"u1\n\xff\xfe", "not UTF-8")):
        (tmp_path / "users.txt").write_bytes(content)
        with pytest.raises((DataError, UsageError), match=message):
            call(str(run), "--out", str(out), "--users", str(tmp_path / "users.txt"))


def test_users_without_training_rows_get_no_list_and_are_counted(
    place: Path, tmp_path: Path
) -> None:
    run, out = run_of(place, "strict", "vbpr"), tmp_path / "recs.tsv"
    arguments = [str(run), "--out", str(out), "--users", "u1,nobody,u2", "-k", "2", "-q"]
    done = CliRunner().invoke(recommend, arguments, catch_exceptions=False)
    assert "1 of the users has no training rows, e.g. 'nobody', and no list" in done.stderr
    assert set(pd.read_csv(out, sep="\t")["user_id"]) == {"u1", "u2"}
    document = call(*arguments[:-1])
    assert (document["users"], document["unknown_users"]) == (2, ["nobody"])
