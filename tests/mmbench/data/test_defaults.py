"""A default never changes because another command left a set or a split."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbase.choices import recall
from mmbase.progress import Silent
from mmbench.config import Recipe, make_settings
from mmbench.data.dataset import load_split
from mmbench.data.features import load_content, load_features, load_presence
from mmbench.errors import DataError, UsageError
from mmbench.runs.batch import Batch, InProcess
from mmbench.runs.run import Result
from mmstore import FeatureSetWriter

IDS = [f"B{item:03d}X" for item in range(30)]
PARTIAL: dict[str, Any] = {"input": {"limit": 20}, "extractor": "test"}
UNTRAINED: dict[str, Any] = {"weights": "random", "extractor": "test"}
FUSED: dict[str, Any] = {"sets": [{"provenance": UNTRAINED}], "extractor": "fuse"}


def add_set(data: Path, name: str, provenance: dict[str, Any], modality: str = "visual") -> None:
    path = data / "features" / modality / f"{name}.h5"
    made = {"created": "2030-01-01T00:00:00Z", **provenance}
    with FeatureSetWriter(path, modality=modality, dim=3, ids=IDS, provenance=made) as writer:
        writer.write(np.arange(30), np.random.default_rng(0).normal(size=(30, 3)))
        writer.finish()


def write_split(data: Path, name: str) -> None:
    head, *rows = (data / "interactions.tsv").read_text().splitlines()
    folder = data / "splits" / name
    folder.mkdir(parents=True)
    for part, own in (("train", rows[2:]), ("valid", rows[::7]), ("test", rows[::5])):
        kept = [row for row in own if part != "train" or row not in {*rows[::7], *rows[::5]}]
        (folder / f"{part}.tsv").write_text("\n".join([head, *kept]) + "\n")


def train(data: Path, out: Path, **given: Any) -> Result:
    settings = make_settings("vbpr", {"epochs": 1, "embedding_dim": 4, "batch_size": 64})
    evaluation = {"cutoffs": (5,), "select_by": "Recall@5"}
    recipe = Recipe(data=str(data), model="vbpr", settings=settings, evaluation=evaluation, **given)
    return Batch(out, InProcess(Silent()), Silent()).run([recipe])[0]


def names(data: Path) -> dict[str, str]:
    return {kind: one.name for kind, one in load_features(data / "features", IDS).items()}


@pytest.mark.parametrize("provenance", [PARTIAL, UNTRAINED, FUSED])
def test_partial_and_untrained_sets_are_not_taken_unasked(
    dataset: Path, provenance: dict[str, Any]
) -> None:
    add_set(dataset, "left", provenance)
    found = load_features(dataset / "features", IDS)
    assert found["visual"].name == "toy"
    assert "2 visual sets (left (" in found["visual"].note
    named = load_features(dataset / "features", IDS, {"visual": "left"})
    assert named["visual"].name == "left"

    (dataset / "features/visual/toy.h5").unlink()
    found = load_features(dataset / "features", IDS)
    assert list(found) == ["textual"]
    assert "other sets were not taken: visual=left (" in found["textual"].note
    assert "--features" in found["textual"].note
    assert list(load_presence(dataset / "features", IDS)) == ["textual"]
    shutil.rmtree(dataset / "features/textual")
    with pytest.raises(DataError, match=r"visual=left \(.*--features MODALITY=NAME"):
        load_features(dataset / "features", IDS)
    with pytest.raises(DataError, match="--diversity-features"):
        load_content(dataset / "features", "visual", IDS, 30)


def test_among_several_sets_the_one_taken_before_is_taken(dataset: Path, tmp_path: Path) -> None:
    first = train(dataset, tmp_path / "runs")
    add_set(dataset, "later", {"extractor": "test"})
    add_set(dataset, "hits", {"extractor": "test"}, "audio")
    again = train(dataset, tmp_path / "runs")
    assert again.path == first.path
    note = load_features(dataset / "features", IDS)["visual"].note
    assert "2 visual sets (later, toy); took toy, as before" in note
    assert "audio=hits" in note
    train(dataset, tmp_path / "runs", features={"visual": "later"})  # changes no default
    assert names(dataset) == {"visual": "toy", "textual": "words"}
    (dataset / "features/visual/toy.h5").unlink()  # what was taken is gone
    assert names(dataset) == {"visual": "later", "textual": "words", "audio": "hits"}


def test_several_sets_and_no_choice_is_a_question(dataset: Path, tmp_path: Path) -> None:
    add_set(dataset, "later", {"extractor": "test"})
    with pytest.raises(UsageError, match=r"2 visual sets \(later, toy\).*--features visual=NAME"):
        train(dataset, tmp_path / "runs")
    with pytest.raises(UsageError, match="--diversity-features visual=NAME"):
        load_content(dataset / "features", "visual", IDS, 30)
    assert load_presence(dataset / "features", IDS)["visual"].sum() == 29  # toy, the first made
    train(dataset, tmp_path / "runs", features={"visual": "later"})  # the answer stays
    assert names(dataset) == {"visual": "later"}


def test_a_partial_set_that_was_named_is_not_the_answer(dataset: Path, tmp_path: Path) -> None:
    add_set(dataset, "later", {"extractor": "test"})
    add_set(dataset, "left", PARTIAL)
    train(dataset, tmp_path / "runs", features={"visual": "left"})
    assert "features" not in recall(dataset)


def test_the_first_split_that_is_written_does_not_replace_the_random_one(
    dataset: Path, tmp_path: Path
) -> None:
    first = train(dataset, tmp_path / "runs")
    for split in ("mine", "other"):
        write_split(dataset, split)
        assert train(dataset, tmp_path / "runs").path == first.path
    assert any(
        "split random:0.2,0.2,42, as before; choose another with --split: mine, other" in note
        for note in load_split(dataset).training.notes
    )


def test_of_several_splits_the_one_taken_before_is_taken(dataset: Path, tmp_path: Path) -> None:
    for split in ("mine", "other"):
        write_split(dataset, split)
    with pytest.raises(UsageError, match="--split: mine, other"):
        train(dataset, tmp_path / "runs")
    chosen = train(dataset, tmp_path / "runs", split="other")
    assert train(dataset, tmp_path / "runs").path == chosen.path
