"""Cross-entropy over all items, a block of rows at a time.

The logits of a batch are as many numbers as rows times items, more than everything else of a step.
Here they exist for some rows at a time: their part of both gradients is formed while they are at
hand, in the forward, since the gradient of the loss is one number that multiplies them later.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops import memory
from mmbench.ops.dense import product
from mmbench.ops.kernels import apply

_BLOCK_BYTES = 4 << 20
"""Of logits on the CPU, where they should stay in its caches. A GPU takes more, but never by what
is free: the bits of the sums depend on it."""

_FEWEST_ROWS = 32  # fewer make the products slow


def cross_entropy(x: Tensor, items: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of -log softmax(x_r · items)[target_r] over rows r, differentiable once.

    Args:
        x: Shape (n, d).
        items: Shape (n_items, d).
        target: Item rows, shape (n,), int64.
        weight: Of each row, shape (n,); without gradient.

    Returns:
        Scalar in nats.

    Raises:
        ShapeError: The shapes do not fit.
    """
    n = len(x)
    fits = x.ndim == items.ndim == 2 and x.shape[1:] == items.shape[1:]
    if not fits or target.shape != (n,) or weight.shape != (n,):
        shapes = [tuple(part.shape) for part in (x, items, target, weight)]
        raise ShapeError(f"cross_entropy: {shapes} do not fit")
    return apply(_CrossEntropy, x, items, target, weight)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, items: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        at_a_time = _BLOCK_BYTES if x.device.type == "cpu" else memory.LARGEST
        rows = max(_FEWEST_ROWS, at_a_time // (x.element_size() * max(1, len(items))))
        grad_x, grad_items = torch.empty_like(x), torch.zeros_like(items)
        loss = x.new_zeros(())
        for part in (slice(start, start + rows) for start in range(0, len(x), rows)):
            mine, of, w = x[part], target[part][:, None], weight[part][:, None]
            logits = product(mine, items.t())  # (rows, n_items)
            best, hit = logits.amax(1, keepdim=True), logits.gather(1, of)
            p = torch.softmax(logits, 1)
            # The largest share is exp(0) / sum, so the sum is at hand: no pass over the logits.
            loss += (w * (best - p.amax(1, keepdim=True).log() - hit)).sum()
            # d loss / d logits = w (p - [the target]); then to both factors.
            p.mul_(w).scatter_add_(1, of, -w)
            grad_x[part] = product(p, items)
            grad_items += product(p.t(), mine)
        ctx.save_for_backward(grad_x, grad_items)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_items = ctx.saved_tensors
        return grad_x * grad, grad_items * grad, None, None
