"""Neighbour routing and edge softmax of GRCN: one pass over the users and one over the items, forward and backward.

A user has few items, whose rows stay in the first-level cache while all routings run over them; nothing is kept per
edge and dimension. Edges are in user order: edge e joins user u, indptr[u] <= e < indptr[u + 1], and item items[e].
Slot k of the item side belongs to item i, item_indptr[i] <= k < item_indptr[i + 1], and to user slot_users[k]; its
score is that of edge source[k].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmbench.core.kernels.jit import reduction

Array = Any


@reduction
def _dot(a: Array, x: Array, row: int) -> Any:
    total = a[0] * 0
    for j in range(a.shape[0]):
        total += a[j] * x[row, j]
    return total


@reduction
def _add(out: Array, scale: Any, x: Array, row: int) -> None:
    for j in range(out.shape[0]):
        out[j] += scale * x[row, j]


@reduction
def _softmax(scores: Array, out: Array) -> None:
    if scores.shape[0] == 0:
        return
    top = scores[0]
    for e in range(1, scores.shape[0]):
        top = max(top, scores[e])
    total = top * 0
    for e in range(scores.shape[0]):
        out[e] = np.exp(scores[e] - top)
        total += out[e]
    for e in range(scores.shape[0]):
        out[e] /= total


@reduction
def _route(p: Array, f: Array, items: Array, a: Array, smallest_norm: Any, out: Array) -> Any:
    """Out = rn(p + sum_e a_e f_e) with a = softmax <p, f_e>; returns the norm before normalising."""
    for e in range(items.shape[0]):
        a[e] = _dot(p, f, items[e])
    _softmax(a, a)
    for j in range(p.shape[0]):
        out[j] = p[j]
    for e in range(items.shape[0]):
        _add(out, a[e], f, items[e])
    square = p[0] * 0
    for j in range(p.shape[0]):
        square += out[j] * out[j]
    norm = max(np.sqrt(square), smallest_norm)
    for j in range(p.shape[0]):
        out[j] /= norm
    return norm


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
    routed: Array,
    scores: Array,
    alpha: Array,
    out: Array,
) -> None:
    """The routed preference, the scores of the edges, their softmax, and preference plus weighted items."""
    other = np.empty(p.shape[1], p.dtype)
    for u in range(lo, hi):
        first, last = indptr[u], indptr[u + 1]
        mine, a, state = items[first:last], alpha[first:last], routed[u]
        for j in range(state.shape[0]):
            state[j] = p[u, j]
        for _ in range(n_routings):
            _route(state, f, mine, a, smallest_norm, other)
            for j in range(state.shape[0]):
                state[j] = other[j]
        for e in range(first, last):
            scores[e] = _dot(state, f, items[e])
        _softmax(scores[first:last], a)
        for j in range(state.shape[0]):
            out[u, j] = state[j]
        for e in range(first, last):
            _add(out[u], alpha[e], f, items[e])


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
    """The softmax of the scores over the slots of each item, and item plus weighted users."""
    for i in range(lo, hi):
        first, last = indptr[i], indptr[i + 1]
        for k in range(first, last):
            alpha[k] = scores[source[k]]
        _softmax(alpha[first:last], alpha[first:last])
        for j in range(f.shape[1]):
            out[i, j] = f[i, j]
        for k in range(first, last):
            _add(out[i], alpha[k], routed, slot_users[k])


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
    grad_scores: Array,
) -> None:
    """The gradient of the scores through the items' softmax."""
    for i in range(lo, hi):
        first, last = indptr[i], indptr[i + 1]
        mean = grad_out[i, 0] * 0
        for k in range(first, last):
            slope = _dot(grad_out[i], routed, slot_users[k]) + grad_alpha[k]
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
    n_routings: int,
    smallest_norm: Any,
    alpha: Array,
    item_alpha: Array,
    grad_scores: Array,
    grad_alpha: Array,
    grad_out: Array,
    grad_items_out: Array,
    grad_p: Array,
    grad_f: Array,
) -> None:
    """The gradients of p and f, for the users of the parts lo … hi-1; each part adds into its own grad_f[part].

    The states of all routings are computed anew. Level t < n_routings stands for one routing, the last one for the pass
    that is not normalised; at each level an edge gives its item `a flow + slope state`, added up over the levels in
    registers before it goes to memory. slots[e] is the item-side slot of edge e.
    """
    levels, width = n_routings + 1, p.shape[1]
    most = 0
    for u in range(bounds[lo], bounds[hi]):
        most = max(most, indptr[u + 1] - indptr[u])
    states = np.empty((levels, width), p.dtype)
    flows = np.empty((levels, width), p.dtype)
    norms = np.empty(levels, p.dtype)
    a = np.empty((levels, most), p.dtype)
    slopes = np.empty((levels, most), p.dtype)
    back = np.empty(width, p.dtype)
    for part in range(lo, hi):
        for u in range(bounds[part], bounds[part + 1]):
            first = indptr[u]
            degree = indptr[u + 1] - first
            mine = items[first : first + degree]
            for j in range(width):
                states[0, j] = p[u, j]
            for t in range(n_routings):
                norms[t] = _route(states[t], f, mine, a[t, :degree], smallest_norm, states[t + 1])
            for e in range(degree):
                a[n_routings, e] = alpha[first + e]
            for j in range(width):
                back[j] = grad_out[u, j]
            for t in range(n_routings, -1, -1):
                flow = flows[t]
                if t == n_routings:
                    for j in range(width):
                        flow[j] = back[j]
                else:
                    # Through the normalisation; a norm that was clamped is a constant.
                    along = _dot(back, states, t + 1) if norms[t] > smallest_norm else back[0] * 0
                    for j in range(width):
                        flow[j] = (back[j] - states[t + 1, j] * along) / norms[t]
                mean = back[0] * 0
                for e in range(degree):
                    slope = _dot(flow, f, mine[e])
                    if t == n_routings:
                        slope += grad_alpha[first + e]
                    slopes[t, e] = slope
                    mean += a[t, e] * slope
                for j in range(width):
                    back[j] = flow[j]
                for e in range(degree):
                    slope = a[t, e] * (slopes[t, e] - mean)
                    if t == n_routings:
                        slope += grad_scores[first + e]
                        _add(back, item_alpha[slots[first + e]], grad_items_out, mine[e])
                    slopes[t, e] = slope
                    _add(back, slope, f, mine[e])
            for j in range(width):
                grad_p[u, j] = back[j]
            for e in range(degree):
                target = grad_f[part, mine[e]]
                for t in range(levels):
                    weight, slope, flow, state = a[t, e], slopes[t, e], flows[t], states[t]
                    for j in range(width):
                        target[j] += weight * flow[j] + slope * state[j]
