"""What the policies on the graph of items have in common: vectors spread from item to item.

With an operator S on the graph, M the items that have a vector by now and x_i = 0 for all others:

    `corrected`: x_i <- sum_j S_ij x_j / sum over j in M of S_ij     for items i without a vector
    `paper`:     x_i <- sum_j S_ij x_j                               items not in M count as zeros

`n_hops` times; vectors of their own are held. So `corrected` takes a weighted mean of what is
there, while `paper` is drawn towards zero by what isn't. Items that nothing reaches (of no training
pair, or in a part of the graph without content) get the mean of the training items' vectors.

Paper: Malitesta, Rossi, Pomo, Malliaros, Di Noia: Dealing with Missing Modalities in Multimodal
Recommendation: a Feature Propagation-based Approach (2024), and: Do We Really Need to Drop Items
with Missing Modalities in Multimodal Recommendation?, CIKM 2024, https://arxiv.org/abs/2408.11767.
Each policy says where `corrected` differs from the code behind the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.data.draws import ranks_of
from mmbench.data.missing import graph
from mmbench.data.missing.base import Gaps, Policy, Vectors
from mmbench.data.missing.graph import ItemGraph
from mmbench.errors import UsageError

Operator = Callable[[Tensor], Tensor]
"""S x of some columns x, (n_items, w) to the same shape, float32."""

Form = Literal["corrected", "paper"]

COLUMNS = 64
"""Dimensions that are diffused at once: with them the vectors fit into a processor's cache."""

_REACHED = 1e-4
"""An item whose weights of items with a vector add up to less is not reached: what the truncated
series of some operators leave out is of that size."""


class OnGraph(Policy):
    """A policy that fills training items from each other, and what is left with the mean."""

    COSTLY: ClassVar[bool] = True

    top_k: int = Field(20, ge=1, description="neighbours that an item chooses by co-interactions")

    def fill(self, gaps: Gaps) -> Vectors:
        """Fill what the graph reaches; the mean stands in for the rest."""
        mean, n = gaps.mean(), gaps.n_trained
        absent = ~gaps.present
        if absent[:n].any():
            if gaps.train is None:
                raise UsageError(f"missing: {self.NAME} needs the training pairs")
            order = ranks_of(gaps.item_ids[:n], 0, "graph of items")
            items, known = self.graph(gaps.train, order), torch.from_numpy(gaps.present[:n])
            x, reached = self.diffuse(items, torch.from_numpy(gaps.vectors[:n]), known)
            gaps.vectors[:n] = x.numpy()
            absent[:n] &= ~reached.numpy()
        gaps.vectors[absent] = mean
        return gaps.vectors

    def graph(self, train: TrainSet, order: NDArray[np.int64]) -> ItemGraph:
        """Return the graph; `order` as in `graph.corrected`."""
        return graph.corrected(train, self.top_k, order)

    def diffuse(self, items: ItemGraph, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (n_items, dim) with filled rows, and which rows have a vector, (n_items,).

        Args:
            items: The graph.
            x: The vectors; rows that are not known may hold anything.
            known: Which rows are, shape (n_items,), bool.
        """
        raise NotImplementedError


def blocks(x: Tensor, known: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield some columns at a time, and their numbers with zeros in rows that are not known."""
    for start in range(0, x.shape[1], COLUMNS):
        columns = slice(start, min(start + COLUMNS, x.shape[1]))
        yield columns, torch.where(known[:, None], x[:, columns], 0.0).contiguous()


class Diffusion(OnGraph):
    """A policy of the study, in two forms."""

    form: Form = Field("corrected", description="whose formula")

    @property
    def hops(self) -> int:
        """How often vectors are passed on."""
        return 1

    def operator(self, items: ItemGraph, senders: NDArray[np.bool_]) -> Operator:
        """Return S on the graph.

        Args:
            items: The graph, in the form `form`.
            senders: The items whose columns of S are needed, shape (n_items,).
        """
        raise NotImplementedError

    def graph(self, train: TrainSet, order: NDArray[np.int64]) -> ItemGraph:
        """Return the graph in the form `form`."""
        return (graph.corrected if self.form == "corrected" else graph.as_published)(
            train, self.top_k, order
        )

    def diffuse(self, items: ItemGraph, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """See `OnGraph.diffuse`."""
        senders = known if self.hops == 1 else torch.ones_like(known)
        spread = self.operator(items, senders.numpy())
        plan = list(self._plan(spread, known))
        out = torch.empty_like(x)
        for columns, block in blocks(x, known):
            for taken, scale in plan:
                block = torch.where(taken[:, None], spread(block) * scale[:, None], block)
            out[:, columns] = block
        reached = known.clone()
        for taken, _ in plan:
            reached |= taken
        return out, reached

    def _plan(self, spread: Operator, known: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each hop the rows that take what arrives, and by what it is multiplied."""
        there, one = known, torch.ones(len(known))
        for _ in range(self.hops):
            if self.form == "paper":
                yield ~known, one
                continue
            weights = spread(there[:, None].float())[:, 0]  # sum over M of S_ij
            taken = ~known & (weights > _REACHED)
            yield taken, torch.where(taken, 1 / weights, one)
            there = there | taken
