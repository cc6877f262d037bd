"""`--engine ray` on clusters of this machine: the runs of the local engine, whoever is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mmbench.conftest import write_dataset
from tests.mmbench.runs.test_executors import assert_equal, loaded, plan, run

from mmbase import ray_cluster
from mmbase.progress import Progress, Silent
from mmbench.errors import DataError, ToolError, TrainingError, UsageError
from mmbench.runs import on_ray
from mmbench.runs.batch import Job, Train, train
from mmbench.runs.folder import RunFolder
from mmbench.runs.on_ray import Machine, Needs, RayExecutor, share_of_gpu
from mmbench.runs.ray_worker import refuse_unlike

GIB = 1 << 30
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The threads of a training on the cluster: bits may depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    yield ray_cluster.connect()
    ray_cluster.disconnect()


# ------------------------------------------------------------------------------------------------
# the same runs


def dies_once(job: Job, progress: Progress) -> RunFolder:
    """Train; the first worker is killed behind a random epoch, the second goes on from there."""
    os.environ["MMBENCH_SAVE_EVERY_S"] = "0"
    run = RunFolder(job.folder)
    folder = run if job.trial is None else run.trial(job.trial)
    # In the run's folder, where no training looks: which epochs were begun.
    trace = run.path / f"trace-{job.trial}"
    last, append = random.Random(str(folder.path)).choice((1, 2, 3)), RunFolder.append_history
    first = not trace.exists()
    trace.touch()

    def die(self: RunFolder, record: Any) -> None:
        append(self, record)
        with trace.open("a") as file:
            file.write(f"{record.epoch} ")
        if first and record.epoch > last:  # the state is that of the epoch before
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.append_history = die  # type: ignore[method-assign]
    try:
        return train(job, progress)
    finally:
        RunFolder.append_history = append  # type: ignore[method-assign]


@dataclass
class Dying(RayExecutor):
    """Its workers die once in each training."""

    told: list[str] = field(default_factory=list)

    def map(self, train: Train, jobs: Any) -> Any:
        return super().map(dies_once, jobs)


class Told(Silent):
    """Remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@needs_ray
@pytest.mark.usefixtures("cluster", "one_thread")
def test_killed_workers_change_no_byte_and_repeat_no_saved_epoch(
    dataset: Path, tmp_path: Path
) -> None:
    recipes = plan(dataset, vbpr=(0.02, 0.01), most_popular=(0.1,), bpr_mf=(0.02,))
    alone, told = run(recipes, tmp_path / "alone"), Told()
    on_cluster = run(recipes, tmp_path / "ray", Dying(told))
    assert_equal(alone, on_cluster)
    for trial in (0, 1, None):
        name = "vbpr" if trial is not None else "bpr-mf"
        (trace,) = (tmp_path / "ray").glob(f"*-{name}-*/trace-{trial}")
        epochs = list(map(int, trace.read_text().split()))
        assert sorted(set(epochs)) == [1, 2, 3, 4]
        assert len(epochs) == 5  # the one that was under way, twice
    assert sum("its worker was lost (WorkerCrashedError); it goes on" in n for n in told.notes) == 3
    for left in (".trains", ".shared-*"):
        assert not list((tmp_path / "ray").rglob(left))
    record = RunFolder(on_cluster[0]).read_json("run.json")
    assert record["device"]["trainings_at_once"] == 2
    assert record["device"]["threads"] == 1
    # A finished run is read: no cluster is asked for.
    assert_equal(alone, run(recipes, tmp_path / "ray", RayExecutor(Silent(), "127.0.0.1:1")))


def test_what_a_killed_command_left_in_a_run_is_removed_when_it_is_finished(tmp_path: Path) -> None:
    left = [".shared-0a", ".trains", "trials/000/.trains", "begun.json.1-2.partial"]
    for name in [*left, "begun.json"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    RunFolder(tmp_path).remove_leavings()
    assert not any((tmp_path / name).exists() for name in left)
    assert (tmp_path / "begun.json").exists()


def test_a_run_that_trained_elsewhere_says_on_what(dataset: Path, tmp_path: Path) -> None:
    (path,) = run(plan(dataset, bpr_mf=(0.02, 0.01)), tmp_path)
    folder = RunFolder(path)
    there = {"chosen": "cuda:0", "reason": "large", "name": "a card"}
    for number in (0, 1):
        trial = folder.trial(number)
        trial.write_json("trained.json", {**trial.read_json("trained.json"), "device": there})
    folder.metrics_path.unlink()
    assert run(plan(dataset, bpr_mf=(0.02, 0.01)), tmp_path) == [path]
    device = folder.read_json("run.json")["device"]
    assert {key: device[key] for key in there} == there
    assert (device["type"], device["asked"]) == ("cuda:0", "auto")


def always_dies(job: Job, progress: Progress) -> RunFolder:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def refuses(job: Job, progress: Progress) -> RunFolder:
    raise DataError(f"{job.recipe.model}: no such data")


def jobs_of(dataset: Path, out: Path, **rates: tuple[float, ...]) -> list[Job]:
    made = loaded(plan(dataset, **rates), out)
    for _, _, folder in made:
        folder.path.mkdir(parents=True)
    return [Job(recipe, folder.path, inputs=inputs) for recipe, inputs, folder in made]


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_what_can_not_be_trained_ends_the_command(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "TRIES", 2)
    jobs = jobs_of(dataset, tmp_path / "runs", bpr_mf=(0.02,))
    with pytest.raises(TrainingError, match=r"bpr-mf seed 123: 2 workers .*the same command goes"):
        RayExecutor(Silent()).map(always_dies, jobs)
    with pytest.raises(DataError, match=r"^bpr-mf: no such data$"):
        RayExecutor(Silent()).map(refuses, jobs)


# ------------------------------------------------------------------------------------------------
# clusters and machines that can't serve


def one_line(error: pytest.ExceptionInfo[ToolError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_machines_that_can_not_serve_are_named_before_anything_is_trained(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(dataset, tmp_path / "runs", bpr_mf=(0.02,))

    def refused(kind: type[ToolError], executor: RayExecutor | None = None) -> str:
        with pytest.raises(kind) as caught:
            (executor or RayExecutor(Silent())).map(train, jobs)
        assert not list((tmp_path / "runs").rglob("*.json"))
        return one_line(caught)

    true = on_ray.versions
    for package, version, told in (
        ("torch", "0.1", "and this machine 0.1; install the same on all machines"),
        ("absent", "1.2", "lacks absent 1.2; install the same on all machines"),
        ("optuna-of-a-kind", "1.2", "lacks optuna-of-a-kind 1.2"),
    ):
        monkeypatch.setattr(on_ray, "versions", lambda names, p=package, v=version: {p: v})
        assert told in refused(TrainingError)
    monkeypatch.setattr(on_ray, "versions", true)

    @contextmanager
    def elsewhere(folders: Any) -> Iterator[str]:
        yield "a file that is on another machine"

    with monkeypatch.context() as patch:
        patch.setattr(on_ray, "_token", elsewhere)
        assert "does not see it; --out has to be in a folder that all" in refused(DataError)
    told = refused(UsageError, RayExecutor(Silent(), cpus=4096))
    assert "--cpus 4096: no machine of the Ray cluster has as many" in told
    on_gpu = [replace(one, recipe=one.recipe.model_copy(update={"device": "cuda"})) for one in jobs]
    with pytest.raises(UsageError, match="no machine of the Ray cluster has a GPU"):
        RayExecutor(Silent()).map(train, on_gpu)


def test_a_machine_that_lacks_an_extra_is_told_how_to_get_it() -> None:
    wanted = {"torch": "2.11.0", "optuna": "4.1"}
    refuse_unlike("here", wanted, dict(wanted))
    with pytest.raises(TrainingError, match=r"worker on node7 lacks optuna 4\.1; run there: pip"):
        refuse_unlike("node7", wanted, {"torch": "2.11.0", "optuna": None})
    with pytest.raises(TrainingError, match=r"node7 has torch 2\.9, and this machine 2\.11\.0;"):
        refuse_unlike("node7", wanted, {"torch": "2.9", "optuna": "4.1"})


def test_options_of_the_other_engine_are_refused(dataset: Path, tmp_path: Path) -> None:
    from mmbench.cli import run as mmbench

    command = ["train", "--model", "bpr-mf", "--data", str(dataset), "--out", str(tmp_path)]
    assert mmbench([*command, "--address", "auto"]) == 2
    assert mmbench([*command, "--cpus", "2"]) == 2


def test_without_the_extra_the_error_names_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from mmbench.cli import run as mmbench

    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["train", "--model", "bpr-mf", "--data", str(dataset), "--out", str(tmp_path)]
    assert mmbench([*command, "-q", "--engine", "ray"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: --engine ray needs Ray, which cannot be imported")
    assert "[ray]" in line


@needs_ray
def test_no_cluster_is_one_line(dataset: Path, tmp_path: Path) -> None:
    jobs = jobs_of(dataset, tmp_path / "runs", bpr_mf=(0.02,))
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        ray_cluster.disconnect()
    with pytest.raises(ToolError, match="no Ray cluster answers at 127") as caught:
        RayExecutor(Silent(), "127.0.0.1:1").map(train, jobs)
    one_line(caught)


# ------------------------------------------------------------------------------------------------
# what a training asks for


def test_a_gpu_is_shared_by_as_many_as_fit() -> None:
    assert share_of_gpu(10 * GIB, 80 * GIB) == 7  # of 72 GiB for tensors
    assert share_of_gpu(200 * GIB, 80 * GIB) == 1
    assert share_of_gpu(GIB, 80 * GIB) == 8
    assert share_of_gpu(GIB, 4 * GIB) == 4  # each keeps 600 MiB beside tensors
    for fits in range(1, 9):
        need = 80 * GIB // fits
        assert share_of_gpu(need, 80 * GIB) <= fits


def test_what_ray_is_told() -> None:
    assert Needs(2, 5 * GIB, 0).options == {"num_cpus": 2, "num_gpus": 0, "memory": 5 * GIB}
    assert Needs(1, GIB, 4).options["num_gpus"] == 0.25


def test_trainings_that_fit_beside_each_other() -> None:
    machines = [Machine("a", 8, 0, 64.0 * GIB, 0), Machine("b", 2, 1, 16.0 * GIB, 80 * GIB)]

    def slots(*needs: Needs) -> int:
        return on_ray._slots(machines, [on_ray._Going(Job, one) for one in needs])  # type: ignore[arg-type]

    assert slots(Needs(1, GIB, 0)) == 10
    assert slots(Needs(2, GIB, 0)) == 5
    assert slots(Needs(1, 30 * GIB, 0)) == 2  # by memory; none on the second
    assert slots(Needs(1, GIB, 4)) == 2  # by the processors beside the only card
    assert slots(Needs(64, GIB, 0)) == 1


# ------------------------------------------------------------------------------------------------
# whole commands


def marked(mark: str) -> list[int]:
    """The processes that were started with this variable in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def workers(mark: str) -> list[int]:
    """Those of them that train: Ray names them after what they do."""
    found = []
    for pid in marked(mark):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::vbpr"):
                found.append(pid)
    return found


def all_gone(mark: str) -> bool:
    deadline = time.monotonic() + 120  # agents of Ray look now and then whether it is there
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not marked(mark)


@dataclass
class Command:
    """`mmbench` in a process of its own, whose processes can be told from all others."""

    arguments: list[str]
    mark: str

    def start(self, **environment: str) -> subprocess.Popen[str]:
        mark, _, value = self.mark.partition("=")
        return subprocess.Popen(
            [sys.executable, "-m", "mmbench", *self.arguments],
            env={**os.environ, mark: value, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")


@on_linux
@needs_ray
def test_the_cluster_ends_with_the_command_and_the_next_one_goes_on(
    dataset: Path, tmp_path: Path
) -> None:
    arguments = ["train", "--model", "bpr-mf", "--data", str(dataset), "-q", "--engine", "ray"]
    arguments += ["--grid", "lr=0.02,0.01", "--set", "epochs=100000", "--every", "100000"]
    command = Command([*arguments, "--out", str(tmp_path / "runs")], f"MMBENCH_TEST={tmp_path}")
    process = command.start(MMBENCH_SAVE_EVERY_S="0")
    while not (states := list(tmp_path.rglob("trials/*/state.safetensors"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert all_gone(command.mark)
    history = RunFolder(states[0].parent).history_path
    lines = history.read_text().count("\n")
    process = command.start(MMBENCH_SAVE_EVERY_S="0")
    while history.read_text().count("\n") < lines + 5:
        assert process.poll() is None, process.communicate()  # it went on from its state
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 130, told
    assert told.strip() == "interrupted; the same command goes on from the last saved epoch"
    assert all_gone(command.mark)
    assert not list(Path("/tmp").glob(f"mmx-ray-*-{process.pid}"))


@pytest.mark.slow
@on_linux
@needs_ray
def test_a_search_whose_workers_are_killed_at_random_is_the_local_one(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "toy", users=400, items=200)
    arguments = ["train", "--model", "vbpr", "--data", str(data), "-q", "--set", "epochs=120"]
    arguments += ["--grid", "lr=0.001,0.003,0.01,0.03", "--grid", "reg_weight=0.0,0.001,0.1"]
    arguments += ["--grid", "embedding_dim=8,16", "--every", "10", "--set", "batch_size=256"]
    arguments += ["--json", "--out"]
    mark = f"MMBENCH_TEST={tmp_path}"
    local = Command([*arguments, str(tmp_path / "local")], mark).start()
    assert local.communicate()[1] == ""
    command = Command([*arguments, str(tmp_path / "ray"), "--engine", "ray"], mark)
    process, rng, killed = command.start(MMBENCH_SAVE_EVERY_S="0.2"), random.Random(5), 0
    while process.poll() is None:
        time.sleep(rng.uniform(1, 8))
        # Eight, so that a slow machine, where workers start for longer, comes to an end too.
        if killed < 8 and (found := workers(mark)):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
                killed += 1
    told = process.communicate()[1]
    assert process.returncode == 0, told
    assert killed >= 5
    (one,), (other,) = ((tmp_path / name).iterdir() for name in ("local", "ray"))
    assert_equal([one], [other])
    assert len(list(other.glob("trials/*/trained.json"))) == 24
    for trial in one.glob("trials/*"):
        same = other / "trials" / trial.name / "checkpoint.safetensors"
        assert same.read_bytes() == (trial / "checkpoint.safetensors").read_bytes()
    trials = [RunFolder(path).read_json("run.json")["trials"] for path in (one, other)]
    assert trials[0] == trials[1]
    assert all_gone(mark)


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("one_thread")
def test_the_trainings_of_a_lost_machine_go_on_elsewhere(dataset: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    ray_cluster.disconnect()
    recipes = plan(dataset, vbpr=(0.02, 0.01, 0.03, 0.005))
    recipes = [
        one.model_copy(update={"settings": one.settings.model_copy(update={"epochs": 800})})
        for one in recipes
    ]
    alone = run(recipes, tmp_path / "alone")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node, told = cluster.add_node(num_cpus=2), Told()

    def lose() -> None:
        # Two of three that train are on it.
        while len(list((tmp_path / "ray").rglob("history.jsonl"))) < 3:
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)

    losing = threading.Thread(target=lose)
    try:
        losing.start()
        assert_equal(alone, run(recipes, tmp_path / "ray", RayExecutor(told, cluster.address)))
        losing.join()
        assert sum("its worker was lost" in note for note in told.notes) >= 2
    finally:
        ray_cluster.disconnect()
        cluster.shutdown()
