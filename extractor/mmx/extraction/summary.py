"""What came out of an extraction: counts, seconds, the first errors; as a table, as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


@dataclass
class Stages:
    """Where the time of a run went, and how much it did.

    Attributes:
        fit_s: Seconds of fitting the encoder.
        decode_s: CPU seconds of all loading threads together.
        decode_wait_s: Seconds for which the calling thread waited for them while they were
            computing.
        disk_wait_s: The same while they were blocked, as by a slow disk.
        encode_s: Seconds of all forward passes together.
        encode_wait_s: Seconds for which the calling thread waited for them.
        write_s: Seconds of writing and flushing.
        loop_s: Seconds from the first item to the last.
        n_items: Items that this run dealt with.
        n_truncated: Those of them that were longer than what the encoder takes.
        long_items: What became of these: `truncated` or `chunked`.
        n_bytes: Size of the contents that were read.
        workers: Threads that loaded, and encoded where the encoder allows it.
        batch_size: Items per forward pass; smaller than planned where memory ran out.
    """

    fit_s: float = 0.0
    decode_s: float = 0.0
    decode_wait_s: float = 0.0
    disk_wait_s: float = 0.0
    encode_s: float = 0.0
    encode_wait_s: float = 0.0
    write_s: float = 0.0
    loop_s: float = 0.0
    n_items: int = 0
    n_truncated: int = 0
    long_items: str = "truncated"
    n_bytes: int = 0
    workers: int = 0
    batch_size: int = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the wall time of the block to `<stage>_s`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            key = f"{stage}_s"
            setattr(self, key, getattr(self, key) + time.perf_counter() - began)

    def waited(self, wall_s: float, cpu_s: float, blocked_s: float) -> None:
        """Divides a wait for loaded items between decoding and disk, as the loading threads' own time was divided."""
        blocked = blocked_s / (cpu_s + blocked_s) if blocked_s > 0 else 0.0
        self.decode_s += cpu_s
        self.disk_wait_s += wall_s * blocked
        self.decode_wait_s += wall_s * (1 - blocked)

    def bottleneck(self) -> str:
        """What the calling thread waited for most, with its share: `decode (64%)`, `device`, `disk`."""
        shares = {
            "decode": self.decode_wait_s,
            "device": self.encode_wait_s,
            "disk": self.disk_wait_s + self.write_s,
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
        path: The feature set's file.
        modality: Its modality.
        name: Its name.
        dim: Length of a vector.
        digest: Its content digest.
        already_complete: Whether it was there before, so that nothing was computed.
        counts: Its rows by status.
        stages: What this run did and how long it took.
        elapsed_s: Seconds of everything, from planning to the finished file.
        errors: The first corrupt items: id and reason.
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

    @property
    def exit_code(self) -> int:
        """0, or 3 when an item is corrupt. Missing content is normal."""
        return 3 if self.counts.corrupt else 0

    def as_json(self) -> dict[str, Any]:
        """The summary with JSON types only."""
        return {
            "path": self.path.as_posix(),
            "modality": self.modality,
            "name": self.name,
            "dim": self.dim,
            "content_digest": self.digest,
            "already_complete": self.already_complete,
            "items": {
                "total": self.counts.total,
                "ok": self.counts.ok,
                "missing": self.counts.missing,
                "corrupt": self.counts.corrupt,
            },
            "this_run": {
                "items": self.stages.n_items,
                self.stages.long_items: self.stages.n_truncated,
                "bytes_read": self.stages.n_bytes,
                "items_per_s": round(self.stages.rate, 3),
                "workers": self.stages.workers,
                "batch_size": self.stages.batch_size,
                "bottleneck": self.stages.bottleneck(),
                "seconds": {
                    "fit": round(self.stages.fit_s, 3),
                    "decode_cpu": round(self.stages.decode_s, 3),
                    "wait_for_decode": round(self.stages.decode_wait_s, 3),
                    "wait_for_disk": round(self.stages.disk_wait_s, 3),
                    "encode": round(self.stages.encode_s, 3),
                    "wait_for_encode": round(self.stages.encode_wait_s, 3),
                    "write": round(self.stages.write_s, 3),
                    "total": round(self.elapsed_s, 3),
                },
            },
            "first_errors": [{"item_id": item, "reason": reason} for item, reason in self.errors],
        }

    def as_text(self) -> str:
        """The summary as a few aligned lines."""
        counts, stages = self.counts, self.stages
        rows = [
            ("set", f"{self.modality}/{self.name}, {self.dim} numbers per item"),
            ("items", f"{counts.ok:,} ok, {counts.missing:,} missing, {counts.corrupt:,} corrupt"),
        ]
        if self.already_complete:
            rows.append(
                ("this run", "nothing to do: the set is complete (--restart computes it again)")
            )
        else:
            fit = f", fit {stages.fit_s:.1f} s" if stages.fit_s else ""
            rows += [
                (
                    "this run",
                    f"{stages.n_items:,} items, {stages.n_bytes / 1e6:,.1f} MB in "
                    f"{self.elapsed_s:.1f} s, "
                    f"{stages.rate:,.1f} items/s in the loop; {stages.workers} workers, batches of "
                    f"{stages.batch_size}",
                ),
                (
                    "time",
                    f"decode {stages.decode_s:.1f} CPU-s, encode {stages.encode_s:.1f} s, write "
                    f"{stages.write_s:.1f} s{fit}; "
                    f"waited for decode {stages.decode_wait_s:.1f} s, for encode "
                    f"{stages.encode_wait_s:.1f} s, for the disk "
                    f"{stages.disk_wait_s:.1f} s; limited by {stages.bottleneck() or 'nothing'}",
                ),
            ]
        if stages.n_truncated:
            rows.append(
                (
                    stages.long_items,
                    f"{stages.n_truncated:,} of this run's items were longer than the encoder "
                    "takes",
                )
            )
        rows.append(("digest", self.digest))
        lines = [f"{label:<10} {value}" for label, value in rows]
        if self.errors:
            lines.append("corrupt, first ones:")
            lines += [f"  {item}: {reason}" for item, reason in self.errors]
        return "\n".join(lines)
