"""Rank all candidates for every user. No files, no printing.

One ranking serves every metric, cut-off and split: `rank` once, then `scoring.evaluate` on
validation and on test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mmbench.core.interactions import HeldOut, Index, TrainSet, ranges
from mmbench.errors import NotFiniteError, ShapeError
from mmbench.evaluation.scoring import RankedLists
from mmbench.ops.dense import NanScoreError, top_k

BLOCK_BYTES = 64 << 20
"""Size of a block of float32 scores."""


def rank(
    score: Callable[[Tensor], Tensor],
    train: TrainSet,
    users: Index,
    *,
    k: int,
    also_masked: HeldOut | None = None,
    block_bytes: int = BLOCK_BYTES,
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
        block_bytes: Size of a block of float32 scores; at least one user is scored at a time.
        device: Where `score` wants its users.

    Raises:
        ShapeError: `users` out of range, or scores of another shape.
        NotFiniteError: A score is NaN; the message names the user.
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
    block_bytes: int = BLOCK_BYTES,
    device: torch.device | str = "cpu",
) -> list[RankedLists]:
    """As `rank`, once for each of several further masks, None for none; users are scored once."""
    if users.size and (users.min() < 0 or users.max() >= train.n_users):
        raise ShapeError(f"rank: user rows must be in [0, {train.n_users})")
    at_a_time = max(block_bytes // (4 * max(train.n_items, 1)), 1)
    lists = [np.full((users.size, k), -1, np.int64) for _ in masks]
    for start in range(0, users.size, at_a_time):
        block = users[start : start + at_a_time]
        with torch.no_grad():
            scores = score(torch.from_numpy(block).to(device))
        if tuple(scores.shape) != (block.size, train.n_items):
            raise ShapeError(
                f"rank: scores {tuple(scores.shape)} for {block.size} users and {train.n_items} "
                "items"
            )
        with torch.inference_mode():
            scores = scores.contiguous()  # an expanded tensor has one memory cell for many entries
            for mask, found in zip(masks, lists, strict=True):
                pairs = _masked_pairs(block, train, mask)
                found[start : start + block.size] = _best(scores, pairs, k, block)
    return [RankedLists(users, found) for found in lists]


def _best(scores: Tensor, masked: tuple[Index, Index], k: int, block: Index) -> Index:
    """The k best columns of each row but for the masked pairs; leaves the scores as they were."""
    rows, items = (torch.from_numpy(axis).to(scores.device) for axis in masked)
    before = scores[rows, items]
    scores[rows, items] = -math.inf
    try:
        return np.asarray(top_k(scores, k).cpu().numpy(), np.int64)
    except NanScoreError as error:
        raise NotFiniteError(
            f"scores of user row {block[error.row]}: NaN (expected real numbers); the model has "
            "diverged or a feature is NaN: lower the learning rate, check the features"
        ) from error
    finally:
        scores[rows, items] = before


def _masked_pairs(
    block: Index, train: TrainSet, also_masked: HeldOut | None
) -> tuple[Index, Index]:
    """Row within the block and item of each pair to mask."""
    rows, pairs = ranges(train.indptr[block], train.indptr[block + 1])
    items = train.items[pairs]
    if also_masked is None:
        return rows, items
    left, right = (np.searchsorted(also_masked.users, block, side) for side in ("left", "right"))
    more_rows, pairs = ranges(left, right)
    more_items = also_masked.items[pairs]
    candidate = more_items < train.n_items
    return (
        np.concatenate([rows, more_rows[candidate]]),
        np.concatenate([items, more_items[candidate]]),
    )
