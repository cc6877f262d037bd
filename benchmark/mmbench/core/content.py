"""What is known of items and users when a model scores: content, and histories of interactions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from mmbench.core.interactions import Histories

if TYPE_CHECKING:
    from torch import Tensor

Scaling = Literal["none", "l2", "standard"]
"""Scaling of a modality's vectors before a model sees them.

`l2`: each to unit length. `standard`: each dimension to mean 0 and variance 1 over the training
items that have a vector, then all divided by the square root of the number of dimensions, so that
a vector's expected squared length is 1 whatever its width.
"""


@dataclass(frozen=True, eq=False)
class ItemContent:
    """One modality's vectors of the items.

    Attributes:
        vectors: Shape (n_items, dim), float32, finite: a missing-content policy fills absent rows.
        present: Which items have a vector of their own, shape (n_items,), bool.
    """

    vectors: Tensor
    present: Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """What may be known when items are scored for users.

    Attributes:
        n_items: Number of items to score: those of training first, then unseen ones.
        content: The content of these items by modality; empty for models without content.
        find_histories: Makes `histories` on first use.
    """

    n_items: int
    content: Mapping[str, ItemContent]
    find_histories: Callable[[], Histories]

    @cached_property
    def histories(self) -> Histories:
        """Each user's interactions in order; behind them perhaps those of other users.

        They are what precedes the items that are scored: training rows, and for test under the
        protocol `next-item` validation rows too, whose items training may not have seen.
        """
        return self.find_histories()
