"""Weights of user-item edges by what stands on them, and propagation with such weights.

For an edge e between user u and item i that carries the vector p_e:

    w_e = sigmoid(cos(x_u * p_e, x_i * p_e))

With q = p_e * p_e the three sums of the cosine are <x_u * q, x_i>, <x_u * q, x_u> and
<x_i * q, x_i>; a norm counts as at least 1e-8, as in `torch.nn.functional.cosine_similarity`. The
weight is the same in both directions.

On the CPU compiled loops go over the edges of a user, then of an item, and keep nothing of the
edges' width; elsewhere the same sums are plain torch operations, a few matrices of edges x width.

Source: Anelli et al., Edge Graph Collaborative Filtering (DL4SR at CIKM 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops.graph import bipartite_of, item_order
from mmbench.ops.kernels import apply, array, run, split
from mmbench.ops.sparse import SparsePattern, weighted_product

SMALLEST_NORM = 1e-8


@dataclass(frozen=True, eq=False)
class EdgeGraph:
    """Some edges between users and items, with what both directions look up.

    Attributes:
        adjacency: Both directions of each edge: first item -> user in the order of the edges, then
            user -> item in the order of items.
        users: User of each edge, shape (n_edges,), ascending.
        items: Item of each edge, shape (n_edges,).
        order: Edge of each item-side entry, shape (n_edges,).
        source: Edge whose weight each item-side entry gets, shape (n_edges,): `order`, or what a
            model makes of it.
        norms: D^-1/2 of the entry's two nodes, multiplied, shape (2 n_edges,).
        loops: D^-1 of each node, shape (n_users + n_items, 1).
        n_users: Number of users.
    """

    adjacency: SparsePattern
    users: Tensor
    items: Tensor
    order: Tensor
    source: Tensor
    norms: Tensor
    loops: Tensor
    n_users: int

    @classmethod
    def of(
        cls, users: Tensor, items: Tensor, inverse_degree: Tensor, n_users: int, *, aligned: bool
    ) -> EdgeGraph:
        """The graph of some edges.

        Args:
            users: User of each edge, shape (n_edges,), ascending.
            items: Item of each edge, shape (n_edges,).
            inverse_degree: D^-1 of all nodes, users first, shape (n_users + n_items,): of the whole
                graph, whichever edges these are.
            n_users: Number of users.
            aligned: Whether an edge weighs the same in both directions. If not, the k-th item-side
                entry gets the weight of the k-th edge.
        """
        order = item_order(items)
        adjacency = bipartite_of(users, items, n_users, len(inverse_degree) - n_users)
        root = inverse_degree.sqrt()
        own = root[users] * root[items + n_users]
        source = order if aligned else torch.arange(len(order), device=order.device)
        norms, loops = torch.cat([own, own[order]]), inverse_degree[:, None]
        return cls(adjacency, users, items, order, source, norms, loops, n_users)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return self.users.numel()

    @cached_property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Where each user's edges, and each item's entries, begin and end."""
        indptr, n = self.adjacency.indptr, self.n_users
        return indptr[: n + 1].contiguous(), indptr[n:] - self.n_edges

    @cached_property
    def gathering(self) -> tuple[SparsePattern, SparsePattern]:
        """The edges of each user and of each item: products with them add up rows of edges."""
        place = torch.arange(self.n_edges, device=self.order.device)
        by_user, by_item = self.sides
        return (
            SparsePattern(by_user, place, self.n_edges),
            SparsePattern(by_item, self.order, self.n_edges),
        )

    def propagate(self, x: Tensor, weights: Tensor) -> Tensor:
        """D^-1/2 (W + I) D^-1/2 x for x (n_users + n_items, d); differentiable in both."""
        both = torch.cat([weights, weights.index_select(0, self.source)])
        return weighted_product(self.adjacency, both * self.norms, x) + x * self.loops

    def to(self, device: torch.device | str) -> EdgeGraph:
        """The same graph on another device."""
        tensors = (self.users, self.items, self.order, self.source, self.norms, self.loops)
        moved = (tensor.to(device) for tensor in tensors)
        users, items, order, source, norms, loops = moved
        adjacency = self.adjacency.to(device)
        return EdgeGraph(adjacency, users, items, order, source, norms, loops, self.n_users)


def near(graph: EdgeGraph, nodes: Tensor, n_layers: int) -> Tensor:
    """The edges that `n_layers` propagations to some nodes run over, ascending; on the CPU.

    `nodes` (k,) are users, or items behind them. These edges end at a node that is less than
    `n_layers` steps away.
    """
    reached = torch.zeros(len(graph.loops), dtype=torch.bool)
    reached[nodes] = True
    items = graph.items + graph.n_users
    crossed = reached[graph.users] | reached[items]
    for _ in range(n_layers - 1):
        edges = crossed.nonzero()[:, 0]
        reached[graph.users[edges]] = True
        reached[items[edges]] = True
        crossed = reached[graph.users] | reached[items]
    return crossed.nonzero()[:, 0]


def edge_weights(x: Tensor, p: Tensor, graph: EdgeGraph) -> Tensor:
    """W of the edges, (n_edges,), see the module's text; differentiable once in x and p.

    Args:
        x: Of users, then items, shape (n_users + n_items, d).
        p: Of the edges, shape (n_edges, d).
        graph: The edges.

    Raises:
        ShapeError: The shapes do not fit.
    """
    if x.shape != (len(graph.loops), p.shape[1]) or len(p) != graph.n_edges:
        raise ShapeError(
            f"edge_weights: {tuple(x.shape)} and {tuple(p.shape)} do not fit {graph.n_edges} edges "
            f"of {len(graph.loops)} nodes"
        )
    return apply(_EdgeWeights, x, p, graph)


class _EdgeWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor, graph: EdgeGraph) -> Tensor:
        ctx.graph = graph
        if p.device.type == "cpu":
            from mmbench.ops.kernels import edges as kernels

            # The cosine of each edge, and the norms of its two ends.
            sums = p.new_empty(3, graph.n_edges)
            bounds = split(graph.n_edges, work=3 * p.numel())
            ends = array(graph.users), array(graph.items + graph.n_users)
            smallest = array(p[:0]).dtype.type(SMALLEST_NORM)
            run(kernels.cosines, bounds, *ends, array(x), array(p), smallest, sums.numpy())
        else:
            sums = _plain_cosines(x, p, graph)
        weights = sums[0].sigmoid()
        ctx.save_for_backward(x, p, sums, weights)
        return weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        graph: EdgeGraph = ctx.graph
        x, p, (cosine, of_user, of_item), weights = ctx.saved_tensors
        # d sigmoid(c) = w (1 - w) dc. With a = x_u * p, b = x_i * p and their norms |a|, |b|:
        # dc/da = b / (|a| |b|) - c a / |a|², where a norm at its bound is a constant.
        slope = grad * weights * (1 - weights)
        cross = slope / (of_user * of_item)
        along_user, along_item = (
            (slope * cosine / norm.square()).masked_fill_(norm <= SMALLEST_NORM, 0.0)
            for norm in (of_user, of_item)
        )
        factors = torch.stack([cross, along_user, along_item])
        if p.device.type == "cpu":
            return (*_compiled_backward(x, p, factors, graph), None)
        return (*_plain_backward(x, p, factors, graph), None)


def _compiled_backward(
    x: Tensor, p: Tensor, factors: Tensor, graph: EdgeGraph
) -> tuple[Tensor, Tensor]:
    from mmbench.ops.kernels import edges as kernels

    grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
    grad_p = torch.empty_like(p, memory_format=torch.contiguous_format)
    by_user, by_item = map(array, graph.sides)
    users, items = array(graph.users), array(graph.items + graph.n_users)
    values, content, of_edges = array(x), array(p), array(factors)
    # A user's edges are neighbours; an item gathers its own: nobody else writes to their rows.
    shared, of_x = (values, content, of_edges), grad_x.numpy()
    bounds = split(graph.n_users, work=4 * p.numel(), indptr=by_user)
    run(kernels.users_backward, bounds, by_user, items, *shared, of_x, grad_p.numpy())
    bounds = split(by_item.size - 1, work=2 * p.numel(), indptr=by_item)
    order, of_items = array(graph.order), of_x[graph.n_users :]
    run(kernels.items_backward, bounds, by_item, order, users, *shared, of_items)
    return grad_x, grad_p


def _plain_cosines(x: Tensor, p: Tensor, graph: EdgeGraph) -> Tensor:
    """The cosine of each edge and the norms of its two ends, (3, n_edges), in plain torch."""
    a, b = x[graph.users] * p, x[graph.items + graph.n_users] * p
    of_user, of_item = (
        torch.linalg.vector_norm(rows, dim=1).clamp_min_(SMALLEST_NORM) for rows in (a, b)
    )
    return torch.stack([(a * b).sum(1) / (of_user * of_item), of_user, of_item])


def _plain_backward(
    x: Tensor, p: Tensor, factors: Tensor, graph: EdgeGraph
) -> tuple[Tensor, Tensor]:
    user, item = x[graph.users], x[graph.items + graph.n_users]  # (n_edges, d) each
    cross, along_user, along_item = factors[:, :, None]
    to_user = cross * item - along_user * user  # times p * p
    to_item = cross * user - along_item * item
    grad_p = (to_user * user + to_item * item) * p
    square = p * p
    ones = p.new_ones(graph.n_edges)
    # Added up in the order of the edges: the bits repeat.
    rows = [
        pattern.multiply(ones, part.mul_(square))
        for pattern, part in zip(graph.gathering, (to_user, to_item), strict=True)
    ]
    return torch.cat(rows), grad_p
