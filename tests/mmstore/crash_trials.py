"""Kills real writers at many instants and checks that the next run recovers (test_crash.py).

    python crash_trials.py JOB lines|calls|random TRIALS [MODE TRIALS …]

JOB is `dense`, `ragged`, `retry-dense`, `retry-ragged` or `restart-dense`. With `lines` a forked
writer sends itself SIGKILL at an exact line of mmstore's code, with `calls` before an exact write,
rename, removal, reservation or fsync (or in the middle of the write), both spread over its whole
life; with `random` it is killed from outside after a random delay. Every fourth trial kills the
recovering writer as well. Prints one JSON object per mode.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import mmstore
import mmstore.hdf5
import mmstore.side_files
import mmstore.validate  # everything is imported before the forks
import mmstore.writer
from mmstore import FeatureSet, Status
from mmstore.testing import Content, random_content

SOURCE = str(Path(mmstore.__file__).parent)
IDS = [f"item {row}" for row in range(40)]
BATCH = 7


def _without_corrupt(content: Content) -> Content:
    full = random_content(8, IDS, layout=content.layout, absent=0.0)
    vectors = tuple(
        full.vectors[row] if row in content.errors else v for row, v in enumerate(content.vectors)
    )
    return Content(
        content.source, content.layout, content.dtype, content.dim, content.ids, vectors, {}
    )


def _extract(content: Content, path: Path, report: Callable[[int], None], **options: Any) -> str:
    """Write pending rows in batches in a scrambled order, with a flush after each second one."""
    with content.writer(path, **options) as writer:
        rows = random.Random(3).sample(pending := writer.pending.tolist(), len(pending))
        for start in range(0, len(rows), BATCH):
            content.put(writer, rows[start : start + BATCH])
            if start // BATCH % 2:
                writer.flush()
                report(len(writer.pending))
        return writer.finish()


class Job:
    """One kind of extraction: the set that is there before it, and the content it ends with."""

    def __init__(self, kind: str) -> None:
        action, _, layout = kind.rpartition("-")
        content = random_content(6, IDS, layout=layout)
        assert content.errors
        self.before: Content | None = None
        self.options: dict[str, Any] = {}
        self.content = content
        if action == "retry":
            self.before, self.content, self.options = (
                content,
                _without_corrupt(content),
                {"retry_failed": True},
            )
        elif action == "restart":
            self.before = random_content(9, IDS[:20], layout=layout)
            self.options = {"restart": True, "provenance": {"encoder": "another"}}

    def prepare(self, path: Path) -> None:
        if self.before is not None:
            self.before.save(path)

    def run(self, path: Path, report: Callable[[int], None] = lambda pending: None) -> str:
        return _extract(self.content, path, report, **self.options)


class Kill(Protocol):
    """Ends the process at the n-th of some events; counts them otherwise."""

    seen: int

    def __init__(self, at: int) -> None: ...

    def arm(self) -> None: ...


class KillAtLine:
    """Ends the process at the n-th executed line of mmstore."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.seen = 0

    def arm(self) -> None:
        sys.settrace(self)

    def __call__(self, frame: FrameType, event: str, argument: object) -> KillAtLine | None:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self.left:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


class KillAtCall:
    """Ends the process before the n-th call that changes files, or in the middle of a write."""

    calls = (
        (os, "fsync"),
        (os, "posix_fallocate"),
        (os, "replace"),
        (os, "unlink"),
        (mmstore.hdf5, "write_all"),
        (mmstore.side_files, "write_all"),
    )

    def __init__(self, at: int) -> None:
        self.left = at
        self.seen = 0

    def arm(self) -> None:
        for module, name in self.calls:
            setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.seen += 1
            if self.seen == self.left:
                if function.__name__ == "write_all" and self.left % 2:
                    stream, data = arguments
                    stream.write(memoryview(data)[: len(memoryview(data)) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted


KILLS: dict[str, type[Kill]] = {"lines": KillAtLine, "calls": KillAtCall}


def run_child(
    job: Job, path: Path, *, kill: Kill | None = None, delay_s: float | None = None
) -> tuple[int, int | None]:
    """Run the job in a forked process; its wait status and the last reported pending rows."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        if kill is not None:
            kill.arm()
        code = 1
        try:
            job.run(path, lambda pending: os.write(write, b"%d\n" % pending) and None)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    if delay_s is not None:
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        reports = pipe.read().split()
    return status, int(reports[-1]) if reports else None


def count_events(job: Job, path: Path, kind: type[Kill]) -> int:
    """The number of instants at which a run of the job can be killed, counted in a child."""
    job.prepare(path)
    counter = kind(-1)
    read, write = os.pipe()
    if os.fork() == 0:
        counter.arm()
        job.run(path)
        sys.settrace(None)
        os.write(write, b"%d" % counter.seen)
        os._exit(0)
    os.close(write)
    os.wait()
    with os.fdopen(read) as pipe:
        return int(pipe.read())


def check(job: Job, path: Path, reported: int | None, digest: str) -> list[str]:
    """Problems after a kill: the old final file, rows that a flush promised, the next run."""
    problems = []
    if path.exists():
        problems += FeatureSet(path).verify()
    elif job.before is not None:
        problems.append("the finished set that was there is gone")
    partial = path.with_name(path.name + ".partial")
    if (
        reported is not None
        and partial.exists()
        and not partial.with_name(partial.name + ".undo").exists()
    ):
        with FeatureSet(partial) as found:
            if not found.complete and found.counts()[Status.PENDING] > reported:
                problems.append(
                    f"{found.counts()[Status.PENDING]} rows pending, {reported} at the last flush"
                )
    resumed = job.run(path)
    problems += FeatureSet(path).verify()
    if resumed != digest:
        problems.append(f"digest {resumed}, expected {digest}")
    if litter := sorted(p.name for p in path.parent.iterdir() if p != path):
        problems.append(f"left over: {litter}")
    return problems


def main(kind: str, mode: str, trials: int) -> dict[str, Any]:
    rng = random.Random(trials)
    os.fsync = lambda descriptor: None  # a killed process leaves its writes to the system anyway
    job = Job(kind)
    at_event = KILLS.get(mode, KillAtLine)
    failures: list[Any] = []
    killed = 0
    with tempfile.TemporaryDirectory() as folder:
        events = count_events(job, Path(folder) / "reference.h5", at_event)
        trials = min(trials, events) if mode == "calls" else trials
        with job.content.writer(Path(folder) / "plain.h5") as writer:
            job.content.put(writer, writer.pending.tolist())
            digest = writer.finish()
        began = time.perf_counter()
        Job(kind.rpartition("-")[2]).run(Path(folder) / "timed.h5")
        duration_s = time.perf_counter() - began
        for trial in range(trials):
            path = Path(folder) / str(trial) / "set.h5"
            path.parent.mkdir()
            job.prepare(path)
            at = rng.random() * duration_s * 1.2
            if mode == "random":
                status, reported = run_child(job, path, delay_s=at)
            else:
                at = 1 + trial * events // trials
                status, reported = run_child(job, path, kill=at_event(at))
            killed += os.WIFSIGNALED(status)
            if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
                failures.append([trial, at, "the writer failed"])
            if trial % 4 == 3:
                run_child(job, path, kill=at_event(rng.randrange(1, events)))
                reported = None if job.options.get("restart") else reported
            if problems := check(job, path, reported, digest):
                failures.append([trial, at, problems])
    return {
        "job": kind,
        "mode": mode,
        "trials": trials,
        "killed": killed,
        "events": events,
        "failures": failures,
    }


if __name__ == "__main__":
    for mode, trials in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        print(json.dumps(main(sys.argv[1], mode, int(trials))))
