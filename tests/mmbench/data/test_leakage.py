"""Splits and filters on disk, and what the leakage report finds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from tests.mmbench.conftest import write_dataset

from mmbench.commands.data import data
from mmbench.config import Recipe
from mmbench.data.dataset import load_split
from mmbench.errors import DataError, UsageError
from mmbench.models.vbpr import VBPRConfig
from mmbench.runs.inputs import load_inputs
from mmstore import FeatureSetWriter, Pairs


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "toy", reviews=False)


def call(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(data, arguments, catch_exceptions=False, standalone_mode=False)
    assert (done.return_value or 0) == code
    return done.output


def test_a_split_is_written_once_and_says_how(toy: Path) -> None:
    arguments = (
        "split",
        str(toy),
        "--method",
        "leave-k-out",
        "--filter",
        "dedup:last",
        "--filter",
        "kcore:3",
        "--name",
        "loo",
    )
    assert "kcore:3" in call(*arguments)
    folder = toy / "splits/loo"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"train.tsv", "valid.tsv", "test.tsv", "split.json"}
    record = json.loads(before["split.json"])
    assert record["method"] == "leave-k-out"
    assert record["counts"]["test"] == len(before["test.tsv"].splitlines()) - 1
    assert "there already" in call(*arguments)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(DataError, match="with other options"):
        call(*arguments, "--seed", "7")
    with (toy / "interactions.tsv").open("a") as file:
        file.write("u0\tnew\t5\t1\n")
    with pytest.raises(DataError, match="with other options"):
        call(*arguments)
    assert load_split(toy, "loo").training.train.n_edges == record["counts"]["train"]
    assert not list(toy.glob("splits/*.partial"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--method", "leave-n-out"), UsageError, "leave-k-out"),
        (("--filter", "kcor:5"), UsageError, "kcore"),
        (("--k", "2"), UsageError, "--k"),
        (("--name", "../x"), UsageError, "plain folder name"),
        (("--filter", "kcore:99"), DataError, "no interactions are left"),
        (("--test", "1.5"), click.BadParameter, "not in the range"),
        (("--valid", "0"), DataError, "valid part would be empty"),
    ],
)
def test_mistakes(
    toy: Path, arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call("split", str(toy), *arguments)
    assert not (toy / "splits").exists() or not list((toy / "splits").iterdir())


def test_filtering_makes_a_folder(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "core"
    assert "min-rating:3" in call(
        "filter", str(toy), "--filter", "min-rating:3", "--filter", "kcore:2", "--out", str(out)
    )
    rows = [line.split("\t") for line in (out / "interactions.tsv").read_text().splitlines()[1:]]
    assert min(float(row[2]) for row in rows) >= 3
    with pytest.raises(DataError, match="exists already"):
        call("filter", str(toy), "--filter", "kcore:2", "--out", str(out))
    with pytest.raises(UsageError, match="--filter is missing"):
        call("filter", str(toy), "--out", str(tmp_path / "other"))


def test_every_planted_leak_is_found(toy: Path) -> None:
    folder = toy / "splits/leaky"
    folder.mkdir(parents=True)
    parts = {
        "train": ["u1\ti1\t5\t100", "u1\ti2\t5\t300", "u1\ti1\t5\t100"],
        "valid": ["u1\ti2\t5\t200", "u2\ti1\t5\t50"],
        "test": ["u1\ti1\t5\t250", "u1\ti9\t5\t260"],
    }
    for part, lines in parts.items():
        (folder / f"{part}.tsv").write_text(
            "\n".join(["user_id\titem_id\trating\ttimestamp", *lines]) + "\n"
        )
    with FeatureSetWriter(
        toy / "features/textual/reviews.h5",
        modality="textual",
        dim=2,
        ids=Pairs(["u1", "u5"], ["i9", "i9"]),
        provenance={"extractor": "test"},
    ) as writer:
        writer.write(np.arange(2), np.ones((2, 2), np.float32))
        writer.finish()
    document = json.loads(call("validate", str(toy), "--split", "leaky", "--json", code=3))
    found = {one["what"]: one["count"] for one in document["findings"]}
    assert found["pairs both in train and in valid"] == 1
    assert found["pairs both in train and in test"] == 1
    assert found["repeated pairs in train"] == 1
    assert found["training rows later than a test row of the same user"] == 1
    assert found["users of valid without training rows"] == 1
    assert found["items of test without training rows"] == 1
    assert found["textual/reviews: content of held-out pairs, e.g. their reviews"] == 1
    assert found["visual/toy: items of the split without a vector"] == 3
    assert document["leaks"] == 4
    assert "LEAK" in call("validate", str(toy), "--split", "leaky", "--strict", code=1)
    call("split", str(toy), "--method", "temporal", "--name", "clean")
    (toy / "features/textual/reviews.h5").unlink()
    assert "0 of 4 kinds of leaks" in call("validate", str(toy), "--split", "clean", "--strict")


def test_vectors_of_an_encoder_trained_on_another_split_are_a_leak(toy: Path) -> None:
    for name, seed in (("a", "1"), ("b", "2")):
        call("split", str(toy), "--seed", seed, "--name", name)
    trained = hashlib.sha256((toy / "splits/a/train.tsv").read_bytes()).hexdigest()
    one = {"extractor": "tuned", "training": {"split": "a", "train_sha256": trained}}
    ids = sorted(load_split(toy, "a").training.item_ids.tolist())
    for modality, provenance in (
        ("textual", one),
        ("fused", {"of": [{"provenance": one}, {"provenance": {}}]}),
    ):
        with FeatureSetWriter(
            toy / f"features/{modality}/tuned.h5",
            modality=modality,
            dim=2,
            ids=ids,
            provenance=provenance,
        ) as writer:
            writer.write(np.arange(len(ids)), np.ones((len(ids), 2), np.float32))
            writer.finish()
        recipe = Recipe(
            model="vbpr", data=str(toy), settings=VBPRConfig(), features={modality: "tuned"}
        )
        for split, warned in (("a", False), ("b", True), ("random:0.2,0.2,42", True)):
            note = (
                load_inputs(recipe.model_copy(update={"split": split}))[1].features[modality].note
            )
            assert ("trained on split a and not on this one" in note) == warned, split
            told = call("validate", str(toy), "--split", split, "--json", code=1)  # equal vectors
            found = json.loads(told)["findings"]
            what = f"{modality}/tuned: other splits its encoder was trained on"
            assert [(x["example"], x["leak"]) for x in found if x["what"] == what] == [
                ("a", True)
            ] * warned
