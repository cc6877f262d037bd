"""One feature set from raw contents: plan, fit, load and encode, write.

Which items share a batch follows from their row numbers and contents alone: rows are cut into windows of fixed
size; within a window the items that could be loaded are sorted by the encoder's `sort_key` and cut into batches.
A window that was interrupted is formed again as a whole, and only its pending rows are written. So a run that was
killed and continued gives the vectors of one that was not, bit for bit, however many workers load.

The calling thread encodes and writes; the feature file is never open in another thread or process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mmx
from mmstore import FeatureSet, FeatureSetWriter, Status
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, create, describe
from mmx.errors import ContentError, DataError, EncoderError, Interrupted
from mmx.executors.local import LocalExecutor, resolve_device
from mmx.items import Contents, Items, file_contents, load_items, text_contents
from mmx.progress import Progress, SilentProgress
from mmx.signals import StopRequest
from mmx.summary import Counts, Stages, Summary

BATCH_SIZES = {"visual": 32, "textual": 32, "audio": 8}
"""Items per forward pass when none is asked for. Recorded in the provenance."""

WINDOW_BATCHES = {"visual": 1, "textual": 64, "audio": 8}
"""Batches per window, within which items are sorted by length. Pictures are all of one size."""

FLUSH_S = 2.0
"""Work is made safe at least this often: a killed run loses no more than that and the window it was in."""

ERRORS_SHOWN = 5
_TASK_ITEMS = 256
_FIT_BLOCK = 4096

Span = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What is looked at, settled before the encoder is built.

    Attributes:
        run: How to go about it.
        config: Encoder and input.
        items: The dataset's items, in the order of the rows.
        contents: What they have in this modality.
        batch_size: Items per forward pass.
        device: Where the encoder runs: `cpu`, `cuda`, `cuda:1`, `mps`.
    """

    run: RunConfig
    config: SetConfig
    items: Items
    contents: Contents
    batch_size: int
    device: str

    @property
    def window(self) -> int:
        """Rows per window."""
        return self.batch_size * WINDOW_BATCHES[self.config.modality]

    def provenance(self, encoder: Encoder) -> dict[str, Any]:
        """Encoder, input and circumstances that the vectors depend on. No path, host or user."""
        table = self.items.table
        return {
            **encoder.spec.provenance(),
            "input": {
                "table": table.path.name if table is not None else None,
                "columns": list(self.contents.columns),
                "joined_by": " " if len(self.contents.columns) > 1 else None,
                "digest": self.contents.digest(),
            },
            "batch_size": self.batch_size,
            "window": self.window,
            "device": encoder.device.partition(":")[0],
            "seed": self.run.seed,
            "tool": {"name": "mmx", "version": mmx.__version__},
        }


def make_plan(run: RunConfig, config: SetConfig, progress: Progress) -> Plan:
    """Reads the items and finds their contents.

    Raises:
        DataError: No dataset, a table that cannot be used, or no content of this modality at all.
        UsageError: A column or file that was named and does not exist.
    """
    items = load_items(run.data, items_file=run.items_file, id_column=run.id_column, limit=run.limit)
    contents: Contents
    if config.modality == "textual":
        contents = text_contents(items, config.text_columns)
    else:
        contents = file_contents(items, config.modality, config.path_column)
    for note in (*items.notes, *contents.notes):
        progress.note(note)
    return Plan(
        run=run,
        config=config,
        items=items,
        contents=contents,
        batch_size=config.batch_size or BATCH_SIZES[config.modality],
        device=_device(run, config),
    )


def _device(run: RunConfig, config: SetConfig) -> str:
    """The device to build the encoder on; torch is not even imported for an encoder that has no weights."""
    light = {info.name for info in describe(config.modality) if info.weights == "none needed"}
    return "cpu" if config.model in light else resolve_device(run.device)


def extract(
    run: RunConfig,
    config: SetConfig,
    *,
    progress: Progress | None = None,
    build: Callable[..., Encoder] = create,
) -> Summary:
    """Makes one feature set, or goes on with it, or finds it complete.

    Args:
        run: Dataset, store and how to go about it.
        config: Encoder and input.
        progress: Who hears about it.
        build: Builds the encoder; `mmx.encoders.create` unless a program brings its own.

    Raises:
        MmxError: The set could not be made. What was computed is kept, and the same call goes on from there.
        mmstore.StoreError: The file could not be written, or one of another plan is in the way.
        Interrupted: SIGINT or SIGTERM; what was computed is kept.
    """
    progress = progress or SilentProgress()
    began = time.perf_counter()
    plan = make_plan(run, config, progress)
    encoder = build(
        config.model,
        modality=config.modality,
        layer=config.layer,
        pooling=config.pooling,
        weights=config.weights,
        device=plan.device,
        precision=config.precision,
        offline=run.offline,
        seed=run.seed,
    )
    encoder.batch_size = plan.batch_size
    stages = Stages()
    if encoder.needs_fit:
        with stages.timed("fit"):
            encoder.fit(_all_contents(plan))
    name = config.name or encoder.spec.name + (f"-first{run.limit}" if run.limit else "")
    path = run.store / config.modality / f"{name}.h5"
    progress.detail(f"{path}: {len(plan.items):,} items, {encoder.spec.dim} numbers each, batches of {plan.batch_size}")
    with _open_writer(path, name, plan, encoder) as writer:
        already = writer.finished
        if not already:
            _Loop(plan, encoder, writer, progress, stages).go()
            with stages.timed("write"):
                writer.finish()
    if already:
        _say_what_changed(path, plan, progress)
    counts = writer.counts()
    return Summary(
        path=path,
        modality=config.modality,
        name=name,
        dim=encoder.spec.dim,
        digest=writer.header.content_digest,
        already_complete=already,
        counts=Counts(counts[Status.OK], counts[Status.MISSING], counts[Status.CORRUPT]),
        stages=stages,
        elapsed_s=time.perf_counter() - began,
        errors=_first_errors(path, plan.items),
    )


def _first_errors(path: Path, items: Items) -> tuple[tuple[str, str], ...]:
    """The first corrupt items of a finished set: id and reason."""
    with FeatureSet(path) as features:
        return tuple((items.ids[row].as_py(), message) for row, message in features.errors()[:ERRORS_SHOWN])


def _say_what_changed(path: Path, plan: Plan, progress: Progress) -> None:
    """Notes files that are newer than a complete set, and contents that have appeared since: it may be out of date.

    Texts need no look, because their digest is part of the plan.
    """
    if plan.config.modality == "textual":
        return
    finished_s = path.stat().st_mtime
    with FeatureSet(path) as features:
        missing = features.status == Status.MISSING
    newer = appeared = 0
    for start in range(0, len(plan.items), _FIT_BLOCK):
        stop = min(start + _FIT_BLOCK, len(plan.items))
        for row, content in enumerate(plan.contents.fetch(start, stop), start):
            if isinstance(content, Path):
                appeared += int(missing[row])
                newer += not missing[row] and content.stat().st_mtime > finished_s
    if newer or appeared:
        progress.warn(
            f"{path}: complete, but {newer:,} files are newer than the set and {appeared:,} items that had no file "
            "have one now; --restart computes it again"
        )


def _all_contents(plan: Plan) -> Iterator[str | Path]:
    """Every usable content in the order of the rows, for an encoder that learns from the corpus."""
    for start in range(0, len(plan.items), _FIT_BLOCK):
        for content in plan.contents.fetch(start, min(start + _FIT_BLOCK, len(plan.items))):
            if isinstance(content, str | Path):
                yield content


def _open_writer(path: Path, name: str, plan: Plan, encoder: Encoder) -> FeatureSetWriter:
    return FeatureSetWriter(
        path,
        modality=plan.config.modality,
        name=name,
        dim=encoder.spec.dim,
        ids=plan.items.id_array(),
        dtype=plan.config.store_dtype,
        provenance=plan.provenance(encoder),
        restart=plan.run.restart,
        retry_failed=plan.run.retry_failed,
    )


@dataclass(frozen=True)
class _Window:
    """Loaded items of rows `start` to `start + len(loaded)`: an object, None (missing) or a ContentError each."""

    start: int
    loaded: list[Any]
    cpu_s: float


class _Loop:
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

    def go(self) -> None:
        """Deals with every pending row.

        Raises:
            DataError: Too many corrupt items, or one where none is accepted, or nothing usable at all.
            Interrupted: A signal asked to stop.
        """
        n_pending = int(self.pending.sum())
        windows = np.unique(np.flatnonzero(self.pending) // self.plan.window)
        label = f"{self.plan.config.modality}/{self.encoder.spec.name}"
        began = flushed = time.perf_counter()
        self.progress.start(label, self.n_rows, self.n_rows - n_pending)
        try:
            with StopRequest() as stop, LocalExecutor(self.plan.run.workers) as executor:
                for window in self._windows(executor, windows):
                    self._deal_with(window, stop)
                    if (now := time.perf_counter()) - flushed >= FLUSH_S:
                        with self.stages.timed("write"):
                            self.writer.flush()
                        flushed = now
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
            if stop.requested:
                raise self._interrupted()

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
        with self.stages.timed("write"):
            self.writer.write(rows[mine], features[mine])  # which takes a row that is not finite as corrupt
        self._done(int(mine.sum()))
        bad = rows[mine & ~np.isfinite(features).all(axis=1)]
        self._count_corrupt([(row, "the encoder returned NaN or infinity") for row in bad.tolist()])

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
            if len(self.errors) < ERRORS_SHOWN:
                self.errors.append((self._id(row), message))
            self.progress.detail(f"corrupt: {self._id(row)}: {message}")
        self.n_corrupt += len(corrupt)
        if self.n_corrupt > self.limit:
            first = "; ".join(f"{item}: {message}" for item, message in self.errors[:3])
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
