"""Neighbour routing and edge softmax of GRCN: one pass over the users and one over the items, forward and backward.

A user has few items; their rows are copied side by side once and stay in the first-level cache
while all routings run over them, four at a time. Nothing is kept per edge and dimension. Edges are
in user order: edge e joins user u, indptr[u] <= e < indptr[u + 1], and item items[e]. Slot k of the
item side belongs to item i, item_indptr[i] <= k < item_indptr[i + 1], and to user slot_users[k];
its score is that of edge source[k].

The gradients of a batch are zero for most nodes; users and items that none reaches are passed over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmbench.ops.kernels import inlined_reduction, kernel, reduction

Array = Any


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
    """states[t + 1] = rn(states[t] + sum_e a_e near_e), a = softmax <states[t], near_e>; returns the norm before rn."""
    _dots(near, n, states, t, a, t)
    _softmax(a, t, 0, n)
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
    indptr: Array,
    items: Array,
    p: Array,
    f: Array,
    n_routings: int,
    smallest_norm: Any,
    attention: Array,
    norms: Array,
    routed: Array,
    scores: Array,
    alpha: Array,
    out: Array,
) -> None:
    """The routed preference, the scores of the edges, their softmax, and preference plus weighted items.

    `attention` (n_routings, n_edges) and `norms` (n_routings, n_users) keep what the backward needs
    of each routing.
    """
    width, most = p.shape[1], _largest_degree(indptr, lo, hi)
    near = np.empty((most, width), p.dtype)
    states = np.empty((n_routings + 1, width), p.dtype)
    a = np.empty((n_routings + 1, most), p.dtype)
    for u in range(lo, hi):
        first = indptr[u]
        degree = indptr[u + 1] - first
        _copy(near, f, items, first, degree)
        for j in range(width):
            states[0, j] = p[u, j]
        for t in range(n_routings):
            norms[t, u] = _route(states, t, near, degree, a, smallest_norm)
            for e in range(degree):
                attention[t, first + e] = a[t, e]
        _dots(near, degree, states, n_routings, a, n_routings)
        for e in range(degree):
            scores[first + e] = a[n_routings, e]
        _softmax(a, n_routings, 0, degree)
        for e in range(degree):
            alpha[first + e] = a[n_routings, e]
        for j in range(width):
            routed[u, j] = states[n_routings, j]
        _sum(out, u, states, n_routings, a, n_routings, near, degree)


@reduction
def items_forward(
    lo: int,
    hi: int,
    indptr: Array,
    slot_users: Array,
    source: Array,
    scores: Array,
    routed: Array,
    f: Array,
    alpha: Array,
    out: Array,
) -> None:
    """The softmax of the scores over the slots of each item, and item plus weighted users; `alpha` is (1, n_edges)."""
    for i in range(lo, hi):
        first, last = indptr[i], indptr[i + 1]
        for k in range(first, last):
            alpha[0, k] = scores[source[k]]
        _softmax(alpha, 0, first, last - first)
        for j in range(f.shape[1]):
            out[i, j] = f[i, j]
        for k in range(first, last):
            weight, user = alpha[0, k], slot_users[k]
            for j in range(f.shape[1]):
                out[i, j] += weight * routed[user, j]


@reduction
def items_backward(
    lo: int,
    hi: int,
    indptr: Array,
    slot_users: Array,
    source: Array,
    routed: Array,
    alpha: Array,
    grad_alpha: Array,
    grad_out: Array,
    reached: Array,
    grad_scores: Array,
) -> None:
    """The gradient of the scores through the items' softmax, and whether the output of each item has a gradient."""
    for i in range(lo, hi):
        first, last = indptr[i], indptr[i + 1]
        reached[i] = not _is_zero(grad_out, i)
        mean = grad_out.dtype.type(0)
        for k in range(first, last):
            slope = grad_alpha[k]
            if reached[i]:
                slope += _dot(grad_out, i, routed, slot_users[k])
            grad_scores[source[k]] = slope
            mean += alpha[k] * slope
        for k in range(first, last):
            grad_scores[source[k]] = alpha[k] * (grad_scores[source[k]] - mean)


@reduction
def users_backward(
    lo: int,
    hi: int,
    bounds: Array,
    indptr: Array,
    items: Array,
    slots: Array,
    p: Array,
    f: Array,
    attention: Array,
    norms: Array,
    smallest_norm: Any,
    alpha: Array,
    item_alpha: Array,
    grad_scores: Array,
    grad_alpha: Array,
    grad_out: Array,
    grad_items_out: Array,
    reached: Array,
    grad_p: Array,
    grad_f: Array,
) -> None:
    """The gradients of p and f, for the users of the parts lo … hi-1; each part adds into its own grad_f[part].

    The states of all routings are computed anew from their attention. Level t < n_routings stands
    for one routing, the last one for the pass that is not normalised. Into each level goes a state;
    its flow is the gradient of the sum that comes out, and an edge gives its item `attention x flow
    + slope x state`. slots[e] is the item-side slot of edge e.
    """
    last, width = attention.shape[0], p.shape[1]
    levels = last + 1
    zero, one = p.dtype.type(0), p.dtype.type(1)
    most = _largest_degree(indptr, bounds[lo], bounds[hi])
    near = np.empty((most, width), p.dtype)
    vectors = np.empty(
        (2 * levels, width), p.dtype
    )  # the flow of each level, then the state of each
    a = np.empty((levels, most), p.dtype)
    slopes = np.empty((levels, most), p.dtype)
    shares = np.empty((1, 2 * levels), p.dtype)  # what an edge gives its item of each vector
    for part in range(lo, hi):
        to_items = grad_f[part]
        for u in range(bounds[part], bounds[part + 1]):
            first = indptr[u]
            degree = indptr[u + 1] - first
            wanted = not _is_zero(grad_out, u)
            some = wanted
            for e in range(first, first + degree):
                some = some or grad_alpha[e] != 0 or grad_scores[e] != 0 or reached[items[e]]
            if not some:
                for j in range(width):
                    grad_p[u, j] = zero
                continue
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
                a[last, e] = alpha[first + e]
            for j in range(width):
                vectors[last, j] = grad_out[u, j]
            for t in range(last, -1, -1):
                if t < last:
                    # Through the normalisation; a norm that was clamped is a constant.
                    norm = norms[t, u]
                    scale = one / norm
                    out = levels + t + 1
                    along = _dot(grad_p, u, vectors, out) * scale if norm > smallest_norm else zero
                    for j in range(width):
                        vectors[t, j] = grad_p[u, j] * scale - vectors[out, j] * along
                if t < last or wanted:
                    _dots(near, degree, vectors, t, slopes, t)
                else:
                    for e in range(degree):
                        slopes[t, e] = zero
                mean = zero
                for e in range(degree):
                    if t == last:
                        slopes[t, e] += grad_alpha[first + e]
                    mean += a[t, e] * slopes[t, e]
                for e in range(degree):
                    slopes[t, e] = a[t, e] * (slopes[t, e] - mean)
                    if t == last:
                        slopes[t, e] += grad_scores[first + e]
                _sum(grad_p, u, vectors, t, slopes, t, near, degree)  # the gradient of the state
                if t == last:
                    for e in range(first, first + degree):
                        item = items[e]
                        if reached[item]:
                            weight = item_alpha[slots[e]]
                            for j in range(width):
                                grad_p[u, j] += weight * grad_items_out[item, j]
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
    """out[e] = max_m alpha[m, e] confidence[nodes[e], m] and its m, the first of equals; pruned: 0 and -1 unless > 0."""
    for e in range(lo, hi):
        node = nodes[e]
        best, which = alpha[0, e] * confidence[node, 0], 0
        for m in range(1, alpha.shape[0]):
            value = alpha[m, e] * confidence[node, m]
            if value > best:
                best, which = value, m
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
    """Adds to zeros: the gradient of each edge goes to the modality that won it. One thread: edges share nodes."""
    for e in range(grad.shape[0]):
        m, node = winner[e], nodes[e]
        if m >= 0:
            grad_alpha[m, e] = grad[e] * confidence[node, m]
            grad_confidence[node, m] += grad[e] * alpha[m, e]
