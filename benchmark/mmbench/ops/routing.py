"""GRCN's refinement of the user-item graph by content: neighbour routing, then edge softmax.

For one modality, with p the users' preferences and f the items' projected content, rows of both
normalised:

    repeat T times:  a_ui = softmax over i in N(u) of <p_u, f_i> ;   p_u <- rn(p_u + sum_i a_ui f_i)
    s_ui = <p_u, f_i>
    alpha_ui = softmax of s over the items of u ;    alpha_iu = softmax of s over the users of i
    r_u = p_u + sum_i alpha_ui f_i ;                 r_i = f_i + sum_u alpha_iu p_u

The edge order `elliot` reproduces the code behind the tables of arXiv 2309.05273: there the scores
stay in user order while the item side is in item order, so slot k of the item side (the k-th edge
by item, then user) gets the score of the k-th edge by user, then item. `aligned` is what the paper
says.

On the CPU and on NVIDIA GPUs kernels run all of it user by user and item by item, with a
hand-written backward that keeps nothing per edge and dimension. `plain_routing` is the same in
plain torch, and serves other devices.

Source: Wei et al., GRCN (ACM MM 2020), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmbench.core.interactions import TrainSet
from mmbench.errors import ShapeError
from mmbench.ops import gpu
from mmbench.ops.graph import bipartite, item_order
from mmbench.ops.kernels import apply, array, run, split
from mmbench.ops.sparse import SparsePattern

EdgeOrder = Literal["elliot", "aligned"]

_SMALLEST_NORM = 1e-12  # torch.nn.functional.normalize's
_MOST_PARTS = 2  # copies of the item gradient, and so threads, in the backward
_PART_WORK = 1 << 16  # multiply-adds below which a further part costs more than it saves


@dataclass(frozen=True, eq=False)
class RoutingGraph:
    """The user-item graph with all that both sides of a routing look up.

    Attributes:
        adjacency: Both directions of each edge; edge weights of a model belong to its entries:
            first the n_edges messages item -> user, in user order, then the n_edges messages user
            -> item, in item order.
        n_users: Number of users.
        users: User of each edge in user order, shape (n_edges,).
        items: Item of each edge in user order, shape (n_edges,).
        order: Edge of each item-side slot, shape (n_edges,).
        source: Edge whose score each slot gets: `order` if aligned, the slot's own number in
            `elliot`'s order.
        confident: The node whose confidence weighs each entry, shape (2 n_edges,): the receiver; in
            `elliot`'s order on the item side the item of edge `source`.
    """

    adjacency: SparsePattern
    n_users: int
    users: Tensor
    items: Tensor
    order: Tensor
    source: Tensor
    confident: Tensor

    @classmethod
    def of(cls, train: TrainSet, *, edge_order: EdgeOrder) -> RoutingGraph:
        """The graph of a training set; `edge_order` as in the module's text."""
        users, items = torch.from_numpy(train.users), torch.from_numpy(train.items)
        order = item_order(items)
        source = torch.arange(train.n_edges) if edge_order == "elliot" else order
        confident = torch.cat([users, train.n_users + items[source]])
        return cls(bipartite(train), train.n_users, users, items, order, source, confident)

    @property
    def n_edges(self) -> int:
        """Number of training pairs."""
        return self.users.numel()

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.adjacency.n_columns - self.n_users

    @cached_property
    def slot_users(self) -> Tensor:
        """User of each item-side slot, shape (n_edges,)."""
        return self.users[self.order]

    @cached_property
    def slot_items(self) -> Tensor:
        """Item of each item-side slot, shape (n_edges,), ascending."""
        return self.items[self.order]

    @cached_property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Where each user's edges, and each item's slots, begin and end."""
        indptr = self.adjacency.indptr
        # The adjacency's rows split into users and items; the items' slots count from 0 again.
        return indptr[: self.n_users + 1], indptr[self.n_users :] - self.n_edges

    @cached_property
    def item_side(self) -> SparsePattern:
        """The users of each item, n_items x n_users: its entries are the slots."""
        return SparsePattern(self.sides[1].contiguous(), self.slot_users, self.n_users)

    @cached_property
    def slots(self) -> Tensor:
        """Item-side slot of each edge, shape (n_edges,): the inverse of `order`."""
        return torch.empty_like(self.order).scatter_(
            0, self.order, torch.arange(self.n_edges, device=self.order.device)
        )

    @cached_property
    def arrays(self) -> Any:
        """All that the kernels look up, see `mmbench.ops.kernels.routing.Graph`."""
        from mmbench.ops.kernels.routing import Graph

        users, items = self.sides
        parts = (users, self.items, self.slots, items, self.slot_users, self.source)
        return Graph(*map(array, parts))

    @cached_property
    def parts(self) -> dict[tuple[object, ...], Tensor]:
        """The backward's item gradients by shape and dtype; fresh memory would cost more."""
        return {}

    def to(self, device: torch.device | str) -> RoutingGraph:
        """The same graph on another device."""
        tensors = (self.users, self.items, self.order, self.source, self.confident)
        return RoutingGraph(
            self.adjacency.to(device), self.n_users, *(tensor.to(device) for tensor in tensors)
        )


def routing(
    p: Tensor, f: Tensor, graph: RoutingGraph, n_routings: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Refined users and items of one modality, and the weights of the edges.

    Args:
        p: Preferences, rows of norm 1, shape (n_users, d).
        f: Item content, rows of norm 1, shape (n_items, d).
        graph: The user-item graph.
        n_routings: T >= 0.

    Returns:
        r of the users (n_users, d), r of the items (n_items, d), and alpha (2 n_edges,) in the
        order of `graph.adjacency`'s entries, in (0, 1]. Differentiable once with respect to p and
        f.

    Raises:
        ShapeError: p or f do not fit the graph.
    """
    if (
        p.shape[0] != graph.n_users
        or f.shape != (graph.n_items, p.shape[1])
        or p.dtype != f.dtype
        or n_routings < 0
    ):
        raise ShapeError(
            f"routing: preferences {tuple(p.shape)} of {p.dtype}, items {tuple(f.shape)} of "
            f"{f.dtype}, {n_routings} routings, on a graph of {graph.n_users} users and "
            f"{graph.n_items} items"
        )
    if p.device.type != "cpu" and not gpu.serves(p):
        return plain_routing(p, f, graph, n_routings)
    users, items, alpha = _Routing.apply(p, f, graph, n_routings)  # type: ignore[no-untyped-call]
    return users, items, alpha


def confident_weights(alpha: Tensor, confidence: Tensor, nodes: Tensor, *, pruning: bool) -> Tensor:
    """Each edge's largest confident attention, `max_m alpha_m confidence_m`; pruned: cut at 0.

    Args:
        alpha: Attention of each edge by modality, shape (n_modalities, n_edges).
        confidence: Of each node in each modality, shape (n_nodes, n_modalities).
        nodes: The node whose confidence weighs each edge, shape (n_edges,), int64.
        pruning: Whether negative weights become 0; the derivative at 0 is 0.

    Returns:
        Shape (n_edges,); differentiable once with respect to `alpha` and `confidence`.

    Raises:
        ShapeError: The shapes do not fit.
    """
    if (
        alpha.ndim != 2
        or confidence.ndim != 2
        or alpha.shape != (confidence.shape[1], *nodes.shape)
    ):
        shapes = [tuple(part.shape) for part in (alpha, confidence, nodes)]
        raise ShapeError(f"confident_weights: {shapes} do not fit")
    if gpu.static(alpha):
        return plain_confident_weights(alpha, confidence, nodes, pruning=pruning)
    return apply(_ConfidentWeights, alpha, confidence, nodes, pruning)


def plain_confident_weights(
    alpha: Tensor, confidence: Tensor, nodes: Tensor, *, pruning: bool
) -> Tensor:
    """`confident_weights` in plain torch operations, for other devices."""
    # The gradient goes to the winning modality alone; relu has derivative 0 at 0.
    weights = (alpha * functional.embedding(nodes, confidence).t()).max(0).values
    return functional.relu(weights) if pruning else weights


def plain_routing(
    p: Tensor, f: Tensor, graph: RoutingGraph, n_routings: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`routing` in plain torch operations, one row of each per edge: for other devices."""
    users, items = graph.users, graph.items
    # f stays as it is during the routings.
    near = f[items]  # (n_edges, d)

    def gather(target: Tensor, index: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
        return target.index_add(0, index, weights[:, None] * rows)

    for _ in range(n_routings):  # attention among the user's items, then a step towards them
        a = _segment_softmax((p[users] * near).sum(1), users, graph.n_users)
        p = functional.normalize(gather(p, users, a, near), dim=1, eps=_SMALLEST_NORM)
    # s_ui with the routed p; both sides take their softmax from these n_edges scores.
    scores = (p[users] * near).sum(1)  # (n_edges,)
    slot_items, slot_users = graph.slot_items, graph.slot_users
    alpha = _segment_softmax(scores, users, graph.n_users)
    # Slots are in item order; `source` says whose score each of them takes.
    item_alpha = _segment_softmax(scores[graph.source], slot_items, graph.n_items)
    # r = own row + attended rows of the other side.
    r_users = gather(p, users, alpha, near)
    r_items = gather(f, slot_items, item_alpha, p[slot_users])
    return r_users, r_items, torch.cat([alpha, item_alpha])


def _segment_softmax(scores: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    # Minus the segment's largest score, so that exp cannot overflow; the shift cancels in the
    # quotient and needs no gradient.
    top = scores.new_full((n_segments,), -torch.inf).scatter_reduce(
        0, segment, scores.detach(), "amax"
    )
    exponential = (scores - top[segment]).exp()
    return (
        exponential / exponential.new_zeros(n_segments).index_add(0, segment, exponential)[segment]
    )


class _Routing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, p: Tensor, f: Tensor, graph: RoutingGraph, n_routings: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.graph = graph
        if gpu.serves(p):
            from mmbench.ops.gpu import routing as gpu_kernels

            f = f.contiguous()
            r_users, r_items, saved = gpu_kernels.forward(p.contiguous(), f, graph, n_routings)
            ctx.save_for_backward(f, *saved)
            return r_users, r_items, saved.alpha.view(-1)
        from mmbench.ops.kernels import routing as kernels

        arrays, n = graph.arrays, graph.n_edges
        r_users, r_items, routed = torch.empty_like(p), torch.empty_like(f), torch.empty_like(p)
        attention, norms = p.new_empty(n_routings, n), p.new_empty(n_routings, graph.n_users)
        scores, alpha = p.new_empty(n), p.new_empty(2, n)
        kept = kernels.Kept(*(part.numpy() for part in (attention, norms, routed, alpha)))
        work = n * p.shape[1]
        # Users first: items attend over routed preferences and take their scores from the edges.
        run(
            kernels.users_forward,
            # A dot and a weighted sum per edge, in each routing and in the last pass.
            split(graph.n_users, work=work * (2 * n_routings + 2), indptr=arrays.user_indptr),
            arrays,
            array(p),
            array(f),
            _smallest_norm(p),
            kept,
            scores.numpy(),
            r_users.numpy(),
        )
        run(
            kernels.items_forward,
            split(graph.n_items, work=work, indptr=arrays.item_indptr),
            arrays,
            array(f),
            kept,
            scores.numpy(),
            r_items.numpy(),
        )
        ctx.save_for_backward(p, f, attention, norms, routed, alpha)
        return r_users, r_items, alpha.view(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if gpu.serves(grads[0]):
            from mmbench.ops.gpu import routing as gpu_kernels

            of_users, of_items, of_alpha = (grad.contiguous() for grad in grads)
            f, *parts = ctx.saved_tensors
            saved = gpu_kernels.Kept(*parts)
            of_both = of_alpha.view(2, -1)
            grad_p, grad_f = gpu_kernels.backward(f, ctx.graph, saved, of_users, of_items, of_both)
            return grad_p, grad_f, None, None
        from mmbench.ops.kernels import routing as kernels

        graph, arrays = ctx.graph, ctx.graph.arrays
        p, f, *saved = ctx.saved_tensors
        kept = kernels.Kept(*map(array, saved))
        grad_users, grad_items, grad_alpha = map(array, grads)
        incoming = kernels.Incoming(
            grad_users,
            grad_items,
            grad_alpha.reshape(2, -1),
            scores=p.new_empty(graph.n_edges).numpy(),
            reached=np.empty(graph.n_items, np.bool_),
        )
        work = graph.n_edges * p.shape[1]
        # Items first: through their softmax the scores get gradient, which the users pass on.
        bounds = split(graph.n_items, work=work, indptr=arrays.item_indptr)
        run(kernels.items_backward, bounds, arrays, kept, incoming)
        # Each part of the users sums an item gradient of its own, which starts with that of the
        # items' own rows in the first part.
        work *= 4 * len(kept.attention) + 4
        bounds = _parts(arrays.user_indptr, work)
        shape = (bounds.size - 1, *f.shape)
        grad_p = torch.empty_like(p, memory_format=torch.contiguous_format)
        parts = graph.parts.setdefault((shape, f.dtype), f.new_empty(0)).resize_(shape)
        parts[0] = torch.from_numpy(grad_items)
        parts[1:].zero_()
        run(
            kernels.users_backward,
            split(len(parts), work=work),
            bounds,
            arrays,
            array(p),
            array(f),
            _smallest_norm(p),
            kept,
            incoming,
            grad_p.numpy(),
            parts.numpy(),
        )
        # In a fixed order, so that the sum has the same bits for any number of threads.
        grad_f = parts[0] + parts[1] if len(parts) > 1 else parts[0].clone()
        for part in parts[2:]:
            grad_f += part
        return grad_p, grad_f, None, None


class _ConfidentWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, confidence: Tensor, nodes: Tensor, pruning: bool
    ) -> Tensor:
        from mmbench.ops.kernels import routing as kernels

        # winner: the modality that gets the gradient of each weight, or -1 where pruned.
        out, winner = alpha.new_empty(nodes.shape), torch.empty(nodes.shape, dtype=torch.int16)
        bounds = split(nodes.numel(), work=alpha.numel())
        arrays = array(alpha), array(confidence), array(nodes)
        run(kernels.confident_forward, bounds, *arrays, pruning, winner.numpy(), out.numpy())
        ctx.save_for_backward(alpha, confidence, nodes, winner)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from mmbench.ops.kernels import routing as kernels

        alpha, confidence, nodes, winner = ctx.saved_tensors
        # Contiguous, whatever the arguments are: the kernel adds into this very memory.
        grad_alpha = alpha.new_zeros(alpha.shape)
        grad_confidence = confidence.new_zeros(confidence.shape)
        arrays = map(array, (alpha, confidence, nodes, winner, grad, grad_alpha, grad_confidence))
        kernels.confident_backward(*arrays)
        return grad_alpha, grad_confidence, None, None


def _parts(indptr: Any, work: int) -> Any:
    """Bounds of the user ranges that sum an item gradient each; the same for any thread count."""
    n_parts = max(1, min(_MOST_PARTS, indptr.size - 1, work // _PART_WORK))
    # Ranges of equally many edges, not users.
    bounds = np.searchsorted(indptr, np.arange(n_parts + 1) / n_parts * indptr[-1])
    bounds[0], bounds[-1] = 0, indptr.size - 1
    return bounds


def _smallest_norm(like: Tensor) -> Any:
    # A scalar of the array's dtype: with a Python float the kernels would widen to double.
    return array(like[:0]).dtype.type(_SMALLEST_NORM)
