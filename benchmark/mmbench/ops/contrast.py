"""The contrastive loss of two views of a batch's rows, in blocks: no array of rows x rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mmbench.ops import gpu
from mmbench.ops.dense import normalise_rows
from mmbench.ops.partition import log_partition


def info_nce(x: Tensor, y: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """The mean over the rows of a batch of -log(e(b, b) / sum over all rows c of e(b, c)).

    e(b, c) = exp(cos(x_b, y_c) / temperature). Rows that occur several times in the batch are
    given once, with their counts: each counts as often, as a row and among the others.

    Args:
        x: One view of the rows, shape (n, d).
        y: The other, shape (n, d).
        temperature: > 0.
        counts: How often the batch has each row, shape (n,), floating point, >= 0, not all zero;
            None: once.

    Returns:
        A scalar in nats, >= 0; differentiable once in x and y.

    Source: van den Oord et al., contrastive predictive coding (arXiv 1807.03748), equation 4, with
    the cosines and the one direction, from x to y, that SGL made usual among recommenders (Wu et
    al., SIGIR 2021, equation 10).
    """
    x, y = normalise_rows(x) / temperature, normalise_rows(y)
    counts = x.new_ones(len(x)) if counts is None else counts
    share = counts / counts.sum()
    return log_partition(x, y, share, counts) - (share * (x * y).sum(1)).sum()


def first_of_equals(rows: Tensor) -> Tensor | None:
    """Which rows of `mmbench.ops.rows.distinct` are no copies: 1 or 0, shape (k,), for `counts`.

    None where there are no copies.
    """
    if not gpu.static(rows):
        return None
    first = torch.ones(rows.shape, device=rows.device)
    first[1:] = (rows[1:] != rows[:-1]).to(first.dtype)
    return first
