"""A catalogue that has grown: rows of a finished set are taken over, and only new ones computed.

The new items are extracted as a set of their own (a shard, in a hidden folder beside the finished
set), and both are then joined into the set that a single run would have made. What is taken over
must be what would be computed: encoder, settings and versions are the same to the letter, and the
cells that texts and paths of the known items are taken from have not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase import gemm
from mmbase.layout import counted
from mmbase.progress import Progress
from mmstore import ProvenanceMismatch, Status
from mmstore.arguments import id_columns
from mmstore.copying import copy_rows, keys_of, rows_of
from mmstore.ids import IdIndex, pair_keys
from mmstore.partial import plan_differences
from mmstore.reader import FeatureSet
from mmstore.writer import FeatureSetWriter
from mmx.encoders import Encoder
from mmx.encoders.compute import other_linear_kernel
from mmx.errors import UsageError
from mmx.extraction.plan import Plan

GROWS = frozenset({"rows", "provenance.input.digest"})
"""What differs between the plans of a catalogue and of one that has grown."""
LINEAR = "provenance.linear"
FOLDER = ".new-items"

Rows = NDArray[np.int64]
Opened = Callable[..., FeatureSetWriter]


@dataclass(frozen=True)
class Extension:
    """A finished set of some of a plan's items, and what has to be computed.

    Attributes:
        plan: Of all items.
        path: The finished set's file, which the new one replaces.
        digest: Its content digest.
        at: For each row of the plan its row there, -1 where there is none, shape (n,).
        new: The rows of the plan that are computed, ascending, shape (k,).
        provenance: Of the new set.
    """

    plan: Plan
    path: Path
    digest: str
    at: Rows
    new: Rows
    provenance: Mapping[str, Any]

    @property
    def shard(self) -> Path:
        """The file of the new items' own set, for as long as it is needed."""
        return shard_of(self.path)

    def announce(self, progress: Progress) -> None:
        """Tell how many rows are known, and how many of their files are newer than the set."""
        progress.note(
            f"{self.path}: {self.at.size - self.new.size:,} of {self.at.size:,} rows are taken "
            "over from the finished set"
        )
        if newer := self._newer_files():
            progress.warn(
                f"{self.path}: {counted(newer, 'file')} of items that are taken over changed since "
                "the set was made; --restart computes it again"
            )

    def join(self, opened: Opened) -> FeatureSetWriter:
        """Put the finished set and that of the new items into one, and return its writer, finished.

        `opened` opens a writer for `path`, given a provenance, the digest it `replaces`, and
        whether to `restart`.
        """
        try:
            writer = opened(self.provenance, replaces=self.digest, restart=False)
        except ProvenanceMismatch:
            # A join for another catalogue that was killed: it holds copies alone.
            writer = opened(self.provenance, replaces=self.digest, restart=True)
        with writer:
            known = np.setdiff1d(np.arange(self.at.size), self.new, assume_unique=True)
            for path, there, at in self._parts(known):
                with FeatureSet(path) as features:
                    left = np.isin(there, writer.pending)
                    copy_rows(features, at[left], writer, there[left])
            writer.finish()
        discard_shard(self.path)
        return writer

    def _parts(self, known: Rows) -> Iterator[tuple[Path, Rows, Rows]]:
        """Files, the rows of the new set that they give, and their own rows."""
        yield self.path, known, self.at[known]
        if self.new.size:
            yield self.shard, self.new, np.arange(self.new.size)

    def _newer_files(self) -> int:
        if self.plan.config.modality == "textual":
            return 0
        newer, finished_s = 0, self.path.stat().st_mtime
        known = np.ones(self.at.size, np.bool_)
        known[self.new] = False
        for row, content in self.plan.all_contents():
            if known[row] and isinstance(content, Path):
                with suppress(OSError):  # it may vanish while we look
                    newer += content.stat().st_mtime > finished_s
        return newer


def shard_of(path: Path) -> Path:
    """Return where the new items of a set have their own while they are extracted."""
    return path.parent / FOLDER / path.name


def discard_shard(path: Path) -> None:
    """Remove what is left of the new items' own set, whose rows are in the set at `path`."""
    shard = shard_of(path)
    for one in shard.parent.glob(f"{shard.name}*"):
        one.unlink(missing_ok=True)
    with suppress(OSError):  # another set may be under way
        shard.parent.rmdir()


def find_extension(
    path: Path, plan: Plan, encoder: Encoder, *, may_choose_kernel: bool
) -> Extension | None:
    """Return how the finished set at `path` is extended; None without one, or if it has all items.

    A set that another kernel of linear layers computed decides the kernel of this process, if
    `may_choose_kernel`.

    Raises:
        ProvenanceMismatch: It was made otherwise, so that its vectors can't stand beside new ones.
        UsageError: The encoder is fitted to all items, or cells or items of the set are no longer
            there.
        mmstore.StoreError: It can't be read.
    """
    if not path.is_file():
        return None
    provenance, keys = plan.provenance(encoder), _keys(plan)
    with FeatureSet(path) as features:
        differences = _differences(features, plan, encoder, provenance)
        kernel = other_linear_kernel() if set(differences) - GROWS == {LINEAR} else None
        if kernel is not None and may_choose_kernel:
            provenance = {**provenance, "linear": kernel}
            differences = _differences(features, plan, encoder, provenance)
        at = rows_of(features, keys)
        if not differences and np.array_equal(at, np.arange(len(features))):
            return None
        if encoder.needs_fit:
            raise UsageError(
                f"{path}: {plan.config.model} is fitted to all items, so vectors from before and "
                "after new ones came can't be compared; --restart computes the set again"
            )
        others = {key: value for key, value in differences.items() if key not in GROWS}
        if others:
            shown = "; ".join(f"{key}: {value}" for key, value in list(others.items())[:6])
            raise ProvenanceMismatch(
                f"{path}: was made otherwise ({shown}), so it can't be extended; run with "
                "--restart to compute it again, or choose another --name",
                list(others),
            )
        _refuse_other_cells(features, plan, keys)
        new = at < 0
        if plan.run.retry_failed:
            new |= features.status[at] != Status.OK
        if kernel is not None:
            gemm.use(kernel)
        digest = features.content_digest
    return Extension(plan, path, digest, at, np.flatnonzero(new), provenance)


def _keys(plan: Plan) -> NDArray[np.bytes_]:
    columns = id_columns(plan.items.keys()["ids"])
    return columns[0] if len(columns) == 1 else pair_keys(*columns)


def _differences(
    features: FeatureSet, plan: Plan, encoder: Encoder, provenance: Mapping[str, Any]
) -> dict[str, str]:
    wanted = replace(
        features.header,
        modality=plan.config.modality,
        layout="ragged" if encoder.ragged else "dense",
        dim=encoder.spec.dim,
        dtype=plan.config.store_dtype,
        rows=len(plan.items),
        provenance=dict(provenance),
    )
    return dict(plan_differences(features.header, wanted))


def _refuse_other_cells(features: FeatureSet, plan: Plan, keys: NDArray[np.bytes_]) -> None:
    """Check that what the set was made of is still what the dataset holds for its items."""
    own = keys_of(features.raw_ids)
    rows = IdIndex.build(keys, "items").find(own)
    gone = np.flatnonzero(rows < 0)
    if gone.size:
        first = bytes(own[gone[0]]).decode("utf-8", "replace")
        raise UsageError(
            f"{features.path}: {counted(gone.size, 'item')} of the set, {first!r} first, "
            f"{'is' if gone.size == 1 else 'are'} no longer in the dataset; --restart computes the "
            "set again"
        )
    recorded = features.provenance.get("input", {}).get("digest")
    if recorded != plan.contents.take(rows).digest():
        columns = ", ".join(plan.contents.columns)
        raise UsageError(
            f"{features.path}: cells of {columns} have changed for items of the set, and which "
            "ones can't be told; --restart computes the set again"
        )
