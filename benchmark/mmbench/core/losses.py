"""Loss terms that several models share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.errors import ShapeError


def bpr_loss(pos: Tensor, neg: Tensor) -> Tensor:
    """Mean Bayesian personalised ranking loss, -log sigmoid(pos - neg).

    Args:
        pos: Scores of observed items, shape (B,), any real number.
        neg: Scores of sampled items, shape (B,), same users in the same order.

    Returns:
        Scalar in nats, >= 0; computed with softplus, so it never overflows.

    Raises:
        ShapeError: `pos` and `neg` are not 1-D of equal length.

    Source: Rendle et al., BPR (UAI 2009), section 4.1, without the regulariser.
    """
    if pos.shape != neg.shape or pos.ndim != 1:
        raise ShapeError(
            f"bpr_loss: pos {tuple(pos.shape)} and neg {tuple(neg.shape)} must be 1-D of equal "
            "length"
        )
    return functional.softplus(neg - pos).mean()


def squared_norm(*rows: Tensor) -> Tensor:
    """Sum of the squared entries of all arguments, a scalar >= 0. Rows that occur twice count twice."""
    return torch.stack([x.square().sum() for x in rows]).sum()
