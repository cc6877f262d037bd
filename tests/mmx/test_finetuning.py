"""Fine-tuning: the loss by hand, pairs from training alone, checkpoints that extraction takes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

from mmbase.catalogue.files import file_contents
from mmbase.catalogue.items import load_items
from mmbase.progress import Silent, Task
from mmstore import FeatureSet
from mmx.cli import cli
from mmx.encoders import create
from mmx.errors import DataError, Interrupted
from mmx.finetuning import (
    TakenTogether,
    Trainable,
    Training,
    contrastive_loss,
    finetune,
    histories,
    pairs,
    training_part,
)

N_ITEMS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of items that look and read differently; each user takes items of one kind only."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("finetune"), np.random.default_rng(0)
    (folder / "images").mkdir()
    words = (["red", "silk", "dress"], ["blue", "lamp", "chair"])
    lines = ["item_id\ttitle"]
    for item in range(N_ITEMS):
        kind = item % 2
        pixels = rng.integers(0, 90, (40, 40, 3))
        pixels[..., 2 * kind] += 150
        if item != 3:
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"images/i{item}.png")
        lines.append(f"i{item}\t{' '.join(rng.permutation(words[kind]))}")
    (folder / "items.tsv").write_text("\n".join(lines) + "\n")
    split = folder / "splits/s"
    split.mkdir(parents=True)
    rows = [
        f"u{user}\ti{item}"
        for user in range(16)
        for item in rng.choice(range(user % 2, N_ITEMS, 2), 4, replace=False)
    ]
    (split / "train.tsv").write_text(
        "\n".join(["user_id\titem_id", *rows, "u99\ti1", "u98\tstranger"]) + "\n"
    )
    (split / "test.tsv").mkdir()  # whoever opens it fails
    return folder


def call(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == code, done.output
    return done.output


def test_the_loss_by_hand() -> None:
    torch = pytest.importorskip("torch")
    a, b = torch.tensor([[1.0, 0], [0, 2.0]]), torch.tensor([[3.0, 0], [1.0, 0]])
    logits = np.array([[1.0, 1.0], [0.0, 0.0]]) / 0.5

    def cross(x: np.ndarray) -> float:
        return float(-np.mean(np.log(np.exp(x.diagonal()) / np.exp(x).sum(1))))

    loss = contrastive_loss(a, b, torch.eye(2, dtype=torch.bool), 0.5)
    assert loss.item() == pytest.approx((cross(logits) + cross(logits.T)) / 2)
    # Somebody took all of them: nothing is a negative.
    assert contrastive_loss(a, b, torch.ones(2, 2, dtype=torch.bool), 0.5).item() == pytest.approx(
        0
    )
    # Somebody took the first pair's first item and the second pair's second one, which is no
    # negative then.
    some = contrastive_loss(a, b, torch.tensor([[True, True], [False, True]]), 0.5)
    rest = np.where([[False, True], [False, False]], -np.inf, logits)
    assert some.item() == pytest.approx((cross(rest) + cross(rest.T)) / 2)


def test_items_that_somebody_took_together_are_no_negatives() -> None:
    together = TakenTogether([np.array([0, 1]), np.array([1, 3, 4])])
    np.testing.assert_array_equal(
        together(np.array([0, 3, 1]), np.array([1, 4, 0])),
        [[True, False, True], [True, True, False], [True, True, True]],
    )


def test_pairs_are_of_one_user_and_follow_from_the_seed(data: Path) -> None:
    users = histories(training_part(data, "s"), load_items(data))
    assert len(users) == 16  # one item, or none of the catalogue, is no history
    drawn = pairs(users, 1, 0)
    assert drawn.shape == (16, 2)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    assert (drawn[:, 0] % 2 == drawn[:, 1] % 2).all()
    assert np.array_equal(drawn, pairs(users, 1, 0))
    assert not np.array_equal(drawn, pairs(users, 1, 1))
    item = load_items(data).ids[0].as_py()
    (data / "splits/t").mkdir()
    (data / "splits/t/train.tsv").write_text(f"user_id\titem_id\nu\t{item}\n\t{item}\n")
    with pytest.raises(DataError, match="train.tsv, line 3: empty user_id"):
        histories(training_part(data, "t"), load_items(data))
    with pytest.raises(DataError, match="mmbench data split"):
        training_part(data, "other")


def gap(path: Path) -> float:
    """How much closer items of one kind are than items of different kinds, by cosine."""
    with FeatureSet(path) as features:
        ids = [f"i{k}" for k in range(N_ITEMS)]
        vectors, present = features.matrix(ids)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    cosines, kind = unit @ unit.T, np.arange(N_ITEMS) % 2
    there = present[:, None] & present[None] & ~np.eye(N_ITEMS, dtype=bool)
    same = kind[:, None] == kind[None]
    return float(cosines[there & same].mean() - cosines[there & ~same].mean())


def test_texts_come_closer_and_extraction_takes_the_folder(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from tests.mmx.encoders.tiny_models import sentence_model as build

    tiny = build(tmp_path / "tiny")
    options = [
        "--modality",
        "textual",
        "--data",
        str(data),
        "--split",
        "s",
        "--epochs",
        "4",
        "--batch-size",
        "8",
        "--lr",
        "0.003",
    ]
    for name in ("a", "b"):
        out = call(
            "finetune",
            "--model",
            str(tiny),
            *options,
            "--out",
            str(tmp_path / name),
            "--json",
            "-q",
        )
        document = json.loads(out)
        assert document["loss"][-1] < document["loss"][0]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()
    told: dict[str, Any] = json.loads((tmp_path / "a/mmx.json").read_text())
    assert told["finetuned_from"]["backend"] == "sentence-transformers"
    gaps = {}
    for name, model in (("before", tiny), ("after", tmp_path / "a")):
        store = tmp_path / "features"
        call(
            "extract",
            "--modality",
            "textual",
            "--model",
            str(model),
            "--data",
            str(data),
            "--out",
            str(store),
            "--name",
            name,
            "-q",
        )
        gaps[name] = gap(store / f"textual/{name}.h5")
        with FeatureSet(store / f"textual/{name}.h5") as features:
            assert features.provenance.get("training") == (
                told["training"] if name == "after" else None
            )
    assert gaps["after"] > gaps["before"] + 0.1
    call("finetune", "--model", str(tiny), *options, "--out", str(tmp_path / "a"), code=2)


def test_pictures_come_closer_and_extraction_takes_the_weights(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    weights = tmp_path / "mine.safetensors"
    options = ["--modality", "visual", "--model", "squeezenet1_1", "--data", str(data)]
    out = call(
        "finetune", *options, "--weights", "random", "--split", "s", "--out", str(weights),
        "--epochs", "3", "--batch-size", "8", "--lr", "0.0003", "--json", "-q",
    )  # fmt: skip
    assert len(json.loads(out)["loss"]) == 3
    gaps = {}
    for name, source in (("before", "random"), ("after", str(weights))):
        call(
            "extract",
            *options,
            "--weights",
            source,
            "--out",
            str(tmp_path / "f"),
            "--name",
            name,
            "-q",
            code=0,
        )
        gaps[name] = gap(tmp_path / f"f/visual/{name}.h5")
    assert gaps["after"] > gaps["before"]
    with FeatureSet(tmp_path / "f/visual/after.h5") as features:
        assert features.provenance["weights"] == "mine.safetensors"
    assert not list(tmp_path.glob("*.partial"))
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(weights, "pt") as file:
        told = json.loads(file.metadata()["mmx"])["training"]
    train = (data / "splits/s/train.tsv").read_bytes()
    assert told["train_sha256"] == hashlib.sha256(train).hexdigest()
    assert (told["split"], told["epochs"], told["batch_size"], told["lr"], told["seed"]) == (
        "s",
        3,
        8,
        0.0003,
        0,
    )
    assert told["loss"] == json.loads(out)["loss"]
    with FeatureSet(
        tmp_path / "f/visual/after.h5"
    ) as features:  # which split the vectors know stands in the set
        assert features.provenance["training"] == told


def test_a_place_that_cannot_be_written_is_found_before_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        "mmx.finetuning.finetune", lambda *_, **__: pytest.fail("trained for nothing")
    )
    said = call(
        "finetune", "--modality", "visual", "--model", "squeezenet1_1", "--weights", "random",
        "--data", str(data), "--split", "s", "--out", str(tmp_path / "file/x.safetensors"), code=1,
    )  # fmt: skip
    assert "its folder cannot be made" in said


def test_progress_ends_at_the_number_of_pairs_and_says_what_was_left_out(data: Path) -> None:
    class Heard(Silent):
        total = done = 0
        notes: ClassVar[list[str]] = []

        @contextmanager
        def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
            self.total = total
            yield self

        def advance(self, steps: int = 1, message: str = "") -> None:
            self.done += steps

        def note(self, message: str) -> None:
            self.notes.append(message)

    items = load_items(data)
    encoder = create("squeezenet1_1", modality="visual", weights="random")
    assert isinstance(encoder, Trainable)
    users = [np.array([0, 2]), np.array([1, 5]), np.array([3, 7])]  # item 3 has no picture
    heard = Heard()
    finetune(
        encoder, file_contents(items, "visual"), users, Training(1, 4, lr=1e-6), progress=heard
    )
    assert (heard.done, heard.total) == (3, 3)
    assert re.search(r"over 2 pairs \(1 left out", heard.notes[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--out": "mine.bin"}, "safetensors"),
        ({"--split": "other"}, "no train.tsv"),
        ({"--model": "colour-hog"}, "cannot be fine-tuned"),
        ({"--lr": "-1"}, "positive"),
        ({"--lr": "nan"}, "positive"),
        ({"--temperature": "inf"}, "positive"),
        ({"--text-columns": "title"}, "about texts"),
    ],
)
def test_mistakes(data: Path, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    options = {
        "--modality": "visual", "--model": "squeezenet1_1", "--weights": "random",
        "--data": str(data), "--split": "s", "--out": "mine.safetensors",
    } | changes  # fmt: skip
    if options["--model"] == "colour-hog":
        options["--weights"] = "default"
    options["--out"] = str(tmp_path / options["--out"])
    done = CliRunner().invoke(
        cli, ["finetune", *(part for pair in options.items() for part in pair), "-q"]
    )
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert not list(tmp_path.iterdir())


def test_an_interruption_says_that_nothing_was_kept(data: Path) -> None:
    items = load_items(data)
    encoder = create("squeezenet1_1", modality="visual", weights="random")
    assert isinstance(encoder, Trainable)
    users = histories(training_part(data, "s"), items)
    contents = file_contents(items, "visual")
    with pytest.raises(Interrupted, match="nothing was saved"):
        finetune(
            encoder,
            contents,
            users,
            Training(batch_size=4),
            progress=Silent(),
            stop=lambda: True,
        )
