"""Loops over edges that carry a vector each: weights by cosine, and their gradient.

x (n_nodes, d) has users, then items; p (n_edges, d) belongs to the edges, which are in the order of
their users. `factors` (3, n_edges) holds, for the gradient g of an edge's cosine c and the norms
|a|, |b| of x_u * p and x_i * p: g / (|a| |b|), g c / |a|², g c / |b|².
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmbench.ops.kernels import kernel, reduction

Array = Any  # numba specialises on the dtype: float32 or float64


@reduction
def cosines(
    lo: int, hi: int, users: Array, items: Array, x: Array, p: Array, smallest: Any, out: Array
) -> None:
    """out[:, e] = the cosine of x[users[e]] * p[e] and x[items[e]] * p[e], and both norms."""
    zero = p.dtype.type(0)
    for e in range(lo, hi):
        a = x[users[e]]
        b = x[items[e]]
        content = p[e]
        both = zero
        of_user = zero
        of_item = zero
        for j in range(content.shape[0]):
            square = content[j] * content[j]
            both += a[j] * b[j] * square
            of_user += a[j] * a[j] * square
            of_item += b[j] * b[j] * square
        of_user = max(np.sqrt(of_user), smallest)
        of_item = max(np.sqrt(of_item), smallest)
        out[0, e] = both / (of_user * of_item)
        out[1, e] = of_user
        out[2, e] = of_item


@kernel
def users_backward(
    lo: int,
    hi: int,
    indptr: Array,
    items: Array,
    x: Array,
    p: Array,
    factors: Array,
    grad_x: Array,
    grad_p: Array,
) -> None:
    """Gradients of the users lo … hi-1, and of the vectors of their edges."""
    two = p.dtype.type(2)
    for u in range(lo, hi):
        a = x[u]
        out = grad_x[u]
        for e in range(indptr[u], indptr[u + 1]):
            b = x[items[e]]
            content = p[e]
            of_content = grad_p[e]
            cross = factors[0, e]
            along_user = factors[1, e]
            along_item = factors[2, e]
            for j in range(content.shape[0]):
                both = cross * b[j] - along_user * a[j]
                out[j] += both * content[j] * content[j]
                of_content[j] = content[j] * (
                    two * cross * a[j] * b[j] - along_user * a[j] * a[j] - along_item * b[j] * b[j]
                )


@kernel
def items_backward(
    lo: int,
    hi: int,
    indptr: Array,
    order: Array,
    users: Array,
    x: Array,
    p: Array,
    factors: Array,
    grad_x: Array,
) -> None:
    """Gradients of the items lo … hi-1, into the rows of items alone."""
    n_users = x.shape[0] - grad_x.shape[0]
    for i in range(lo, hi):
        b = x[n_users + i]
        out = grad_x[i]
        for k in range(indptr[i], indptr[i + 1]):
            e = order[k]
            a = x[users[e]]
            content = p[e]
            cross = factors[0, e]
            along_item = factors[2, e]
            for j in range(content.shape[0]):
                both = cross * a[j] - along_item * b[j]
                out[j] += both * content[j] * content[j]
