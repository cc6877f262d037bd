"""The best items of users by inner products, a tile of users x items at a time.

Where a catalogue is so large that a block of scores holds few users, a product spends its time on
fetching the items' columns anew. Here a tile of the items meets some hundred users while it is in
the cache, and each user's list so far meets the tile's scores as in `mmbench.ops.knn`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmbench.ops.kernels import run, split

AT_ONCE = 512  # users
_WIDTH = 4096  # items: with 512 users 8 MiB of scores, with d = 64 1 MiB of columns


@dataclass(frozen=True, eq=False)
class InnerProducts:
    """Scores of users: `scores(rows)` is `users[rows] @ columns`.

    Attributes:
        users: Shape (n_users, d).
        columns: Shape (d, n_items), contiguous.
    """

    users: Tensor
    columns: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Scores of some users, (B, n_items)."""
        return self.users[rows] @ self.columns

    @property
    def tiled(self) -> bool:
        """Whether `best_of` takes these: float32 on the CPU."""
        both = (self.users, self.columns)
        return all(one.device.type == "cpu" and one.dtype == torch.float32 for one in both)


def best_of(
    scores: InnerProducts, rows: Tensor, masks: Sequence[tuple[Tensor, Tensor]], k: int
) -> tuple[Tensor, Tensor]:
    """As `mmbench.ops.dense.unchecked_top_k` of these users' scores, under each of several masks.

    Args:
        scores: Of all users.
        rows: Users, shape (B,), int64.
        masks: Of each mask the pairs that are no candidates: place in `rows` and item, (n,) each.
        k: Length of the lists, >= 1.

    Returns:
        Items, (n_masks, B, k), int64, a shorter list ending in -1; and which users have a score
        that is NaN, (B,), bool.
    """
    from mmbench.ops.kernels import knn

    users, (_, n_items) = scores.users[rows], scores.columns.shape
    shape = len(masks), len(rows), k
    values, items = torch.full(shape, -math.inf), torch.full(shape, n_items, dtype=torch.int64)
    bad = torch.zeros(len(rows), dtype=torch.bool)
    by_item = [_by_item(places, masked, n_items) for places, masked in masks]
    whole = users.new_empty(len(rows), min(_WIDTH, n_items))
    for number, start in enumerate(range(0, n_items, _WIDTH)):
        columns = scores.columns[:, start : start + _WIDTH]
        tile = whole if columns.shape[1] == whole.shape[1] else users @ columns
        if tile is whole:
            torch.mm(users, columns, out=tile)
        if bool(tile.sum().isnan()):  # NaN, or infinities of both signs
            bad |= tile.isnan().any(1)
        for mask, (places, masked, ends) in enumerate(by_item):
            part = slice(int(ends[number]), int(ends[number + 1]))
            where = places[part], masked[part] - start
            before = tile[where]
            tile[where] = -math.inf
            bounds = split(len(rows), work=tile.numel())
            lists = values[mask].numpy(), items[mask].numpy()
            run(knn.offer_rows, bounds, tile.numpy(), 0, start, *lists)
            tile[where] = before
    return items.masked_fill_(values == -math.inf, -1), bad


def _by_item(places: Tensor, items: Tensor, n_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masked pairs by item, and where those of each tile begin and end."""
    items, order = items.sort(stable=True)
    starts = torch.arange(0, n_items + _WIDTH, _WIDTH)
    return places[order], items, torch.searchsorted(items, starts)
