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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from mmbase.catalogue.files import Content
from mmbase.process import available_cpus
from mmx.encoders import Encoder
from mmx.errors import ContentError, DataError
from mmx.extraction.loading import Reading, load_here, read
from mmx.extraction.passes import Batch, Loaded, Rows, WindowResult, encode_batch, is_on_cpu
from mmx.extraction.plan import Plan
from mmx.extraction.summary import Costs

WINDOW_BYTES = 1 << 28
"""A segment ends with the item by which its loaded items exceed this size."""

_SPAN_ROWS = 256  # rows that are loaded at once, at most
_SPAN_ROWS_FOR_GPU = 32  # and at least: to hand a span over costs the interpreter 0.5 ms
_SPAN_FILES = 128  # at least, of files that are only read


ReadElsewhere: TypeAlias = Callable[[Sequence[bool], Sequence[Content]], Reading]
"""Loads contents in another process, for those encoders that take them."""


class Task(NamedTuple):
    """An encoder, built and fitted, and the plan that it follows.

    Attributes:
        plan: Contents, and the sizes of windows and batches.
        encoder: Loads, and encodes on the first device.
        others: The same encoder on the other devices. Windows go around: the k-th of the items is
            encoded on device k modulo their number, whatever another run had left to do.
        path: The set's file, for executors that keep something beside it.
    """

    plan: Plan
    encoder: Encoder
    others: tuple[Encoder, ...] = ()
    path: Path = Path()

    def encoder_of(self, row: int) -> Encoder:
        """Return the encoder on the device that the window of a row belongs to."""
        encoders = (self.encoder, *self.others)
        return encoders[row // self.plan.window % len(encoders)]


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
    cpu_s: float  # for which the thread, or the process, computed
    blocked_s: float  # for which reads blocked it
    sound_s: float = 0.0  # seconds of sound that were read
    noted: Sequence[tuple[int, str]] = ()  # rows whose content was read with a remark
    own_s: Sequence[float] = ()  # of cpu_s, what the encoder of each task did of its own
    wall_s: float = 0.0  # from the first content to the last

    def result(
        self, task: int, waited_s: float, loaders: int = 1, *, on_cpu: bool = True
    ) -> WindowResult:
        """Return the costs to an encoder that waited for these rows, with its notes and counts.

        Args:
            task: The place of the encoder.
            waited_s: Seconds for which the rows were awaited.
            loaders: How many load at a time.
            on_cpu: Whether the encoder computes on the processors that load. There the seconds in
                which loaders compute count. Elsewhere it is all their time: a loader that waits
                for the interpreter lock doesn't load either.
        """
        costs = Costs(n_bytes=self.n_bytes, sound_s=self.sound_s)
        own_s = self.own_s[task] if self.own_s else 0.0
        decode_s = self.cpu_s - sum(self.own_s)
        costs.waited(waited_s, decode_s, self.blocked_s, own_s)
        processors = min(loaders, available_cpus())
        if on_cpu:
            costs.decode_busy_s = decode_s / processors
        else:
            costs.decode_busy_s = (self.wall_s - self.blocked_s - sum(self.own_s)) / loaders
        costs.device_busy_s = own_s / processors
        costs.disk_busy_s = self.blocked_s / loaders
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
        whole.add(part.result(0, waited_s=part.cpu_s + part.blocked_s, on_cpu=is_on_cpu(encoder)))
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
    fewest = _SPAN_FILES if plan.config.decoder == "nvjpeg" else _SPAN_ROWS_FOR_GPU
    fewest = 1 if plan.device == "cpu" else min(fewest, plan.window)
    return max(fewest, min(_SPAN_ROWS, plan.window // (2 * workers)))


def load(tasks: Sequence[Task], span: Span, elsewhere: ReadElsewhere | None = None) -> LoadedSpan:
    """Load the rows of a span for tasks that share contents; safe to call from any thread.

    Args:
        tasks: Encoders and plans.
        span: The rows.
        elsewhere: Loads contents in another process; what that leaves is loaded in this thread.

    Raises:
        DataError: There is not enough memory for one of the contents alone.
    """
    plan = tasks[0].plan
    contents = plan.contents.fetch(span.start, span.stop)
    encoders = [
        task.encoder if len(rows) else None
        for task, rows in zip(tasks, span.wanted, strict=True)
    ]  # fmt: skip
    background = plan.config.background
    if elsewhere is None:
        found = read(encoders, contents, background, load_here)
    else:
        found = elsewhere([encoder is not None for encoder in encoders], contents)
        if left := found.left:
            found.replace(left, read(encoders, [contents[k] for k in left], background, load_here))
    if found.left:
        raise DataError(
            f"item {plan.items.name_of(span.start + found.left[0])!r}: not enough memory to read "
            "it, even alone. What was computed is kept; free some memory, or take the item out, "
            "and give the same command again"
        )
    held = [sum(getattr(item, "nbytes", 0) for item in loaded or ()) for loaded in found.items]
    noted = [(span.start + place, note) for place, note in found.noted]
    return LoadedSpan(
        span, found.items, held, found.n_bytes, found.cpu_s, found.read_s, found.sound_s, noted,
        found.own_s, found.wall_s,
    )  # fmt: skip


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
