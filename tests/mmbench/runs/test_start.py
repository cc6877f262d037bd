"""A training that starts from another run's weights: what is carried, recorded and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from tests.mmbench.conftest import write_dataset

from mmbase import cli as shell
from mmbench.cli import cli
from mmbench.models import MODELS, model_class
from mmbench.runs.finished_runs import find_runs, group
from mmbench.runs.folder import RunFolder
from mmbench.trainer import EpochRecord

ENCODER = {"model_id": "toy", "backend": "test", "layer": "last", "pooling": "mean"}
SMALL = (
    "--set", "embedding_dim=8", "--set", "batch_size=64", "--set", "lr=0.02", "--cutoffs", "10",
    "--select-by", "Recall@10", "--every", "1", "--scaling", "l2",
)  # fmt: skip


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def told_by(*words: object) -> str:
    """The error of a command that fails, on one line."""
    done = call(*words)
    assert done.exit_code in (1, 2)
    return " ".join(done.stderr.split())


def train(out: Path, data: Path, *words: object, model: str = "vbpr", epochs: int = 3) -> Path:
    options = ("--model", model, "--data", data, "--out", out, *SMALL, "--set", f"epochs={epochs}")
    done = CliRunner().invoke(
        cli, [*map(str, ("train", *options, *words)), "--json", "-q"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.stderr
    return Path(json.loads(done.stdout)["run"])


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets with content of one encoder, and a run of VBPR on the first."""
    place = tmp_path_factory.mktemp("start")
    write_dataset(place / "one", encoder=ENCODER)
    write_dataset(place / "two", seed=1, users=33, items=27, encoder=ENCODER)
    train(place / "runs", place / "one").rename(place / "source")
    return place


@pytest.fixture
def place(shared: Path, tmp_path: Path) -> Path:
    """A copy, in which a test may break something."""
    return Path(shutil.copytree(shared, tmp_path / "place"))


def test_what_belongs_to_no_id_is_carried_and_all_of_it_recorded(place: Path) -> None:
    run = train(place / "runs", place / "two", "--start-from", place / "source", epochs=0)
    before, now = (load_file(one / "checkpoint.safetensors") for one in (place / "source", run))
    told = record_of(run)["start_from"]
    assert set(told["carried"]) == {"projection.weight", "projection.bias"}
    for name in told["carried"]:
        assert torch.equal(now[name], before[name])
    assert told["afresh"] == {
        "user_factors": [33, 8], "item_factors": [27, 8], "user_content_factors": [33, 8],
    }  # fmt: skip
    scratch = load_file(train(place / "runs", place / "two", epochs=0) / "checkpoint.safetensors")
    for name in told["afresh"]:
        assert torch.equal(now[name], scratch[name])  # as in any training with this seed
    assert told["run"] == "source" and told["system"].startswith("one-vbpr-")
    assert record_of(run)["parameters"] == {"ids": 33 * 8 + 27 * 8 + 33 * 8, "others": 8 * 10 + 8}
    assert json.loads((run / "metrics.json").read_text())["best_epoch"] == 0


def test_it_is_said_what_is_carried(place: Path) -> None:
    words = ("train", "--model", "vbpr", "--data", place / "two", "--out", place / "runs", *SMALL)
    more = ("--set", "epochs=1", "--seed", "1,2", "--start-from", place / "source")
    done = call(*words, *more)
    said = [line for line in done.stderr.splitlines() if line.startswith("start from source")]
    assert said == [
        "start from source; carried: projection.weight (8, 10), projection.bias (8); afresh: "
        "user_factors (33, 8), item_factors (27, 8), user_content_factors (33, 8)"
    ]
    both = json.loads(call(*words, *more, "--json").stdout)["runs"]
    assert [one["seed"] for one in both] == [1, 2]
    cost = both[0]["cost"]
    assert (cost["id weights"], cost["other weights"]) == (744, 88) and cost["train s"] > 0


def test_a_runs_name_follows_the_source_and_not_its_place(place: Path) -> None:
    def name(*words: object) -> str:
        return train(place / "runs", place / "two", *words, epochs=1).name

    other = train(place / "runs", place / "one", "--seed", 9)
    names = [name(), name("--start-from", place / "source"), name("--start-from", other)]
    assert len(set(names)) == 3
    (place / "source").rename(place / "moved")
    assert name("--start-from", place / "moved") == names[1]


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_a_killed_training_ends_as_it_would_have(
    place: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    words = (place / "two", "--start-from", place / "source")
    whole = train(place / "whole", *words, epochs=5)
    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", "0")
    append = RunFolder.append_history

    def die(self: RunFolder, record: EpochRecord) -> None:
        if record.epoch == killed_after + 1:
            raise KeyboardInterrupt
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_history", die)
        with pytest.raises(AssertionError):
            train(place / "parts", *words, epochs=5)
    (run,) = (place / "parts").iterdir()
    assert not RunFolder(run).complete
    assert call("train", "--resume", run, "-q").exit_code == 0
    for name in ("metrics.json", "per_user.parquet", "checkpoint.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert record_of(run)["start_from"] == record_of(whole)["start_from"]


def test_a_recipe_runs_again_from_elsewhere_until_its_source_changes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    run = train(Path("runs"), Path("two"), "--start-from", "source").absolute()
    monkeypatch.chdir("/")
    again = ("run", run / "recipe.yaml", "--out", place / "again", "--json", "-q")
    done = call(*again)
    assert Path(json.loads(done.stdout)["run"]).name == run.name
    assert (place / "again" / run.name / "metrics.json").read_bytes() == (
        run / "metrics.json"
    ).read_bytes()
    file = place / "source/checkpoint.safetensors"
    changed = {name: weight + 1 for name, weight in load_file(file).items()}
    epoch = json.loads((place / "source/metrics.json").read_text())["best_epoch"]
    save_file(changed, file, metadata={"epoch": str(epoch)})
    assert "the run has changed" in told_by(*again, "--restart")
    # What is finished needs no source.
    shutil.rmtree(place / "source")
    assert call(*again).exit_code == 0
    lists = ("recommend", run, "--out", place / "recs.tsv", "-q")
    assert call(*lists).exit_code == 0
    assert "no run folder" in told_by(*again, "--restart")


def other_encoder(place: Path) -> None:
    shutil.rmtree(place / "two")
    write_dataset(place / "two", seed=1, users=33, encoder={**ENCODER, "layer": "first"})


def nameless(place: Path) -> None:
    shutil.rmtree(place / "two")
    write_dataset(place / "two", seed=1, users=33)


def unfinished(place: Path) -> None:
    (place / "source/metrics.json").unlink()


def damaged(place: Path) -> None:
    path = place / "source/checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)


def cut(place: Path) -> None:
    path = place / "source/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def no_checkpoint(place: Path) -> None:
    (place / "source/checkpoint.safetensors").unlink()


def no_run(place: Path) -> None:
    shutil.rmtree(place / "source")
    (place / "source").mkdir()


def of_ids_alone(place: Path) -> None:
    shutil.rmtree(place / "source")
    train(place / "ids", place / "one", model="bpr-mf").rename(place / "source")


def untrained(place: Path) -> None:
    shutil.rmtree(place / "source")
    command = ("train", "--model", "most-popular", "--data", place / "one", "--out", place / "ids")
    run = json.loads(call(*command, "--json").stdout)["run"]
    Path(run).rename(place / "source")


def intact(place: Path) -> None:
    pass


BAD: list[tuple[Callable[[Path], None], tuple[str, ...], str]] = [
    (other_encoder, (), "visual: another encoder: layer is last there and first here"),
    (nameless, (), "visual: another encoder: here, the set's provenance names no encoder"),
    (unfinished, (), "the run is not finished"),
    (damaged, (), "its content differs from the digest"),
    (cut, (), "checkpoint.safetensors: cannot be read"),
    (no_checkpoint, (), "checkpoint.safetensors: cannot be read"),
    (no_run, (), "no run folder"),
    (intact, ("--model", "bm3"), "it is a run of vbpr, and this one is of bm3"),
    (of_ids_alone, ("--model", "bpr-mf"), "every weight of bpr-mf belongs to a user or an item"),
    (untrained, ("--model", "most-popular"), "most-popular is not trained"),
    (intact, ("--features", "visual=toy"), "its modalities are visual, textual; here they are"),
    (intact, ("--scaling", "none"), "scaling is l2 there and none here"),
    (
        intact,
        ("--set", "embedding_dim=4"),
        "projection.bias is (8) there and (4) here (embedding_dim is 8",
    ),
    (intact, ("--set", "preset=original"), "projection.bias is (8) there and absent here (preset"),
    (intact, ("--grid", "embedding_dim=8,16"), "embedding_dim is 8 there and 16 here"),
]


@pytest.mark.parametrize(("prepare", "words", "message"), BAD)
def test_what_does_not_fit_is_refused_in_a_line_and_nothing_written(
    place: Path, prepare: Callable[[Path], None], words: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    prepare(place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    small = [] if "most-popular" in words else [*SMALL, "--set", "epochs=2"]
    start = ["--start-from", str(place / "source")]
    given = [] if "--model" in words else ["--model", "vbpr"]
    words = (*given, "--data", str(place / "two"), "--out", str(place / "new"), *small, *words)
    code = shell.run(cli, ["train", *words, *start, "-q"], prog_name="mmbench")
    out, error = capsys.readouterr()
    told = " ".join(error.split())
    assert code in (1, 2) and not out
    assert message in told and told.count("error:") == 1
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert {path.name for path in after if path not in before} <= {".mmstore-trusted"}
    assert not (place / "new").exists()
    assert all(after[path] == before[path] for path in before if path.is_file())


def test_standard_scaling_is_only_for_the_same_rows(place: Path) -> None:
    standard = ("--scaling", "standard")
    source = train(place / "runs", place / "one", *standard)
    again = (*standard, "--start-from", source)
    assert record_of(train(place / "runs", place / "one", *again))["start_from"]
    words = ("train", "--model", "vbpr", "--data", place / "two", "--out", place / "r", *SMALL)
    assert "standard is fitted on the items" in told_by(*words, *again)


def test_workers_start_from_it_too(place: Path, forked_workers: None) -> None:
    words = ("--start-from", place / "source", "--grid", "lr=0.01,0.02")
    alone = train(place / "alone", place / "two", *words)
    beside = train(place / "beside", place / "two", *words, "--jobs", 2)
    assert (alone / "metrics.json").read_bytes() == (beside / "metrics.json").read_bytes()
    assert record_of(alone)["start_from"] == record_of(beside)["start_from"]


def test_seeds_that_start_from_runs_of_their_own_are_one_system(place: Path) -> None:
    for seed in (1, 2):
        source = train(place / "sources", place / "one", "--seed", seed)
        train(place / "runs", place / "two", "--seed", seed, "--start-from", source)
        train(place / "runs", place / "two", "--seed", seed)
    systems = {one.label: len(one.runs) for one in group(find_runs([place / "runs"]))}
    assert sorted(systems.values()) == [2, 2]
    assert any(label.startswith("vbpr(start_from=one-vbpr-") for label in systems)
    assert "vbpr(start_from=none)" in systems


@pytest.mark.parametrize(
    "model",
    [
        name
        for name in MODELS
        if model_class(name).trained and not model_class(name).uses_categories
    ],
)
def test_without_epochs_every_model_is_scored_as_it_starts(
    shared: Path, tmp_path: Path, model: str
) -> None:
    source = train(tmp_path / "s", shared / "one", model=model, epochs=1)
    start = ("--start-from", source) if model_class(model).uses_features else ()
    run = train(tmp_path / "runs", shared / "two", *start, model=model, epochs=0)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["best_epoch"] == 0 and metrics["test"]["Recall@10"] is not None
    assert record_of(run)["timings"]["train_s"] == 0
    assert ("start_from" in record_of(run)) == bool(start)
    weights = load_file(run / "checkpoint.safetensors")
    for name in record_of(run).get("start_from", {}).get("carried", ()):
        assert torch.equal(weights[name], load_file(source / "checkpoint.safetensors")[name])


def test_without_epochs_nothing_is_selected_so_nothing_need_be(place: Path) -> None:
    """On cold items a model of ids can have no hit: refused in training, n/a as it starts."""
    split = ("data", "split", place / "one", "--method", "cold-items", "--name", "cold")
    assert call(*split).exit_code == 0
    run = train(place / "runs", place / "one", "--split", "cold", model="bpr-mf", epochs=0)
    assert json.loads((run / "metrics.json").read_text())["test"]["Recall@10"] is None
    words = ("--data", place / "one", "--split", "cold", "--out", place / "runs", *SMALL)
    assert "can't choose an epoch" in told_by("train", "--model", "bpr-mf", *words)
