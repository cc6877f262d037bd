"""One encoder on its way through the contents: batches, forward passes, the rows that come of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import FILE_SUFFIXES, FOLDERS
from mmstore import Status
from mmstore.writer import FeatureSetWriter
from mmx.encoders import Encoder
from mmx.encoders.compute import out_of_memory, release_memory
from mmx.errors import ContentError, DataError, EncoderError
from mmx.extraction.executors import LocalExecutor, Turns
from mmx.extraction.plan import Plan
from mmx.extraction.summary import Stages
from mmx.progress import Progress

ERRORS_TOLD = 3

WINDOW_BYTES = 1 << 28
"""Loaded items that are sorted together: so many bytes at most, or a single item."""

Rows = NDArray[np.int64]
Batch = tuple[Rows, NDArray[np.bool_], list[Any]]
"""Rows of a batch, which of them are pending, and their loaded items."""

Vectors = NDArray[np.float32] | list[NDArray[np.float32]]
"""One vector per item, shape (b, dim), or of a ragged set several, shape (k, dim) each."""

Outcome = tuple[list[NDArray[np.float32]], list[tuple[int, str]], float]
"""Vectors of each item of a batch, the positions in it that could not be encoded and why, and the seconds that it took."""


class Lane:
    """One encoder, its feature file, and how far it has come.

    Args:
        plan: What is looked at.
        encoder: Built, fitted if need be.
        writer: The open feature file.
        progress: Who hears about it.
        stages: Where the time of this lane is added up.
    """

    def __init__(
        self,
        plan: Plan,
        encoder: Encoder,
        writer: FeatureSetWriter,
        progress: Progress,
        stages: Stages,
    ) -> None:
        self.plan = plan
        self.encoder = encoder
        self.writer = writer
        self.progress = progress
        self.stages = stages
        self.name = encoder.spec.name
        self.errors: list[tuple[str, str]] = []
        self.n_rows = len(plan.items)
        self.pending = np.zeros(self.n_rows, dtype=np.bool_)
        self.pending[writer.pending] = True
        self.n_pending = int(self.pending.sum())
        self.n_corrupt = writer.counts()[Status.CORRUPT]
        self.n_computed = 0
        self.limit = plan.run.failure_limit(self.n_rows)
        self.stages.batch_size = plan.batch_size
        self._waiting: list[Any] = []
        self._waiting_from = self._waiting_bytes = 0
        self._computed_rows: list[Rows] = []
        self._computed: list[NDArray[np.float32]] = []
        self._executor: LocalExecutor | None = None
        self._turns = Turns()
        self._room = 0
        self._in_flight: deque[tuple[Rows, NDArray[np.bool_], Future[Outcome]]] = deque()

    def attach(self, executor: LocalExecutor, turns: Turns) -> None:
        """Says where forward passes run: in these worker threads, or, of an encoder that forbids it, right here.

        Args:
            executor: The threads.
            turns: Of all passes that share memory with them.
        """
        self._turns = turns
        if self.encoder.concurrent:
            self._executor, self._room = (
                executor,
                executor.workers + 1,
            )  # one waits, so that no worker ever does

    # --------------------------------------------------------------------------------------------
    # batches

    def receive(
        self, start: int, loaded: list[Any], n_bytes: int, *, last: bool
    ) -> Iterator[Batch]:
        """Takes the next loaded items of a window; its batches, when it is complete or too large to wait for more.

        Where a window is cut depends on its items alone, so that it is cut in the same place next
        time.

        Args:
            start: The first item's row.
            loaded: For each row an object, None (missing) or a ContentError.
            n_bytes: Memory that they take.
            last: Whether they complete the window.
        """
        if not self._waiting:
            self._waiting_from = start
        self._waiting += loaded
        self._waiting_bytes += n_bytes
        if last or self._waiting_bytes > WINDOW_BYTES:
            window, self._waiting, self._waiting_bytes = self._waiting, [], 0
            yield from self.batches(self._waiting_from, window)

    def batches(self, start: int, loaded: list[Any]) -> Iterator[Batch]:
        """Batches of a window that have pending rows: their rows, which of these are pending, and the loaded items.

        What is missing or corrupt is recorded first. Items of similar size come together, in the
        order of the rows where sizes are equal.

        Args:
            start: The window's first row.
            loaded: For each of its rows an object, None (missing) or a ContentError.
        """
        usable, missing, corrupt = [], [], []
        for row, item in enumerate(loaded, start):
            if item is None:
                missing.append(row)
            elif isinstance(item, ContentError):
                corrupt.append((row, str(item)))
            else:
                usable.append(row)
        self._mark_missing(np.array(missing, dtype=np.int64))
        self._mark_corrupt([(row, message) for row, message in corrupt if self.pending[row]])
        rows = np.array(usable, dtype=np.int64)
        sort_key = self.encoder.sort_key
        keys = np.fromiter(
            (sort_key(loaded[row - start]) for row in usable), dtype=np.int64, count=len(usable)
        )
        rows = rows[np.argsort(keys, kind="stable")]
        for first in range(0, len(rows), self.plan.batch_size):
            batch = rows[first : first + self.plan.batch_size]
            mine = self.pending[batch]
            if mine.any():
                yield batch, mine, [loaded[row - start] for row in batch.tolist()]

    def encode(self, rows: Rows, mine: NDArray[np.bool_], batch: list[Any]) -> None:
        """Has a batch encoded; its vectors may only be there after `drain`.

        Args:
            rows: Rows of the batch, shape (b,).
            mine: Which of them are wanted; the others only make the batch what it was in an earlier
                run.
            batch: The loaded items.
        """
        truncated = self.encoder.truncated
        self.stages.n_truncated += sum(
            truncated(item) for item, wanted in zip(batch, mine.tolist(), strict=True) if wanted
        )
        if self._executor is None:
            self._take(rows, mine, self._forward(batch))
            return
        self._in_flight.append((rows, mine, self._executor.submit(self._forward, batch)))
        while len(self._in_flight) >= self._room:
            self._collect()

    def drain(self) -> None:
        """Waits for all batches that are being encoded."""
        while self._in_flight:
            self._collect()

    def settle(self) -> None:
        """Keeps what is done or nearly done, whatever happened elsewhere: used when a run ends."""
        while self._in_flight:
            rows, mine, future = self._in_flight.popleft()
            if not future.cancel() and future.exception() is None:
                self._take(rows, mine, future.result())
        self.write()

    def _collect(self) -> None:
        rows, mine, future = self._in_flight.popleft()
        began = time.perf_counter()
        outcome = future.result()
        self.stages.encode_wait_s += time.perf_counter() - began
        self._take(rows, mine, outcome)

    def _forward(self, batch: list[Any]) -> Outcome:
        """Vectors of a batch, in halves when memory runs out; runs in a worker thread where the encoder allows it.

        The halves wait until no other pass is under way: memory that the others had says nothing
        about them.
        """
        began = time.perf_counter()
        features: list[NDArray[np.float32]] = []
        refused: list[tuple[int, str]] = []
        start, alone = 0, False
        while start < len(batch):
            size = min(self.stages.batch_size, len(batch) - start)
            try:
                with self._turns.taken(alone=alone):
                    part = self.encoder.encode(batch[start : start + size])
            except Exception as error:
                if not out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:200]
            else:
                self._check_shape(part, size)
                features += list(part)
                start += size
                continue
            release_memory()
            if size > 1:
                if size <= self.stages.batch_size:  # else another thread has halved it meanwhile
                    self.stages.batch_size = self.encoder.batch_size = size // 2
            elif alone:
                refused.append((start, f"out of memory with this item alone ({reason})"))
                features.append(np.empty(0, dtype=np.float32))
                start += 1
            alone = True
        return features, refused, time.perf_counter() - began

    def _check_shape(self, features: Vectors, n: int) -> None:
        dim = self.encoder.spec.dim
        if self.encoder.ragged:
            shapes = [part.shape for part in features]
            wrong = next(
                (shape for shape in shapes if len(shape) != 2 or shape[0] < 1 or shape[1] != dim),
                None,
            )
            if len(shapes) != n or wrong is not None:
                got = f"{len(shapes)} arrays" if wrong is None else f"an array of shape {wrong}"
                raise EncoderError(
                    f"{self.name}: encode returned {got} (expected {n} of shape (k, {dim}), k >= 1)"
                )
        elif not isinstance(features, np.ndarray) or features.shape != (n, dim):
            got = (
                f"shape {features.shape}"
                if isinstance(features, np.ndarray)
                else type(features).__name__
            )
            raise EncoderError(f"{self.name}: encode returned {got} (expected {(n, dim)})")

    def _take(self, rows: Rows, mine: NDArray[np.bool_], outcome: Outcome) -> None:
        """Takes the vectors of a batch over."""
        features, refused, seconds = outcome
        self.stages.encode_s += seconds
        if self._executor is None:
            self.stages.encode_wait_s += seconds
        self._mark_corrupt(
            [(int(rows[position]), why) for position, why in refused if mine[position]]
        )
        without = {position for position, _ in refused}
        kept = [position for position in np.flatnonzero(mine).tolist() if position not in without]
        vectors = [features[position] for position in kept]
        if not self.encoder.ragged and vectors:
            finite = np.isfinite(np.stack(vectors)).all(axis=1)
        else:
            finite = np.array(
                [bool(np.isfinite(vector).all()) for vector in vectors], dtype=np.bool_
            )
        self._computed_rows.append(rows[kept])
        self._computed += vectors
        self.n_computed += len(kept)
        self._done(len(kept))
        self._count_corrupt(
            [(row, "the encoder returned NaN or infinity") for row in rows[kept][~finite].tolist()]
        )

    # --------------------------------------------------------------------------------------------
    # rows

    def write(self) -> None:
        """Hands the vectors so far to the writer, in the order of the rows: one write instead of many.

        The writer takes a row that is not finite as corrupt.
        """
        if not self._computed:
            return
        rows = np.concatenate(self._computed_rows)
        order = np.argsort(rows)
        vectors = [self._computed[k] for k in order.tolist()]
        self._computed_rows.clear()
        self._computed.clear()
        self.n_computed = 0
        with self.stages.timed("write"):
            if self.encoder.ragged:
                self.writer.write_ragged(rows[order], vectors)
            else:
                self.writer.write(rows[order], np.stack(vectors))

    def flush(self) -> None:
        """Writes, and makes safe what is written."""
        self.write()
        with self.stages.timed("write"):
            self.writer.flush()

    def _mark_missing(self, rows: Rows) -> None:
        rows = rows[self.pending[rows]]
        if len(rows):
            with self.stages.timed("write"):
                self.writer.mark_missing(rows)
            self._done(len(rows))

    def _mark_corrupt(self, corrupt: list[tuple[int, str]]) -> None:
        if not corrupt:
            return
        if self.plan.run.on_error == "fail":
            row, message = corrupt[0]
            raise DataError(
                f"item {self.id_of(row)!r}: {message}; --on-error skip records such items and goes on"
            )
        with self.stages.timed("write"):
            self.writer.mark_corrupt(
                np.array([row for row, _ in corrupt], dtype=np.int64),
                [message for _, message in corrupt],
            )
        self._done(len(corrupt))
        self._count_corrupt(corrupt)

    def _count_corrupt(self, corrupt: list[tuple[int, str]]) -> None:
        for row, message in corrupt:
            if len(self.errors) < ERRORS_TOLD:
                self.errors.append((self.id_of(row), message))
            self.progress.detail(f"corrupt: {self.id_of(row)}: {message}")
        self.n_corrupt += len(corrupt)
        if self.n_corrupt > self.limit:
            first = "; ".join(f"{item}: {message}" for item, message in self.errors)
            raise DataError(
                f"{self.n_corrupt:,} of {self.n_rows:,} items are corrupt (more than "
                "--max-failures "
                f"{self.plan.run.max_failures}): {first}. What was computed is kept; raise the "
                "limit, or repair the "
                "files and add --retry-failed"
            )

    def _done(self, n: int) -> None:
        self.stages.n_items += n
        self.progress.advance(n, self.stages.bottleneck())

    def id_of(self, row: int) -> str:
        """The item's id."""
        return self.plan.items.name_of(row)

    @property
    def empty(self) -> bool:
        """Whether not one item has a vector."""
        return not self.writer.counts()[Status.OK]

    def refuse(self) -> NoReturn:
        """Raises a DataError: not one item has a vector, and why."""
        if self.writer.counts()[Status.CORRUPT]:
            item, message = self.errors[0] if self.errors else ("?", "?")
            raise DataError(
                f"none of the {self.n_rows:,} items could be encoded; the first: {item}: {message}"
            )
        modality, columns = self.plan.config.modality, self.plan.contents.columns
        looked = f"in column {' and '.join(columns)}" if columns else "for a column of paths"
        if modality in FOLDERS:
            name = f"{FOLDERS[modality]}/{self.id_of(0)}{FILE_SUFFIXES[modality][0]}"
            looked += f", and for files such as {name}, by the items' ids"
        raise DataError(
            f"{self.plan.run.data}: none of the {self.n_rows:,} items has {modality} content "
            f"(looked {looked}); "
            "see `mmx extract --help`"
        )
