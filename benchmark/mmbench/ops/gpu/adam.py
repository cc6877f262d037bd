"""Dense Adam on a GPU; see `mmbench.trainer.Adam`.

torch's own fused optimiser gives each block of threads 65,536 numbers. The embeddings of a small
catalogue are ten such blocks, and nine tenths of a large card have nothing to do. Here a program
takes `_WIDTH` numbers, so that every parameter is one launch of as many programs as it fills.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmbench.ops.gpu.table import BETA1, BETA2, EPSILON, REST1, REST2

_WIDTH = 1024
_LOG1: Any = tl.constexpr(math.log2(0.9))
_LOG2: Any = tl.constexpr(math.log2(0.999))


@triton.jit
def _step(values, first, second, gradient, steps, lr, n, WIDTH: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    within = place < n
    g = tl.load(gradient + place, within, 0.0)
    m = BETA1 * tl.load(first + place, within, 0.0) + REST1 * g
    v = BETA2 * tl.load(second + place, within, 0.0) + REST2 * (g * g)
    # 1 - beta^t in double precision: of the first steps single precision keeps four digits.
    t = tl.load(steps).to(tl.float64)
    scale = tl.load(lr).to(tl.float64) / (1.0 - tl.exp2(t * _LOG1))
    correction = 1.0 / tl.sqrt(1.0 - tl.exp2(t * _LOG2))
    p = tl.load(values + place, within, 0.0)
    root = tl.sqrt(v) * correction.to(v.dtype) + EPSILON
    tl.store(values + place, p - scale.to(p.dtype) * m / root, within)
    tl.store(first + place, m, within)
    tl.store(second + place, v, within)


class DenseAdam:
    """Adam over dense parameters, with the state of `torch.optim.Adam`.

    Args:
        parameters: Contiguous.
        lr: Learning rate, a scalar on the device: a captured step reads it there.

    Attributes:
        state: `step`, a float32 scalar, `exp_avg` and `exp_avg_sq` of each parameter that has had
            a gradient.
        param_groups: The one group, with its `lr`.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: Tensor) -> None:
        self._parameters, self._lr = list(parameters), lr
        self.param_groups: list[dict[str, Any]] = [{"lr": lr}]
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        moved = [p for p in self._parameters if p.grad is not None and p.numel()]
        for p in moved:
            if not self.state[p]:
                moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                self.state[p] = {"step": self._lr.new_zeros(()), **moments}
        steps = [self.state[p]["step"] for p in moved]
        if moved:
            torch._foreach_add_(steps, 1)
        for p, step in zip(moved, steps, strict=True):
            state, gradient = self.state[p], p.grad
            assert gradient is not None
            _step[(triton.cdiv(p.numel(), _WIDTH),)](
                p, state["exp_avg"], state["exp_avg_sq"], gradient.contiguous(), step, self._lr,
                p.numel(), WIDTH=_WIDTH, enable_fp_fusion=False,
            )  # fmt: skip
