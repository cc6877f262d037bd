"""The pure steps from rows to vectors: load a window, sort it into batches, encode them.

Rows are cut into windows of fixed size, and windows into segments where items take much memory.
Within a segment the items that could be loaded are sorted by the encoder's `sort_key` and cut into
batches. So which items share a batch follows from row numbers and contents alone: a window that was
interrupted is formed again as a whole, its batches with wanted rows are encoded, and only the
wanted rows are returned. A run that was killed and continued gives the vectors of one that was not,
bit for bit, on any executor. (Rows that `--retry-failed` brings back join their window anew, so
that an encoder whose last bits depend on who shares a batch may differ there from a fresh run.)

`encode_window` does all of it; an executor may spread the steps over threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmbase.process import out_of_memory
from mmx.catalogue.contents import Content, File
from mmx.catalogue.paths import Absent
from mmx.encoders import Encoder
from mmx.encoders.base import own_work_s
from mmx.encoders.decoding import alone, bounded, observed, on_background, shared_decoding, waited_s
from mmx.errors import ContentError, DataError
from mmx.extraction.passes import (
    NOT_AN_ITEMS_FAULT,
    Batch,
    Loaded,
    Rows,
    WindowResult,
    encode_batch,
    unforeseen,
)
from mmx.extraction.plan import Plan
from mmx.extraction.summary import Costs

WINDOW_BYTES = 1 << 28
"""A segment ends with the item by which its loaded items exceed this size."""

_SPAN_ROWS = 256  # rows that are loaded at once, at most


class Task(NamedTuple):
    """An encoder, built and fitted, and the plan that it follows."""

    plan: Plan
    encoder: Encoder


class Span(NamedTuple):
    """Rows `start` to `stop` (exclusive) of a window, which are loaded at once."""

    start: int
    stop: int
    wanted: Sequence[Rows]  # for each task the wanted rows of the whole window, ascending
    last: bool  # whether the window ends here


class LoadedSpan(NamedTuple):
    """The loaded rows of a span, and what loading them took."""

    span: Span
    items: list[list[Loaded] | None]  # for each task; None where it wants no row of the window
    held_bytes: list[int]  # memory of the items, for each task
    n_bytes: int  # size of the contents
    cpu_s: float  # for which the thread computed
    blocked_s: float  # for which it was blocked, usually by a disk
    sound_s: float = 0.0  # seconds of sound that were read
    noted: Sequence[tuple[int, str]] = ()  # rows whose content was read with a remark
    own_s: Sequence[float] = ()  # of cpu_s, what the encoder of each task did of its own

    def result(self, task: int, waited_s: float) -> WindowResult:
        """Return the costs to an encoder that waited for these rows, with its notes and counts."""
        costs = Costs(n_bytes=self.n_bytes, sound_s=self.sound_s)
        decode_s = self.cpu_s - sum(self.own_s)
        costs.waited(waited_s, decode_s, self.blocked_s, self.own_s[task] if self.own_s else 0.0)
        mine = set(self.span.wanted[task].tolist()) if self.noted else set()
        noted = [(row, note) for row, note in self.noted if row in mine]
        return WindowResult(noted=noted, costs=costs)


def encode_window(plan: Plan, encoder: Encoder, rows: Rows) -> WindowResult:
    """Return the vectors of wanted rows of one window.

    Args:
        plan: Contents, and the sizes of windows and batches.
        encoder: Built, and fitted if need be.
        rows: The wanted rows, all of one window, at least one, ascending.

    Raises:
        EncoderError: The encoder returned arrays of another shape than its description says.
    """
    task, segments, whole = Task(plan, encoder), Segments(), WindowResult()
    for span in spans(plan, [rows], workers=1):
        part = load([task], span)
        whole.add(part.result(0, waited_s=part.cpu_s + part.blocked_s))
        for start, items in segments.take(part, 0):
            unusable, batches = batches_of(task, start, items, rows)
            whole.add(unusable)
            for batch in batches:
                whole.add(encode_batch(encoder, batch))
    return whole


# ------------------------------------------------------------------------------------------------
# load


def spans(plan: Plan, wanted: Sequence[Rows], workers: int) -> Iterator[Span]:
    """Cut the window of the wanted rows of each task into spans for some workers."""
    some = next(int(rows[0]) for rows in wanted if len(rows))
    first = some - some % plan.window
    end = min(first + plan.window, len(plan.items))
    size = span_rows(plan, workers)
    for start in range(first, end, size):
        yield Span(start, min(start + size, end), wanted, last=start + size >= end)


def span_rows(plan: Plan, workers: int) -> int:
    """Return the rows per span; one sound, which can be long, so that few are held at any time."""
    if plan.config.modality == "audio":
        return 1
    return max(1, min(_SPAN_ROWS, plan.window // (2 * workers)))


def load(tasks: Sequence[Task], span: Span) -> LoadedSpan:
    """Load the rows of a span for tasks that share contents; safe to call from any thread.

    Raises:
        DataError: There is not enough memory for one of the contents alone.
    """
    began, (busy, queued) = time.perf_counter() - waited_s(), busy_and_queued_s()
    plan, n_bytes, sound_s = tasks[0].plan, 0, 0.0
    items: list[list[Loaded] | None] = [[] if len(rows) else None for rows in span.wanted]
    takers = [
        (place, task.encoder, loaded)
        for place, (task, loaded) in enumerate(zip(tasks, items, strict=True))
        if loaded is not None
    ]
    own_s = [0.0] * len(tasks)
    noted: list[tuple[int, str]] = []
    contents = plan.contents.fetch(span.start, span.stop)
    if plan.config.modality == "textual" and all(_takes_many(one) for _, one, _ in takers):
        for place, encoder, loaded in takers:
            own_s[place] -= own_work_s()
            loaded += _load_many(encoder, contents)
            own_s[place] += own_work_s()
            if _SHORT in loaded:
                raise _out_of_memory(plan, span.start + loaded.index(_SHORT))
        n_bytes, takers = sum(map(_size, contents)), []
    for row, content in enumerate(contents if takers else (), span.start):
        n_bytes += _size(content)
        with shared_decoding(len(takers) > 1), bounded(), on_background(plan.config.background):
            for place, encoder, loaded in takers:
                own_s[place] -= own_work_s()
                with observed() as seen:
                    loaded.append(_load_one(encoder, content))
                own_s[place] += own_work_s()
            if loaded[-1] is _SHORT:
                raise _out_of_memory(plan, row)
        sound_s += seen.sound_s
        noted += [(row, note) for note in seen.notes]
    held = [sum(getattr(item, "nbytes", 0) for item in loaded or ()) for loaded in items]
    busy_now, queued_now = busy_and_queued_s()
    cpu_s = busy_now - busy
    taken_s = (
        time.perf_counter() - waited_s() - began
    )  # waiting for others' decoding is not disk time
    blocked_s = max(0.0, taken_s - cpu_s - (queued_now - queued))
    return LoadedSpan(span, items, held, n_bytes, cpu_s, blocked_s, sound_s, noted, own_s)


_SHORT = object()
"""Marks an item whose loading ran out of memory. (An exception would keep its tensors alive.)"""


def _out_of_memory(plan: Plan, row: int) -> DataError:
    return DataError(
        f"item {plan.items.name_of(row)!r}: not enough memory to read it, even alone. "
        "What was computed is kept; free some memory, or take the item out, and give "
        "the same command again"
    )


def _takes_many(encoder: Encoder) -> bool:
    """Whether an encoder has a way of its own to load many contents."""
    return getattr(type(encoder), "load_many", Encoder.load_many) is not Encoder.load_many


def _load_many(encoder: Encoder, contents: Sequence[Content]) -> list[Loaded]:
    """Load contents in one call; one by one where that fails, to find out which is at fault."""
    usable = [k for k, one in enumerate(contents) if isinstance(one, str | Path)]
    loaded: list[Loaded] = [one if isinstance(one, ContentError) else None for one in contents]
    try:
        many = encoder.load_many([contents[k] for k in usable])  # type: ignore[misc]
    except Exception:  # noqa: BLE001 - raised again by the item that causes it
        many = [_load_one(encoder, contents[k]) for k in usable]
    for k, one in zip(usable, many, strict=True):
        loaded[k] = one
    return loaded


def _load_one(encoder: Encoder, content: Content) -> Loaded:
    """Load a content; if memory runs out, again while no other thread decodes."""
    if content is None or isinstance(content, ContentError):
        return content
    if isinstance(content, Absent):
        return None
    loaded = _tried(encoder, content)
    if loaded is _SHORT:
        with alone():
            loaded = _tried(encoder, content)
    return loaded


def _tried(encoder: Encoder, content: Path | str | tuple[File, ...]) -> Loaded:
    try:
        return encoder.load(content)  # type: ignore[arg-type]
    except ContentError as error:
        return error
    except FileNotFoundError:
        return None  # gone since the folder was listed
    except OSError as error:
        return ContentError(error.strerror or type(error).__name__)
    except NOT_AN_ITEMS_FAULT:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, others can be loaded
        return _SHORT if out_of_memory(error) else ContentError(unforeseen(error))


def _size(content: Content) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, tuple):
        return sum(map(_size, content))
    try:
        # os.stat takes half the time of Path.stat.
        return os.stat(content).st_size if isinstance(content, Path) else 0  # noqa: PTH116
    except OSError:
        return 0


def busy_and_queued_s() -> tuple[float, float]:
    """Return the seconds for which this thread has computed, and waited for a processor.

    For what is left of the wall time it was blocked, usually by a disk. The second figure is 0
    where the system keeps none.
    """
    try:
        with open("/proc/thread-self/schedstat", "rb") as stream:  # noqa: PTH123 - faster than Path
            busy, queued, _ = stream.read().split()
    except (OSError, ValueError):
        return time.thread_time(), 0.0
    return int(busy) / 1e9, int(queued) / 1e9


# ------------------------------------------------------------------------------------------------
# sort into batches


@dataclass
class Segments:
    """Cuts the loaded rows of one task into segments, in the same places in every run."""

    _start: int = 0
    _items: list[Loaded] = field(default_factory=list)
    _held_bytes: int = 0

    def take(self, part: LoadedSpan, task: int) -> Iterator[tuple[int, list[Loaded]]]:
        """Add the next rows; yield the first row and the items of each complete segment."""
        items, held_bytes = part.items[task] or [], part.held_bytes[task]
        if not self._items:
            self._start = part.span.start
        if self._held_bytes + held_bytes <= WINDOW_BYTES:
            self._items += items
            self._held_bytes += held_bytes
        else:  # a segment ends at one of these rows
            for row, item in enumerate(items, part.span.start):
                self._items.append(item)
                self._held_bytes += getattr(item, "nbytes", 0)
                if self._held_bytes > WINDOW_BYTES:
                    yield self._start, self._items
                    self._start, self._items, self._held_bytes = row + 1, [], 0
        if part.span.last and self._items:
            yield self._start, self._items
            self._items, self._held_bytes = [], 0


def batches_of(
    task: Task, start: int, items: list[Loaded], wanted: Rows
) -> tuple[WindowResult, list[Batch]]:
    """Sort the segment from row `start` into batches, of which those with wanted rows are kept.

    Items of similar size come together, in the order of the rows where sizes are equal. Wanted rows
    that are missing or corrupt are returned first.
    """
    encoder, size = task.encoder, task.plan.batch_size
    is_wanted = np.zeros(len(items), dtype=np.bool_)
    is_wanted[wanted[(wanted >= start) & (wanted < start + len(items))] - start] = True
    usable, unusable = [], WindowResult()
    for place, item in enumerate(items):
        if item is not None and not isinstance(item, ContentError):
            usable.append(place)
        elif is_wanted[place] and item is None:
            unusable.missing.append(start + place)
        elif is_wanted[place]:
            unusable.corrupt.append((start + place, str(item)))
    keys = np.fromiter((encoder.sort_key(items[place]) for place in usable), np.int64, len(usable))
    order = np.array(usable, dtype=np.int64)[np.argsort(keys, kind="stable")]
    batches = [
        Batch(start + places, is_wanted[places], [items[place] for place in places.tolist()])
        for places in (order[first : first + size] for first in range(0, len(order), size))
        if is_wanted[places].any()
    ]
    return unusable, batches
