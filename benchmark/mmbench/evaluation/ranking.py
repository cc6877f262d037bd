"""Rank all candidates for every user. No files, no printing.

One ranking serves every metric, cut-off and split: `rank` once, then `scoring.evaluate` on
validation and on test. On a device that works beside the processor nothing is waited for until all
users are ranked: what is masked is brought there at the start, the lists are fetched at the end,
and only then does the processor look for scores that are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmbench.core.interactions import HeldOut, Index, TrainSet, ranges
from mmbench.errors import NotFiniteError, ShapeError
from mmbench.evaluation.scoring import RankedLists
from mmbench.ops import memory
from mmbench.ops.dense import unchecked_top_k
from mmbench.ops.tiles import AT_ONCE, InnerProducts, best_of

BLOCK_BYTES = 64 << 20
"""Size of a block of float32 scores on the CPU."""
FEW = 128
"""Users of a block below which inner products are ranked tile by tile: see `ops.tiles`."""


def rank(
    score: Callable[[Tensor], Tensor],
    train: TrainSet,
    users: Index,
    *,
    k: int,
    also_masked: HeldOut | None = None,
    block_bytes: int | None = None,
    device: torch.device | str = "cpu",
) -> RankedLists:
    """List each user's k best candidates: all items but those of the user's training pairs.

    Scores exist for one block of users at a time, never for all users. Equal scores are ordered by
    ascending item row.

    Args:
        score: User rows, shape (B,), int64 on `device`, to scores, shape (B, n_items), on any
            device. -inf keeps an item out. Called without gradients; the scores are left as they
            were, so a stored tensor may be returned.
        train: Training pairs; these items are masked.
        users: User rows to rank for, shape (n,), distinct, in [0, n_users).
        k: Length of the lists; users with fewer candidates get shorter ones.
        also_masked: Further pairs to mask, e.g. the validation rows when ranking for test.
        block_bytes: Size of a block of float32 scores; at least one user is scored at a time. None:
            64 MiB on the CPU, elsewhere by what is free (`ops.memory`).
        device: Where `score` wants its users.

    Raises:
        ShapeError: `users` out of range, or scores of another shape.
        NotFiniteError: A score is NaN; the message names the first such user.
    """
    (lists,) = rank_each(
        score, train, users, k=k, masks=(also_masked,), block_bytes=block_bytes, device=device
    )
    return lists


def rank_each(
    score: Callable[[Tensor], Tensor],
    train: TrainSet,
    users: Index,
    *,
    k: int,
    masks: Sequence[HeldOut | None],
    block_bytes: int | None = None,
    device: torch.device | str = "cpu",
) -> list[RankedLists]:
    """As `rank`, once for each of several further masks, None for none; users are scored once."""
    if users.size and (users.min() < 0 or users.max() >= train.n_users):
        raise ShapeError(f"rank: user rows must be in [0, {train.n_users})")
    device = torch.device(device)
    if block_bytes is None:
        block_bytes = memory.block_bytes(device, BLOCK_BYTES)
    at_a_time = max(block_bytes // (4 * max(train.n_items, 1)), 1)
    tiles = score if isinstance(score, InnerProducts) and score.tiled else None
    tiles = tiles if at_a_time < FEW else None
    if tiles is not None:
        at_a_time = AT_ONCE
    # The CPU looks up what is masked when it is needed; elsewhere that would be a copy per block.
    span = at_a_time if device.type == "cpu" else max(users.size, 1)
    rows = torch.from_numpy(users).to(device)
    items = torch.empty((len(masks), users.size, k), dtype=torch.int64, device=device)
    bad = torch.zeros((len(masks), users.size), dtype=torch.bool, device=device)
    for first in range(0, users.size, span):
        pairs = [_masked_pairs(users[first : first + span], train, mask, device) for mask in masks]
        for start in range(first, min(first + span, users.size), at_a_time):
            block = slice(start, min(start + at_a_time, users.size))
            parts = [masked.of(start - first, block.stop - first) for masked in pairs]
            if tiles is not None:
                with torch.inference_mode():
                    items[:, block], bad[:, block] = best_of(tiles, rows[block], parts, k)
                continue
            with torch.no_grad():
                scores = score(rows[block])
            shape = (block.stop - start, train.n_items)
            if tuple(scores.shape) != shape:
                raise ShapeError(
                    f"rank: scores {tuple(scores.shape)} for {shape[0]} users and {shape[1]} items"
                )
            with torch.inference_mode():
                # An expanded tensor has one memory cell for many entries.
                scores = scores.to(device).contiguous()
                for number, part in enumerate(parts):
                    items[number, block], bad[number, block] = _best(scores, part, k)
        if device.type == "cpu":  # where looking costs nothing, a diverged model ends at once
            _refuse_nan(bad, users)
    _refuse_nan(bad.cpu(), users)
    return [RankedLists(users, found) for found in items.cpu().numpy()]


def _best(scores: Tensor, masked: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """`unchecked_top_k` without the masked pairs; leaves the scores as they were."""
    before = scores[masked]
    # As a tensor of the device: a number of Python would be copied there, and waited for.
    scores.index_put_(masked, scores.new_full((), -math.inf))
    found = unchecked_top_k(scores, k)
    scores[masked] = before
    return found


def _refuse_nan(bad: Tensor, users: Index) -> None:
    """Raise for the first user of whom a score is NaN, under any mask; `bad` is (n_masks, n)."""
    found = bad.any(0)
    if bool(found.any()):
        raise NotFiniteError(
            f"scores of user row {users[int(found.nonzero()[0, 0])]}: NaN (expected real numbers); "
            "the model has diverged or a feature is NaN: lower the learning rate, check the "
            "features"
        )


@dataclass(frozen=True, eq=False)
class _Masked:
    """Pairs to mask, in the order of the users.

    Attributes:
        rows: Which user of those asked for, shape (n,), int64, ascending.
        items: Item of each pair, shape (n,), int64.
        ends: Where each user's pairs begin and end, shape (n_users + 1,).
    """

    rows: Tensor
    items: Tensor
    ends: Index

    def of(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Row within start … stop-1, and item, of these users' pairs."""
        part = slice(int(self.ends[start]), int(self.ends[stop]))
        return self.rows[part] - start, self.items[part]


def _masked_pairs(
    users: Index, train: TrainSet, also_masked: HeldOut | None, device: torch.device
) -> _Masked:
    """What is masked for some users."""
    rows, pairs = ranges(train.indptr[users], train.indptr[users + 1])
    items = train.items[pairs]
    if also_masked is not None:
        left, right = (
            np.searchsorted(also_masked.users, users, side) for side in ("left", "right")
        )
        more_rows, pairs = ranges(left, right)
        more_items = also_masked.items[pairs]
        candidate = more_items < train.n_items
        rows = np.concatenate([rows, more_rows[candidate]])
        order = np.argsort(rows, kind="stable")
        rows, items = rows[order], np.concatenate([items, more_items[candidate]])[order]
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=users.size))])
    return _Masked(torch.from_numpy(rows).to(device), torch.from_numpy(items).to(device), ends)
