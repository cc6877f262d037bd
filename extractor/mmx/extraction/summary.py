"""The outcome of an extraction: counts, seconds and the first errors, as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Counts:
    """Rows of a feature set by status."""

    ok: int
    missing: int
    corrupt: int

    @property
    def total(self) -> int:
        """All rows."""
        return self.ok + self.missing + self.corrupt


@dataclass(frozen=True)
class AbsentFiles:
    """Items whose cells name files that are not there.

    Attributes:
        count: Number of items; they are missing, or lack some of several files.
        example: The first one: id, path, and what to do about it.
    """

    count: int = 0
    example: str = ""

    def are_many(self, n_items: int) -> bool:
        """Whether they are more than a few: three, or one in a hundred."""
        return self.count > max(3, n_items // 100)

    def as_text(self) -> str:
        """Return the warning about these items."""
        items = "1 item names a file that is" if self.count == 1 else (
            f"{self.count:,} items name files that are"
        )  # fmt: skip
        return f"{items} not there, such as {self.example}"


@dataclass
class Costs:
    """What loading and encoding took.

    The seconds that end in `busy_s` are those for which a part of the machine would be busy if it
    were alone: the longest of them limits the run.

    Attributes:
        decode_s: CPU seconds of all that load together, threads or processes, for decoding and
            preparing contents.
        decode_wait_s: Seconds for which the encoder waited for them while they did that.
        disk_wait_s: The same while reading blocked them.
        encode_s: CPU seconds of all forward passes together, and of what the encoder does of its
            own when it loads a content. On a GPU the seconds for which it computed.
        encode_wait_s: Seconds for which the calling thread waited for that.
        decode_busy_s: Seconds that loading took, without `disk_busy_s`, by the number of contents
            that are loaded at a time.
        disk_busy_s: Seconds for which reads blocked those that load, by their number.
        device_busy_s: Seconds for which a GPU computed, by CUDA events, by the number of GPUs; on
            a processor the CPU seconds of the passes, by the number that run at a time.
        n_truncated: Items that were longer than what the encoder takes.
        n_bytes: Size of the contents that were read.
        sound_s: Length of the sounds that were read.
        batch_size: Items per forward pass; smaller than planned where memory ran out, 0 if unknown.
    """

    decode_s: float = 0.0
    decode_wait_s: float = 0.0
    disk_wait_s: float = 0.0
    encode_s: float = 0.0
    encode_wait_s: float = 0.0
    decode_busy_s: float = 0.0
    disk_busy_s: float = 0.0
    device_busy_s: float = 0.0
    n_truncated: int = 0
    n_bytes: int = 0
    sound_s: float = 0.0
    batch_size: int = 0

    def add(self, other: Costs) -> None:
        """Add other costs, in place; of two batch sizes the smaller one counts."""
        self.decode_s += other.decode_s
        self.decode_wait_s += other.decode_wait_s
        self.disk_wait_s += other.disk_wait_s
        self.encode_s += other.encode_s
        self.encode_wait_s += other.encode_wait_s
        self.decode_busy_s += other.decode_busy_s
        self.disk_busy_s += other.disk_busy_s
        self.device_busy_s += other.device_busy_s
        self.n_truncated += other.n_truncated
        self.n_bytes += other.n_bytes
        self.sound_s += other.sound_s
        sizes = [size for size in (self.batch_size, other.batch_size) if size]
        self.batch_size = min(sizes, default=0)

    def waited(self, wall_s: float, cpu_s: float, blocked_s: float, own_s: float = 0.0) -> None:
        """Divide a wait for loaded items as the loading thread divided its time.

        Args:
            wall_s: Seconds for which the items were awaited.
            cpu_s: CPU seconds for decoding and preparing.
            blocked_s: Seconds for which reads blocked the thread; a difference, which may be
                negative.
            own_s: CPU seconds of the encoder's own work.
        """
        self.decode_s += cpu_s
        self.encode_s += own_s
        blocked_s = max(0.0, blocked_s)
        whole = cpu_s + blocked_s + own_s
        blocked, own = (blocked_s / whole, own_s / whole) if whole > 0 else (0.0, 0.0)
        self.disk_wait_s += wall_s * blocked
        self.encode_wait_s += wall_s * own
        self.decode_wait_s += wall_s * (1 - blocked - own)


class Rate(NamedTuple):
    """What was measured with one way of loading.

    Attributes:
        how: `threads` or `processes`.
        workers: Contents that were loaded at a time.
        items_per_s: Items that came through.
    """

    how: str
    workers: int
    items_per_s: float


@dataclass(frozen=True)
class LoadingReport:
    """How contents were loaded, and how that was found.

    Attributes:
        how: `threads`, `processes`, or `ray`: by the workers of a cluster.
        workers: Contents that are loaded at a time.
        why: Why it is so, in a few words.
        rates: What was measured, in this order.
        n_replaced: Loading processes, or workers, that ended by themselves and were replaced.
        settled_after_s: Seconds of the loop after which no more was tried, or a worker was ready.
        items_per_s: Items that came through from then on; 0 where it never came to that.
    """

    how: str = "threads"
    workers: int = 0
    why: str = ""
    rates: tuple[Rate, ...] = ()
    n_replaced: int = 0
    settled_after_s: float = 0.0
    items_per_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return it with JSON types only."""
        rates = [
            {"how": how, "workers": workers, "items_per_s": round(rate, 1)}
            for how, workers, rate in self.rates
        ]
        return {
            **asdict(self),
            "rates": rates,
            "settled_after_s": round(self.settled_after_s, 3),
            "items_per_s": round(self.items_per_s, 1),
        }

    def as_text(self) -> str:
        """Return it as one line."""
        rates = ", ".join(
            f"{how} {workers}: {rate:,.0f} items/s" for how, workers, rate in self.rates
        )
        ray = self.how == "ray"
        who = "workers" if ray else "loading processes"
        since = "once the first was ready " if ray else "from then on "
        parts = (
            self.how,
            self.why,
            f"measured: {rates}" if rates else "",
            f"{since}{self.items_per_s:,.0f} items/s" if self.items_per_s else "",
            f"{who} that ended and were replaced: {self.n_replaced}" * (self.n_replaced > 0),
        )
        return "; ".join(filter(None, parts))


@dataclass(frozen=True)
class GraphReport:
    """Forward passes that were replayed as CUDA graphs.

    Attributes:
        passes: All that could have been.
        replayed: Those that were.
        graphs: Captured for that, by all threads.
        why: Why no more are captured; empty if nothing speaks against it.
    """

    passes: int = 0
    replayed: int = 0
    graphs: int = 0
    why: str = ""

    def as_text(self) -> str:
        """Return it as one line."""
        why = f"; {self.why}" if self.why else ""
        return f"{self.replayed:,} of {self.passes:,} passes as {self.graphs} CUDA graphs{why}"


@dataclass
class Stages(Costs):
    """Where the time of a run went, and how much it did.

    Attributes:
        fit_s: Seconds of fitting the encoder.
        write_s: Seconds of writing and flushing.
        loop_s: Seconds from the first item to the last.
        first_s: Seconds of them until the first vectors were there.
        n_items: Items that this run dealt with.
        long_items: What became of items that were too long: `truncated` or `chunked`.
        workers: Concurrent loads; on a processor concurrent forward passes, too.
        device: Where the passes run: `cpu`, `cuda` and so on.
        n_devices: The number of these.
        loading: How contents were loaded, and how that was found.
        graphs: Passes that were replayed as CUDA graphs.
    """

    fit_s: float = 0.0
    write_s: float = 0.0
    loop_s: float = 0.0
    first_s: float = 0.0
    n_items: int = 0
    long_items: str = "truncated"
    workers: int = 0
    device: str = "cpu"
    n_devices: int = 1
    loading: LoadingReport = LoadingReport()
    graphs: GraphReport = GraphReport()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to `<stage>_s`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            key = f"{stage}_s"
            setattr(self, key, getattr(self, key) + time.perf_counter() - began)

    def bottleneck(self) -> str:
        """Return what is busy longest, with its share of the three: `decode (64%)`, say.

        The device is what encodes: the processor itself, or a GPU. The disk is what is read from
        and written to.
        """
        shares = {
            "decode": max(0.0, self.decode_busy_s),
            "device": self.device_busy_s,
            "disk": max(0.0, self.disk_busy_s) + self.write_s,
        }
        total = sum(shares.values())
        if total <= 0:
            return ""
        name = max(shares, key=lambda stage: shares[stage])
        return f"{name} ({shares[name] / total:.0%})"

    @property
    def rate(self) -> float:
        """Items per second of this run."""
        return self.n_items / self.loop_s if self.loop_s > 0 else 0.0


@dataclass(frozen=True)
class Summary:
    """The result of one extraction.

    Attributes:
        already_complete: Whether the set was there before, so that nothing was computed.
        counts: Rows of the set by status.
        stages: What this run did and how long it took.
        elapsed_s: Seconds of everything, from planning to the finished file.
        errors: The first corrupt items: id and reason.
        absent: Items whose cells name files that are not there.
        n_noted: Items whose content this run read although something is wrong with it.
        notes: The first of them: id and remark.
    """

    path: Path
    modality: str
    name: str
    dim: int
    digest: str
    already_complete: bool
    counts: Counts
    stages: Stages
    elapsed_s: float
    errors: tuple[tuple[str, str], ...] = ()
    absent: AbsentFiles = AbsentFiles()
    n_noted: int = 0
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or 3 when an item is corrupt or more than a few name files that are not there.

        Missing content is normal.
        """
        return 3 if self.counts.corrupt or self.absent.are_many(self.counts.total) else 0

    def as_json(self) -> dict[str, Any]:
        """Return the summary with JSON types only."""
        counts, stages = self.counts, self.stages
        seconds = {
            "fit": stages.fit_s,
            "decode_cpu": stages.decode_s,
            "wait_for_decode": stages.decode_wait_s,
            "wait_for_disk": stages.disk_wait_s,
            "encode": stages.encode_s,
            "wait_for_encode": stages.encode_wait_s,
            "decode_busy": stages.decode_busy_s,
            "disk_busy": stages.disk_busy_s,
            "device_busy": stages.device_busy_s,
            "write": stages.write_s,
            "first": stages.first_s,
            "loop": stages.loop_s,
            "total": self.elapsed_s,
        }
        return {
            "path": self.path.as_posix(),
            "modality": self.modality,
            "name": self.name,
            "dim": self.dim,
            "content_digest": self.digest,
            "already_complete": self.already_complete,
            "items": {"total": counts.total, **asdict(counts)},
            "this_run": {
                "items": stages.n_items,
                stages.long_items: stages.n_truncated,
                "bytes_read": stages.n_bytes,
                "seconds_of_sound": round(stages.sound_s, 3),
                "noted": self.n_noted,
                "items_per_s": round(stages.rate, 3),
                "workers": stages.workers,
                "loading": stages.loading.as_json(),
                "devices": stages.n_devices,
                "graphs": asdict(stages.graphs),
                "batch_size": stages.batch_size,
                "bottleneck": stages.bottleneck(),
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
            },
            "absent_files": asdict(self.absent),
            "first_errors": [{"item_id": item, "reason": reason} for item, reason in self.errors],
            "first_notes": [{"item_id": item, "note": note} for item, note in self.notes],
        }

    def __str__(self) -> str:
        return self.as_text()

    def as_text(self) -> str:
        """Return the summary as a few aligned lines."""
        counts, stages = self.counts, self.stages
        rows = [
            ("set", f"{self.modality}/{self.name}, {self.dim} numbers per item"),
            ("items", f"{counts.ok:,} ok, {counts.missing:,} missing, {counts.corrupt:,} corrupt"),
            *([("absent", self.absent.as_text())] if self.absent.count else []),
        ]
        if self.already_complete:
            what = "nothing to do: the set is complete (--restart computes it again)"
            rows.append(("this run", what))
        else:
            unit = "CPU-s" if stages.device == "cpu" else "GPU-s"
            fit = f", fit {stages.fit_s:.1f} s" if stages.fit_s else ""
            sound = f", {stages.sound_s:,.1f} s of sound," if stages.sound_s else ""
            work = (
                f"{stages.n_items:,} items, {stages.n_bytes / 1e6:,.1f} MB{sound} in "
                f"{self.elapsed_s:.1f} s, {stages.rate:,.1f} items/s in the loop; "
                f"{stages.workers} workers, batches of {stages.batch_size}"
            )
            time_s = (
                f"decode {stages.decode_s:.1f} CPU-s, encode {stages.encode_s:.1f} {unit}; "
                f"waited for decode {stages.decode_wait_s:.1f} s, for encode "
                f"{stages.encode_wait_s:.1f} s, for the disk {stages.disk_wait_s:.1f} s, write "
                f"{stages.write_s:.1f} s{fit}; limited by {stages.bottleneck() or 'nothing'}"
            )
            rows += [("this run", work), ("time", time_s)]
            if stages.loading.rates or stages.loading.how != "threads":
                rows.append(("loading", stages.loading.as_text()))
            if stages.graphs.passes:
                rows.append(("graphs", stages.graphs.as_text()))
        if stages.n_truncated:
            what = f"{stages.n_truncated:,} of this run's items were longer than the encoder takes"
            rows.append((stages.long_items, what))
        lines = [f"{label:<10} {value}" for label, value in (*rows, ("digest", self.digest))]
        if self.notes:
            lines.append(f"noted: read although something is wrong ({self.n_noted:,}), first ones:")
            lines += [f"  {item}: {note}" for item, note in self.notes]
        if self.errors:
            lines.append("corrupt, first ones:")
            lines += [f"  {item}: {reason}" for item, reason in self.errors]
        return "\n".join(lines)
