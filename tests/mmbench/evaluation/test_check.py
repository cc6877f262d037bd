"""What can't be scored or selected on is found before training; impossible hits are no zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mmbench.cli import cli
from mmbench.trainer import Trainer


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any epoch of training is a failure of the test."""
    monkeypatch.setattr(Trainer, "_train_epoch", lambda self, epoch: pytest.fail("trained"))


def write(folder: Path, *, unseen: tuple[str, ...] = (), ratings: dict[str, list[str]]) -> Path:
    """Write a split of six users and twelve items; parts in `unseen` have items of their own."""
    folder.mkdir()
    for place, part in enumerate(("train", "valid", "test")):
        rows = ["user_id\titem_id\trating"]
        for user in range(6):
            for step in range(4 if part == "train" else 1):
                item = (
                    f"i{(user + 3 * place + step) % 12}"
                    if part != "train"
                    else f"i{2 * step + user % 2}"
                )
                item = f"new-{part}-{user % 2}" if part in unseen else item
                known = ratings.get(part, ["3"])
                rows.append(f"u{user}\t{item}\t{known[user % len(known)]}")
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def train(data: Path, *options: str, model: str = "bpr-mf") -> tuple[int, Any, str]:
    small = ["--set", "epochs=2", "--set", "embedding_dim=4", "--every", "1"] * (model == "bpr-mf")
    words = ["train", "--data", str(data), "--model", model, "--out", str(data / "runs"), *small]
    done = CliRunner().invoke(cli, [*words, "--cutoffs", "2", "--select-by", "Recall@2", *options])
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("part", ["valid", "test"])
def test_ratings_that_a_metric_does_not_take(tmp_path: Path, part: str) -> None:
    data = write(tmp_path / "d", ratings={part: ["1200"]})
    code, _, error = train(data)
    assert (code, f"split given, {part} part: nDCG: ratings reach 1200" in error) == (1, True)
    assert not list(data.glob("runs/*/history.jsonl"))


def test_other_metrics_are_scored_on_such_ratings(tmp_path: Path) -> None:
    data = write(tmp_path / "d", ratings={"test": ["1200"]})
    assert train(data, "--metrics", "Recall,nDCGRendle2020")[0] == 0


@pytest.mark.usefixtures("untrained")
def test_no_relevant_row_to_select_on(tmp_path: Path) -> None:
    data = write(tmp_path / "d", ratings={"valid": ["3"], "test": ["5"]})
    code, _, error = train(data, "--threshold", "4")
    assert code == 1
    assert "Recall@2 has no value on the valid part" in error
    assert "rating of 4 or more" in error


@pytest.mark.usefixtures("untrained")
def test_a_metric_that_can_only_be_zero_selects_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "d", unseen=("valid", "test"), ratings={})
    for protocol in ("strict", "paper"):
        code, _, error = train(data, "--protocol", protocol)
        assert code == 1
        assert "Recall@2 can be nothing but 0 on the valid part" in error
        assert "such as vbpr" in error


def test_zeros_that_look_measured_are_not_printed(tmp_path: Path) -> None:
    data = write(tmp_path / "d", unseen=("test",), ratings={})
    _, text, _ = train(data)
    assert "bpr-mf: metrics of hits on test are n/a: none of the relevant items" in text
    _, document, _ = train(data, "--json")
    one = json.loads(document)
    assert one["no_hit_possible"] == ["test"]
    assert one["test"]["Recall@2"] is None is one["test"]["nDCG@2"]
    assert one["test"]["iCov@2"] > 0
    assert one["valid"]["Recall@2"] is not None
    # A popular list of unseen items can be a hit.
    assert (
        json.loads(train(data, "--json", model="most-popular")[1])["test"]["Recall@2"] is not None
    )


def test_what_selects_nothing_needs_no_value(tmp_path: Path) -> None:
    data = write(tmp_path / "d", unseen=("valid", "test"), ratings={})
    document = json.loads(train(data, "--json", model="item-knn")[1])
    assert document["valid"]["Recall@2"] is None
    assert json.loads(train(data, "--json", model="item-knn")[1]) == document


@pytest.mark.parametrize(
    ("ratings", "options", "expected"),
    [
        (["1", "5"], (), "ratings: 1 to 5; held-out rows count as relevant from 0 on: all of 6"),
        (["1", "5"], ("--threshold", "4"), "relevant from 4 on: 3 of 6 valid"),
        (["0.5", "700"], (), "ratings: 0.5 to 700"),  # a quantity, say
        (["1"], (), None),
    ],
)
def test_what_counts_as_relevant_is_said_when_training_starts(
    tmp_path: Path, ratings: list[str], options: tuple[str, ...], expected: str | None
) -> None:
    data = write(tmp_path / "d", ratings={"valid": ratings})
    _, _, notes = train(data, *options)
    assert (expected in notes) if expected else ("ratings:" not in notes)


def test_a_runs_own_threshold_is_that_of_its_evaluation(tmp_path: Path) -> None:
    data = write(tmp_path / "d", ratings={"valid": ["1", "5"], "test": ["5", "1"]})
    run = json.loads(train(data, "--threshold", "4", "--json")[1])
    words = ["evaluate", run["run"], "--cutoffs", "2", "--json"]
    document = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)
    assert document["test"] == run["test"]
    assert document["protocol"]["relevant"] == "rating >= 4"


def test_evaluate_says_why_there_is_no_value(tmp_path: Path) -> None:
    data = write(tmp_path / "d", unseen=("test",), ratings={})
    train(data)
    (run,) = (one for one in (data / "runs").iterdir() if one.is_dir())

    def notes(*options: str) -> list[str]:
        words = ["evaluate", *options, "--cutoffs", "2", "--metrics", "Recall", "--json"]
        found: list[str] = json.loads(CliRunner().invoke(cli, words).stdout)["notes"]
        return found

    why = "metrics of relevant items are n/a:"
    assert notes(str(run)) == [
        f"test: {why} none of the relevant items is one that this model and protocol can list"
    ]
    lists = tmp_path / "lists.tsv"
    lists.write_text("u0\ti1\nu0\ti2\n")
    least = "no user has a row with a rating of 6 or more there; lower --threshold"
    told = notes("--recs", str(lists), "--data", str(data), "--threshold", "6")
    assert [note for note in told if why in note] == [
        f"{part}: {why} {least}" for part in ("valid", "test")
    ]
