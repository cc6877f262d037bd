"""From pending rows to written vectors: the loop around the executor.

Several encoders that look at the same contents go through them together, so that a file is read and
decoded once. The executor computes; the calling thread writes, and the feature files are never open
in another thread or process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import FILE_SUFFIXES, FOLDERS
from mmbase.process import StopRequest
from mmbase.progress import Progress
from mmbase.progress import Task as ProgressTask
from mmstore import Status
from mmstore.reader import FeatureSet
from mmstore.writer import FeatureSetWriter
from mmx.encoders import Encoder
from mmx.errors import DataError, Interrupted
from mmx.extraction.background import ahead
from mmx.extraction.executors import Executor
from mmx.extraction.passes import Rows, WindowResult
from mmx.extraction.plan import Plan
from mmx.extraction.shards import discard_shards
from mmx.extraction.summary import AbsentFiles, Counts, GraphReport, Stages, Summary
from mmx.extraction.window import Task

FLUSH_S = 2.0
"""Seconds between flushes: a killed run loses what was computed since then."""

_HELD, _HELD_RAGGED = 32, 2
"""Results that wait to be written while a GPU computes, at most; of ragged encoders they are
large."""

_COLLECT_ROWS = 4096  # vectors that wait to be written together, where windows are smaller

_ERRORS_TOLD = 3
_ERRORS_SHOWN = 5


class SetJob:
    """One feature set: its plan, its encoder, its file, and how far it has come.

    Args:
        plan: Contents, and the sizes of windows and batches.
        encoder: Built, and fitted if need be.
        writer: The open feature file.
        stages: Where the time of this set is added up.
        others: The same encoder on other devices, among which the windows are shared.
    """

    def __init__(
        self,
        plan: Plan,
        encoder: Encoder,
        writer: FeatureSetWriter,
        stages: Stages,
        others: tuple[Encoder, ...] = (),
    ) -> None:
        self.plan = plan
        self.encoder = encoder
        self.others = others
        self.writer = writer
        self.stages = stages
        self.n_rows = len(plan.items)
        self.already_complete = writer.finished
        self.began = time.perf_counter()  # the loop over the items
        self.failure: DataError | None = None  # why the run has to stop
        self.may_be_empty = False  # whether it may end without a single vector
        self._n_corrupt = writer.counts()[Status.CORRUPT]
        self._limit = plan.run.failure_limit(self.n_rows)
        self._first_corrupt: list[str] = []
        self._notes: list[tuple[int, str]] = []
        self._rows: list[Rows] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._n_collected = self._window = 0

    def take(self, result: WindowResult, progress: Progress, task: ProgressTask) -> None:
        """Record what became of some rows; the vectors are written with those of other batches."""
        self.stages.add(result.costs)
        for row, note in result.noted:
            progress.detail(f"{self._name(row)}: {note}")
            self._notes.append((row, note))
        if result.missing:
            with self.stages.timed("write"):
                self.writer.mark_missing(result.missing)
        corrupt = result.corrupt
        if corrupt and self.plan.run.on_error == "fail":
            item, why = self._name(corrupt[0][0]), corrupt[0][1]
            self.failure = self.failure or DataError(
                f"item {item!r}: {why}; --on-error skip records such items and goes on"
            )
            corrupt = []
        if corrupt:
            rows, reasons = zip(*corrupt, strict=True)
            with self.stages.timed("write"):
                self.writer.mark_corrupt(rows, reasons)
        n_dealt_with = len(result.missing) + len(corrupt) + len(result.rows)
        if len(result.rows):
            corrupt = corrupt + self._collect(result)
        for row, why in corrupt:
            line = f"{self._name(row)}: {why}"
            progress.detail(f"corrupt: {line}")
            if len(self._first_corrupt) < _ERRORS_TOLD:
                self._first_corrupt.append(line)
        self._n_corrupt += len(corrupt)
        if self._n_corrupt > self._limit:
            self.failure = self.failure or DataError(
                f"{self._n_corrupt:,} of {self.n_rows:,} items are corrupt (more than "
                f"--max-failures {self.plan.run.max_failures}): {'; '.join(self._first_corrupt)}. "
                "What was computed is kept; raise the limit, or repair the files and add "
                "--retry-failed"
            )
        if len(result.rows) and not self.stages.first_s:
            self.stages.first_s = time.perf_counter() - self.began
        if n_dealt_with:
            self.stages.n_items += n_dealt_with
            limit = self.stages.bottleneck()
            task.advance(n_dealt_with, f"limited by {limit}" if limit else "")

    def _collect(self, result: WindowResult) -> list[tuple[int, str]]:
        """Keep vectors for the next write; return the rows that the writer will find corrupt."""
        rows, vectors = result.rows, result.vectors
        window = int(rows[0]) // self.plan.window
        # The rows of whole windows are one stretch of the file, those of some batches are many.
        if self._n_collected >= _COLLECT_ROWS and window != self._window:
            self.write()
        self._window = window
        if self.encoder.ragged:
            finite = np.array([np.isfinite(vector).all() for vector in vectors])
        else:
            vectors = [np.stack(vectors)]
            finite = np.asarray(np.isfinite(vectors[0]).all(axis=1))
        self._rows.append(rows)
        self._vectors += vectors
        self._n_collected += len(rows)
        return [(row, "the encoder returned NaN or infinity") for row in rows[~finite].tolist()]

    def graphs(self) -> GraphReport:
        """Return how many passes were replayed as CUDA graphs, on all devices."""
        found = [one.replays for one in (self.encoder, *self.others) if one.replays is not None]
        return GraphReport(
            sum(one.n_passes for one in found),
            sum(one.n_replayed for one in found),
            sum(one.n_captured for one in found),
            next((one.reason for one in found if one.reason), ""),
        )

    def write(self) -> None:
        """Hand the collected vectors to the writer, in the order of the rows."""
        if not self._rows:
            return
        rows = np.concatenate(self._rows)
        order = np.argsort(rows)
        with self.stages.timed("write"):
            if self.encoder.ragged:
                vectors = [self._vectors[place] for place in order.tolist()]
                self.writer.write_ragged(rows[order], vectors)
            else:
                self.writer.write(rows[order], np.concatenate(self._vectors)[order])
        self._rows, self._vectors, self._n_collected = [], [], 0

    def flush(self) -> None:
        """Write, and make safe what is written."""
        self.write()
        with self.stages.timed("write"):
            self.writer.flush()

    def why_empty(self) -> DataError | None:
        """Return the reason why no item has a vector; None where one has."""
        counts = self.writer.counts()
        if counts[Status.OK] or self.may_be_empty:
            return None
        if counts[Status.CORRUPT]:
            first = self._first_corrupt[0] if self._first_corrupt else "?: ?"
            return DataError(
                f"none of the {self.n_rows:,} items could be encoded; the first: {first}"
            )
        modality, columns = self.plan.config.modality, self.plan.contents.columns
        if (absent := self.absent_files()).count:
            return DataError(
                f"{self.plan.run.data}: none of the {self.n_rows:,} items could be encoded: "
                f"{absent.as_text()}"
            )
        looked = f"in column {' and '.join(columns)}" if columns else "for a column of paths"
        if modality in FOLDERS:
            file = f"{FOLDERS[modality]}/{self._name(0)}{FILE_SUFFIXES[modality][0]}"
            looked += f", and for files such as {file}, by the items' ids"
        return DataError(
            f"{self.plan.run.data}: none of the {self.n_rows:,} items has {modality} content "
            f"(looked {looked}); see `mmx extract --help`"
        )

    def absent_files(self) -> AbsentFiles:
        """Count the items that name files that are not there, by what is there now."""
        rows = np.flatnonzero(self.writer.status == Status.MISSING)
        if self.plan.config.several:  # an item may have some of its files
            rows = np.arange(self.n_rows)
        count, example = 0, ""
        for row, absent in self.plan.contents.absent(rows.tolist()):
            example = example or f"{self._name(row)}: {absent.name}; {absent.cure}"
            count += 1
        return AbsentFiles(count, example)

    def summary(self, elapsed_s: float) -> Summary:
        """Return the summary of the finished set; `elapsed_s` are the seconds of the whole run."""
        path, counts = self.writer.path, self.writer.counts()
        errors: list[tuple[str, str]] = []
        if counts[Status.CORRUPT]:
            with FeatureSet(path) as features:
                errors = [(self._name(row), why) for row, why in features.errors()[:_ERRORS_SHOWN]]
        return Summary(
            path=path,
            modality=self.plan.config.modality,
            name=path.stem,
            dim=self.encoder.spec.dim,
            digest=self.writer.header.content_digest,
            already_complete=self.already_complete,
            counts=Counts(counts[Status.OK], counts[Status.MISSING], counts[Status.CORRUPT]),
            stages=self.stages,
            elapsed_s=elapsed_s,
            errors=tuple(errors),
            absent=self.absent_files(),
            n_noted=len({row for row, _ in self._notes}),
            notes=tuple((self._name(row), note) for row, note in self._notes[:_ERRORS_SHOWN]),
        )

    def of_all(self, plan: Plan, writer: FeatureSetWriter, rows: Rows) -> SetJob:
        """Return the finished job of a larger set, into whose `rows` those of this one went."""
        whole = SetJob(plan, self.encoder, writer, self.stages)
        whole.already_complete = False
        whole._notes = [(int(rows[row]), note) for row, note in self._notes]
        return whole

    def _name(self, row: int) -> str:
        return self.plan.items.name_of(row)


def run(jobs: Sequence[SetJob], executor: Executor, progress: Progress) -> None:
    """Compute and write every pending row.

    Args:
        jobs: Unfinished sets whose plans share contents, batch size and window.
        executor: Computes the vectors.
        progress: Progress reporter.

    Raises:
        DataError: Too many corrupt items, or one where none is accepted, or nothing usable at all.
        Interrupted: A signal asked to stop.
    """
    plan, total = jobs[0].plan, sum(job.n_rows for job in jobs)
    for job in jobs:
        job.stages.workers, job.stages.batch_size = executor.workers, plan.batch_size
        job.stages.device, job.stages.n_devices = job.encoder.device, 1 + len(job.others)
    label = f"{plan.config.modality}/{' + '.join(job.encoder.spec.name for job in jobs)}"
    began = flushed = time.perf_counter()
    for job in jobs:
        job.began = began
    try:
        with progress.task(label, total, _n_done(jobs)) as task, StopRequest() as stop:
            results = executor.run(
                [Task(job.plan, job.encoder, job.others, job.writer.path) for job in jobs],
                _pending_windows(jobs),
                stopping=lambda: stop.requested or any(job.failure for job in jobs),
            )
            try:
                if all(job.encoder.device != "cpu" for job in jobs):
                    # The next passes start while this thread writes to the disk.
                    held = min(_HELD_RAGGED if job.encoder.ragged else _HELD for job in jobs)
                    results = ahead(results, held)
                with closing(results):
                    for place, result in results:
                        jobs[place].take(result, progress, task)
                        if time.perf_counter() - flushed >= FLUSH_S:
                            for job in jobs:
                                job.flush()
                            flushed = time.perf_counter()
            finally:
                for job in jobs:
                    job.write()
            for failure in (job.failure for job in jobs if job.failure):
                raise failure
            if stop.requested:
                raise Interrupted(
                    f"interrupted: {_n_done(jobs):,} of {total:,} items are safe; the same command "
                    "goes on from there"
                )
    finally:
        for job in jobs:
            job.stages.loop_s += time.perf_counter() - began
            job.stages.loading = executor.report
            job.stages.workers = executor.report.workers
            job.stages.graphs = job.graphs()
    empty = {job: reason for job in jobs if (reason := job.why_empty())}
    for job in empty:
        # There is nothing to go on with: once contents are there, the same command finds them.
        job.writer.discard()
        discard_shards(job.writer.path)
    for reason in empty.values():
        raise reason


def _n_done(jobs: Sequence[SetJob]) -> int:
    return sum(job.n_rows - len(job.writer.pending) for job in jobs)


def _pending_windows(jobs: Sequence[SetJob]) -> Iterator[list[Rows]]:
    """Yield the pending rows of every set, window by window, where any set has some."""
    size, n_rows = jobs[0].plan.window, jobs[0].n_rows
    pending = np.zeros((len(jobs), n_rows), dtype=np.bool_)
    for place, job in enumerate(jobs):
        pending[place, job.writer.pending] = True
    for start in range(0, n_rows, size):
        rows = [start + np.flatnonzero(mask) for mask in pending[:, start : start + size]]
        if any(map(len, rows)):
            yield rows
