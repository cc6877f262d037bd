"""`--engine ray`: shards are computed by the workers of a Ray cluster and joined by this process.

On processors a worker has one of them, and reads, decodes and encodes: to load elsewhere would only
move pixels. On GPUs a worker has one GPU and encodes, while tasks on the cluster's processors load
for it. Either way it commits one shard after the other (`mmx.extraction.shards`), and this process
takes their rows into the set. So a worker or machine that is lost costs the windows that it had
under way since their last flush, and whoever is lost, the same command goes on.

Machines of a cluster see the dataset and the store under the same paths.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

import mmx
from mmbase.ray_cluster import connect
from mmstore import StoreError
from mmx.encoders import needs_torch
from mmx.encoders.base import versions
from mmx.encoders.compute import linear_kernel
from mmx.errors import ToolError
from mmx.extraction.executors import Condition, Results, Windows
from mmx.extraction.passes import Rows, WindowResult
from mmx.extraction.ray_worker import TRIES, Order, Worker
from mmx.extraction.shards import Committed, Shard, shards, taken
from mmx.extraction.summary import Costs, LoadingReport
from mmx.extraction.window import Task

_AHEAD = 2  # shards that a worker has at a time: one is computed, one waits
_POLL_S = 0.5
_PATIENCE_S = 600.0  # without any worker: a cluster may be adding machines

_WALL = ("decode_wait_s", "disk_wait_s", "encode_wait_s", "decode_busy_s", "disk_busy_s",
         "device_busy_s")  # fmt: skip
"""The costs of a worker that others have at the same time."""


class _Given(NamedTuple):
    """A shard, and the rows of each task that are wanted of it."""

    shard: Shard
    wanted: list[Rows]


class RayExecutor:
    """Encodes on a Ray cluster; results come as they are there.

    Args:
        address: Of the cluster, as `mmbase.ray_cluster.connect` takes it.
        workers: Contents to load at a time; None: one per processor of the cluster.
        apart: Whether tasks load for the workers; None: if these have GPUs.
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, *, apart: bool | None = None
    ) -> None:
        self.workers = workers or 0
        self._address, self._given, self._apart = address, workers, apart
        self.report = LoadingReport("ray", self.workers)

    def run(self, tasks: Sequence[Task], windows: Windows, stopping: Condition) -> Results:
        """Connect, and return the results; see `Executor.run`."""
        ray = connect(self._address)
        pool = _Pool(ray, tasks, self._given, self._apart)
        return self._results(pool, tasks, windows, stopping)

    def _results(
        self, pool: _Pool, tasks: Sequence[Task], windows: Windows, stopping: Condition
    ) -> Results:
        left = (_Given(*one) for one in shards(tasks, windows))
        again: deque[_Given] = deque()
        tries: Counter[int] = Counter()
        with closing(pool):
            while True:
                pool.grow()
                while pool.has_place:
                    given = again.popleft() if again else next(left, None)
                    if given is None:
                        break
                    pool.give(given)
                if not pool.is_busy and not again and pool.has_place:
                    break
                for given, answer in pool.answers():
                    try:
                        if answer is not None:
                            yield from _taken(given, answer, pool.n_ready)
                    except StoreError:  # after a power cut, say
                        for part in given.shard.parts:
                            part.path.unlink(missing_ok=True)
                        lost = True
                    else:
                        lost = answer is None
                    if lost:
                        tries[given.shard.start] += 1
                        _refuse_many(tries[given.shard.start], given)
                        again.append(given)
                    self.report = pool.report()
                if stopping():
                    return


def _taken(
    given: _Given, answer: list[Committed], n_workers: int
) -> Iterator[tuple[int, WindowResult]]:
    for part, committed in zip(given.shard.parts, answer, strict=True):
        result = taken(part, given.shard.start, given.wanted[part.task], committed)
        result.costs = _shared(result.costs, n_workers)
        yield part.task, result


def _shared(costs: Costs, n_workers: int) -> Costs:
    """Return the costs of one of several workers as a part of those of the cluster."""
    return replace(costs, **{name: getattr(costs, name) / max(1, n_workers) for name in _WALL})


def _refuse_many(n_tries: int, given: _Given) -> None:
    if n_tries >= TRIES:
        plan = given.shard.parts[0].plan
        raise ToolError(
            f"{n_tries} workers were lost one after the other over the {len(plan.items)} items "
            f"from {plan.items.name_of(0)!r} on; they may need more memory than a worker has. What "
            "was computed is kept, and the same command goes on"
        )


@dataclass(eq=False)
class _Member:
    """A worker of the pool; `host` is empty until it is prepared."""

    actor: Any
    preparing: Any
    host: str = ""
    under_way: dict[Any, _Given] = field(default_factory=dict)


class _Pool:
    """The workers of a run, as many as the cluster has processors or GPUs for."""

    def __init__(
        self, ray: Any, tasks: Sequence[Task], given: int | None, apart: bool | None
    ) -> None:
        self._ray, self._given = ray, given
        self._on_gpu = tasks[0].plan.device != "cpu"
        self._apart = self._on_gpu if apart is None else apart
        self._orders = [self._order(task) for task in tasks]
        torch = any("torch" in task.encoder.spec.libraries for task in tasks)
        self._kernel = linear_kernel() if torch and not self._on_gpu else ""
        self._members: list[_Member] = []
        self._n_lost = self._n_failed = self._n_most = 0
        self._machines: set[str] = set()
        self._began = self._alive = time.monotonic()
        self._looked = self._ready_after_s = 0.0
        self._n_rows = 0
        if not self._room():
            raise ToolError(
                f"the Ray cluster has no {'GPU' if self._on_gpu else 'processor'}; "
                f"{'--device cpu needs none' if self._on_gpu else '`ray status` tells what it has'}"
            )

    def _order(self, task: Task) -> Order:
        config, inner = task.plan.config, getattr(task.encoder, "encoder", task.encoder)
        # A network is built there, from the same weights; what is fitted or foreign travels.
        ours = type(inner).__module__.startswith("mmx.encoders.")
        builds = ours and not inner.needs_fit and needs_torch(config.model, config.modality)
        libraries = dict(task.encoder.spec.libraries)
        here = versions(*libraries)
        return Order(
            task.plan.take(np.arange(0)),
            {name: one for name, one in libraries.items() if here.get(name) == one},
            task.encoder.spec.provenance(),
            None if builds else self._ray.put(task.encoder),
        )

    def _room(self) -> int:
        """How many workers the cluster has room for."""
        has = self._ray.cluster_resources()
        if self._on_gpu:
            return int(has.get("GPU", 0))
        n_processors = int(has.get("CPU", 0))
        if self._apart:
            n_processors //= 2
        return n_processors if self._given is None else min(self._given, n_processors)

    def grow(self) -> None:
        """Start workers where there is room for more."""
        if time.monotonic() - self._looked < _POLL_S:
            return
        self._looked = time.monotonic()
        room, loaders = self._room(), 0
        if self._apart and room:
            n_processors = int(self._ray.cluster_resources().get("CPU", 0)) - room
            loaders = max(1, (self._given or n_processors) // room)
        options = {"num_cpus": 1, "num_gpus": int(self._on_gpu), "max_restarts": 0}
        while len(self._members) < room:
            actor = self._ray.remote(Worker).options(**options).remote()
            preparing = actor.prepare.remote(self._orders, mmx.__version__, self._kernel, loaders)
            self._members.append(_Member(actor, preparing))
        if self.n_ready:
            self._alive = self._looked
        elif self._looked - self._alive > _PATIENCE_S:
            raise ToolError(
                f"no worker of the Ray cluster is there for {_PATIENCE_S:.0f} s (`ray status` "
                "tells what it is busy with); what was computed is kept, and the same command goes "
                "on"
            )

    @property
    def n_ready(self) -> int:
        """Workers that can compute."""
        return sum(bool(member.host) for member in self._members)

    @property
    def is_busy(self) -> bool:
        """Whether a shard is under way."""
        return any(member.under_way for member in self._members)

    @property
    def has_place(self) -> bool:
        """Whether a worker takes another shard."""
        return any(member.host and len(member.under_way) < _AHEAD for member in self._members)

    def give(self, given: _Given) -> None:
        """Give a shard to the worker with the fewest."""
        member = min((one for one in self._members if one.host), key=lambda one: len(one.under_way))
        member.under_way[member.actor.commit.remote(given.shard)] = given

    def answers(self) -> Iterator[tuple[_Given, list[Committed] | None]]:
        """Wait a little; yield shards that were committed, and with None those that were lost."""
        waiting = {ref: member for member in self._members for ref in member.under_way}
        waiting |= {member.preparing: member for member in self._members if not member.host}
        if not waiting:
            time.sleep(_POLL_S)
            return
        done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)
        for ref in done:
            member = waiting[ref]
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                yield from ((given, None) for given in self._lost(member, error))
                continue
            if isinstance(answer, ToolError):
                raise answer
            if isinstance(answer, str):
                member.host, self._n_failed = answer, 0
                self._machines.add(answer)
                self._n_most = max(self._n_most, self.n_ready)
                self._ready_after_s = self._ready_after_s or time.monotonic() - self._began
            else:
                given = member.under_way.pop(ref)
                self._n_rows += sum(map(len, given.wanted))
                yield given, answer

    def _lost(self, member: _Member, error: Exception) -> list[_Given]:
        """Remove a worker; return what it had under way."""
        self._ray.kill(member.actor)  # one that can only not be reached must not go on
        self._members.remove(member)
        self._n_lost += 1
        if not member.host:
            self._n_failed += 1
            text = " ".join(str(error).split())
            if "No module named" in text:
                module = text.partition("No module named")[2].split()[0].strip("'\".")
                raise ToolError(
                    f"a worker of the Ray cluster lacks {module}; install mmx on all machines, in "
                    "the environment in which Ray runs there"
                ) from error
            if self._n_failed >= TRIES:
                raise ToolError(
                    f"{self._n_failed} workers of the Ray cluster ended while they started "
                    f"({text[:300]})"
                ) from error
        return list(member.under_way.values())

    def report(self) -> LoadingReport:
        """Return who computed."""
        n, machines = self._n_most, len(self._machines)
        why = f"{n} worker{'s' * (n != 1)} on {machines} machine{'s' * (machines != 1)}"
        since_s = time.monotonic() - self._began - self._ready_after_s
        return LoadingReport(
            "ray",
            n,
            why,
            n_replaced=self._n_lost,
            settled_after_s=self._ready_after_s,
            items_per_s=self._n_rows / since_s,
        )

    def close(self) -> None:
        """End the workers, and whatever they are at."""
        for member in self._members:
            self._ray.kill(member.actor)
        self._members = []
