"""Dense products by the exact kernel of this CPU, fused operations, and the k best of rows.

`mmbase.gemm` chooses the kernel by the processor. Both compute in full single precision; small
products, double precision and other devices always take torch's own. The fused operations,
rows of unit length and the wide product of MMGCN's layers, exist for their backward: it makes no
temporaries of the size of the matrix.

`top_k` breaks ties by ascending item row, at the boundary too, so that the same scores give the
same lists on every device and with every library version. Long rows are never sorted: cut into
blocks of neighbouring columns, the k blocks that come first by maximum (equal maxima by block
order) hold the k best items, because any item outside them has k items before it, one in each of
those blocks. The same argument then holds inside the chosen blocks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from mmbase import gemm as kernels
from mmbench.errors import NotFiniteError, ShapeError
from mmbench.ops import gpu
from mmbench.ops.kernels import apply, array, run, split

if TYPE_CHECKING:
    from mmbench.ops.sparse import SparseMatrix

_FEW_TILES = 1 << 16  # entries of a result that occupies few processors of a GPU
_LONGEST = 8192  # summands of an entry up to which sharing them out was measured to pay
_MIN_WORK = 1 << 18  # multiply-adds below which the detour costs more than it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b, differentiable once.

    Args:
        x: Shape (n, in).
        weight: W, shape (out, in).
        bias: b, shape (out,).

    Returns:
        Shape (n, out).

    Raises:
        ShapeError: The shapes do not fit.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ShapeError(f"linear: {tuple(x.shape)} with a weight of {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"linear: a bias of {tuple(bias.shape)} for a weight of {tuple(weight.shape)}"
        )
    return apply(_Linear, x, weight, bias)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b + bias without derivative: the routine behind `linear`, for other kernels."""
    m, k, n = *a.shape, b.shape[1]
    # oneDNN takes float32 on the CPU only, and small products do not repay its overhead.
    large = (
        m * k * n >= _MIN_WORK
        and a.dtype == b.dtype == torch.float32
        and a.device.type == b.device.type == "cpu"
    )
    if large and kernels.chosen() == "onednn":
        with torch.no_grad():
            # oneDNN wants its second factor as a weight (out, in), hence the transpose.
            return kernels.onednn(a.detach(), b.detach().t(), bias)
    if gpu.serves(a):
        if not b.is_contiguous() and 8 * b.numel() <= a.numel():
            b = b.contiguous()  # a copy of a small weight: libraries are faster along its rows
        if m * n <= _FEW_TILES and k % 4 == 0 and 2048 <= k <= _LONGEST:
            # Libraries give each processor of a GPU a tile of the result: here most of them would
            # have nothing to do.
            left = a.unflatten(1, (4, -1)).transpose(0, 1)  # type: ignore[no-untyped-call]
            right = b.unflatten(0, (4, -1))  # type: ignore[no-untyped-call]
            out = torch.bmm(left, right).sum(0)
            return out if bias is None else out.add_(bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def column_sums(x: Tensor) -> Tensor:
    """The sum of the rows of x, without derivative."""
    if gpu.serves(x):
        from mmbench.ops.gpu import rows as gpu_kernels

        return gpu_kernels.column_sums(x.contiguous())
    return x.sum(0)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.t(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        # dX = G W, dW = G^T X, db = the column sums of G.
        grad_x = product(grad, weight) if ctx.needs_input_grad[0] else None
        grad_weight = product(grad.t(), x) if ctx.needs_input_grad[1] else None
        grad_bias = column_sums(grad) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


SMALLEST_NORM = 1e-12
SLOPE = 0.01
_BLOCK = 4096  # rows at once on the CPU: large enough for the products, small beside the matrices


def normalise_rows(x: Tensor) -> Tensor:
    """Each row of x (n, d) divided by max(its L2 norm, 1e-12): `rn` in the models' equations.

    Differentiable once. A norm below the bound counts as a constant, as in
    `torch.nn.functional.normalize`.

    Raises:
        ShapeError: `x` is no matrix.
    """
    if x.ndim != 2:
        raise ShapeError(f"normalise_rows: a matrix is needed (got {tuple(x.shape)})")
    return apply(_Normalise, x)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if gpu.serves(x):
            from mmbench.ops.gpu import rows as gpu_kernels

            unit, norms = gpu_kernels.normalise(x.contiguous())
            ctx.save_for_backward(unit, norms)
            return unit
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(SMALLEST_NORM)  # (n, 1)
        # The backward needs y and the norms, not x.
        y: Tensor = x / norm
        ctx.save_for_backward(y, norm)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # d/dx of x / |x| takes from the gradient its part along y.
        y, norm = ctx.saved_tensors
        if gpu.serves(y):
            from mmbench.ops.gpu import rows as gpu_kernels

            return gpu_kernels.normalise_backward(y, norm, grad.contiguous())
        if y.device.type != "cpu":
            # A norm at the bound is a constant: nothing is taken off.
            along = (grad * y).sum(1, keepdim=True).masked_fill_(norm <= SMALLEST_NORM, 0.0)
            return torch.addcmul(grad, y, along, value=-1).div_(norm)
        from mmbench.ops.kernels import rows as row_kernels

        out = torch.empty_like(y, memory_format=torch.contiguous_format)
        bounds = split(y.shape[0], work=y.numel())
        # In the array's dtype, so that the kernel compares without widening.
        smallest = array(norm).dtype.type(SMALLEST_NORM)
        run(
            row_kernels.normalise_backward,
            bounds,
            array(grad),
            array(y),
            array(norm),
            smallest,
            out.numpy(),
        )
        return out


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """The cosine of each row of x with that of y, (n,), for x and y (n, d); y counts as a constant.

    Norms are bounded from below by 1e-8. Differentiable once in x.

    Raises:
        ShapeError: The shapes differ.
    """
    if x.ndim != 2 or x.shape != y.shape:
        raise ShapeError(f"cosines: {tuple(x.shape)} and {tuple(y.shape)} must be equal")
    if gpu.serves(x):
        return apply(_Cosines, x, y.detach())
    return functional.cosine_similarity(x, y.detach(), dim=1, eps=1e-8)


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        from mmbench.ops.gpu import rows as gpu_kernels

        x, y = x.contiguous(), y.contiguous()
        ctx.save_for_backward(x, y)
        return gpu_kernels.cosines(x, y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        from mmbench.ops.gpu import rows as gpu_kernels

        x, y = ctx.saved_tensors
        return gpu_kernels.cosines_backward(x, y, grad.contiguous()), None


def leaky_mix(
    x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor, of: SparseMatrix | None = None
) -> Tensor:
    """LR(A X C) M^T + b with LR(x) = max(x, 0.01 x) and A = I by default, differentiable once.

    Equal to the composition. LR(A X C) is kept for the backward; its gradient, as large, exists a
    block at a time where there is no A. A (X C) has fewer products than (A X) C where A has more
    rows than columns.

    Args:
        x: X, shape (n, k).
        inner: C, shape (k, h).
        outer: M, shape (d, h).
        bias: b, shape (d,).
        of: A, shape (m, n).

    Raises:
        ShapeError: The shapes do not fit.
    """
    fits = x.shape[1:] == inner.shape[:1] and inner.shape[1:] == outer.shape[1:]
    if not fits or bias.shape != outer.shape[:1]:
        shapes = [tuple(part.shape) for part in (x, inner, outer, bias)]
        raise ShapeError(f"leaky_mix: {shapes} do not fit")
    return apply(_LeakyMix, x, inner, outer, bias, of)


class _LeakyMix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor, of: SparseMatrix | None
    ) -> Tensor:
        # LR keeps the sign, so that its slope can be read off its result: X C itself is not kept.
        hidden = product(x, inner)  # (n, h)
        if of is not None:
            hidden = of.pattern.multiply(of.values, hidden)  # (m, h)
        hidden = functional.leaky_relu(hidden, SLOPE, inplace=True)
        ctx.of = of
        ctx.save_for_backward(x, inner, outer, hidden)
        return product(hidden, outer.t(), bias)  # (m, d)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        x, inner, outer, hidden = ctx.saved_tensors
        if ctx.of is not None:
            # dM = G^T H; dH = G M through LR, then through A^T to the rows of X C.
            inside = torch.ops.aten.leaky_relu_backward(product(grad, outer), hidden, SLOPE, True)
            inside = ctx.of.T.pattern.multiply(ctx.of.T.values, inside)  # (n, h)
            grad_x = product(inside, inner.t()) if ctx.needs_input_grad[0] else None
            grad_inner, grad_outer = product(x.t(), inside), product(grad.t(), hidden)
            return grad_x, grad_inner, grad_outer, column_sums(grad), None
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_inner, grad_outer = torch.zeros_like(inner), torch.zeros_like(outer)
        # Blocks bound the memory of the hidden gradient; other devices take all rows at once.
        step = _BLOCK if x.device.type == "cpu" else max(1, x.shape[0])
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            g, h = grad[part], hidden[part]
            # dM = G^T H; then dH = G M through LR, dC = X^T dH, dX = dH C^T.
            grad_outer += product(g.t(), h)
            inside = torch.ops.aten.leaky_relu_backward(product(g, outer), h, SLOPE, True)  # (B, h)
            grad_inner += product(x[part].t(), inside)
            if grad_x is not None and step >= x.shape[0]:
                grad_x = product(inside, inner.t())
            elif grad_x is not None:
                grad_x[part] = product(inside, inner.t())
        return grad_x, grad_inner, grad_outer, column_sums(grad), None


# Columns per block, coarse level first, and how much shorter a level must make the rows.
_BLOCK_WIDTHS = (32, 8)
_WORTHWHILE = 2


class NanScoreError(NotFiniteError):
    """A candidate's score is NaN.

    Attributes:
        row: The first such row of the scores.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"scores, row {row}: NaN (expected real numbers)")
        self.row = row


def top_k(scores: Tensor, k: int) -> Tensor:
    """The items of the k highest scores of each row, best first.

    Args:
        scores: Shape (B, n_items), floating point, on any device; -inf marks items that are no
            candidates.
        k: Length of the lists, >= 1.

    Returns:
        Item rows, shape (B, k), int64: by score descending, equal scores by row ascending. A row
        with fewer than k candidates ends in -1.

    Raises:
        ShapeError: `scores` is not 2-D floating point, or `k` < 1.
        NanScoreError: A score is NaN; it has the first such row of `scores`.
    """
    items, bad = unchecked_top_k(scores, k)
    if bool(bad.any()):
        raise NanScoreError(int(bad.nonzero()[0, 0]))
    return items


def unchecked_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`top_k` that waits for no result on the device: the caller looks for NaN when it suits.

    Returns:
        The lists, and whether each row of the scores holds a NaN, shape (B,), bool: such a row's
        list means nothing.

    Raises:
        ShapeError: See `top_k`.
    """
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ShapeError(
            f"top_k: scores must be (B, n_items) floating point, got {tuple(scores.shape)} "
            f"{scores.dtype}"
        )
    if k < 1:
        raise ShapeError(f"top_k: k must be at least 1, got {k}")
    found = min(k, scores.shape[1])
    items = _first_positions(scores, found)  # (B, found)
    values = scores.gather(1, items)
    # NaN ranks first: a row that holds one begins with it.
    bad = values[:, :1].isnan().any(1)
    # -inf ranks last, so that only the end of a list can hold it.
    items = items.masked_fill(values == -math.inf, -1)
    return torch.nn.functional.pad(items, (0, k - found), value=-1), bad


def _first_positions(values: Tensor, k: int) -> Tensor:
    """Columns of each row's k <= n largest values, (B, k): NaN, then largest, ties by column."""
    columns = values.shape[1]
    for width in _BLOCK_WIDTHS:
        # The k best blocks and the rest have fewer than (k + 1) width columns.
        if columns >= _WORTHWHILE * (k + 1) * width:
            return _among_best_blocks(values, k, width)
    if values.dtype == torch.float64:  # does not fit into the integer key below
        # A GPU sorts by bits, where a NaN with a sign comes last.
        values = values.masked_fill(values.isnan(), math.nan)
        return torch.sort(values, dim=1, descending=True, stable=True).indices[:, :k]
    # The bits of a float, read as an integer, grow with a positive float and fall with a negative
    # one. Adding zero turns -0.0 into 0.0. The column, counted from the right, goes into the lower
    # half of the key and decides ties.
    bits = (values.float() + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ordered.masked_fill_(values.isnan(), 0x7FFFFFFF)  # above infinity, whatever its sign
    key = ordered.long().bitwise_left_shift_(32)
    key |= torch.arange(columns - 1, -1, -1, device=values.device)
    return columns - 1 - (key.topk(k, dim=1).values & 0xFFFFFFFF)


def _among_best_blocks(values: Tensor, k: int, width: int) -> Tensor:
    """`_first_positions` of rows of k blocks or more: in the best blocks and the short rest."""
    n_blocks = values.shape[1] // width
    blocks = values[:, : n_blocks * width].view(-1, n_blocks, width)  # (B, n_blocks, width)
    rest = values[:, n_blocks * width :]  # (B, < width)
    maxima = blocks.amax(2)  # (B, n_blocks); a NaN anywhere in a block is its maximum
    chosen = _first_positions(maxima, k).sort(1).values  # ascending: in the order of columns
    rows = torch.arange(values.shape[0], device=values.device)
    candidates = blocks[rows[:, None], chosen].flatten(1)  # (B, k * width)
    # Candidates stand in the order of columns, so that ties by position are ties by column.
    position = _first_positions(torch.cat([candidates, rest], 1), k)  # (B, k)
    # Back to columns: positions below k * width lie in a chosen block, the others in the rest. The
    # clamp keeps the gather in range where the rest is taken.
    block = position.div(width, rounding_mode="floor")
    in_chosen = chosen.gather(1, block.clamp(max=k - 1)) * width + position % width
    in_rest = position + (n_blocks - k) * width
    return torch.where(block < k, in_chosen, in_rest)
