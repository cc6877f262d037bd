"""Degree-sensitive pruning of the user-item graph: fewer edges of popular items and active users, anew each epoch.

Source: Zhou & Shen, FREEDOM (ACM MM 2023), section 3.2. Drawing n edges one after the other without replacement, each with
probability proportional to its weight, is the same as keeping the n smallest of E / weight with E ~ Exp(1) independent
(Efraimidis & Spirakis, Weighted random sampling with a reservoir, IPL 2006): one pass, no rejection.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from mmbench.core.graph import DEGREE_EPSILON, bipartite, symmetric_normalised
from mmbench.core.interactions import Index, TrainSet
from mmbench.core.rng import numpy_rng
from mmbench.core.sparse import SparseMatrix
from mmbench.errors import ShapeError


@dataclass(frozen=True, eq=False)
class EdgePruning:
    """Samples of the edges of a training set.

    Attributes:
        train: The training pairs.
        rate: rho, the share of edges that is dropped, in [0, 1).
        seed: The recipe's seed; the edges of an epoch follow from (seed, epoch) alone.
    """

    train: TrainSet
    rate: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ShapeError(f"EdgePruning: rate is {self.rate}, must be in [0, 1)")

    @property
    def n_kept(self) -> int:
        """Edges that remain: E (1 - rho) rounded down, in double precision as the authors' code has it.

        So 0.2 of 197,338 edges, at rho = 0.8, are 39,467: 1 - 0.8 is a little less than 0.2.
        """
        return int(self.train.n_edges * (1.0 - self.rate))

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """(d_u d_i)^-1/2 of each edge on the full graph, shape (n_edges,)."""
        degrees = self.train.user_degree[self.train.users] * self.train.popularity[self.train.items]
        return np.asarray(degrees, np.float64) ** -0.5

    def kept(self, epoch: int) -> Index:
        """The edges of one epoch, shape (n_kept,), ascending positions in the training pairs."""
        n = self.n_kept
        if n == self.train.n_edges:
            return np.arange(n)
        keys = numpy_rng(self.seed, "pruning", epoch).standard_exponential(self.train.n_edges) / self.weights
        return np.sort(np.argpartition(keys, n)[:n])

    def adjacency(self, epoch: int, *, dtype: torch.dtype = torch.float32) -> SparseMatrix:
        """D^-1/2 A D^-1/2 of the kept edges, with the degrees that are left; nodes without an edge have empty rows."""
        edges, train = self.kept(epoch), self.train
        left = TrainSet(train.users[edges], train.items[edges], train.n_users, train.n_items)
        return symmetric_normalised(bipartite(left), epsilon=DEGREE_EPSILON, dtype=dtype)
