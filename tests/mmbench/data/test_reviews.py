"""Vectors of training pairs: joined by user and item, and never those of held-out pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.mmbench.conftest import write_dataset, write_reviews

from mmbench.cli import cli
from mmbench.core.content import Scaling
from mmbench.data.dataset import Split, load_split
from mmbench.data.features import ItemFeatures
from mmbench.data.reviews import load_reviews
from mmbench.data.treatment import Treatment
from mmbench.errors import DataError
from mmstore import FeatureSet

Pair = tuple[str, str]
PARTS: dict[str, list[Pair]] = {
    "train": [("u2", "b"), ("u1", "a"), ("u1", "c"), ("u2", "a"), ("u3", "c"), ("u3", "b")],
    "valid": [("u1", "b"), ("u2", "c")],
    "test": [("u3", "a"), ("u1", "new"), ("u4", "a")],
}
EVERY = [("u9", "a"), *(pair for part in ("test", "train", "valid") for pair in PARTS[part])]


def write_parts(folder: Path, **more: list[Pair]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, pairs in PARTS.items():
        lines = ["user_id\titem_id", *map("\t".join, [*pairs, *more.get(part, [])])]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset with a split of its own, and a set of all reviews but one, in another order."""
    folder = write_parts(tmp_path / "toy")
    write_reviews(folder, "all", EVERY)
    return folder


def load(data: Path, name: str = "all", split: Split | None = None, **options: Any) -> ItemFeatures:
    split = split or load_split(data)
    (one,) = load_reviews(
        data / "features", split, {"textual": name}, Treatment(**options)
    ).values()
    return one


def stored(data: Path, pair: Pair, name: str = "all") -> Any:
    with FeatureSet(data / f"features/textual/{name}.h5") as features:
        return features.matrix([pair])[0][0]


ORDER = sorted(PARTS["train"])
"""The pairs as a `TrainSet` has them."""


def test_rows_are_the_training_pairs_by_user_and_item(data: Path) -> None:
    one = load(data)
    assert (one.source, one.n_stored, one.corrupt) == ("interaction", len(EVERY) - 1, 0)
    assert one.present.all()
    np.testing.assert_array_equal(one.vectors, [stored(data, pair) for pair in ORDER])


@pytest.mark.parametrize(
    ("missing", "scaling"), [("mean", "none"), ("zeros", "l2"), ("random", "none")]
)
def test_a_pair_without_a_review_gets_what_the_policy_says(
    data: Path, missing: str, scaling: Scaling
) -> None:
    write_reviews(data, "some", [ORDER[3], *ORDER[:2], *PARTS["test"]])  # the first one is missing
    one = load(data, "some", missing=missing, scaling=scaling)
    assert one.present.tolist() == [True, True, False, False, False, False]
    own = np.array([stored(data, pair, "some") for pair in ORDER[:2]])
    if scaling == "l2":
        own /= np.linalg.norm(own, axis=1, keepdims=True)
    np.testing.assert_allclose(one.vectors[:2], own, rtol=1e-6)
    others = one.vectors[2:]
    if missing == "random":
        assert len(np.unique(others, axis=0)) == 4
    else:
        expected = own.mean(0) if missing == "mean" else np.zeros(5)
        np.testing.assert_allclose(others, np.tile(expected, (4, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scaling": "standard"},
        {"mask": {"textual": 0.5}, "pattern": "popular"},
        {"control": {"textual": "shuffled"}},
        {"control": {"textual": "noise"}, "missing": "random"},
    ],
)
def test_held_out_reviews_change_nothing(data: Path, options: dict[str, Any]) -> None:
    """The set of the training reviews alone gives the same numbers, whatever is done to them."""
    with_all = load(data, **options)
    with FeatureSet(data / "features/textual/all.h5") as features:
        vectors = features.matrix(ORDER)[0]
    write_reviews(data, "own", [("x", "y"), *ORDER], vectors=vectors)
    alone = load(data, "own", **options)
    np.testing.assert_array_equal(alone.vectors, with_all.vectors)
    np.testing.assert_array_equal(alone.present, with_all.present)
    assert alone.n_masked == with_all.n_masked
    if "mask" in options:
        assert alone.n_masked == 3
    if "control" in options:
        assert not np.array_equal(alone.vectors, vectors)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_review_that_may_be_a_held_out_one_is_refused(data: Path, part: str) -> None:
    write_parts(data, **{part: [ORDER[0]]})
    with pytest.raises(DataError, match=r"'u1' and 'a', is held out too.*--filter dedup:last"):
        load(data)
    write_reviews(data, "others", ORDER)  # whose first pair is missing: there is nothing to read
    assert not load(data, "others").present[0]


def test_an_encoder_that_learned_from_held_out_reviews_is_refused(data: Path) -> None:
    fitted = {"preprocessing": {"fit": {"n_texts": 9}}}
    write_reviews(data, "lsa", EVERY, **fitted)
    with pytest.raises(DataError, match="fitted on the texts of the set, 5 of which are not"):
        load(data, "lsa")
    write_reviews(data, "fused", EVERY, parts=[{"preprocessing": {}}, fitted])
    with pytest.raises(DataError, match="--items-file FILE"):
        load(data, "fused")
    write_reviews(data, "train", [("u1", "b"), *ORDER], **fitted)  # the first pair has no text
    assert load(data, "train").present.all()


def test_a_set_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    toy = write_dataset(tmp_path / "toy")

    def told(*words: str, model: str) -> str:
        done = CliRunner().invoke(cli, ["train", "--model", model, "--data", str(toy), *words])
        assert done.exit_code in (1, 2), done.output
        assert not list(toy.parent.glob("runs/*"))
        return " ".join(done.stderr.split())

    message = "item / dense features; this model needs one dense vector per interaction"
    assert message in told("--features", "textual=words", model="egcf")
    message = "interaction / dense features; a model needs one dense vector per item"
    assert message in told("--features", "textual=opinions", model="vbpr")
    assert "pagerank is about items" in told("--missing", "pagerank", model="egcf")
    assert "drop is about items" in told("--missing", "drop", model="egcf")
    assert "learned" in told("--missing", "learned", model="egcf")
    (toy / "features/textual/opinions.h5").unlink()
    assert "no feature sets of interactions" in told(model="egcf")


def test_a_training_says_records_and_remembers_what_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(Path("toy"))
    words = ["--data", "toy", "--set", "epochs=2", "--every", "1", "--cutoffs", "5"]
    words += ["--select-by", "Recall@5", "--set", "embedding_dim=4", "--json"]

    def train(*more: str, model: str = "egcf") -> tuple[dict[str, Any], str]:
        done = CliRunner().invoke(cli, ["train", "--model", model, *words, *more])
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout), " ".join(done.stderr.split())

    both, stderr = train(model="vbpr,egcf")  # each takes the sets of its kind
    assert "textual: opinions, 5 numbers per interaction: " in stderr
    assert "vectors of held-out and other pairs not read" in stderr
    records = [json.loads(Path(one["run"], "run.json").read_text()) for one in both["runs"]]
    assert [one["features"]["textual"]["name"] for one in records] == ["words", "opinions"]
    told, n_train = records[1]["features"]["textual"], records[1]["dataset"]["n_train"]
    assert told["source"] == "interaction" and "source" not in records[0]["features"]["textual"]
    assert told["present"] + told["missing"] == n_train > 200
    taken = json.loads(Path("toy/dataset.json").read_text())["taken"]
    assert taken["features"]["textual"] == "words"
    assert taken["interaction_features"] == {"textual": "opinions"}
    write_reviews(Path("toy"), "later", [("u0", "B001X"), ("u1", "B002X")])
    again, stderr = train()
    assert "2 textual sets (later, opinions); took opinions, as before" in stderr
    assert again["run"] == both["runs"][1]["run"]
