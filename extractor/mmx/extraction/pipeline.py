"""From pending rows to written vectors: load ahead, encode in fixed batches, write, stop when asked to.

Which items share a batch follows from their row numbers and contents alone: rows are cut into
windows of fixed size (and cut short where their items take much memory); within a window the items
that could be loaded are sorted by the encoder's `sort_key` and cut into batches.
A window that was interrupted is formed again as a whole, only batches with pending rows are
encoded, and only those rows are written. So a run that was killed and continued gives the vectors
of one that was not, bit for bit, however many workers there are. (Rows that `--retry-failed` brings
back join their window anew, so that an encoder whose last bits depend on who shares a batch may
differ there from a fresh run.)

Several encoders that look at the same contents go through them together, each in a lane of its own,
so that a file is read and decoded once. Worker threads load and, for encoders that allow it,
encode; the calling thread writes, and the feature files are never open in another thread or
process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.process import StopRequest
from mmbase.progress import Progress
from mmx.encoders.decoding import shared_decoding
from mmx.errors import ContentError, Interrupted
from mmx.extraction.encoder_stream import Lane
from mmx.extraction.executors import LocalExecutor, Turns, busy_and_queued_s
from mmx.extraction.plan import Plan

FLUSH_S = 2.0
"""Vectors are made safe at least this often: a killed run loses no more than that and the batches it was in."""

PASSES_ON_GPU = 2
"""Forward passes under way at once on a GPU: while one computes, the next batch is put together."""

_TASK_ITEMS = 256
_COLLECT_ROWS = (
    4096  # vectors that wait to be written together, where windows are smaller than that
)

Span = tuple[int, int]


HELD_BYTES = 1 << 28
"""Loaded items that wait for the encoder: from so many bytes on, no more are loaded ahead than the workers do at once."""


@dataclass
class _Part:
    """Loaded items of the rows from `start`: for each lane, and each row, an object, None (missing) or a ContentError.

    A lane that has nothing pending in the window has None instead of a list.
    """

    start: int
    loaded: list[list[Any] | None]
    held_bytes: list[int]
    cpu_s: float = 0.0
    blocked_s: float = 0.0
    n_bytes: int = 0


class Loop:
    """From pending rows to written vectors, for all lanes of one plan.

    Args:
        plan: What is looked at.
        lanes: One for each encoder.
        progress: Who hears about it.
    """

    def __init__(self, plan: Plan, lanes: Sequence[Lane], progress: Progress) -> None:
        self.plan = plan
        self.lanes = list(lanes)
        self.progress = progress
        self.n_rows = len(plan.items)
        self._flushed = time.perf_counter()
        self._held = 0
        self._lock = threading.Lock()

    def go(self) -> None:
        """Deals with every pending row.

        Raises:
            DataError: Too many corrupt items, or one where none is accepted, or nothing usable at
                all.
            Interrupted: A signal asked to stop.
        """
        n_done = sum(self.n_rows - lane.n_pending for lane in self.lanes)
        pending = np.logical_or.reduce([lane.pending for lane in self.lanes])
        windows = np.unique(np.flatnonzero(pending) // self.plan.window)
        label = f"{self.plan.config.modality}/{' + '.join(lane.name for lane in self.lanes)}"
        began = time.perf_counter()
        self.progress.start(label, self.n_rows * len(self.lanes), n_done)
        try:
            # A pass on a GPU keeps its thread waiting, which should not be one of those that load.
            passes = LocalExecutor(PASSES_ON_GPU, "mmx-encode")
            with StopRequest() as stop, LocalExecutor(self.plan.run.workers) as executor, passes:
                turns = Turns()
                for lane in self.lanes:
                    lane.stages.workers = executor.workers
                    lane.attach(executor if lane.plan.device == "cpu" else passes, turns)
                try:
                    for part, last in self._parts(executor, windows):
                        self._deal_with(part, stop, last=last)
                        if stop.requested:
                            raise self._interrupted()
                    for lane in self.lanes:
                        lane.drain()
                finally:
                    for lane in self.lanes:
                        lane.settle()
        finally:
            for lane in self.lanes:
                lane.stages.loop_s += time.perf_counter() - began
            self.progress.stop()
        empty = [lane for lane in self.lanes if lane.empty]
        try:
            if empty:
                empty[0].refuse()
        finally:
            # there is nothing to go on with: once contents are there, the same command finds them
            for lane in empty:
                lane.writer.discard()

    def _parts(
        self, executor: LocalExecutor, windows: NDArray[np.int64]
    ) -> Iterator[tuple[_Part, bool]]:
        """The windows' items, loaded, in order and a bounded distance ahead; True with the last ones of a window."""
        size, n_rows = self.plan.window, self.n_rows
        # Sounds can be of any length: they are loaded one by one, so that little is under way at
        # any time.
        step = (
            1
            if self.plan.config.modality == "audio"
            else max(1, min(_TASK_ITEMS, size // (2 * executor.workers)))
        )
        spans = (
            (start, min(start + step, (window + 1) * size, n_rows))
            for window in windows.tolist()
            for start in range(window * size, min((window + 1) * size, n_rows), step)
        )
        # Two windows ahead keep the workers busy while the encoder is at work; more would only cost
        # memory.
        ahead = 2 * -(-size // step) + executor.workers
        parts = executor.map_ahead(
            self._load, spans, ahead=ahead, full=lambda: self._held > HELD_BYTES
        )
        for window in windows.tolist():
            stop = min((window + 1) * size, n_rows)
            for start in range(window * size, stop, step):
                began = time.perf_counter()
                part = next(parts)
                with self._lock:
                    self._held -= sum(part.held_bytes)
                for lane in self.lanes:
                    lane.stages.waited(time.perf_counter() - began, part.cpu_s, part.blocked_s)
                    lane.stages.n_bytes += part.n_bytes
                yield part, start + step >= stop

    def _load(self, span: Span) -> _Part:
        """Loads a few items for all lanes; runs in a worker thread."""
        began, (busy, queued) = time.perf_counter(), busy_and_queued_s()
        contents = self.plan.contents.fetch(*span)
        first = span[0] - span[0] % self.plan.window
        window = slice(first, first + self.plan.window)
        wanted = [lane if lane.pending[window].any() else None for lane in self.lanes]
        part = _Part(span[0], [None if lane is None else [] for lane in wanted], [])
        with shared_decoding(sum(lane is not None for lane in wanted) > 1):
            for content in contents:
                if isinstance(content, str):
                    part.n_bytes += len(content)
                else:
                    for one in content if isinstance(content, tuple) else (content,):
                        part.n_bytes += _size(one) if isinstance(one, Path) else 0
                for lane, loaded in zip(wanted, part.loaded, strict=True):
                    if lane is None or loaded is None:
                        continue
                    if content is None or isinstance(content, ContentError):
                        loaded.append(content)
                        continue
                    try:
                        loaded.append(lane.encoder.load(content))  # type: ignore[arg-type]
                    except ContentError as error:
                        loaded.append(error)
                    except FileNotFoundError:
                        loaded.append(None)  # gone since the folder was listed
                    except OSError as error:
                        loaded.append(ContentError(error.strerror or type(error).__name__))
                    except MemoryError:
                        loaded.append(ContentError("too large for the memory of this machine"))
                    except Exception as error:
                        error.add_note(f"while loading item {lane.id_of(span[0] + len(loaded))!r}")
                        raise
        part.held_bytes = [
            sum(getattr(item, "nbytes", 0) for item in loaded or ()) for loaded in part.loaded
        ]
        with self._lock:
            self._held += sum(part.held_bytes)
        busy_now, queued_now = busy_and_queued_s()
        part.cpu_s = busy_now - busy
        part.blocked_s = max(0.0, time.perf_counter() - began - part.cpu_s - (queued_now - queued))
        return part

    def _deal_with(self, part: _Part, stop: StopRequest, *, last: bool) -> None:
        """Hands loaded items to the lanes; encodes what is pending at the end of a window, and writes now and then."""
        for lane, loaded, held_bytes in zip(self.lanes, part.loaded, part.held_bytes, strict=True):
            if loaded is None:
                continue
            for batch in lane.receive(part.start, loaded, held_bytes, last=last):
                lane.encode(*batch)
                if time.perf_counter() - self._flushed >= FLUSH_S:
                    for each in self.lanes:
                        each.flush()
                    self._flushed = time.perf_counter()
                if stop.requested:
                    return
            if lane.n_computed >= _COLLECT_ROWS:
                lane.write()

    def _interrupted(self) -> Interrupted:
        for lane in self.lanes:
            lane.settle()
        done = sum(self.n_rows - len(lane.writer.pending) for lane in self.lanes)
        total = self.n_rows * len(self.lanes)
        return Interrupted(
            f"interrupted: {done:,} of {total:,} items are safe; the same command goes on from "
            "there"
        )


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - half the time of Path.stat
    except OSError:
        return 0
