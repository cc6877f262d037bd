"""The contrastive loss of two views of a batch's rows, in blocks: no array of rows x rows.

The gradients of a loss are known up to a factor when its value is, so that the forward leaves them
behind: each block of exponentials is made once, serves the value and both gradients, and is gone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.ops import gpu
from mmbench.ops.dense import normalise_rows, product
from mmbench.ops.kernels import apply

_BLOCK = 256  # rows at once on the CPU, whose block of cosines then stays in its cache
_LARGE_BLOCK = 4096  # on other devices


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
    counts = x.new_ones(len(x)) if counts is None else counts
    return apply(_InfoNCE, normalise_rows(x), normalise_rows(y), counts, temperature)


def first_of_equals(rows: Tensor) -> Tensor | None:
    """Which rows of `mmbench.ops.rows.distinct` are no copies: 1 or 0, shape (k,), for `counts`.

    None where there are no copies.
    """
    if not gpu.static(rows):
        return None
    first = torch.ones(rows.shape, device=rows.device)
    first[1:] = (rows[1:] != rows[:-1]).to(first.dtype)
    return first


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, counts: Tensor, temperature: float) -> Tensor:
        share, scaled = counts / counts.sum(), x / temperature
        # A row that counts c times adds c e(b, .) to the sums: log c to its column. Copies that
        # only fill up a shape count 0 times.
        repeated = counts.log()
        wanted, loss = any(ctx.needs_input_grad), x.new_zeros(())
        grad_x, grad_y = torch.empty_like(x), torch.zeros_like(y)
        step = _BLOCK if x.device.type == "cpu" else _LARGE_BLOCK
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            own = (scaled[part] * y[part]).sum(1)  # (b,)
            logits = product(scaled[part], y.t(), repeated)  # (b, n)
            # Less the largest of its row, so that no exponential overflows.
            largest = logits.amax(1, keepdim=True)
            terms = logits.sub_(largest).exp_()
            sums = terms.sum(1)
            loss += (share[part] * (sums.log() + largest[:, 0] - own)).sum()
            if wanted:
                # d/d logit(b, c) is share_b (terms(b, c) / sums_b - [b = c]), the last below.
                weight = (share[part] / sums)[:, None]
                grad_x[part] = product(terms, y).mul_(weight)
                grad_y.addmm_(terms.t(), scaled[part] * weight)
        if wanted:
            grad_x.addcmul_(share[:, None], y, value=-1).div_(temperature)
            grad_y.addcmul_(share[:, None], scaled, value=-1)
            ctx.save_for_backward(grad_x, grad_y)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_y = ctx.saved_tensors
        return grad * grad_x, grad * grad_y, None, None
