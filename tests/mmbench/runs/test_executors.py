"""Several trainings at once: the same runs, an error of one is everybody's, and nothing goes on without its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmbench.config import Recipe, make_settings
from mmbench.errors import TrainingError
from mmbench.progress import Silent
from mmbench.runs import parallel_training
from mmbench.runs import run as experiment
from mmbench.runs.inputs import Inputs, load_inputs
from mmbench.runs.parallel_training import train_ahead
from mmbench.trainer import Trainer

EVALUATION = {"every": 2, "cutoffs": (5, 10), "select_by": "Recall@10"}


def plan(dataset: Path, epochs: int = 4, **grids: tuple[float, ...]) -> list[tuple[Recipe, Inputs]]:
    planned, inputs = [], None
    for model, rates in grids.items():
        recipe = Recipe(
            data=str(dataset),
            model=model.replace("_", "-"),
            settings=make_settings(
                model.replace("_", "-"), {"embedding_dim": 8, "batch_size": 64, "epochs": epochs}
            ),
            grid={"lr": rates} if len(rates) > 1 else {},
            evaluation=EVALUATION,
        )
        resolved, inputs = load_inputs(recipe, inputs)
        planned.append((resolved, inputs))
    return planned


def finish(planned: list[tuple[Recipe, Inputs]], out: Path) -> list[experiment.Result]:
    return [
        experiment.run(
            recipe, inputs, experiment.run_folder(out, recipe, inputs), progress=Silent()
        )
        for recipe, inputs in planned
    ]


def test_runs_are_those_of_one_training_after_the_other(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(dataset, vbpr=(0.02, 0.01), bpr_mf=(0.02,))
    alone = finish(planned, tmp_path / "alone")
    train_ahead(planned, tmp_path / "at-once", jobs=2, progress=Silent())
    assert not list(
        (tmp_path / "at-once").rglob("metrics.json")
    )  # test is scored by the run itself, once
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("trained again"))
    at_once = finish(planned, tmp_path / "at-once")
    for one, other in zip(alone, at_once, strict=True):
        for name in ("metrics.json", "per_user.parquet", "recipe.yaml"):
            assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    record = json.loads((at_once[0].path / "run.json").read_text())
    assert record["device"]["trainings_at_once"] == 2
    assert record["timings"]["train_energy_j"] == "not known: 2 trainings at once"
    monkeypatch.setattr(
        parallel_training, "_run", lambda *_: pytest.fail("there was nothing left to train")
    )
    train_ahead(planned, tmp_path / "at-once", jobs=2, progress=Silent())


def test_a_training_that_fails_is_an_error_and_the_others_are_kept(
    dataset: Path, tmp_path: Path
) -> None:
    planned = plan(dataset, bpr_mf=(0.02, 1e38))
    with pytest.raises(TrainingError, match="lr"):
        train_ahead(planned, tmp_path, jobs=2, progress=Silent())
    train_ahead(plan(dataset, bpr_mf=(0.02, 0.01)), tmp_path, jobs=2, progress=Silent())


def test_finished_runs_are_read_without_a_lock(dataset: Path, tmp_path: Path) -> None:
    """An archive that cannot be written serves, and another process that reads it is in nobody's way."""
    planned = plan(dataset, bpr_mf=(0.02,), vbpr=(0.02,))
    finish(planned, tmp_path)
    folder = experiment.run_folder(tmp_path, *planned[0])
    (folder.path / ".lock").unlink(missing_ok=True)
    with experiment.locked(experiment.run_folder(tmp_path, *planned[1])):
        train_ahead(planned, tmp_path, jobs=2, progress=Silent())
        with pytest.raises(TrainingError, match="another process"):
            train_ahead(planned, tmp_path, jobs=2, progress=Silent(), restart=True)
    assert all(
        experiment.run_folder(tmp_path, *one).complete for one in planned
    )  # refused, and nothing was cleared


def die(job: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_training_process_is_an_error(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_training, "_train", die)
    with pytest.raises(TrainingError, match="fewer --jobs than 2"):
        train_ahead(plan(dataset, bpr_mf=(0.02, 0.01)), tmp_path, jobs=2, progress=Silent())


def say_the_mask(job: object) -> None:
    if signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        raise TrainingError("Ctrl-C would be seen here")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks")
def test_ctrl_c_belongs_to_the_command_alone(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every training process that is still importing prints a traceback of its own."""
    monkeypatch.setattr(parallel_training, "_train", say_the_mask)
    train_ahead(plan(dataset, bpr_mf=(0.02, 0.01)), tmp_path, jobs=2, progress=Silent())
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def children(pid: int) -> set[int]:
    """Its live child processes, as Linux tells them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_training_processes_end_with_the_command_and_the_next_one_goes_on(
    dataset: Path, tmp_path: Path
) -> None:
    grid = ["--grid", "lr=0.02,0.01", "--set", "epochs=100000", "--every", "100000"]
    command = [
        sys.executable,
        "-m",
        "mmbench",
        "train",
        "--model",
        "bpr-mf",
        "--data",
        str(dataset),
        "-q",
        "--jobs",
        "2",
    ]
    command += ["--out", str(tmp_path / "runs"), *grid]
    environment = {**os.environ, "MMBENCH_SAVE_EVERY_S": "0"}
    with subprocess.Popen(command, env=environment) as process:
        while len(list(tmp_path.rglob("trials/*/state.safetensors"))) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        left = children(process.pid)
        assert len(left) >= 2
        process.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    (run,) = (tmp_path / "runs").iterdir()
    histories = {path: path.read_text().count("\n") for path in run.glob("trials/*/history.jsonl")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while any(path.read_text().count("\n") < count + 5 for path, count in histories.items()):
            assert process.poll() is None  # it went on from where the states stood
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
        assert process.wait(30) == 130
    assert "Traceback" not in message
