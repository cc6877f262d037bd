"""From reviews to a trained EGCF, by the command lines of docs/reviews.md."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import REPOSITORY
from tests.e2e.test_docs import FENCE, typed_lines
from tests.processes import ended

pytest.importorskip("sklearn")
WORDS = np.array(["warm", "red", "coat", "blue", "lamp", "loud", "toy", "soft", "grey", "sofa"])


def catalogue(folder: Path) -> Path:
    """Interactions with texts, and a split of them whose parts have the texts, too."""
    rng = np.random.default_rng(4)
    header = "user_id\titem_id\ttitle\ttext"
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user in range(12):
        for place, item in enumerate(rng.permutation(9)[:6]):
            part = {0: "valid", 1: "test"}.get(place, "train")
            text = " ".join(rng.choice(WORDS, 5))
            parts[part].append(f"u{user}\ti{item}\t{WORDS[item]}\t{text}")
    split = folder / "splits/study"
    split.mkdir(parents=True)
    for part, lines in parts.items():
        (split / f"{part}.tsv").write_text("\n".join([header, *lines]) + "\n")
    everything = [line for lines in parts.values() for line in lines]
    (folder / "interactions.tsv").write_text("\n".join([header, *everything]) + "\n")
    return folder


def test_the_page_s_commands_train_on_reviews_of_training_alone(tmp_path: Path) -> None:
    catalogue(tmp_path / "my/catalogue")
    page = (REPOSITORY / "docs/reviews.md").read_text(encoding="utf-8")
    *_, block = [body for _, body in FENCE.findall(page) if "tfidf-lsa" in body]
    extract, train = (shlex.split(line) for line in typed_lines(block))
    short = ("--set", "epochs=2", "--every", "1", "--json")

    # Of all reviews: what was fitted on those of validation and test is refused.
    place = extract.index("--items-file")
    ended(*extract[:place], cwd=tmp_path)
    asked = [word for word in train if not word.startswith("textual=")]
    asked.remove("--features")
    refused = ended(*asked, *short, cwd=tmp_path, expect=1)
    assert refused.stderr.count("error:") == 1
    assert "24 of which are not of training pairs" in " ".join(refused.stderr.split())
    assert not (tmp_path / "runs").exists()

    ended(*extract, cwd=tmp_path)
    result = json.loads(ended(*train, *short, cwd=tmp_path).stdout)
    record = json.loads((tmp_path / result["run"] / "run.json").read_text())
    told = record["features"]["textual"]
    assert (told["name"], told["source"]) == ("tfidf-train", "interaction")
    assert told["present"] == record["dataset"]["n_train"] == 48
    assert told["provenance"]["input"]["table"] == "train.tsv"
    assert result["test"]["Recall@20"] is not None
