"""Shards: some windows of a set, computed anywhere and committed as feature sets of their own.

A shard is a complete feature set of its rows, in the hidden folder `.shards/NAME` beside the set it
belongs to. Its windows are the set's, formed from the same rows, so that its vectors are those of a
local run, bit for bit. A worker that is killed leaves an unfinished shard, with which the next one
goes on; a finished shard is found again by whoever is asked to compute it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmstore import DamagedFeatureSet, ProvenanceMismatch, Status, StoreLocked
from mmstore.reader import FeatureSet
from mmstore.writer import FeatureSetWriter
from mmx.encoders import Encoder
from mmx.extraction.executors import Executor, Windows
from mmx.extraction.passes import Rows, WindowResult
from mmx.extraction.plan import Plan
from mmx.extraction.summary import Costs
from mmx.extraction.window import Task

FOLDER = ".shards"
SHARD_ROWS = {"cpu": 128, "gpu": 8192}
"""Rows of a shard, at least, by what computes it: some seconds of work."""
MOST_SHARDS = 10_000
"""Of a set; those of a larger catalogue have more rows."""

FLUSH_S = 2.0
_LOCKED_S = 30.0  # for which another worker, which may be about to end, may hold a shard


@dataclass(frozen=True)
class Part:
    """What a shard is to compute for one of the sets that share its contents.

    Attributes:
        task: Place of the set among those that are made together.
        path: The shard's file.
        plan: Of the shard's windows, as a whole.
        rows: Those rows of `plan` that the shard consists of, ascending, shape (k,).
        provenance: Of the shard.
    """

    task: int
    path: Path
    plan: Plan
    rows: Rows
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """Windows of sets that share contents, from row `start` on, one part for each set."""

    start: int
    parts: tuple[Part, ...]


@dataclass
class Committed:
    """What became of a part: its set's digest, what it took, and the rows read with a remark."""

    digest: str
    costs: Costs = field(default_factory=Costs)
    noted: list[tuple[int, str]] = field(default_factory=list)


def folder_of(path: Path) -> Path:
    """Return the folder of the shards of the set at `path`."""
    return path.parent / FOLDER / path.stem


def discard_shards(path: Path) -> None:
    """Remove what is left of a set's shards."""
    folder = folder_of(path)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # there is none, or another set has some
        folder.parent.rmdir()


def shard_rows(plan: Plan) -> int:
    """Return the rows per shard: whole windows, the same number in every run of a plan."""
    least = SHARD_ROWS["cpu" if plan.device == "cpu" else "gpu"]
    wanted = max(least, -(-len(plan.items) // MOST_SHARDS))
    return plan.window * -(-wanted // plan.window)


def shards(tasks: Sequence[Task], windows: Windows) -> Iterator[tuple[Shard, list[Rows]]]:
    """Yield the shards in which wanted rows are, and these rows for each task.

    A shard has all rows of its windows, so that every run that needs some of them finds the same
    shard. Rows that are tried again are few and far between, and have shards of their own.
    """
    size = shard_rows(tasks[0].plan)
    start, wanted = -1, [np.empty(0, np.int64) for _ in tasks]
    for rows in windows:
        first = next(int(some[0]) for some in rows if len(some)) // size * size
        if first != start:
            if start >= 0:
                yield _shard(tasks, start, size, wanted), wanted
            start, wanted = first, [np.empty(0, np.int64) for _ in tasks]
        wanted = [np.concatenate(pair) for pair in zip(wanted, rows, strict=True)]
    if start >= 0:
        yield _shard(tasks, start, size, wanted), wanted


def _shard(tasks: Sequence[Task], start: int, size: int, wanted: Sequence[Rows]) -> Shard:
    parts = []
    for place, (task, rows) in enumerate(zip(tasks, wanted, strict=True)):
        if not len(rows):
            continue
        stop = min(start + size, len(task.plan.items))
        plan = task.plan.take(np.arange(start, stop))
        own = rows - start if plan.run.retry_failed else np.arange(stop - start)
        provenance = plan.take(own).provenance(task.encoder)
        path = folder_of(task.path) / f"{start:012d}.h5"
        parts.append(Part(place, path, plan, own, provenance))
    return Shard(start, tuple(parts))


def commit(shard: Shard, encoders: Sequence[Encoder], executor: Executor) -> list[Committed]:
    """Compute what is left of a shard, finish its sets, and tell about each.

    Args:
        shard: What to compute.
        encoders: Of all tasks, built and fitted.
        executor: Computes the vectors.

    Raises:
        EncoderError: The encoder failed.
        mmstore.StoreError: A set can't be written.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(part, encoders[part.task])) for part in shard.parts]
        open_ones = [place for place, writer in enumerate(writers) if not writer.finished]
        committed = [Committed("") for _ in shard.parts]
        parts = [shard.parts[place] for place in open_ones]
        tasks = [Task(part.plan, encoders[part.task], path=part.path) for part in parts]
        windows = _windows(
            [
                part.rows[writers[place].pending]
                for place, part in zip(open_ones, parts, strict=True)
            ],
            shard.parts[0].plan.window,
        )
        flushed = time.perf_counter()
        # A shard that an earlier run has finished leaves an executor nothing to start for.
        results = executor.run(tasks, windows, lambda: False) if tasks else None
        with closing(results) if results is not None else nullcontext(()) as found:
            for number, result in found:
                place = open_ones[number]
                _write(writers[place], parts[number], result)
                committed[place].costs.add(result.costs)
                committed[place].noted += result.noted
                if time.perf_counter() - flushed >= FLUSH_S:
                    for place in open_ones:
                        writers[place].flush()
                    flushed = time.perf_counter()
        for one, writer in zip(committed, writers, strict=True):
            one.digest = writer.finish()
    return committed


def _windows(wanted: Sequence[Rows], size: int) -> Iterator[list[Rows]]:
    last = max((int(rows[-1]) for rows in wanted if len(rows)), default=-1)
    for start in range(0, last + 1, size):
        rows = [some[(some >= start) & (some < start + size)] for some in wanted]
        if any(map(len, rows)):
            yield rows


def _writer(part: Part, encoder: Encoder) -> FeatureSetWriter:
    """Open a shard's file; what is there for another plan is begun anew."""
    plan, until = part.plan.take(part.rows), time.monotonic() + _LOCKED_S
    restart = False
    while True:
        try:
            return FeatureSetWriter(
                part.path,
                modality=plan.config.modality,
                dim=encoder.spec.dim,
                **plan.items.keys(),
                layout="ragged" if encoder.ragged else "dense",
                dtype=plan.config.store_dtype,
                provenance=part.provenance,
                restart=restart,
            )
        except ProvenanceMismatch:
            restart = True
        except StoreLocked:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _write(writer: FeatureSetWriter, part: Part, result: WindowResult) -> None:
    """Record what became of some rows, whose numbers are those of the part's plan."""

    def at(rows: Iterable[int]) -> Rows:
        return np.searchsorted(part.rows, np.fromiter(rows, np.int64))

    if result.missing:
        writer.mark_missing(at(result.missing))
    if result.corrupt:
        failed, reasons = zip(*result.corrupt, strict=True)
        writer.mark_corrupt(at(failed), reasons)
    if len(result.rows):
        rows = at(result.rows.tolist())
        if writer.header.layout == "ragged":
            writer.write_ragged(rows, result.vectors)
        else:
            writer.write(rows, np.stack(result.vectors))


def taken(part: Part, start: int, wanted: Rows, committed: Committed) -> WindowResult:
    """Return what a committed part says about the wanted rows of the set.

    Args:
        part: What was computed.
        start: The set's row at which the shard begins.
        wanted: Rows of the set, ascending, all of them in the shard.
        committed: What the worker told.

    Raises:
        mmstore.StoreError: The shard's file is not there, was damaged, or is not the one that was
            committed.
    """
    result = WindowResult(costs=committed.costs)
    with FeatureSet(part.path) as features:
        if features.content_digest != committed.digest:
            raise DamagedFeatureSet(f"{part.path}: is not the shard that was committed")
        reasons = dict(features.errors())
        _, vectors, status = next(iter(features.iter_batches(max(1, len(features)))))
    rows = part.rows + start
    is_wanted = np.isin(rows, wanted)
    ok = np.flatnonzero(is_wanted & (status == Status.OK))
    result.rows = np.asarray(rows[ok])
    result.vectors = [vectors[place] for place in ok.tolist()]
    result.missing = rows[is_wanted & (status == Status.MISSING)].tolist()
    corrupt = np.flatnonzero(is_wanted & (status == Status.CORRUPT)).tolist()
    result.corrupt = [(int(rows[place]), reasons[place]) for place in corrupt]
    known = set(wanted.tolist())
    result.noted = [(row + start, note) for row, note in committed.noted if row + start in known]
    return result
