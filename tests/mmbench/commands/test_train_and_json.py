"""What `train` says beside its tables, runs used from elsewhere, and JSON that says as much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tests.mmbench.conftest import write_dataset

from mmbench.cli import cli
from mmbench.errors import unknown_name
from mmbench.runs import devices

SMALL = ("--model", "bpr-mf", "--set", "embedding_dim=4", "--cutoffs", "5")
SELECT = ("--select-by", "Recall@5", "--every", "1")


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def write_split(folder: Path) -> Path:
    folder.mkdir()
    parts = {"train": "u1\ta\nu2\tb\nu2\tc\nu2\td", "valid": "u1\te", "test": "u1\tb\nu1\ta"}
    for part, rows in parts.items():
        (folder / f"{part}.tsv").write_text(f"user_id\titem_id\n{rows}\n")
    return folder


def test_an_evaluation_as_json_says_what_the_text_says(tmp_path: Path) -> None:
    data = write_split(tmp_path / "d")
    lists = tmp_path / "lists.tsv"
    lists.write_text("u1\ta\t1\nu1\te\t2\nu1\tb\t3\n")
    words = ["evaluate", "--recs", lists, "--data", data, "--metrics", "Recall", "--cutoffs", "3"]
    text, document = call(*words).stdout, json.loads(call(*words, "--json").stdout)
    notes = [line.removeprefix("note: ") for line in text.splitlines() if line[:5] == "note:"]
    assert len(document["notes"]) == len(notes) >= 4
    assert all(
        " ".join(told.split())[:40] == note[:40]
        for told, note in zip(notes, document["notes"], strict=True)
    )
    assert document["schema"] == "mmbench.evaluation 1.0"
    assert document["users"]["test"] == {"evaluated": 1, "with_relevant": 1, "without_list": 0}
    assert "test, strict protocol: 1 user evaluated; 0 without a list" in text


def test_statistics_as_json_have_the_interactions_too(dataset: Path) -> None:
    document = json.loads(call("data", "stats", dataset, "--json").stdout)
    assert document["schema"] == "mmbench.statistics 1.0"
    assert document["interactions"]["interactions"] == 400


def test_a_run_as_json_has_the_slices_that_were_asked_for(dataset: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--data",
        dataset,
        "--out",
        tmp_path / "r",
        *SMALL,
        *SELECT,
        "--set",
        "epochs=1",
    ]
    assert "slices" not in json.loads(call(*words, "--json").stdout)
    document = json.loads(call(*words, "--slices", "--json").stdout)
    assert document["schema"] == "mmbench.runs 1.0"
    assert {one["family"] for one in document["slices"]["test"]} >= {"popularity", "activity"}


def test_a_run_made_in_the_datasets_folder_works_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "shop")
    monkeypatch.chdir(data)
    words = ["train", "--data", ".", "--out", tmp_path / "r", *SMALL, *SELECT, "--set", "epochs=1"]
    run = json.loads(call(*words, "--json").stdout)
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", run["run"], "--cutoffs", "5", "--json"]
    assert json.loads(call(*words).stdout)["test"] == run["test"]
    data.rename(tmp_path / "moved")
    gone = call(*words)
    assert gone.exit_code == 1
    assert "is not there; say where it is now: --data DIR" in " ".join(gone.stderr.split())
    assert json.loads(call(*words, "--data", tmp_path / "moved").stdout)["test"] == run["test"]


@pytest.mark.parametrize(("epochs", "expected"), [(2, True), (30, False)])
def test_a_best_epoch_that_is_the_last_one_is_said(
    dataset: Path, tmp_path: Path, epochs: int, expected: bool
) -> None:
    rates = ["--set", "lr=0.002" if expected else "lr=0.1", "--set", f"epochs={epochs}"]
    words = ["train", "--data", dataset, "--out", tmp_path / "r", *SMALL, *SELECT, *rates]
    said = "the best epoch is the last one validated" in call(*words).stdout
    best = json.loads(call(*words, "--json").stdout)["best_epoch"]
    assert said == (best == epochs) == expected


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "GPU:0", "tpu"])
def test_a_device_that_is_none_is_refused_in_our_words(
    dataset: Path, tmp_path: Path, device: str
) -> None:
    words = ["train", "--data", dataset, "--out", tmp_path / "r", *SMALL, "--device", device]
    done = call(*words)
    assert done.exit_code == 2
    assert f"--device {device}: no such device; choose auto, cpu, cuda" in done.stderr
    assert not list((tmp_path / "r").glob("*"))


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_a_device_has_one_name_in_the_record(spelled: str, expected: str) -> None:
    assert devices.name_of(torch.device(spelled)) == expected


def test_many_names_are_not_listed() -> None:
    many = [f"model-{number}" for number in range(90)]
    error = str(unknown_name("model", "modle-7", many))
    assert "Did you mean 'model-7'? There are 90, such as model-7, " in error
    assert len(error) < 150
    assert "There are 90, such as" in str(unknown_name("model", "qqqqqqqq", many))
    assert "Choose one of: a, b." in str(unknown_name("model", "x", ["b", "a"]))
