"""What a model without ids learned on one catalogue is worth on another of the same styles.

The truth is known: `mmx demo` draws both catalogues from one hidden space.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mmbase.progress import Silent
from mmbench.cli import cli as mmbench
from mmstore import FeatureSetWriter
from mmx.cli import cli as mmx
from mmx.demo import write_demo
from mmx.demo.latent import controls, draw_items, draw_picks, draw_space

CONTENT = ("--set", "schema.ids=none", "--set", "schema.side=both")
COMMON = ("--scaling", "l2", "--set", "lr=0.01", "--every", "1", "--cutoffs", "20")


def train(data: Path, out: Path, *words: object, model: str = "schema") -> list[dict[str, Any]]:
    content = CONTENT if "schema" in model else ()
    options = ("--data", data, "--out", out, "--model", model, *COMMON, *content, "--json", "-q")
    done = CliRunner().invoke(mmbench, [*map(str, ("train", *options, *words))])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    found: list[dict[str, Any]] = document.get("runs", [document])
    return found


def recall(run: dict[str, Any]) -> float:
    return float(run["test"]["Recall@20"])


def write_knobs(folder: Path, seed: int) -> Path:
    """Write a catalogue as `mmx demo --seed SEED --space 7` draws it: what pictures show is given
    as it is, and nothing drawn."""
    space = draw_space(*(np.random.default_rng([7, part]) for part in range(3)))
    rng = np.random.default_rng(seed)
    items = draw_items(250, space.centres, rng)
    ids = [f"s{seed}i{item:03d}" for item in range(250)]
    picks = draw_picks(items, 400, rng)
    rows = [f"u{u}\t{ids[i]}" for u, i in zip(picks.user_idx, picks.item_idx, strict=True)]
    folder.mkdir(parents=True)
    (folder / "interactions.tsv").write_text("\n".join(["user_id\titem_id", *rows]) + "\n")
    for modality, rotation in (("visual", space.look), ("audio", space.sound)):
        knobs = controls(items.factors, rotation, rng, noise=0.2) - 0.5
        # What says nothing is most of a vector: that is what there is to learn.
        vectors = np.c_[knobs, 0.4 * rng.standard_normal((250, 18))].astype(np.float32)
        path = folder / "features" / modality / "knobs.h5"
        made = {"model_id": "knobs", "backend": "demo", "layer": modality}
        with FeatureSetWriter(
            path, modality=modality, dim=vectors.shape[1], ids=ids, provenance=made
        ) as writer:
            writer.write(np.arange(250), vectors)
            writer.finish()
    return folder


def test_a_model_moves_to_another_catalogue_and_to_users_and_items_it_never_saw(
    tmp_path: Path,
) -> None:
    one, other = (write_knobs(tmp_path / f"c{seed}", seed) for seed in (1, 2))
    (source,) = train(one, tmp_path / "runs", "--set", "epochs=20")
    start = ("--start-from", source["run"])
    (zero_shot,) = train(other, tmp_path / "runs", "--set", "epochs=0", *start)
    (moved,) = train(other, tmp_path / "runs", "--set", "epochs=2", *start)
    scratch, chance = train(other, tmp_path / "runs", "--set", "epochs=2", model="schema,random")
    assert recall(zero_shot) > 3 * recall(chance)
    assert recall(moved) > 1.2 * recall(scratch)
    # A visitor with the history of a user gets that user's list, in the catalogue moved to.
    run, visits, lists = zero_shot["run"], tmp_path / "visits.tsv", tmp_path / "lists.tsv"
    visits.write_text("user_id\titem_id\nvisitor\ts2i003\nvisitor\ts2i007\n")
    words = ("recommend", run, "--history", visits, "--out", lists, "-k", "5", "-q")
    assert CliRunner().invoke(mmbench, [*map(str, words)]).exit_code == 0
    assert [row.split("\t")[0] for row in lists.read_text().splitlines()[1:]] == ["visitor"] * 5


@pytest.mark.slow
def test_drawn_catalogues_cold_items_and_five_seeds(tmp_path: Path) -> None:
    """The same on what is drawn and extracted; paired over seeds of source and training."""
    for name, seed in (("one", 7), ("other", 8)):
        write_demo(tmp_path / name, seed=seed, space=7, progress=Silent())
        for modality, model in (("visual", "colour-hog"), ("audio", "mfcc")):
            words = ("extract", "--modality", modality, "--model", model, "--data", tmp_path / name)
            assert CliRunner().invoke(mmx, [*map(str, words), "-q"]).exit_code == 3
    gains = []
    for seed in range(1, 6):
        words = ("--seed", seed)
        (source,) = train(tmp_path / "one", tmp_path / "runs", *words, "--set", "epochs=20")
        start = ("--set", "epochs=3", *words, "--start-from", source["run"])
        (moved,) = train(tmp_path / "other", tmp_path / "runs", *start)
        (scratch,) = train(tmp_path / "other", tmp_path / "runs", *start[:-2])
        gains.append(recall(moved) - recall(scratch))
    assert min(gains) > 0
    cold = ("data", "split", tmp_path / "one", "--method", "cold-items", "--name", "cold")
    assert CliRunner().invoke(mmbench, [*map(str, cold)]).exit_code == 0
    words = ("--split", "cold", "--set", "epochs=10", "--seed", "1,2,3,4,5")
    runs = train(tmp_path / "one", tmp_path / "runs", *words, model="schema,random")
    mean = {
        model: np.mean([recall(run) for run in runs if run["model"] == model])
        for model in ("schema", "random")
    }
    assert mean["schema"] >= 5 * mean["random"]
