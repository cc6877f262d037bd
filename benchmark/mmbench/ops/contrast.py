"""The contrast of two views of the same rows within a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops import gpu
from mmbench.ops.dense import normalise_rows, product
from mmbench.ops.kernels import apply

AT_ONCE = 1024  # rows of a block


def first_of_equals(rows: Tensor) -> Tensor | None:
    """Which rows of `distinct` are no copies: (k,) bool, or None where copies cannot be."""
    if not gpu.static(rows):
        return None
    first = torch.ones_like(rows, dtype=torch.bool)
    first[1:] = rows[1:] != rows[:-1]
    return first


def info_nce(a: Tensor, b: Tensor, temperature: float, real: Tensor | None = None) -> Tensor:
    """The mean over rows r of -log(e(r, r) / sum_c e(r, c)), e(r, c) = exp(cos(a_r, b_c) / t).

    The matrix of cosines, rows x rows of a batch, is held once, in blocks of rows.

    Args:
        a: One view, shape (n, d).
        b: The other, likewise.
        temperature: t > 0.
        real: Rows that count, shape (n,), bool; None: all.

    Returns:
        A scalar in nats; differentiable once.

    Source: van den Oord et al., contrastive predictive coding (arXiv 1807.03748), equation 4, with
    cosines.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ShapeError(f"info_nce: views {tuple(a.shape)} and {tuple(b.shape)} must be equal")
    return apply(_InfoNCE, normalise_rows(a), normalise_rows(b), temperature, real)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, temperature: float, real: Tensor | None) -> Tensor:
        weight = a.new_full((len(a),), 1 / len(a)) if real is None else (real / real.sum()).to(a)
        matching, blocks, losses, totals = (a * b).sum(1) / temperature, [], [], []
        for rows in torch.split(a, AT_ONCE):
            logits = product(rows / temperature, b.t())  # (some rows, n)
            if real is not None:
                logits.masked_fill_(~real, -torch.inf)
            largest = logits.amax(1)
            # In place: what is kept are the numerators of each row's softmax.
            blocks.append(logits.sub_(largest[:, None]).exp_())
            totals.append(blocks[-1].sum(1))
            losses.append(totals[-1].log() + largest)
        total = torch.cat(totals)[:, None]
        ctx.save_for_backward(a, b, (weight / temperature)[:, None], total, *blocks)
        loss: Tensor = ((torch.cat(losses) - matching) * weight).sum()
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b, weight, total, *blocks = ctx.saved_tensors
        weight = weight * grad
        # d loss_r / d cos(r, c) is the share of c, less one for r itself.
        of_a = torch.cat([product(numerators, b) for numerators in blocks])
        of_a = of_a.div_(total).sub_(b).mul_(weight)
        weighted = a * weight
        of_b = -weighted
        for rows, numerators in zip(torch.split(weighted / total, AT_ONCE), blocks, strict=True):
            # As (rows^T numerators)^T: the matrix is not copied for its transpose.
            of_b += product(rows.t(), numerators).t()
        return of_a, of_b, None, None
