"""Trainings on a Ray cluster: each is a task with processors, memory and perhaps a part of a GPU.

What a training needs is estimated before it is started (`runs.estimates`). Run folders are where
they are without a cluster, on storage that all machines share, and hold what they hold without one:
a worker or machine that is lost costs what a training did since its state was saved, and the same
command goes on after any end.
"""

from __future__ import annotations

import pickle
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmbase.progress import Progress
from mmbase.ray_cluster import connect
from mmbench.errors import TrainingError, UsageError
from mmbench.runs.batch import Job, Train
from mmbench.runs.costs import work_of
from mmbench.runs.devices import FOR_TENSORS, gpu_pays
from mmbench.runs.estimates import CONTEXT_BYTES, gpu_bytes, host_bytes, trials_to_estimate
from mmbench.runs.folder import SHARED, RunFolder
from mmbench.runs.miniature import cost_of
from mmbench.runs.ray_worker import (
    OURS,
    Order,
    refuse_unlike,
    refuse_unseen,
    train_there,
    versions,
)

TRIES = 5
"""Workers that may be lost one after the other over a training that makes no progress."""

_POLL_S = 0.5
_PROBE_S = 120.0  # for a machine of the cluster to answer
_LIBRARIES = (OURS, "torch", "numpy", "scipy", "pandas", "h5py", "numba", "safetensors")
_MOST_ON_A_GPU = 8  # trainings that share a card


class Needs(NamedTuple):
    """What a training asks of the cluster.

    Attributes:
        cpus: Processors, and torch's threads.
        memory: Bytes of the machine's memory.
        on_a_gpu: Trainings that fit onto a GPU beside each other; 0: it takes none.
    """

    cpus: int
    memory: int
    on_a_gpu: int

    @property
    def options(self) -> dict[str, Any]:
        """The same for Ray."""
        gpus = 1 / self.on_a_gpu if self.on_a_gpu else 0
        return {"num_cpus": self.cpus, "num_gpus": gpus, "memory": self.memory}


class Machine(NamedTuple):
    """A machine of the cluster: its name, and what it has."""

    name: str
    cpus: float
    gpus: float
    memory: float
    gpu_bytes: int


def share_of_gpu(bytes_needed: int, bytes_there: int) -> int:
    """Return how many trainings of this size fit onto a GPU, 1 to 8.

    Each has an equal part of nine tenths for tensors, see `devices.share_device`.
    """
    tensors = max(1, bytes_needed - CONTEXT_BYTES)
    together = int(FOR_TENSORS * bytes_there // tensors)
    apart = int(bytes_there // max(1, bytes_needed))
    return max(1, min(together, apart, _MOST_ON_A_GPU))


@dataclass
class _Going:
    """A training that is under way.

    Attributes:
        job: Which.
        needs: What it asks for.
        lost: Workers that were lost over it since it last made progress.
        seen: Bytes of its history when the last one was lost.
    """

    job: Job
    needs: Needs
    lost: int = 0
    seen: int = -1

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        run = RunFolder(self.job.folder)
        return run.path if self.job.trial is None else run.trial(self.job.trial).path

    def lose(self) -> None:
        """Note that its worker was lost."""
        history = RunFolder(self.folder).history_path
        now = history.stat().st_size if history.is_file() else 0
        self.lost = self.lost + 1 if now == self.seen else 1
        self.seen = now


@dataclass
class RayExecutor:
    """Trains on a Ray cluster; folders are handed on when all trainings are over.

    Args:
        progress: Where to report to.
        address: Of the cluster, as `mmbase.ray_cluster.connect` takes it; None: a cluster of this
            machine's processors, which ends with the command.
        jobs: Trainings at once at most; None: as many as the cluster has room for.
        cpus: Processors of a training.

    Attributes:
        at_once: More than one, whatever the cluster has: trials of a grid are trainings apart.
    """

    progress: Progress
    address: str | None = None
    jobs: int | None = None
    cpus: int = 1
    at_once: int = field(default=2, init=False)

    def map(self, train: Train, jobs: Sequence[Job]) -> Iterator[tuple[Job, RunFolder]]:
        """See `Executor.map`.

        Raises:
            ToolError: No cluster, or one of its machines can't serve.
        """
        ray = connect(self.address)
        with _token([job.folder for job in jobs]) as token:
            wanted = versions((*_LIBRARIES, *_extras(jobs)))
            machines = _machines(ray, jobs[0].folder, token, wanted)
            going = [_Going(job, self._needs(job, machines)) for job in jobs]
            slots = _slots(machines, going)
            at_once = min(self.jobs or slots, slots, len(jobs))

            def start(one: _Going) -> Any:
                beside = one.needs.on_a_gpu or at_once
                work = pickle.dumps((train, replace(one.job, at_once=beside)))
                one.folder.mkdir(parents=True, exist_ok=True)
                order = Order(
                    work, one.job.folder, one.folder, token, one.needs.cpus,
                    bool(one.needs.on_a_gpu), wanted,
                )  # fmt: skip
                # A process that was told of no GPU can't be told of one later.
                calls = {"max_calls": 1} if any(each.gpus for each in machines) else {}
                task = ray.remote(max_retries=0, **calls, **one.needs.options)(train_there)
                return task.options(name=one.job.label).remote(order)

            self._go(ray, start, going, at_once)
        return iter([(one.job, RunFolder(one.folder)) for one in going])

    def _go(
        self, ray: Any, start: Callable[[_Going], Any], going: Sequence[_Going], at_once: int
    ) -> None:
        """Start trainings, and those again whose worker was lost, until all are finished."""
        waiting, running = deque(going), dict[Any, _Going]()
        limit = self.jobs or len(going)  # else Ray starts what there is room for
        try:
            with self.progress.task(f"{at_once} trainings at once", len(going)) as task:
                while waiting or running:
                    while waiting and len(running) < limit:
                        one = waiting.popleft()
                        running[start(one)] = one
                    done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
                    for ref in done:
                        one = running.pop(ref)
                        try:
                            ray.get(ref)
                        except ray.exceptions.RayTaskError as error:
                            raise error.cause from None
                        except ray.exceptions.RayError as error:
                            self._again(one, error)
                            waiting.appendleft(one)
                        else:
                            task.advance(1, one.job.label)
        finally:
            for ref in running:
                ray.cancel(ref, force=True)

    def _again(self, one: _Going, error: Exception) -> None:
        one.lose()
        if one.lost >= TRIES:
            raise TrainingError(
                f"{one.job.label}: {TRIES} workers of the Ray cluster were lost over it, one after "
                "the other, perhaps for want of memory; fewer --jobs need less. What is finished "
                "is kept: the same command goes on"
            ) from error
        self.progress.note(
            f"{one.job.label}: its worker was lost ({type(error).__name__}); it goes on from its "
            "last state"
        )

    def _needs(self, job: Job, machines: Sequence[Machine]) -> Needs:
        """What a training asks for, by estimate; never more than the largest machine has."""
        recipe = job.recipe if job.trial is None else job.recipe.trials()[job.trial]
        most_cpus = max(int(one.cpus) for one in machines)
        if self.cpus > most_cpus:
            raise UsageError(
                f"--cpus {self.cpus}: no machine of the Ray cluster has as many; the largest has "
                f"{most_cpus}"
            )
        assert job.inputs is not None
        setting = job.inputs.setting_of(recipe)
        host = gpu = 0
        pays = False
        for _, trial in trials_to_estimate(recipe):
            cost = cost_of(trial, setting)
            host, gpu = max(host, host_bytes(cost, setting)), max(gpu, gpu_bytes(cost))
            pays = pays or gpu_pays(work_of(trial, setting))[0]
        cards = [one.gpu_bytes for one in machines if one.gpus]
        kind = torch.device(recipe.device).type if recipe.device != "auto" else "auto"
        if kind == "cuda" and not cards:
            raise UsageError(
                f"--device {recipe.device}: no machine of the Ray cluster has a GPU; try --device "
                "auto"
            )
        on_gpu = bool(cards) and (kind == "cuda" or (kind == "auto" and pays))
        most = int(max(one.memory for one in machines))
        if host > most:
            self.progress.warn(
                f"{job.label}: needs about {host / 2**30:.1f} GiB of memory, and the largest "
                f"machine of the Ray cluster offers {most / 2**30:.1f}; it may fail there"
            )
        return Needs(self.cpus, min(host, most), share_of_gpu(gpu, min(cards)) if on_gpu else 0)


@contextmanager
def _token(folders: Sequence[Path]) -> Iterator[str]:
    """A file in each run's folder by which another machine knows that it sees the same folder."""
    name = f"{SHARED}{secrets.token_hex(8)}"
    try:
        for folder in folders:
            (folder / name).touch()
        yield name
    finally:
        for folder in folders:
            (folder / name).unlink(missing_ok=True)


def _extras(jobs: Sequence[Job]) -> list[str]:
    """The packages of extras that the trainings need."""
    recipes = [job.recipe for job in jobs]
    searches = [one.search for one in recipes if one.search is not None]
    tpe = any(one.sampler != "random" or one.pruner != "none" for one in searches)
    sparse = any(one.sparse_backend == "torch-sparse" for one in recipes)
    return [*(["optuna"] if tpe else []), *(["torch-sparse"] if sparse else [])]


def _slots(machines: Sequence[Machine], going: Sequence[_Going]) -> int:
    """How many trainings as the largest one run at once, >= 1."""
    needs = [one.needs for one in going]
    cpus, memory = max(one.cpus for one in needs), max(one.memory for one in needs)
    shares = [one.on_a_gpu for one in needs if one.on_a_gpu]
    slots = 0
    for one in machines:
        here = min(one.cpus // cpus, one.memory // memory)
        slots += int(min(here, one.gpus * min(shares)) if len(shares) == len(needs) else here)
    return max(1, slots)


def _machines(
    ray: Any, folder: Path, token: str, wanted: Mapping[str, str | None]
) -> list[Machine]:
    """Return the machines of the cluster; each is asked for its packages and what it sees.

    Raises:
        TrainingError: One lacks a package or has another version, does not answer, or there is
            none.
        DataError: One does not see the runs' folder.
    """

    def look(folder: str, names: list[str]) -> tuple[bool, dict[str, Any], int]:
        # Sent by value, for a machine without this program: it imports nothing of it.
        import importlib.util
        import subprocess
        from importlib import metadata
        from pathlib import Path

        found: dict[str, Any] = {}
        for name in names:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = None
        if importlib.util.find_spec("mmbench") is not None:
            import mmbench

            found["mmbench"] = mmbench.__version__
        card = 0
        try:
            query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
            done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
            card = min(int(line) for line in done.stdout.split()) << 20
        except (OSError, ValueError, subprocess.SubprocessError):
            pass
        return Path(folder).is_file(), found, card

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At

    nodes = [one for one in ray.nodes() if one["Alive"] and one["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise TrainingError("the Ray cluster has no processor; `ray status` tells what it has")
    remote = ray.remote(num_cpus=0, max_retries=2)(look)
    asked = [
        remote.options(scheduling_strategy=At(one["NodeID"], soft=False)).remote(
            str(folder / token), list(wanted)
        )
        for one in nodes
    ]
    machines = []
    for node, ref in zip(nodes, asked, strict=True):
        name, has = node["NodeManagerHostname"], node["Resources"]
        try:
            sees, found, card = ray.get(ref, timeout=_PROBE_S)
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"the Ray worker on {name} does not answer ({reason}); `ray status` tells what it "
                "is busy with"
            ) from error
        refuse_unlike(name, wanted, found)
        refuse_unseen(name, folder, seen=sees)
        gpus = has.get("GPU", 0)
        machines.append(Machine(name, has["CPU"], gpus if card else 0, has.get("memory", 0), card))
    return machines
