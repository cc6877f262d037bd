"""GRCN's routing on a GPU: see `mmbench.ops.routing`, whose letters the kernels use.

One program works on one user with its edges, some of them at a time. The softmax over them is built
up as they come: whenever the largest score so far grows, what has been summed is scaled down
(Milakov & Gimelshein, arXiv 1805.02867). The attention of the routings is kept nowhere: an edge's
score with the largest score and the sum of its user gives it back. Popular items have thousands of
edges, which are summed in parts: see `mmbench.ops.gpu.sparse`.

With a_e the attention of a user's edge and a gradient da_e on it, ds_e = a_e (da_e - c) where
c = sum a da. So sum ds f = sum a da f - c sum a f: one pass over the edges serves both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmbench.ops.gpu import sparse

_EDGES = 8  # edges at once: most users have few
_SMALLEST: Any = tl.constexpr(1e-12)


@triton.jit
def _users_forward(
    indptr, items, f, path, norms, scores, tops, sums, out, n_users, n_edges, n_routings, d,
    EDGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    user = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    within = column < d
    start = tl.load(indptr + user)
    end = tl.load(indptr + user + 1)
    p = tl.load(path + user * d + column, within, 0.0)
    for t in range(n_routings + 1):
        top = tl.full((), -float("inf"), p.dtype)
        total = tl.full((), 0.0, p.dtype)
        mix = tl.zeros((WIDTH,), p.dtype)
        for at in range(start, end, EDGES):
            edge = at + tl.arange(0, EDGES)
            there = edge < end
            item = tl.load(items + edge, there, 0)
            both = there[:, None] & within[None, :]
            near = tl.load(f + item[:, None] * d + column[None, :], both, 0.0)
            score = tl.sum(p[None, :] * near, 1)
            tl.store(scores + t * n_edges + edge, score, there)
            score = tl.where(there, score, -float("inf"))
            higher = tl.maximum(top, tl.max(score, 0))
            shrink = tl.exp(top - higher)
            weight = tl.exp(score - higher)
            total = total * shrink + tl.sum(weight, 0)
            mix = mix * shrink + tl.sum(weight[:, None] * near, 0)
            top = higher
        mix = mix / tl.maximum(total, 1e-30)  # a user without edges: 0
        tl.store(tops + t * n_users + user, top)
        tl.store(sums + t * n_users + user, total)
        p = p + mix
        if t < n_routings:
            norm = tl.maximum(tl.sqrt(tl.sum(p * p, 0)), _SMALLEST)
            p = p / norm
            tl.store(norms + t * n_users + user, norm)
            tl.store(path + ((t + 1) * n_users + user) * d + column, p, within)
    tl.store(out + user * d + column, p, within)


@triton.jit
def _users_backward(
    indptr, items, slots, f, path, norms, scores, tops, sums, grad, grad_items, grad_alpha,
    item_alpha, from_items, through, centre, steps, out, n_users, n_edges, n_routings, d,
    EDGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    user = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    within = column < d
    start = tl.load(indptr + user)
    end = tl.load(indptr + user + 1)
    # What comes down to the result of routing t: first r_u's own gradient, the last pass.
    g = tl.load(grad + user * d + column, within, 0.0)
    p = tl.load(path + (n_routings * n_users + user) * d + column, within, 0.0)
    for back in range(n_routings + 1):
        t = n_routings - back
        if back > 0:
            # Through p_(t+1) = v / |v|; a clamped norm is a constant.
            norm = tl.load(norms + t * n_users + user)
            along = tl.where(norm > _SMALLEST, tl.sum(g * p, 0), 0.0)
            g = (g - p * along) / norm
            tl.store(steps + (t * n_users + user) * d + column, g, within)
            p = tl.load(path + (t * n_users + user) * d + column, within, 0.0)
        top = tl.load(tops + t * n_users + user)
        total = tl.maximum(tl.load(sums + t * n_users + user), 1e-30)
        c = tl.full((), 0.0, g.dtype)
        mix = tl.zeros((WIDTH,), g.dtype)
        down = tl.zeros((WIDTH,), g.dtype)
        for at in range(start, end, EDGES):
            edge = at + tl.arange(0, EDGES)
            there = edge < end
            item = tl.load(items + edge, there, 0)
            both = there[:, None] & within[None, :]
            place = item[:, None] * d + column[None, :]
            near = tl.load(f + place, both, 0.0)
            score = tl.load(scores + t * n_edges + edge, there, -float("inf"))
            a = tl.exp(score - top) / total
            da = tl.sum(g[None, :] * near, 1)
            if back == 0:
                da += tl.load(grad_alpha + edge, there, 0.0)
                # The items' softmax reads the same scores; and users are part of the items' sums.
                down += tl.sum(tl.load(from_items + edge, there, 0.0)[:, None] * near, 0)
                weight = tl.load(item_alpha + tl.load(slots + edge, there, 0), there, 0.0)
                down += tl.sum(weight[:, None] * tl.load(grad_items + place, both, 0.0), 0)
            tl.store(through + t * n_edges + edge, da, there)
            c += tl.sum(a * da, 0)
            mix += tl.sum(a[:, None] * near, 0)
            down += tl.sum((a * da)[:, None] * near, 0)
        tl.store(centre + t * n_users + user, c)
        g = g + down - c * mix
    tl.store(out + user * d + column, g, within)


@triton.jit
def _sum_of_edges(
    start, end, slot_users, order, path, scores, tops, sums, grad, from_items, through, centre,
    steps, n_users, n_edges, n_routings, d, column, within, EDGES: tl.constexpr,
):  # fmt: skip
    """What some slots of an item add to its gradient: in each pass a g + ds p of their users."""
    total = tl.zeros((EDGES, column.shape[0]), grad.dtype.element_ty)
    for at in range(start, end, EDGES):
        slot = at + tl.arange(0, EDGES)
        there = slot < end
        user = tl.load(slot_users + slot, there, 0)
        edge = tl.load(order + slot, there, 0)
        both = there[:, None] & within[None, :]
        place = user[:, None] * d + column[None, :]
        for t in range(n_routings + 1):
            score = tl.load(scores + t * n_edges + edge, there, -float("inf"))
            below = tl.load(sums + t * n_users + user, there, 1.0)
            a = tl.exp(score - tl.load(tops + t * n_users + user, there, 0.0)) / below
            da = tl.load(through + t * n_edges + edge, there, 0.0)
            ds = a * (da - tl.load(centre + t * n_users + user, there, 0.0))
            far = t * n_users * d + place
            if t == n_routings:
                ds += tl.load(from_items + edge, there, 0.0)
                g = tl.load(grad + place, both, 0.0)
            else:
                g = tl.load(steps + far, both, 0.0)
            p = tl.load(path + far, both, 0.0)
            total += a[:, None] * g + ds[:, None] * p
    return tl.sum(total, 0)


@triton.jit
def _items_gather(
    rows, starts, indptr, n_items, first, partial, grad_items, out, slot_users, order, path, scores,
    tops, sums, grad, from_items, through, centre, steps, n_users, n_edges, n_routings, d,
    FURTHER: tl.constexpr, LENGTH: tl.constexpr, EDGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0).to(tl.int64)
    item = tl.load(rows + k) if FURTHER else k
    if item < n_items:
        column = tl.arange(0, WIDTH)
        within = column < d
        start = tl.load(starts + k) if FURTHER else tl.load(indptr + item)
        end = tl.minimum(tl.load(indptr + item + 1), start + LENGTH)
        total = _sum_of_edges(
            start,
            end,
            slot_users,
            order,
            path,
            scores,
            tops,
            sums,
            grad,
            from_items,
            through,
            centre,
            steps,
            n_users,
            n_edges,
            n_routings,
            d,
            column,
            within,
            EDGES,
        )
        if not FURTHER:
            # The first part of an item adds up the others, and the gradient of its own row.
            for part in range(tl.load(first + item), tl.load(first + item + 1)):
                total += tl.load(partial + part * d + column, within, 0.0)
            total += tl.load(grad_items + item * d + column, within, 0.0)
        tl.store(out + k * d + column, total, within)


class Kept(NamedTuple):
    """What the backward needs of a forward, n_routings = T.

    Attributes:
        path: p after each routing, (T + 1, n_users, d).
        norms: The lengths they were divided by, (T, n_users).
        scores: <p, f> of each edge, (T + 1, n_edges).
        tops: The largest score of each user, (T + 1, n_users).
        sums: The sum of exp(score - top) over each user's edges.
        alpha: Attention of both sides, (2, n_edges).
    """

    path: Tensor
    norms: Tensor
    scores: Tensor
    tops: Tensor
    sums: Tensor
    alpha: Tensor


def forward(p: Tensor, f: Tensor, graph: Any, n_routings: int) -> tuple[Tensor, Tensor, Kept]:
    """Return r of the users, r of the items, and what `backward` needs. Contiguous arguments."""
    (n_users, d), n = p.shape, graph.n_edges
    path = p.new_empty(n_routings + 1, n_users, d)
    path[0] = p
    norms, scores = p.new_empty(n_routings, n_users), p.new_empty(n_routings + 1, n)
    tops, sums = p.new_empty(n_routings + 1, n_users), p.new_empty(n_routings + 1, n_users)
    r_users = torch.empty_like(p)
    _users_forward[(n_users,)](
        graph.adjacency.indptr, graph.items, f, path, norms, scores, tops, sums, r_users,
        n_users, n, n_routings, d, EDGES=_EDGES, WIDTH=triton.next_power_of_2(d), num_warps=1,
    )  # fmt: skip
    users, items, routed = graph.users, graph.slot_items, path[-1]
    # Both sides take their softmax from the last pass' scores.
    user_alpha = (scores[-1] - tops[-1][users]).exp() / sums[-1][users]
    score = scores[-1][graph.source]
    top = f.new_full((len(f),), -torch.inf).scatter_reduce(0, items, score, "amax")
    weight = (score - top[items]).exp()
    item_alpha = weight / _row_sums(graph, weight)[items]
    r_items = sparse.multiply(graph.item_side, item_alpha, routed, plus=f)
    alpha = torch.stack([user_alpha, item_alpha])
    return r_users, r_items, Kept(path, norms, scores, tops, sums, alpha)


def backward(
    f: Tensor, graph: Any, kept: Kept, grad_users: Tensor, grad_items: Tensor, grad_alpha: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of p and f. Contiguous arguments, `grad_alpha` (2, n_edges)."""
    (steps, n_users, d), n = kept.path.shape, graph.n_edges
    width, n_routings, item_side = triton.next_power_of_2(d), steps - 1, graph.item_side
    da = grad_alpha[1] + sparse.dots(item_side, grad_items, kept.path[-1])
    c = _row_sums(graph, kept.alpha[1] * da)[graph.slot_items]
    # `source` is a permutation: each score gets what its one slot has.
    from_items = torch.empty_like(da).scatter_(0, graph.source, kept.alpha[1] * (da - c))
    through, centre = torch.empty_like(kept.scores), torch.empty_like(kept.tops)
    inside, grad_p = f.new_empty(n_routings, n_users, d), torch.empty_like(grad_users)
    _users_backward[(n_users,)](
        graph.adjacency.indptr, graph.items, graph.slots, f, kept.path, kept.norms, kept.scores,
        kept.tops, kept.sums, grad_users, grad_items, grad_alpha[0], kept.alpha[1], from_items,
        through, centre, inside, grad_p, n_users, n, n_routings, d,
        EDGES=_EDGES, WIDTH=width, num_warps=1,
    )  # fmt: skip
    long, grad_f = item_side.parts, torch.empty_like(f)
    partial = f.new_empty(len(long.rows), d)
    for further, out in ((True, partial), (False, grad_f)):
        if len(out):
            _items_gather[(len(out),)](
                long.rows, long.starts, item_side.indptr, len(f), long.first, partial, grad_items,
                out, graph.slot_users, graph.order, kept.path, kept.scores, kept.tops, kept.sums,
                grad_users, from_items, through, centre, inside, n_users, n, n_routings, d,
                FURTHER=further, LENGTH=sparse.PART, EDGES=_EDGES, WIDTH=width, num_warps=1,
            )  # fmt: skip
    return grad_p, grad_f


def _row_sums(graph: Any, values: Tensor) -> Tensor:
    """The sum of each item's slots, (n_items,)."""
    ones = values.new_ones(graph.n_users, 1)
    return sparse.multiply(graph.item_side, values, ones).view(-1)
