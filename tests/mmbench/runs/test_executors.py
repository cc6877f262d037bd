"""Executors: the same runs wherever trainings run, and no process outlives the command."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mmbench.conftest import fork_workers
from tests.processes import Forked

from mmbase.process import out_of_memory
from mmbase.progress import Progress, Silent, Terminal
from mmbench.config import Recipe, make_settings
from mmbench.errors import DataError, SomeFailed, TrainingError
from mmbench.runs import devices
from mmbench.runs import run as experiment
from mmbench.runs.batch import Batch, Executor, InProcess, Job, Train, train
from mmbench.runs.executors import ProcessExecutor
from mmbench.runs.folder import RunFolder
from mmbench.runs.inputs import Inputs, load_inputs
from mmbench.trainer import Trainer

EVALUATION = {"every": 2, "cutoffs": (5, 10), "select_by": "Recall@10"}


def plan(dataset: Path, **grids: tuple[float, ...]) -> list[Recipe]:
    """One recipe for each model and its learning rates."""
    settings = {"embedding_dim": 8, "batch_size": 64, "epochs": 4}
    return [
        Recipe(
            data=str(dataset),
            model=model,
            settings=make_settings(model, settings | ({"lr": rates[0]} if len(rates) == 1 else {})),
            grid={"lr": rates} if len(rates) > 1 else {},
            evaluation=EVALUATION,
        )
        for model, rates in ((name.replace("_", "-"), rates) for name, rates in grids.items())
    ]


def loaded(recipes: list[Recipe], out: Path) -> list[tuple[Recipe, Inputs, RunFolder]]:
    found = [load_inputs(recipe) for recipe in recipes]
    return [
        (recipe, inputs, experiment.run_folder(out, recipe, inputs)) for recipe, inputs in found
    ]


def run(recipes: list[Recipe], out: Path, executor: Executor | None = None) -> list[Path]:
    done = Batch(out, executor or InProcess(Silent()), Silent()).run(recipes)
    return [result.path for result in done]


@dataclass
class Recording:
    """An executor from elsewhere: its workers know a job by its bytes alone, last job first."""

    at_once: int = 7
    jobs: list[Job] = field(default_factory=list)

    def map(self, train: Train, jobs: Sequence[Job]) -> Iterator[tuple[Job, RunFolder]]:
        for job in reversed(jobs):
            self.jobs.append(job)
            sent = pickle.loads(pickle.dumps(job))
            assert sent == job
            assert sent.inputs is None
            yield job, pickle.loads(pickle.dumps(train))(sent, Silent())


def assert_equal(ones: list[Path], others: list[Path]) -> None:
    assert [one.name for one in ones] == [other.name for other in others]
    for one, other in zip(ones, others, strict=True):
        for name in ("metrics.json", "per_user.parquet", "recipe.yaml"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.usefixtures("forked_workers")
def test_runs_are_the_same_wherever_trainings_run(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = plan(dataset, vbpr=(0.02, 0.01), most_popular=(0.1,), bpr_mf=(0.02,))
    alone = run(recipes, tmp_path / "alone")
    Batch(tmp_path / "at-once", ProcessExecutor(2, Silent()), Silent()).train_ahead(recipes)
    # Test is scored by the run itself, once.
    assert not list((tmp_path / "at-once").rglob("metrics.json"))
    elsewhere = Recording()
    assert_equal(alone, run(recipes, tmp_path / "elsewhere", elsewhere))
    assert [(job.recipe.model, job.trial) for job in elsewhere.jobs] == [
        ("bpr-mf", None),
        ("vbpr", 1),
        ("vbpr", 0),
    ]  # a model that is not trained is no job
    monkeypatch.setattr(
        Trainer,
        "run",
        lambda self, original=Trainer.run: (
            pytest.fail("trained again") if self.epochs else original(self)
        ),
    )
    at_once = run(recipes, tmp_path / "at-once", ProcessExecutor(2, Silent()))
    assert_equal(alone, at_once)
    record = json.loads((at_once[0] / "run.json").read_text())
    assert record["device"]["trainings_at_once"] == 2
    assert record["timings"]["train_energy_j"] == "not known: 2 trainings at once"
    again = Recording()
    assert_equal(alone, run(recipes, tmp_path / "at-once", again))
    assert not again.jobs


def test_a_run_that_diverges_takes_nothing_from_those_before_and_after_it(
    dataset: Path, tmp_path: Path
) -> None:
    recipes = plan(dataset, vbpr=(0.02,), bpr_mf=(1e38,), most_popular=(0.1,))
    for executor in (InProcess(Silent()), Recording()):
        batch = Batch(tmp_path / type(executor).__name__, executor, Silent())
        results = batch.run(recipes)
        assert [result.recipe.model for result in results] == ["vbpr", "most-popular"]
        with pytest.raises(SomeFailed, match=r"1 training failed.*bpr-mf seed 123: .*lower lr"):
            batch.raise_failures()
    again = Recording()
    Batch(tmp_path / "InProcess", again, Silent()).run(recipes)
    assert again.jobs == []  # nor is it trained again
    with pytest.raises(TrainingError, match="lower lr"):
        run(recipes[1:2], tmp_path / "alone")


def test_a_single_training_has_all_threads(dataset: Path, tmp_path: Path) -> None:
    (path,) = run(plan(dataset, bpr_mf=(0.02,)), tmp_path, ProcessExecutor(2, Silent()))
    assert json.loads((path / "trained.json").read_text())["jobs"] == 1


def test_a_job_whose_data_have_changed_is_refused(dataset: Path, tmp_path: Path) -> None:
    ((recipe, _, folder),) = loaded(plan(dataset, bpr_mf=(0.02,)), tmp_path)
    with (dataset / "interactions.tsv").open("a") as file:
        file.write("u0\tB029X\t5\t1\n")
    with pytest.raises(DataError, match="have changed since this command began"):
        train(Job(recipe, folder.path), Silent())
    assert not folder.path.exists()


@pytest.mark.usefixtures("forked_workers")
def test_a_trial_that_diverges_is_recorded_and_the_others_are_chosen_from(
    dataset: Path, tmp_path: Path
) -> None:
    recipes = plan(dataset, bpr_mf=(0.02, 1e38))
    for executor in (ProcessExecutor(2, Silent()), InProcess(Silent())):
        batch = Batch(tmp_path / type(executor).__name__, executor, Silent())
        (result,) = batch.run(recipes)
        assert result.recipe.settings.lr == 0.02
        record = json.loads((result.path / "run.json").read_text())
        assert [set(trial) for trial in record["trials"]] == [
            {"settings", "value", "best_epoch"},
            {"settings", "failed"},
        ]
        for _ in range(2):  # a finished run says it, too
            with pytest.raises(SomeFailed, match=r"bpr-mf seed 123, lr=1e\+38: epoch 1.*lower lr"):
                batch.raise_failures()
            batch = Batch(tmp_path / type(executor).__name__, Recording(), Silent())
            batch.run(recipes)


def test_finished_runs_are_read_without_a_lock(dataset: Path, tmp_path: Path) -> None:
    """An archive that can't be written serves, and another process may be reading it."""
    recipes = plan(dataset, most_popular=(0.1,), item_knn=(0.1,))
    run(recipes, tmp_path)
    folders = [folder for _, _, folder in loaded(recipes, tmp_path)]
    (folders[0].path / ".lock").unlink(missing_ok=True)
    batch = Batch(tmp_path, Recording(), Silent())
    with experiment.locked(folders[1]):
        batch.run(recipes)
        with pytest.raises(TrainingError, match="another process"):
            batch.run(recipes, restart=True)
    assert all(folder.complete for folder in folders)  # refused, and nothing was cleared


def two_jobs(folder: Path) -> list[Job]:
    recipes = plan(folder, bpr_mf=(0.02,), vbpr=(0.02,))
    return [Job(recipe, folder / recipe.model) for recipe in recipes]


def die(job: Job, progress: Progress) -> RunFolder:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.usefixtures("forked_workers")
def test_a_killed_training_process_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="fewer --jobs than 2"):
        list(ProcessExecutor(2, Silent()).map(die, two_jobs(tmp_path)))


def run_out(job: Job, progress: Progress) -> RunFolder:
    if job.recipe.model == "vbpr":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")
    return RunFolder(job.folder)


@pytest.mark.usefixtures("forked_workers")
def test_memory_that_runs_out_in_a_process_is_told_as_in_this_one(tmp_path: Path) -> None:
    """The command knows the error by its kind and has advice for it (`mmbase.cli`)."""
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 2\.00 GiB") as caught:
        list(ProcessExecutor(2, Silent()).map(run_out, two_jobs(tmp_path)))
    assert out_of_memory(caught.value)


def share_of_the_card(job: Job, progress: Progress) -> RunFolder:
    """Train with a stand-in for the GPU's own bound, which it writes down."""
    folder = RunFolder(job.folder)
    folder.path.mkdir(parents=True, exist_ok=True)

    def note(fraction: float, index: int | None) -> None:
        (folder.path / "share.txt").write_text(f"{fraction:.3f} {index}")
        raise TrainingError("as far as one gets without a GPU")

    torch.cuda.set_per_process_memory_fraction = note
    devices.resolve_device = lambda name, automatic: name
    with suppress(TrainingError):
        train(job, Silent())
    (folder.path / "start.txt").write_text(str(multiprocessing.get_start_method(allow_none=True)))
    if hasattr(signal, "pthread_sigmask") and signal.SIGINT not in blocked():
        raise TrainingError("Ctrl-C would be seen here, while a process imports")
    return folder


def blocked() -> set[int]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_trainings_beside_each_other_share_a_card(dataset: Path, tmp_path: Path) -> None:
    """And leave Ctrl-C to the command."""
    recipes = [
        recipe.model_copy(update={"device": "cuda"})
        for recipe in plan(dataset, bpr_mf=(0.02,), vbpr=(0.02,))
    ]
    jobs = [Job(recipe, folder.path, at_once=8) for recipe, _, folder in loaded(recipes, tmp_path)]
    # Eight were allowed, and there are two.
    list(ProcessExecutor(8, Silent()).map(share_of_the_card, jobs))
    for job in jobs:
        assert (job.folder / "share.txt").read_text() == "0.450 None"
        assert (job.folder / "start.txt").read_text() == "spawn"
    assert not hasattr(signal, "pthread_sigmask") or signal.SIGINT not in blocked()


def working_in(folder: Path) -> set[int]:
    """Return the live processes whose working folder this is, from /proc."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            if (process / "cwd").readlink() == folder:
                found.add(int(process.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_training_processes_end_with_the_command_and_the_next_one_goes_on(
    dataset: Path, tmp_path: Path
) -> None:
    grid = ["--grid", "lr=0.02,0.01", "--set", "epochs=100000", "--every", "100000"]
    command = ["train", "--model", "bpr-mf", "--data", dataset, "-q", "--jobs", "2"]
    command += ["--out", tmp_path / "runs", *grid]
    how: dict[str, Any] = {"cwd": tmp_path, "environment": {"MMBENCH_SAVE_EVERY_S": "0"}}
    how["prepare"] = fork_workers
    process = Forked("mmbench", *command, **how)
    while len(list(tmp_path.rglob("trials/*/state.safetensors"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    left = working_in(tmp_path) - {process.pid}
    assert len(left) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    (run,) = (tmp_path / "runs").iterdir()
    histories = {path: path.read_text().count("\n") for path in run.glob("trials/*/history.jsonl")}
    process = Forked("mmbench", *command, **how)
    while any(path.read_text().count("\n") < count + 5 for path, count in histories.items()):
        assert process.poll() is None  # it went on from where the states stood
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "Traceback" not in process.stderr


def test_trainings_are_counted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbase.progress.PLAIN_PERIOD_S", 0.0)
    recipes = plan(dataset, bpr_mf=(0.01, 0.1), vbpr=(0.01,))

    def counts(chosen: list[Recipe]) -> list[str]:
        progress = Terminal(0, told := io.StringIO())
        Batch(tmp_path, InProcess(progress), progress).run(chosen)
        return sorted(set(re.findall(r"^\d+ of \d+", told.getvalue(), re.M)))

    assert counts(recipes[:1]) == ["1 of 2", "2 of 2"]
    assert counts(recipes) == ["3 of 3"]  # two are finished
