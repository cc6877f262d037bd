"""Neighbour routing and edge softmax of GRCN: a pass over users and one over items, each way.

A user has few items; their rows are copied side by side once and stay in the first-level cache
while all routings run over them, four at a time. Nothing is kept per edge and dimension. The
gradients of a batch are zero for most nodes; users and items that none reaches are passed over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mmbench.ops.kernels import inlined_reduction, kernel, reduction

Array = Any


class Graph(NamedTuple):
    """The edges by user, and the slots of the item side: the same edges by item.

    Edge e joins user u, user_indptr[u] <= e < user_indptr[u + 1], and item items[e]; slots of an
    item are found likewise.
    """

    user_indptr: Array  # edges before each user, (n_users + 1,)
    items: Array  # item of each edge, (n_edges,)
    slots: Array  # slot of each edge
    item_indptr: Array  # slots before each item, (n_items + 1,)
    slot_users: Array  # user of each slot
    source: Array  # edge whose score each slot gets


class Kept(NamedTuple):
    """What the forward leaves for the backward."""

    attention: Array  # of each edge in each routing, (n_routings, n_edges)
    norms: Array  # of each user before each normalisation, (n_routings, n_users)
    routed: Array  # the users' preferences after all routings, (n_users, d)
    alpha: Array  # softmax of the scores over each user's edges and each item's slots, (2, n_edges)


class Incoming(NamedTuple):
    """The gradients that come into the backward."""

    users: Array  # of the users' output, (n_users, d)
    items: Array  # of the items' output, (n_items, d)
    alpha: Array  # of `Kept.alpha`, (2, n_edges)
    scores: Array  # of the edges' scores, through the items' softmax, (n_edges,)
    reached: Array  # whether the output of each item has a gradient, (n_items,)


@inlined_reduction
def _copy(near: Array, x: Array, rows: Array, first: int, n: int) -> None:
    """near[e] = x[rows[first + e]]."""
    for e in range(n):
        row = rows[first + e]
        for j in range(x.shape[1]):
            near[e, j] = x[row, j]


@inlined_reduction
def _dots(near: Array, n: int, x: Array, row: int, out: Array, level: int) -> None:
    """out[level, e] = <near[e], x[row]>."""
    zero = x.dtype.type(0)
    e = 0
    # Four inner products at a time: x[row] is loaded once for four, whose sums are independent.
    while e + 4 <= n:
        s0, s1, s2, s3 = zero, zero, zero, zero
        for j in range(x.shape[1]):
            value = x[row, j]
            s0 += near[e, j] * value
            s1 += near[e + 1, j] * value
            s2 += near[e + 2, j] * value
            s3 += near[e + 3, j] * value
        out[level, e], out[level, e + 1], out[level, e + 2], out[level, e + 3] = s0, s1, s2, s3
        e += 4
    while e < n:
        s0 = zero
        for j in range(x.shape[1]):
            s0 += near[e, j] * x[row, j]
        out[level, e] = s0
        e += 1


@inlined_reduction
def _add(out: Array, row: int, weights: Array, level: int, near: Array, e: int, n: int) -> None:
    """out[row] += sum_e weights[level, e] near[e]."""
    # Four terms at a time: out[row] is loaded and stored once for four.
    while e + 4 <= n:
        w0, w1, w2, w3 = (
            weights[level, e],
            weights[level, e + 1],
            weights[level, e + 2],
            weights[level, e + 3],
        )
        for j in range(out.shape[1]):
            out[row, j] += (
                w0 * near[e, j] + w1 * near[e + 1, j] + w2 * near[e + 2, j] + w3 * near[e + 3, j]
            )
        e += 4
    while e < n:
        w0 = weights[level, e]
        for j in range(out.shape[1]):
            out[row, j] += w0 * near[e, j]
        e += 1


@inlined_reduction
def _sum(
    out: Array, row: int, base: Array, at: int, weights: Array, level: int, near: Array, n: int
) -> None:
    """out[row] = base[at] + sum_e weights[level, e] near[e]; these are two rows."""
    e = 0
    # The first four terms join the copy of the base: one pass less over out[row].
    if n >= 4:
        w0, w1, w2, w3 = weights[level, 0], weights[level, 1], weights[level, 2], weights[level, 3]
        for j in range(out.shape[1]):
            out[row, j] = (
                base[at, j] + w0 * near[0, j] + w1 * near[1, j] + w2 * near[2, j] + w3 * near[3, j]
            )
        e = 4
    else:
        for j in range(out.shape[1]):
            out[row, j] = base[at, j]
    _add(out, row, weights, level, near, e, n)


@inlined_reduction
def _dot(a: Array, row: int, b: Array, other: int) -> Any:
    total = a.dtype.type(0)
    for j in range(a.shape[1]):
        total += a[row, j] * b[other, j]
    return total


@inlined_reduction
def _is_zero(x: Array, row: int) -> bool:
    total = x.dtype.type(0)
    for j in range(x.shape[1]):
        total += abs(x[row, j])
    return bool(total == 0)


@inlined_reduction
def _softmax(a: Array, level: int, first: int, n: int) -> None:
    """In place over a[level, first : first + n]."""
    if n == 0:
        return
    # Minus the largest score: exp cannot overflow, and the sum is at least 1.
    top = a[level, first]
    for e in range(first, first + n):
        top = max(top, a[level, e])
    total = a.dtype.type(0)
    for e in range(first, first + n):
        a[level, e] = np.exp(a[level, e] - top)
        total += a[level, e]
    for e in range(first, first + n):
        a[level, e] /= total


@inlined_reduction
def _route(states: Array, t: int, near: Array, n: int, a: Array, smallest_norm: Any) -> Any:
    """states[t + 1] = rn(states[t] + sum_e a_e near_e), a = softmax <states[t], near_e>.

    Returns the norm before rn.
    """
    # a = softmax over the user's items of <p, f_i>.
    _dots(near, n, states, t, a, t)
    _softmax(a, t, 0, n)
    # q = p + sum a_i f_i, then p <- q / |q|; the backward needs |q| as it was clamped.
    _sum(states, t + 1, states, t, a, t, near, n)
    norm = max(np.sqrt(_dot(states, t + 1, states, t + 1)), smallest_norm)
    scale = states.dtype.type(1) / norm
    for j in range(states.shape[1]):
        states[t + 1, j] *= scale
    return norm


@inlined_reduction
def _largest_degree(indptr: Array, lo: int, hi: int) -> int:
    most = 0
    for u in range(lo, hi):
        most = max(most, indptr[u + 1] - indptr[u])
    return most


@reduction
def users_forward(
    lo: int,
    hi: int,
    graph: Graph,
    p: Array,
    f: Array,
    smallest_norm: Any,
    kept: Kept,
    scores: Array,
    out: Array,
) -> None:
    """Fill `kept` and the edges' scores; out[u] = routed preference plus weighted items."""
    n_routings, width = kept.attention.shape[0], p.shape[1]
    most = _largest_degree(graph.user_indptr, lo, hi)
    near = np.empty((most, width), p.dtype)  # the items of one user
    states = np.empty((n_routings + 1, width), p.dtype)  # its preference after each routing
    a = np.empty((n_routings + 1, most), p.dtype)
    for u in range(lo, hi):
        first = graph.user_indptr[u]
        degree = graph.user_indptr[u + 1] - first
        _copy(near, f, graph.items, first, degree)
        for j in range(width):
            states[0, j] = p[u, j]
        # T routings; their attention and norms suffice to compute the states anew.
        for t in range(n_routings):
            kept.norms[t, u] = _route(states, t, near, degree, a, smallest_norm)
            for e in range(degree):
                kept.attention[t, first + e] = a[t, e]
        # s_ui with the routed p: raw for the items' softmax, then alpha_ui for the user itself.
        _dots(near, degree, states, n_routings, a, n_routings)
        for e in range(degree):
            scores[first + e] = a[n_routings, e]
        _softmax(a, n_routings, 0, degree)
        for e in range(degree):
            kept.alpha[0, first + e] = a[n_routings, e]
        for j in range(width):
            kept.routed[u, j] = states[n_routings, j]
        # r_u = p_u + sum_i alpha_ui f_i, without a normalisation.
        _sum(out, u, states, n_routings, a, n_routings, near, degree)


@reduction
def items_forward(
    lo: int, hi: int, graph: Graph, f: Array, kept: Kept, scores: Array, out: Array
) -> None:
    """The softmax of the scores over the slots of each item; out[i] = item plus weighted users."""
    alpha, routed = kept.alpha, kept.routed
    for i in range(lo, hi):
        first, last = graph.item_indptr[i], graph.item_indptr[i + 1]
        for k in range(first, last):
            # alpha_iu: the softmax over the item's slots.
            alpha[1, k] = scores[graph.source[k]]
        _softmax(alpha, 1, first, last - first)
        # r_i = f_i + sum_u alpha_iu p_u.
        for j in range(f.shape[1]):
            out[i, j] = f[i, j]
        for k in range(first, last):
            weight, user = alpha[1, k], graph.slot_users[k]
            for j in range(f.shape[1]):
                out[i, j] += weight * routed[user, j]


@reduction
def items_backward(lo: int, hi: int, graph: Graph, kept: Kept, grads: Incoming) -> None:
    """Fill the gradient of the scores through the items' softmax, and which items are reached."""
    for i in range(lo, hi):
        first, last = graph.item_indptr[i], graph.item_indptr[i + 1]
        grads.reached[i] = not _is_zero(grads.items, i)
        mean = grads.items.dtype.type(0)
        for k in range(first, last):
            # dL/dalpha_iu: what the edge weights bring, and <dL/dr_i, p_u> from r_i.
            slope = grads.alpha[1, k]
            if grads.reached[i]:
                slope += _dot(grads.items, i, kept.routed, graph.slot_users[k])
            grads.scores[graph.source[k]] = slope
            mean += kept.alpha[1, k] * slope
        for k in range(first, last):
            # Through the softmax; `source` is a permutation, so each score is written once.
            e = graph.source[k]
            grads.scores[e] = kept.alpha[1, k] * (grads.scores[e] - mean)


@reduction
def users_backward(
    lo: int,
    hi: int,
    bounds: Array,
    graph: Graph,
    p: Array,
    f: Array,
    smallest_norm: Any,
    kept: Kept,
    grads: Incoming,
    grad_p: Array,
    grad_f: Array,
) -> None:
    """The gradients of p and f, for the users of the parts lo … hi-1.

    Part k has the users bounds[k] … bounds[k + 1] - 1 and adds into its own grad_f[k].

    The states of all routings are computed anew from their attention. Level t < n_routings stands
    for one routing, the last one for the pass that is not normalised. Into each level goes a state;
    its flow is the gradient of the sum that comes out, and an edge gives its item `attention x flow
    + slope x state`.
    """
    indptr, items, attention, norms = graph.user_indptr, graph.items, kept.attention, kept.norms
    last, width = attention.shape[0], p.shape[1]
    levels = last + 1
    zero, one = p.dtype.type(0), p.dtype.type(1)
    most = _largest_degree(indptr, bounds[lo], bounds[hi])
    near = np.empty((most, width), p.dtype)
    # The flow of each level, then the state of each.
    vectors = np.empty((2 * levels, width), p.dtype)
    a = np.empty((levels, most), p.dtype)
    slopes = np.empty((levels, most), p.dtype)
    shares = np.empty((1, 2 * levels), p.dtype)  # what an edge gives its item of each vector
    for part in range(lo, hi):
        to_items = grad_f[part]
        for u in range(bounds[part], bounds[part + 1]):
            first = indptr[u]
            degree = indptr[u + 1] - first
            wanted = not _is_zero(grads.users, u)
            some = wanted
            for e in range(first, first + degree):
                some = some or grads.alpha[0, e] != 0 or grads.scores[e] != 0
                some = some or grads.reached[items[e]]
            # No gradient reaches the user, its edges or its items: p_u and f get none from here.
            if not some:
                for j in range(width):
                    grad_p[u, j] = zero
                continue
            # The states again, from the attention that the forward kept.
            _copy(near, f, items, first, degree)
            for j in range(width):
                vectors[levels, j] = p[u, j]
            for t in range(last):
                for e in range(degree):
                    a[t, e] = attention[t, first + e]
                _sum(vectors, levels + t + 1, vectors, levels + t, a, t, near, degree)
                scale = one / norms[t, u]
                for j in range(width):
                    vectors[levels + t + 1, j] *= scale
            for e in range(degree):
                # The last level attends by alpha_ui, and its flow is dL/dr_u.
                a[last, e] = kept.alpha[0, first + e]
            for j in range(width):
                vectors[last, j] = grads.users[u, j]
            # From the last level to the first: flow, slopes of the softmax, gradient of the state.
            for t in range(last, -1, -1):
                if t < last:
                    # Through the normalisation; a norm that was clamped is a constant.
                    norm = norms[t, u]
                    scale = one / norm
                    out = levels + t + 1
                    along = _dot(grad_p, u, vectors, out) * scale if norm > smallest_norm else zero
                    for j in range(width):
                        vectors[t, j] = grad_p[u, j] * scale - vectors[out, j] * along
                # The slope of an edge is dL/da_e = <flow, f_e>.
                if t < last or wanted:
                    _dots(near, degree, vectors, t, slopes, t)
                else:
                    for e in range(degree):
                        slopes[t, e] = zero
                mean = zero
                for e in range(degree):
                    if t == last:
                        slopes[t, e] += grads.alpha[0, first + e]
                    mean += a[t, e] * slopes[t, e]
                for e in range(degree):
                    # The softmax's backward; the last scores serve the items' softmax too.
                    slopes[t, e] = a[t, e] * (slopes[t, e] - mean)
                    if t == last:
                        slopes[t, e] += grads.scores[first + e]
                _sum(grad_p, u, vectors, t, slopes, t, near, degree)  # the gradient of the state
                if t == last:
                    for e in range(first, first + degree):
                        item = items[e]
                        if grads.reached[item]:
                            # r_i holds alpha_iu p_u: this much of dL/dr_i goes to the routed p_u.
                            weight = kept.alpha[1, graph.slots[e]]
                            for j in range(width):
                                grad_p[u, j] += weight * grads.items[item, j]
            # What each edge gives its item, over all levels at once.
            for e in range(degree):
                for t in range(levels):
                    shares[0, t] = a[t, e]
                    shares[0, levels + t] = slopes[t, e]
                _add(to_items, items[first + e], shares, 0, vectors, 0, 2 * levels)


@kernel
def confident_forward(
    lo: int,
    hi: int,
    alpha: Array,
    confidence: Array,
    nodes: Array,
    pruning: bool,
    winner: Array,
    out: Array,
) -> None:
    """out[e] = max_m alpha[m, e] confidence[nodes[e], m] and its m; pruned: 0 and -1 unless > 0."""
    for e in range(lo, hi):
        node = nodes[e]
        best, which = alpha[0, e] * confidence[node, 0], 0
        for m in range(1, alpha.shape[0]):
            value = alpha[m, e] * confidence[node, m]
            # Strictly larger: of equal products the first modality wins.
            if value > best:
                best, which = value, m
        # relu with derivative 0 at 0: no modality gets the gradient.
        if pruning and best <= 0:
            best, which = alpha.dtype.type(0), -1
        out[e], winner[e] = best, which


@kernel
def confident_backward(
    alpha: Array,
    confidence: Array,
    nodes: Array,
    winner: Array,
    grad: Array,
    grad_alpha: Array,
    grad_confidence: Array,
) -> None:
    """Add each edge's gradient to the modality that won it. One thread: edges share nodes."""
    for e in range(grad.shape[0]):
        m, node = winner[e], nodes[e]
        if m >= 0:
            grad_alpha[m, e] = grad[e] * confidence[node, m]
            grad_confidence[node, m] += grad[e] * alpha[m, e]
