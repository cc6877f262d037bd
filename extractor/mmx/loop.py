"""From pending rows to written vectors: load ahead, encode in fixed batches, write, stop when asked to.

Which items share a batch follows from their row numbers and contents alone: rows are cut into windows of fixed
size; within a window the items that could be loaded are sorted by the encoder's `sort_key` and cut into batches.
A window that was interrupted is formed again as a whole, only batches with pending rows are encoded, and only those
rows are written. So a run that was killed and continued gives the vectors of one that was not, bit for bit, however
many workers load. (Rows that `--retry-failed` brings back join their window anew, so that an encoder whose last bits
depend on who shares a batch may differ there from a fresh run.)

The calling thread encodes and writes; the feature file is never open in another thread or process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmstore import FeatureSetWriter, Status
from mmx.encoders import Encoder
from mmx.errors import ContentError, DataError, EncoderError, Interrupted
from mmx.executors.local import LocalExecutor
from mmx.plan import Plan
from mmx.progress import Progress
from mmx.signals import StopRequest
from mmx.summary import Stages

FLUSH_S = 2.0
"""Vectors are made safe at least this often: a killed run loses no more than that and the batch it was in."""

ERRORS_TOLD = 3
_TASK_ITEMS = 256

Span = tuple[int, int]


@dataclass(frozen=True)
class _Window:
    """Loaded items of rows `start` to `start + len(loaded)`: an object, None (missing) or a ContentError each."""

    start: int
    loaded: list[Any]
    cpu_s: float


class Loop:
    """From pending rows to written vectors."""

    def __init__(
        self, plan: Plan, encoder: Encoder, writer: FeatureSetWriter, progress: Progress, stages: Stages
    ) -> None:
        self.plan = plan
        self.encoder = encoder
        self.writer = writer
        self.progress = progress
        self.stages = stages
        self.errors: list[tuple[str, str]] = []
        self.n_rows = len(plan.items)
        self.pending = np.zeros(self.n_rows, dtype=np.bool_)
        self.pending[writer.pending] = True
        self.n_corrupt = writer.counts()[Status.CORRUPT]
        self.limit = plan.run.failure_limit(self.n_rows)
        self._computed: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        self._flushed = time.perf_counter()

    def go(self) -> None:
        """Deals with every pending row.

        Raises:
            DataError: Too many corrupt items, or one where none is accepted, or nothing usable at all.
            Interrupted: A signal asked to stop.
        """
        n_pending = int(self.pending.sum())
        windows = np.unique(np.flatnonzero(self.pending) // self.plan.window)
        label = f"{self.plan.config.modality}/{self.encoder.spec.name}"
        began = time.perf_counter()
        self.progress.start(label, self.n_rows, self.n_rows - n_pending)
        try:
            with StopRequest() as stop, LocalExecutor(self.plan.run.workers) as executor:
                for window in self._windows(executor, windows):
                    try:
                        self._deal_with(window, stop)
                    finally:
                        self._write()
                    if stop.requested:
                        raise self._interrupted()
        finally:
            self.stages.loop_s += time.perf_counter() - began
            self.progress.stop()
        self._refuse_emptiness()

    def _windows(self, executor: LocalExecutor, windows: NDArray[np.int64]) -> Iterator[_Window]:
        """The windows with all their items loaded, in order, loading a bounded distance ahead."""
        size, n_rows = self.plan.window, self.n_rows
        step = max(1, min(_TASK_ITEMS, size // (2 * executor.workers)))
        spans = (
            (start, min(start + step, (window + 1) * size, n_rows))
            for window in windows.tolist()
            for start in range(window * size, min((window + 1) * size, n_rows), step)
        )
        # Two windows ahead keep the workers busy while the encoder is at work; more would only cost memory.
        ahead = 2 * -(-size // step) + executor.workers
        parts = executor.map_ahead(self._load, spans, ahead=ahead)
        for window in windows.tolist():
            stop = min((window + 1) * size, n_rows)
            loaded: list[Any] = []
            cpu_s = 0.0
            with self.stages.timed("wait"):
                while window * size + len(loaded) < stop:
                    part = next(parts)
                    loaded += part.loaded
                    cpu_s += part.cpu_s
            yield _Window(window * size, loaded, cpu_s)

    def _load(self, span: Span) -> _Window:
        """Loads a few items; runs in a worker thread."""
        began = time.thread_time()
        loaded: list[Any] = []
        for content in self.plan.contents.fetch(*span):
            if content is None or isinstance(content, ContentError):
                loaded.append(content)
                continue
            try:
                loaded.append(self.encoder.load(content))
            except ContentError as error:
                loaded.append(error)
            except FileNotFoundError:
                loaded.append(None)  # gone since the folder was listed
            except OSError as error:
                loaded.append(ContentError(error.strerror or type(error).__name__))
            except Exception as error:
                error.add_note(f"while loading item {self._id(span[0] + len(loaded))!r}")
                raise
        return _Window(span[0], loaded, time.thread_time() - began)

    def _deal_with(self, window: _Window, stop: StopRequest) -> None:
        """Encodes and writes what is pending in one window."""
        self.stages.decode_s += window.cpu_s
        usable, missing, corrupt = [], [], []
        for offset, loaded in enumerate(window.loaded):
            row = window.start + offset
            if loaded is None:
                missing.append(row)
            elif isinstance(loaded, ContentError):
                corrupt.append((row, str(loaded)))
            else:
                usable.append(row)
        corrupt = [(row, message) for row, message in corrupt if self.pending[row]]
        if corrupt and self.plan.run.on_error == "fail":
            row, message = corrupt[0]
            raise DataError(f"item {self._id(row)!r}: {message}; --on-error skip records such items and goes on")
        self._mark_missing(np.array(missing, dtype=np.int64))
        self._mark_corrupt(corrupt)
        for rows in self._batches(usable, window):
            mine = self.pending[rows]
            if mine.any():
                self._encode(rows, mine, window)
            if time.perf_counter() - self._flushed >= FLUSH_S:
                self._write()
                with self.stages.timed("write"):
                    self.writer.flush()
                self._flushed = time.perf_counter()
            if stop.requested:
                return

    def _batches(self, usable: list[int], window: _Window) -> Iterator[NDArray[np.int64]]:
        """Row numbers of each batch: items of similar size together, in the order of the rows where sizes are equal."""
        rows = np.array(usable, dtype=np.int64)
        keys = np.array([self.encoder.sort_key(window.loaded[row - window.start]) for row in usable], dtype=np.int64)
        rows = rows[np.argsort(keys, kind="stable")]
        for start in range(0, len(rows), self.plan.batch_size):
            yield rows[start : start + self.plan.batch_size]

    def _encode(self, rows: NDArray[np.int64], mine: NDArray[np.bool_], window: _Window) -> None:
        batch = [window.loaded[row - window.start] for row in rows.tolist()]
        with self.stages.timed("encode"):
            features = self.encoder.encode(batch)  # (len(batch), dim)
        if features.shape != (len(batch), self.encoder.spec.dim):
            raise EncoderError(
                f"{self.encoder.spec.name}: encode returned shape {features.shape} "
                f"(expected {(len(batch), self.encoder.spec.dim)})"
            )
        self.stages.n_truncated += sum(
            self.encoder.truncated(loaded) for loaded, wanted in zip(batch, mine.tolist(), strict=True) if wanted
        )
        self._computed.append((rows[mine], features[mine]))
        self._done(int(mine.sum()))
        bad = rows[mine & ~np.isfinite(features).all(axis=1)]
        self._count_corrupt([(row, "the encoder returned NaN or infinity") for row in bad.tolist()])

    def _write(self) -> None:
        """Hands the vectors of the window so far to the writer, in the order of the rows: one write instead of many.

        The writer takes a row that is not finite as corrupt.
        """
        if not self._computed:
            return
        rows = np.concatenate([rows for rows, _ in self._computed])
        features = np.concatenate([features for _, features in self._computed])
        self._computed.clear()
        order = np.argsort(rows)
        with self.stages.timed("write"):
            self.writer.write(rows[order], features[order])

    def _mark_missing(self, rows: NDArray[np.int64]) -> None:
        rows = rows[self.pending[rows]]
        if len(rows):
            with self.stages.timed("write"):
                self.writer.mark_missing(rows)
            self._done(len(rows))

    def _mark_corrupt(self, corrupt: list[tuple[int, str]]) -> None:
        if not corrupt:
            return
        with self.stages.timed("write"):
            self.writer.mark_corrupt(
                np.array([row for row, _ in corrupt], dtype=np.int64), [message for _, message in corrupt]
            )
        self._done(len(corrupt))
        self._count_corrupt(corrupt)

    def _count_corrupt(self, corrupt: list[tuple[int, str]]) -> None:
        for row, message in corrupt:
            if len(self.errors) < ERRORS_TOLD:
                self.errors.append((self._id(row), message))
            self.progress.detail(f"corrupt: {self._id(row)}: {message}")
        self.n_corrupt += len(corrupt)
        if self.n_corrupt > self.limit:
            first = "; ".join(f"{item}: {message}" for item, message in self.errors)
            raise DataError(
                f"{self.n_corrupt:,} of {self.n_rows:,} items are corrupt (more than --max-failures "
                f"{self.plan.run.max_failures}): {first}. What was computed is kept; raise the limit, or repair the "
                "files and add --retry-failed"
            )

    def _done(self, n: int) -> None:
        self.stages.n_items += n
        self.progress.advance(n, self.stages.bottleneck())

    def _id(self, row: int) -> str:
        return str(self.plan.items.ids[row].as_py())

    def _interrupted(self) -> Interrupted:
        done = self.n_rows - len(self.writer.pending)
        return Interrupted(
            f"interrupted: {done:,} of {self.n_rows:,} items are safe; the same command goes on from there"
        )

    def _refuse_emptiness(self) -> None:
        counts = self.writer.counts()
        if counts[Status.OK]:
            return
        if counts[Status.CORRUPT]:
            item, message = self.errors[0] if self.errors else ("?", "?")
            raise DataError(f"none of the {self.n_rows:,} items could be encoded; the first: {item}: {message}")
        raise DataError(
            f"{self.plan.run.data}: none of the {self.n_rows:,} items has {self.plan.config.modality} content "
            "(looked in the path columns, and for files named after the item ids); see `mmx extract --help`"
        )
