"""Trackers are told everything and decide nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.mmbench.conftest import write_dataset

import mmbench
from mmbase.errors import install_extra
from mmbase.progress import Silent
from mmbench.cli import run as command
from mmbench.errors import SomeFailed, UsageError
from mmbench.runs import trackers
from mmbench.runs.trackers.base import Sink, Tracked

SETTINGS = {"epochs": 3, "embedding_dim": 4}
HOW: dict[str, Any] = {"settings": SETTINGS, "every": 2, "cutoffs": [10], "select_by": "Recall@10"}


class Fake(Sink):
    library = "json"
    told: ClassVar[list[tuple[Any, ...]]] = []
    fails: ClassVar[str] = ""

    def __init__(self, run: Tracked, place: str) -> None:
        self.run = run
        self._tell("begin", place, run.parameters)

    @classmethod
    def where(cls, place: str) -> str:
        return f"fake {place}"

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self._tell("log", dict(values), epoch)

    def final(self, values: Mapping[str, float], epoch: int) -> None:
        self._tell("final", dict(values), epoch)

    def close(self) -> None:
        self._tell("close")

    def _tell(self, what: str, *more: Any) -> None:
        self.told.append((what, self.run.name, *more))
        if what == self.fails:
            raise ConnectionError("no route\nto host")


class Missing(Fake):
    library = "no_such_library"


class Notes(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers")
    write_dataset(folder / "toy")
    return folder / "toy"


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("fake", "Fake"), ("missing", "Missing")):
        monkeypatch.setitem(trackers.TRACKERS, name, f"{__name__}:{kind}")
    monkeypatch.setattr(Fake, "told", [])
    monkeypatch.setattr(Fake, "fails", "")
    monkeypatch.delenv(trackers.VARIABLE, raising=False)


def test_a_tracker_is_told_losses_metrics_and_the_recipe(toy: Path, tmp_path: Path) -> None:
    (run,) = mmbench.train("bpr-mf", toy, out=tmp_path, track="fake:there", **HOW)
    name = run.path.name
    whats = [one[0] for one in Fake.told]
    assert whats == ["begin", "log", "log", "log", "close", "begin", "final", "close"]
    assert {one[1] for one in Fake.told} == {name}
    _, _, place, parameters = Fake.told[0]
    assert place == "there"
    assert parameters["model"] == "bpr-mf" and parameters["settings.embedding_dim"] == 4
    assert parameters["evaluation.protocol"] == "strict" and parameters["seed"] == 123
    logged = [one[2:] for one in Fake.told if one[0] == "log"]
    assert [epoch for _, epoch in logged] == [1, 2, 3]
    assert all("loss/bpr" in values for values, _ in logged)
    assert ["valid/Recall@10" in values for values, _ in logged] == [False, True, True]
    (values, epoch) = next(one[2:] for one in Fake.told if one[0] == "final")
    assert epoch == run.best_epoch
    assert values["test/nDCG@10"] == run.test["nDCG@10"]
    assert values["valid/nDCG@10"] == run.valid["nDCG@10"]

    Fake.told.clear()
    mmbench.train("bpr-mf", toy, out=tmp_path, track="fake", **HOW)  # it is finished
    assert not Fake.told
    assert trackers.VARIABLE not in os.environ


def test_trials_have_the_name_of_their_run(toy: Path, tmp_path: Path) -> None:
    grid = {"lr": [0.01, 0.1]}
    (run,) = mmbench.train("bpr-mf", toy, out=tmp_path, track=["fake"], grid=grid, **HOW)
    name = run.path.name
    began = {one[1]: one[3] for one in Fake.told if one[0] == "begin"}
    assert [*began] == [f"{name}/000", f"{name}/001", name]
    assert began[f"{name}/001"]["settings.lr"] == 0.1
    assert began[name]["settings.lr"] == run.recipe.settings.lr


def numbers(folder: Path) -> dict[str, bytes]:
    """What a run came to, without what it cost."""
    names = ("metrics.json", "recipe.yaml", "checkpoint.safetensors")
    return {f"{run.name}/{name}": (run / name).read_bytes() for run in folder.iterdir()
            for name in names}  # fmt: skip


@pytest.mark.parametrize("fails", ["", "begin", "log", "final", "close"])
def test_a_tracker_that_fails_changes_nothing(toy: Path, tmp_path: Path, fails: str) -> None:
    mmbench.train("bpr-mf,vbpr", toy, out=tmp_path / "plain", **HOW)
    Fake.fails, notes = fails, Notes()
    mmbench.train("bpr-mf,vbpr", toy, out=tmp_path / "told", track="fake", progress=notes, **HOW)
    assert numbers(tmp_path / "told") == numbers(tmp_path / "plain")
    told = [one for one in notes.warnings if "fake" in one]
    expected = ["fake failed and is left out from now on: no route to host"]
    assert told == (expected if fails else [])
    # After it has failed it is not asked again, at the second model either.
    assert sum(one[0] == fails for one in Fake.told) == bool(fails)


def test_a_failed_training_is_no_failure_of_the_tracker(toy: Path, tmp_path: Path) -> None:
    notes = Notes()
    with pytest.raises(SomeFailed):
        mmbench.train(
            "bpr-mf,item-knn", toy, out=tmp_path, track="fake", progress=notes, grid={
                "bpr-mf.lr": [0.01, 1e30]}, **HOW,
        )  # fmt: skip
    assert not [one for one in notes.warnings if "fake" in one]
    assert sum(one[0] == "close" for one in Fake.told) == sum(
        one[0] == "begin" for one in Fake.told
    )


def test_what_is_not_there_is_said_before_anything_is_trained(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "--model", "bpr-mf", "--data", str(toy), "--out", str(tmp_path / "runs")]
    assert command([*line, "--track", "missing", "-q"]) == 2
    fix = f"no_such_library is not installed; run: {install_extra('track')}"
    assert capsys.readouterr().err == f"error: --track missing: {fix}\n"
    assert command([*line, "--track", "tensorbord", "-q"]) == 2
    assert "unknown tracker 'tensorbord'. Did you mean 'tensorboard'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UsageError):
        mmbench.train("bpr-mf", toy, out=tmp_path / "runs", track="missing")


def test_a_wrong_variable_is_warned_of_once(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on another machine has its own environment, which no command looks at first."""
    monkeypatch.setenv(trackers.VARIABLE, "nonsense")
    monkeypatch.setattr(trackers, "_failed", set())
    notes = Notes()
    for _ in range(2):
        with trackers._sinks(Tracked("x", "x", {}), notes) as tell:
            tell({"loss/bpr": 1.0}, 1)
    (told,) = notes.warnings
    assert told.startswith("MMBENCH_TRACK: unknown tracker 'nonsense'")


def test_tensorboard(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = f"tensorboard:{tmp_path / 'events'}"
    (run,) = mmbench.train("bpr-mf", toy, out=tmp_path / "runs", track=place, **HOW)
    events = EventAccumulator(str(tmp_path / "events" / run.path.name))
    events.Reload()
    losses = events.Scalars("loss/bpr")
    assert [one.step for one in losses] == [1, 2, 3]
    (test,) = events.Scalars("test/nDCG@10")
    assert test.value == pytest.approx(run.test["nDCG@10"], rel=1e-6)
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what MLflow itself calls
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_mlflow(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (run,) = mmbench.train("bpr-mf", toy, out=tmp_path / "runs", track=f"mlflow:{uri}", **HOW)
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("mmbench")
    assert found is not None
    (one,) = client.search_runs([found.experiment_id])  # training and final metrics are one run
    assert one.info.run_name == run.path.name and one.info.status == "FINISHED"
    assert one.data.params["settings.embedding_dim"] == "4"
    assert one.data.metrics["test/nDCG_at_10"] == run.test["nDCG@10"]
    history = client.get_metric_history(one.info.run_id, "loss/bpr")
    assert sorted(metric.step for metric in history) == [1, 2, 3]


def test_wandb(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (run,) = mmbench.train("bpr-mf", toy, out=tmp_path / "runs", track="wandb", **HOW)
    # The training and the finished run, which `wandb sync` joins: they have one id.
    files = (tmp_path / "wandb").glob(f"offline-run-*-{run.path.name}/*.wandb")
    told = b"".join(file.read_bytes() for file in files)
    assert all(name in told for name in (b"loss/bpr", b"valid/nDCG@10", b"test/nDCG@10"))
    assert b"embedding_dim" in told
