"""Large trainable tables under exact Adam, of which each step uses some rows.

Dense Adam moves every entry of a table at every step, also those without gradient: their momentum
goes on. For item features with 5,000 columns that is gigabytes of memory traffic per step, although
a row without gradient follows a course that its moments determine. `RowTable` therefore does
nothing to such a row until somebody looks at it, and then replays the missed steps, each with its
own learning rate and bias corrections. The bits are those of the dense update, each operation
rounded once. "Lazy" or "sparse" Adam, which drop the missed steps, train a different model; so do
tables that stay as they start. Both can be asked for, see `Update`.

On the CPU compiled kernels do this, on an NVIDIA GPU Triton's; there everything that a step needs
is on the device, the factors of an epoch's steps too (`schedule`), so that a step can be captured
and replayed. Other devices move the whole table at every step.

Source: Kingma & Ba, Adam (ICLR 2015), algorithm 1, with beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmbench.errors import ShapeError, TrainingError
from mmbench.ops import gpu
from mmbench.ops.dense import column_sums, linear, product
from mmbench.ops.glide import Glide
from mmbench.ops.kernels import apply, array, run, split

Update = Literal["exact", "lazy", "frozen"]
"""How a `RowTable` follows Adam: every row, only rows with a gradient, or no row at each step."""

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
_TINY = 1e-20  # values above it are out of reach of updates whose moments are subnormal
_BLOCK_ROWS = 512  # rows of a factored gradient multiplied out at once
_EAGER_ROWS = 4096  # rows updated at once where nothing is deferred: bounds the temporaries


@dataclass(eq=False)
class _Borrowed:
    """Rows handed out for the current step, and what the backward brings for them.

    Attributes:
        index: Row numbers; None for the whole table.
        current: The rows, shape (k, dim); of `rows` the leaf that collects the gradient.
        factors: Of `project`, after the backward: G (k, out) and W (out, dim), whose product is the
            gradient.
    """

    index: Tensor | None
    current: Tensor
    factors: tuple[Tensor, Tensor] | None = None

    @property
    def has_gradient(self) -> bool:
        return self.factors is not None or self.current.grad is not None

    def clear(self) -> None:
        self.factors = self.current.grad = None

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """The gradient, some rows at a time."""
        if self.factors is None:
            assert self.current.grad is not None
            yield slice(None), self.current.grad
            return
        upper, weight = self.factors
        for part in _blocks(upper):
            # Rows of G W: the whole product would be as large as the borrowed rows.
            yield part, product(upper[part], weight)


class RowTable(nn.Module):
    """A trainable table (n_rows, dim), of which each step uses some rows, under exact Adam.

    In a model: `x = self.features.rows(items)` gives the rows as a leaf that collects their
    gradient, and the optimiser (`mmbench.trainer.Adam`) calls `step(lr)` after the backward;
    `project(items, weight, bias)` does the same for rows that only a linear layer sees. One set of
    rows per step, as `mmbench.ops.rows.distinct` gives them: ascending, and where rows are equal
    (on other devices than the CPU) the first one stands for all. The table, its moments and the
    number of steps are buffers, so the state dict holds them, all steps replayed.

    Args:
        values: Start, shape (n_rows, dim), float32 or float64, contiguous. Owned and changed in
            place from now on.
        deferred: Replay missed steps when a row is next used, instead of moving all rows at every
            step. None: where there are kernels for it.

    Attributes:
        moved: Whether a step has been taken.
        update: `exact`, unless an approximation is asked for before the first step.
    """

    glides: ClassVar[bool] = False
    """Whether many missed steps are summed up on the CPU (`mmbench.ops.glide`)."""

    values: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor

    def __init__(self, values: Tensor, *, deferred: bool | None = None) -> None:
        super().__init__()
        floating = values.dtype in (torch.float32, torch.float64)
        if values.ndim != 2 or not values.is_contiguous() or not floating:
            raise ShapeError(
                f"RowTable: values must be a contiguous float32 or float64 matrix "
                f"(got {tuple(values.shape)} of {values.dtype})"
            )
        self._deferred = deferred
        self.update: Update = "exact"
        self._last_lr = self._glide_lr = math.inf
        self.register_buffer("values", values.detach())
        self.register_buffer("exp_avg", torch.zeros_like(values))
        self.register_buffer("exp_avg_sq", torch.zeros_like(values))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._borrowed: list[_Borrowed] = []
        self._buffer = values.new_empty(0, values.shape[1])
        # So that a projection by constants has a backward too.
        self._anchor = torch.zeros((), requires_grad=True)
        self._gpu: _OnGPU | None = None
        self._taken = 0
        self.moved = False
        self._forget_history()
        module: Any = self  # hooks are untyped in torch
        module.register_state_dict_pre_hook(lambda module, prefix, keep_vars: module.flush())
        module.register_load_state_dict_post_hook(lambda module, keys: module._go_on())

    @property
    def deferred(self) -> bool:
        """Whether steps that a row has missed wait until it is next used."""
        if self._deferred is None:
            return self.values.device.type == "cpu" or gpu.serves(self.values)
        return self._deferred

    @property
    def shape(self) -> torch.Size:
        """(n_rows, dim)."""
        return self.values.shape

    def rows(self, index: Tensor | None = None) -> Tensor:
        """Rows after all steps so far, as a leaf whose gradient the next `step` applies.

        Args:
            index: Row numbers, shape (k,), int64, ascending; None for the whole table, without a
                copy.

        Returns:
            Shape (k, dim). Where gradients are disabled, or the table is frozen, it is
            `read(index)`.

        Raises:
            ShapeError: The row numbers are not strictly ascending; seen on the CPU alone, where
                looking costs nothing.
        """
        if not torch.is_grad_enabled() or self.update == "frozen":
            return self.read(index)
        self._check(index)
        return self._borrow(index).current.requires_grad_()

    def project(self, index: Tensor | None, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`linear(rows(index), weight, bias)`, (k, out), without holding the rows' gradient.

        That gradient is G W, with G of the result: the product is formed a few rows at a time while
        they are updated. Differentiable once.

        Raises:
            ShapeError: As for `rows`, or the weight does not fit.
        """
        if weight.ndim != 2 or weight.shape[1] != self.shape[1]:
            raise ShapeError(
                f"RowTable: a weight of {tuple(weight.shape)} cannot project rows of "
                f"{self.shape[1]}"
            )
        if not torch.is_grad_enabled() or self.update == "frozen":
            return linear(self.read(index), weight, bias)
        self._check(index)
        return apply(_Projection, self._anchor, weight, bias, self._borrow(index))

    def read(self, index: Tensor | None = None) -> Tensor:
        """Rows after all steps so far, without gradient.

        Args:
            index: Row numbers, shape (k,), int64; None for the whole table, which is brought up to
                date and not copied.
        """
        if index is None:
            self.flush()
            return self.values
        if not self.deferred or self.update != "exact":
            return self.values[index]
        # Replayed into a copy: a look changes neither the table nor its moments.
        out = self.values.new_empty(index.numel(), self.shape[1])
        self._replay(index, out)
        return out

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One Adam step: the borrowed rows with their gradient, all others as `update` says.

        Args:
            lr: Learning rate of this step, > 0.

        Raises:
            TrainingError: Two sets of rows got a gradient since the last step.
        """
        borrowed = [part for part in self._borrowed if part.has_gradient]
        self._borrowed, self.moved = [], True
        if len(borrowed) > 1:
            raise TrainingError(
                "RowTable: rows() gave two sets that got a gradient in one step; ask for their "
                "union"
            )
        if gpu.serves(self.values) and self.deferred:
            self._scheduled(lr).step(self, borrowed[0] if borrowed else None)
            self.steps += 1
            return
        scale, correction = _factors(lr, self._taken + 1)
        if self.update != "exact":
            if borrowed and self.deferred:  # nothing is ever missed, so there is nothing to replay
                self._update(borrowed[0], scale, correction)
            elif borrowed:
                self._update_some(borrowed[0], scale, correction)
        elif self.deferred:
            if borrowed:
                # Before the step joins the history: first the moments replay what the rows missed.
                self._update(borrowed[0], scale, correction)
            if lr != self._glide_lr:  # not what was scheduled
                self._glide = Glide()
            if lr > self._last_lr:  # rows that have come to rest may move again
                self._settle_from = len(self._scale)
            self._last_lr = lr
            self._scale.append(scale)
            self._correction.append(correction)
            if borrowed:
                index = borrowed[0].index
                if index is None:
                    self._forget_history()
                else:
                    # These rows have seen every step; all others are one further behind.
                    self._last[array(index)] = len(self._scale)
        else:
            # Nothing is deferred: each step moves the whole table.
            self._update_all(borrowed[0] if borrowed else None, scale, correction)
        self._taken += 1
        self.steps += 1

    def schedule(self, lr: float, steps: int) -> None:
        """Bring the table up to date, and say the learning rate of the coming steps.

        Where Triton's kernels serve the table, `step` then reads nothing that Python holds, for as
        many steps. On the CPU a table that `glides` can sum up many missed steps of the epoch.
        """
        if gpu.serves(self.values) and self.deferred:
            self.flush()
            self._gpu = self._gpu or _OnGPU(self)
            self._gpu.schedule(lr, int(self.steps), steps)
        elif self.glides and self.deferred and self.update == "exact":
            self.flush()
            betas = float(self._scalar(BETA1)), float(self._scalar(BETA2))
            coming = range(self._taken + 1, self._taken + steps + 1)
            self._glide = Glide([_factors(lr, t) for t in coming], self._taken, *betas)
            self._glide_lr = lr

    def _scheduled(self, lr: float) -> _OnGPU:
        if self._gpu is None or not self._gpu.left:  # nobody has said what is coming
            self.schedule(lr, 1)
        assert self._gpu is not None
        self._gpu.left -= 1
        return self._gpu

    @property
    def has_gradient(self) -> bool:
        """Whether a backward has reached rows since the last step."""
        return any(part.has_gradient for part in self._borrowed)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradient of the rows handed out, which wait for the next backward."""
        for part in self._borrowed:
            part.clear()

    def flush(self) -> None:
        """Replay all missed steps, so that `values` and moments are those of dense Adam."""
        if self._gpu is not None:
            if self.update == "exact":
                self._gpu.flush(self)
            return
        if not self._scale:
            return
        # Every row, in place: afterwards no row has missed a step.
        self._replay(torch.arange(self.shape[0]), None)
        self._forget_history()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RowTable:
        self.flush()  # the table may leave the device where steps are deferred
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffer = self.values.new_empty(0, self.shape[1])
        self._go_on()
        return self

    def _go_on(self) -> None:
        """The buffers have been replaced or loaded, with all steps replayed."""
        self._gpu = None
        self._taken = int(self.steps)
        self.moved = self._taken > 0
        self._forget_history()

    def _forget_history(self) -> None:
        # `_last` counts the steps since the last flush that a row has seen; the lists hold what
        # those steps did.
        self._last = np.zeros(self.shape[0], np.int64)
        self._scale: list[float] = []
        self._correction: list[float] = []
        self._settle_from = 0
        self._last_lr = math.inf
        self._glide = Glide()
        self._glide_lr = math.inf

    def _check(self, index: Tensor | None) -> None:
        if index is None or gpu.static(index):
            return
        if not bool((index[1:] > index[:-1]).all()):
            raise ShapeError(
                "RowTable: a step needs distinct rows in ascending order, as torch.unique gives "
                "them"
            )

    def _borrow(self, index: Tensor | None) -> _Borrowed:
        if index is None or not self.deferred or gpu.static(index):
            current = self.read(index)
        else:
            # Batches differ a little in size; one buffer for all of them keeps the heap from
            # falling to pieces. Rows of an earlier call are overwritten, which is seen: they too
            # get a gradient, and `step` refuses two sets.
            k = index.numel()
            if self._buffer.shape[0] < k:
                self._buffer = self.values.new_empty(min(self.shape[0], k + k // 8), self.shape[1])
            current = self._buffer[:k]
            self._replay(index, current)
        # Rows without gradient were only looked at; the others wait for `step`.
        self._borrowed = [part for part in self._borrowed if part.has_gradient]
        self._borrowed.append(_Borrowed(index, current.detach()))
        return self._borrowed[-1]

    def _replay(self, index: Tensor, out: Tensor | None) -> None:
        """Bring some rows up to date: into `out`, or where it is None into the table itself."""
        if gpu.serves(self.values):
            if self._gpu is None:  # no step has been taken
                torch.index_select(self.values, 0, index, out=out)
            else:
                self._gpu.replay(self, index, out)
            return
        from mmbench.ops.kernels import rows as kernels

        now, rows, scalar = len(self._scale), array(index), self._scalar
        # The missed steps of these rows, and one pass for the copy.
        work = float((now + 1 - self._last[rows]).sum()) * self.shape[1]
        run(
            kernels.replay,
            split(index.numel(), work=work),
            rows,
            self._last,
            now,
            self._settle_from,
            kernels.Steps(np.asarray(self._scale, scalar), np.asarray(self._correction, scalar)),
            self._constants(),
            self._arrays(),
            (self.values if out is None else out).numpy(),
            out is None,
            self._glide.jumps(self._last[rows], now, scalar),
        )

    def _update(self, borrowed: _Borrowed, scale: float, correction: float) -> None:
        """Adam's step for the borrowed rows, whose values are up to date."""
        from mmbench.ops.kernels import rows as kernels

        index = torch.arange(self.shape[0]) if borrowed.index is None else borrowed.index
        now = len(self._scale)
        for part, gradient in borrowed.parts():
            rows = array(index[part])
            run(
                kernels.update,
                split(len(gradient), work=gradient.numel()),
                rows,
                self._last,
                now,
                kernels.Steps(self._scalar(scale), self._scalar(correction)),
                self._constants(),
                array(borrowed.current[part]),
                array(gradient),
                self._arrays(),
                self._glide.jumps(self._last[rows], now, self._scalar),
            )

    def _arrays(self) -> Any:
        from mmbench.ops.kernels.rows import Table

        return Table(self.values.numpy(), self.exp_avg.numpy(), self.exp_avg_sq.numpy())

    def _constants(self) -> Any:
        from mmbench.ops.kernels.rows import Constants

        # 1 - beta is formed in double precision and rounded once, as in dense Adam.
        constants = (BETA1, BETA2, 1 - BETA1, 1 - BETA2, EPSILON, _TINY)
        return Constants(*map(self._scalar, constants))

    def _update_all(self, borrowed: _Borrowed | None, scale: float, correction: float) -> None:
        # All moments decay; the rows with a gradient then get their part. Repeated rows have none.
        self.exp_avg *= BETA1
        self.exp_avg_sq *= BETA2
        for part, gradient in borrowed.parts() if borrowed is not None else ():
            if borrowed is None or borrowed.index is None:
                self.exp_avg[part] += (1 - BETA1) * gradient
                self.exp_avg_sq[part] += (1 - BETA2) * (gradient * gradient)
            else:
                rows = borrowed.index[part]
                self.exp_avg.index_add_(0, rows, (1 - BETA1) * gradient)
                self.exp_avg_sq.index_add_(0, rows, (1 - BETA2) * (gradient * gradient))
        tensors = (self.values, self.exp_avg, self.exp_avg_sq)
        pieces = (torch.split(tensor, _EAGER_ROWS) for tensor in tensors)
        for values, m, v in zip(*pieces, strict=True):
            values -= scale * m / (v.sqrt() * correction + EPSILON)

    def _update_some(self, borrowed: _Borrowed, scale: float, correction: float) -> None:
        index = borrowed.index
        # Repeated rows, which have no gradient, write what the first of them writes.
        first = None if index is None else torch.searchsorted(index, index)
        gradients = torch.cat([gradient for _, gradient in borrowed.parts()])
        gradient = gradients if first is None else gradients[first]
        rows: Any = slice(None) if index is None else index
        # "Lazy": rows without gradient keep their moments too.
        m = BETA1 * self.exp_avg[rows] + (1 - BETA1) * gradient
        v = BETA2 * self.exp_avg_sq[rows] + (1 - BETA2) * (gradient * gradient)
        self.exp_avg[rows], self.exp_avg_sq[rows] = m, v
        self.values[rows] -= scale * m / (v.sqrt() * correction + EPSILON)

    @property
    def _scalar(self) -> type[np.float32] | type[np.float64]:
        return np.float32 if self.values.dtype == torch.float32 else np.float64


class _OnGPU:
    """What a table's deferred steps need on an NVIDIA GPU, where no number reaches Python.

    Attributes:
        left: Calls of `step` from Python until the schedule ends.
    """

    def __init__(self, table: RowTable) -> None:
        self.left = 0
        self._device, self._dtype = table.values.device, table.values.dtype
        self._last = torch.zeros_like(table.values[:, 0], dtype=torch.int64)
        self._base = torch.zeros_like(table.steps)
        self._factors: Tensor | None = None

    def schedule(self, lr: float, taken: int, steps: int) -> None:
        # In double precision by Python: an array's powers may differ in their last bit.
        factors = [_factors(lr, t) for t in range(taken + 1, taken + steps + 1)]
        coming = torch.tensor(factors, dtype=torch.float64).T.contiguous()
        coming = coming.to(self._device, self._dtype)
        self._base.fill_(taken)
        self._last.fill_(taken)
        self.left = steps
        if self._factors is not None and self._factors.shape == coming.shape:
            self._factors.copy_(coming)  # where captured steps look
        else:
            self._factors = coming

    def replay(self, table: RowTable, index: Tensor, out: Tensor | None) -> None:
        from mmbench.ops.gpu import table as kernels

        clock = table.steps, self._base
        kernels.replay(index, self._last, clock, *self._of(table), out)

    def flush(self, table: RowTable) -> None:
        self.replay(table, torch.arange(table.shape[0], device=table.values.device), None)
        self._last.copy_(table.steps)

    def step(self, table: RowTable, borrowed: _Borrowed | None) -> None:
        """The update of the rows with a gradient; all others wait."""
        from mmbench.ops.gpu import table as kernels

        if borrowed is None:
            return
        index, lazy = borrowed.index, table.update != "exact"
        if index is None:
            index = torch.arange(table.shape[0], device=table.values.device)
        for part, gradient in borrowed.parts():
            kernels.update(
                index,
                part.start or 0,
                self._last,
                (table.steps, self._base),
                *self._of(table),
                borrowed.current[part],
                gradient.contiguous(),
                replays=not lazy,
            )
        # These rows have seen this step, too.
        self._last.index_copy_(0, index, (table.steps + 1).expand(index.shape))

    def _of(self, table: RowTable) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        assert self._factors is not None
        tensors = table.values, table.exp_avg, table.exp_avg_sq
        return self._factors, tensors


def _factors(lr: float, t: int) -> tuple[float, float]:
    """The two factors of step t: p -= scale m / (sqrt(v) correction + epsilon).

    That is Adam's p -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon).
    """
    return lr / (1 - BETA1**t), 1 / math.sqrt(1 - BETA2**t)


def _blocks(rows: Tensor) -> Iterator[slice]:
    """Slices of the rows of a factored gradient: small on the CPU, where they stay in its cache."""
    step = _BLOCK_ROWS if rows.device.type == "cpu" else _EAGER_ROWS
    return (slice(start, start + step) for start in range(0, len(rows), step))


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, weight: Tensor, bias: Tensor | None, borrowed: _Borrowed
    ) -> Tensor:
        ctx.borrowed = borrowed
        # The optimiser may change the weight before the table's turn.
        ctx.weight = weight.detach().clone()
        return product(borrowed.current, weight.t(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        borrowed, weight = ctx.borrowed, ctx.weight
        if borrowed.factors is not None:
            raise TrainingError(
                "RowTable: a second backward through the same rows; clear the gradients in between"
            )
        # G and W stand for the gradient G W, which `step` multiplies out.
        borrowed.factors = grad, weight
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            # dW = G^T X, a block of rows at a time.
            for part in _blocks(grad):
                grad_weight += product(grad[part].t(), borrowed.current[part])
        return None, grad_weight, column_sums(grad) if ctx.needs_input_grad[2] else None, None
