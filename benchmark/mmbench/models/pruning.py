"""Training on a part of the user-item graph that is drawn anew each epoch: FREEDOM and LayerGCN."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.core.philox import home
from mmbench.core.sampling import epoch_stream
from mmbench.models.base import Recommender
from mmbench.ops.graph import (
    DEGREE_EPSILON,
    EdgePruning,
    bipartite,
    bipartite_of,
    symmetric_normalised,
)
from mmbench.ops.sparse import SparseMatrix, SparsePattern


class _Config(Protocol):
    @property
    def edge_dropout(self) -> float: ...


class PrunesEdges(Recommender):
    """A model with `full_graph`, for scores, and `epoch_graph`, for the batches of an epoch.

    Either is D^-1/2 A D^-1/2 with 1e-7 added to each degree; those of `epoch_graph` are the degrees
    of the kept edges.
    """

    config: _Config

    def _add_graphs(self, train: TrainSet, dtype: torch.dtype) -> None:
        self.train_set, self._dtype = train, dtype
        self.full_graph = self._normalised(bipartite(train))
        # Until the first epoch draws its edges.
        self.epoch_graph = self.full_graph
        self._pruning: EdgePruning | None = None
        self._placed: SparseMatrix | None = None

    def _normalised(self, adjacency: SparsePattern) -> SparseMatrix:
        return symmetric_normalised(adjacency, epsilon=DEGREE_EPSILON, dtype=self._dtype)

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Draw the edges of this epoch's graph."""
        device = next(self.parameters()).device
        if self._pruning is None or self._pruning.users.device != home(device):
            self._pruning = EdgePruning(self.train_set, self.config.edge_dropout, home(device))
        # Â': the degrees are those of the kept edges, so the graph is normalised anew.
        kept, pairs = self._kept_edges(self._pruning, epoch, seed), self._pruning
        sizes = self.train_set.n_users, self.train_set.n_items
        adjacency = bipartite_of(pairs.users[kept], pairs.items[kept], *sizes)
        graph = self._normalised(adjacency).to(device).ready()
        self.epoch_graph = self._placed = graph.placed_in(self._placed)

    def _kept_edges(self, pruning: EdgePruning, epoch: int, seed: int) -> Tensor:
        """Positions of the training edges that stay, ascending."""
        return pruning.draw(epoch_stream(seed, "pruning", epoch, pruning.users.device))
