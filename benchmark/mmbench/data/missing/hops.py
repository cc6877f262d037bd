"""Policies that go from neighbour to neighbour: `neighbours`, `multihop`, `propagation`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mmbench.data.missing.diffusion import Diffusion, OnGraph, Operator, blocks
from mmbench.data.missing.graph import ItemGraph, matrix, product
from mmbench.ops.sparse import SparseMatrix


class Neighbours(Diffusion):
    """NeighMean: the mean of the neighbours' vectors.

        S = A (`corrected`) ;   S = A / k (`paper`)

    `paper`: the mean runs over the item's own row and over neighbours without a vector, which are
    zeros, and over items that nobody has together with it.
    """

    NAME: ClassVar[str] = "neighbours"

    def operator(self, items: ItemGraph, senders: NDArray[np.bool_]) -> Operator:
        """A, of `paper` divided by the rows' sums."""
        adjacency, scale = matrix(items.adjacency), 1.0 if self.form == "corrected" else items.k
        return lambda x: product(adjacency, x) / scale


class MultiHop(Diffusion):
    """MultiHop: vectors spread over `n_hops` edges, those that are known held after each.

        S = D^-1/2 A D^-1/2, without self loops

    `paper`: A is the one that chooses, not symmetric, and D has its rows' sums on both sides.
    """

    NAME: ClassVar[str] = "multihop"

    n_hops: int = Field(2, ge=1, le=1000, description="edges that a vector is passed over")

    @property
    def hops(self) -> int:
        """`n_hops`."""
        return self.n_hops

    def operator(self, items: ItemGraph, senders: NDArray[np.bool_]) -> Operator:
        """The normalised adjacency."""
        adjacency = items.without_loops().normalised(loops=False)
        return lambda x: product(adjacency, x)


class Propagation(OnGraph):
    """Feature propagation until nothing moves any more.

        x <- D^-1/2 A D^-1/2 x, then known rows are set back; x_i = 0 at first where none is known

    until no number moves by more than `tolerance` of the largest, or `n_iterations` times. The
    limit is the smoothest signal on the graph that has the known values: it minimises the sum over
    edges of |x_i / sqrt(d_i) - x_j / sqrt(d_j)|².

    Paper: Rossi, Kenlay, Gorinova, Chamberlain, Dong, Bronstein: On the Unreasonable Effectiveness
    of Feature Propagation in Learning on Graphs with Missing Node Features, LoG 2022,
    https://arxiv.org/abs/2111.12128, algorithm 1 (with 40 iterations).
    """

    NAME: ClassVar[str] = "propagation"

    n_iterations: int = Field(40, ge=1, le=10_000, description="iterations at most")
    tolerance: float = Field(1e-4, ge=0, lt=1, description="what counts as no movement")

    def diffuse(self, items: ItemGraph, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """See `OnGraph.diffuse`."""
        adjacency, out, held = items.normalised(loops=False), torch.empty_like(x), known[:, None]
        for columns, block in blocks(x, known):
            still = self.tolerance * float(block.abs().max())
            for _ in range(self.n_iterations):
                moved = torch.where(held, block, product(adjacency, block))
                change, block = float((moved - block).abs().max()), moved
                if change <= still:
                    break
            out[:, columns] = block
        return out, self._reached(adjacency, known)

    def _reached(self, adjacency: SparseMatrix, known: Tensor) -> Tensor:
        """The items that are known, or that a known one has a way to."""
        reached = known
        for _ in range(self.n_iterations):
            further = reached | (product(adjacency, reached[:, None].float())[:, 0] > 0)
            if torch.equal(further, reached):
                break
            reached = further
        return reached
