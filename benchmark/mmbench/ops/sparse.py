"""Sparse matrices: one product, whose backward is the product with the transpose.

A `SparsePattern` says where the entries are, a `SparseMatrix` gives them constant values. In a
model it reads as in the papers: `norm_adj @ x` for all nodes, `item_graph.rows(batch) @ x` for
some. Where the values are learned (attention, learned graphs), `weighted_product` differentiates
with respect to them too.

On the CPU the product is a compiled loop, on an NVIDIA GPU a Triton kernel; `torch.sparse` serves
GPUs without Triton.
`use("torch-sparse")` lets that package (extra `sparse`) multiply instead, up to rounding with the
same results.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, cast

import torch
from torch import Tensor

from mmbase.errors import install_extra
from mmbench.errors import ShapeError, UsageError
from mmbench.ops import SparseBackend, gpu
from mmbench.ops.kernels import apply, array, run, split
from mmbench.ops.rows import add_rows

_backend: SparseBackend = "torch"


def use(backend: SparseBackend) -> None:
    """Choose what multiplies sparse matrices in this process.

    `torch` stands for compiled loops on the CPU and torch.sparse elsewhere; `torch-sparse` is an
    optional package.

    Raises:
        UsageError: torch-sparse is not installed, or does not fit this torch.
    """
    global _backend
    if backend == "torch-sparse":
        try:
            import torch_sparse  # noqa: F401
        except (ImportError, OSError) as error:
            raise UsageError(
                f"sparse back end torch-sparse: cannot be imported ({str(error).splitlines()[0]}); "
                f"{install_extra('sparse')}, or choose the back end torch"
            ) from error
    _backend = backend


def backend() -> SparseBackend:
    """What multiplies sparse matrices."""
    return _backend


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """Where the entries of a sparse matrix are, in compressed sparse rows.

    Attributes:
        indptr: Entries before each row, shape (n_rows + 1,), int64.
        indices: Column of each entry, shape (nnz,), int64, ascending within a row as `from_edges`
            makes them; products take any order, and add repeated entries up.
        n_columns: Number of columns.
    """

    indptr: Tensor
    indices: Tensor
    n_columns: int

    @classmethod
    def from_edges(
        cls, rows: Tensor, columns: Tensor, shape: tuple[int, int]
    ) -> tuple[SparsePattern, Tensor]:
        """The pattern of the distinct (row, column) pairs, and the entry of each pair, (n,).

        `zeros(nnz).index_add(0, entry, weights)` adds up the weights of repeated edges.

        Raises:
            ShapeError: The edges do not fit the shape.
        """
        if rows.shape != columns.shape or rows.ndim != 1:
            raise ShapeError(
                f"SparsePattern: rows {tuple(rows.shape)}, columns {tuple(columns.shape)} must be "
                "equal"
            )
        if rows.numel() and not (
            0 <= int(rows.min()) <= int(rows.max()) < shape[0]
            and 0 <= int(columns.min()) <= int(columns.max()) < shape[1]
        ):
            raise ShapeError(f"SparsePattern: edges outside {shape[0]} x {shape[1]}")
        # One integer per pair: its order is by row, then column, and repeated pairs share an entry.
        keys, entry = torch.unique(rows * shape[1] + columns, sorted=True, return_inverse=True)
        indptr = rows.new_zeros(shape[0] + 1)
        torch.cumsum(torch.bincount(keys // shape[1], minlength=shape[0]), 0, out=indptr[1:])
        return cls(indptr, keys % shape[1], shape[1]), entry

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return self.indptr.numel() - 1, self.n_columns

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return self.indices.numel()

    @cached_property
    def degree(self) -> Tensor:
        """Entries of each row, shape (n_rows,), int64."""
        return self.indptr.diff()

    @cached_property
    def row(self) -> Tensor:
        """Row of each entry, shape (nnz,), int64, ascending."""
        rows = torch.arange(self.shape[0], device=self.indptr.device)
        # The size is known: torch need not wait for the degrees to add it up.
        return torch.repeat_interleave(rows, self.degree, output_size=self.nnz)

    @cached_property
    def transpose(self) -> tuple[SparsePattern, Tensor]:
        """The transposed pattern, and which entry here each of its entries is, (nnz,)."""
        # Stable: the entries of a column stay in the order of their rows.
        order = torch.argsort(self.indices, stable=True)
        degree = self.indptr.new_zeros(self.n_columns)
        degree.index_add_(0, self.indices, torch.ones_like(self.indices))
        indptr = self.indptr.new_zeros(self.n_columns + 1)
        torch.cumsum(degree, 0, out=indptr[1:])
        return SparsePattern(indptr, self.row[order], self.shape[0]), order

    @cached_property
    def parts(self) -> Any:
        """The parts of long rows, see `mmbench.ops.gpu.sparse.parts`."""
        from mmbench.ops.gpu.sparse import parts

        return parts(self.indptr, self.nnz)

    def to(self, device: torch.device | str) -> SparsePattern:
        """The same pattern on another device."""
        return SparsePattern(self.indptr.to(device), self.indices.to(device), self.n_columns)

    def multiply(self, values: Tensor, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """The product with values (nnz,) and x (n_columns, d), plus `plus` (n_rows, d).

        Not differentiated.

        Raises:
            ShapeError: A shape or a dtype does not fit.
        """
        self.check(values, x)
        if self._on_gpu(x):
            from mmbench.ops.gpu import sparse as gpu_kernels

            plus = None if plus is None else plus.contiguous()
            return gpu_kernels.multiply(self, values.contiguous(), x.contiguous(), plus=plus)
        if not self.compiled(x):
            if _backend != "torch":
                product = _with_torch_sparse(self, values, x)
            elif x.device.type in ("cpu", "cuda"):
                product = _torch_csr(self, values) @ x
            else:
                # Devices without a sparse product.
                return _gathered(self, values, x, plus)
            return product if plus is None else product + plus
        from mmbench.ops.kernels import rows as kernels

        # The sums start from `plus`, which saves a pass over the result.
        if plus is None:
            out = x.new_zeros(self.shape[0], x.shape[1])
        else:
            out = plus.clone(memory_format=torch.contiguous_format)
        indptr = self.indptr.numpy()
        # Threads share the entries equally, not the rows: degrees are skewed.
        bounds = split(self.shape[0], work=self.nnz * x.shape[1], indptr=indptr)
        arrays = self.indices.numpy(), array(values), array(x), out.numpy()
        run(kernels.matmul, bounds, indptr, *arrays)
        return out

    def dots(self, a: Tensor, b: Tensor) -> Tensor:
        """`<a[row], b[column]>` of each entry, (nnz,), for a (n_rows, d) and b (n_columns, d).

        Not differentiated.

        Raises:
            ShapeError: A shape or a dtype does not fit.
        """
        fits = a.shape[0] == self.shape[0] and b.shape == (self.n_columns, a.shape[1])
        if not fits or a.dtype != b.dtype:
            shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise ShapeError(f"dots: {shapes} do not fit a {self.shape} pattern")
        if self._on_gpu(a):
            from mmbench.ops.gpu import sparse as gpu_kernels

            return gpu_kernels.dots(self, a.detach().contiguous(), b.detach().contiguous())
        out = a.new_empty(self.nnz)
        if not self.compiled(a):
            # Gathered rows take nnz * d numbers; a slice at a time bounds that.
            for part in self._parts(a.shape[1]):
                out[part] = (a.detach()[self.row[part]] * b.detach()[self.indices[part]]).sum(1)
            return out
        from mmbench.ops.kernels import rows as kernels

        indptr = self.indptr.numpy()
        bounds = split(self.shape[0], work=self.nnz * a.shape[1], indptr=indptr)
        run(kernels.dots, bounds, indptr, self.indices.numpy(), array(a), array(b), out.numpy())
        return out

    def _parts(self, width: int) -> Iterator[slice]:
        """Slices of the entries, small enough to bound the memory of gathered rows."""
        # 2^24 numbers, 64 MiB in single precision.
        step = max(1, (1 << 24) // max(1, width))
        return (slice(at, at + step) for at in range(0, self.nnz, step))

    def compiled(self, x: Tensor) -> bool:
        """Whether the compiled loops multiply x."""
        return _backend == "torch" and x.device.type == "cpu"

    def _on_gpu(self, x: Tensor) -> bool:
        return _backend == "torch" and gpu.serves(x)

    def check(self, values: Tensor, x: Tensor) -> None:
        """Raise ShapeError unless the matrix with these values can multiply x."""
        if values.shape != (self.nnz,):
            raise ShapeError(f"sparse product: {tuple(values.shape)} values for {self.nnz} entries")
        if x.ndim != 2 or x.shape[0] != self.n_columns or x.dtype != values.dtype:
            raise ShapeError(
                f"sparse product: a {self.shape[0]} x {self.n_columns} matrix of {values.dtype} "
                f"cannot multiply {tuple(x.shape)} of {x.dtype}"
            )


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A constant sparse matrix.

    Attributes:
        pattern: Where its entries are.
        values: Their values, shape (nnz,), float32 or float64, no gradient.
        symmetric: The matrix equals its transpose, so that its own rows serve the backward.
    """

    pattern: SparsePattern
    values: Tensor
    symmetric: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return self.pattern.shape

    @cached_property
    def T(self) -> SparseMatrix:
        """The transpose; a symmetric matrix is its own."""
        if self.symmetric:
            return self
        pattern, order = self.pattern.transpose
        return SparseMatrix(pattern, self.values[order])

    def __matmul__(self, x: Tensor) -> Tensor:
        """The product with x (n_columns, d), shape (n_rows, d); differentiable in x."""
        return apply(_Product, x, self)

    def ready(self) -> SparseMatrix:
        """This matrix, with what products and their backward look up made beforehand.

        Where a step is captured, tables that the captured step made would be made in each replay.
        """
        if gpu.static(self.values):
            for each in (self, self.T):
                if each.pattern._on_gpu(each.values):
                    _ = each.pattern.parts
        return self

    def rows(self, index: Tensor) -> RowsOf:
        """Some rows: `matrix.rows(index) @ x` is `(matrix @ x)[index]`, at the price of these rows.

        `index` (k,) int64 may have any order and repetitions.
        """
        return RowsOf(self, index)

    def placed_in(self, memory: SparseMatrix | None) -> SparseMatrix:
        """This matrix in the memory of one of the same size, where a captured step reads it.

        Without such memory, and where nothing is captured, it stays where it is.
        """
        if memory is None or not gpu.static(self.values):
            return self
        pairs = list(zip(self._read(), memory._read(), strict=True))
        if any(new.shape != old.shape for new, old in pairs):
            return self
        for new, old in pairs:
            if new is not old:
                old.copy_(new)
        patterns = (self.pattern, memory.pattern), (self.T.pattern, memory.T.pattern)
        for mine, theirs in patterns:
            if mine is not theirs:
                stale = ["degree", "transpose"]  # of the matrix before
                stale += ["row"] if theirs._on_gpu(self.values) else []  # else just copied
                for name in stale:
                    vars(theirs).pop(name, None)
        return memory

    def _read(self) -> list[Tensor]:
        """All that products with this matrix, and their backward, read."""
        found = []
        for matrix in (self, self.T):
            found += [matrix.values, matrix.pattern.indptr, matrix.pattern.indices]
            on_gpu = matrix.pattern._on_gpu(matrix.values)
            found += list(matrix.pattern.parts) if on_gpu else [matrix.pattern.row]
        return found

    def to(self, device: torch.device | str) -> SparseMatrix:
        """The same matrix on another device."""
        return SparseMatrix(self.pattern.to(device), self.values.to(device), self.symmetric)

    def to_dense(self) -> Tensor:
        """The dense matrix (n_rows, n_columns): for tests and very small graphs."""
        dense = self.values.new_zeros(self.shape)
        dense[self.pattern.row, self.pattern.indices] = self.values
        return dense


@dataclass(frozen=True, eq=False)
class RowsOf:
    """Some rows of a sparse matrix; see `SparseMatrix.rows`."""

    matrix: SparseMatrix
    index: Tensor

    def __matmul__(self, x: Tensor) -> Tensor:
        """The product with x (n_columns, d), shape (k, d); differentiable in x."""
        return apply(_RowsProduct, x, self)

    def multiply(self, x: Tensor) -> Tensor:
        """The same product, not differentiated."""
        matrix, index = self.matrix, self.index
        pattern = matrix.pattern
        pattern.check(matrix.values, x)
        if pattern._on_gpu(x):
            from mmbench.ops.gpu import sparse as gpu_kernels

            return gpu_kernels.multiply(pattern, matrix.values, x.contiguous(), rows=index)
        if not pattern.compiled(x):
            # The other back ends multiply whole matrices.
            return pattern.multiply(matrix.values, x)[index]
        from mmbench.ops.kernels import rows as kernels

        indptr = pattern.indptr.numpy()
        out = x.new_zeros(index.numel(), x.shape[1])
        # The rows' number of entries, estimated by the mean degree.
        bounds = split(index.numel(), work=pattern.nnz / matrix.shape[0] * out.numel())
        arrays = pattern.indices.numpy(), array(matrix.values), array(x), out.numpy()
        run(kernels.matmul_rows, bounds, array(index), indptr, *arrays)
        return out

    def multiply_transposed(self, grad: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """The transpose of these rows times grad (k, d), plus `plus`; not differentiated."""
        matrix = self.matrix
        if not matrix.pattern.compiled(grad):
            # The rows' gradient among zeros: the product with the whole transpose costs less than
            # a transpose of some rows, and its shape is known.
            spread = add_rows(grad.new_zeros(matrix.shape[0], grad.shape[1]), self.index, grad)
            return matrix.T.pattern.multiply(matrix.T.values, spread, plus=plus)
        from mmbench.ops.kernels import rows as kernels

        out = grad.new_zeros(matrix.shape[1], grad.shape[1]) if plus is None else plus.clone()
        # One thread: different rows meet in the same columns, and a batch has few entries.
        kernels.scatter_rows(
            array(self.index),
            matrix.pattern.indptr.numpy(),
            matrix.pattern.indices.numpy(),
            array(matrix.values),
            array(grad),
            out.numpy(),
        )
        return out


def weighted_product(pattern: SparsePattern, values: Tensor, x: Tensor) -> Tensor:
    """A sparse matrix times x (n_columns, d), differentiable in its values (nnz,) and x."""
    return apply(_WeightedProduct, values, x, pattern)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix) -> Tensor:
        ctx.matrix = matrix
        return matrix.pattern.multiply(matrix.values, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # d<G, A x>/dx = A^T G.
        transpose = ctx.matrix.T
        return transpose.pattern.multiply(transpose.values, grad), None


class _RowsProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: RowsOf) -> Tensor:
        ctx.rows = rows
        return rows.multiply(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.rows.multiply_transposed(grad), None


class _WeightedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, pattern: SparsePattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(values, x)
        return pattern.multiply(values, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, x = ctx.saved_tensors
        # d<G, A x>/dA = G x^T, computed at the entries of the pattern only.
        grad_values = ctx.pattern.dots(grad, x) if ctx.needs_input_grad[0] else None
        grad_x = None
        if ctx.needs_input_grad[1]:
            transpose, order = ctx.pattern.transpose
            # A^T holds the same values in the order of the transposed pattern.
            grad_x = transpose.multiply(values[order], grad)
        return grad_values, grad_x, None


def _gathered(pattern: SparsePattern, values: Tensor, x: Tensor, plus: Tensor | None) -> Tensor:
    out = x.new_zeros(pattern.shape[0], x.shape[1]) if plus is None else plus.clone()
    # Gather, weigh, add up by row: what every device can do.
    for part in pattern._parts(x.shape[1]):
        out.index_add_(0, pattern.row[part], values[part, None] * x[pattern.indices[part]])
    return out


def _torch_csr(pattern: SparsePattern, values: Tensor) -> Tensor:
    _hear_of_the_beta_state()
    # A pattern is valid by construction; torch warns unless told explicitly that it need not check.
    with torch.sparse.check_sparse_tensor_invariants(False):  # type: ignore[no-untyped-call]
        return torch.sparse_csr_tensor(pattern.indptr, pattern.indices, values, pattern.shape)


@cache
def _hear_of_the_beta_state() -> None:
    """Make the first such tensor of the process, at which torch warns of their beta state."""
    none = torch.zeros(0, dtype=torch.int64)
    unchecked = torch.sparse.check_sparse_tensor_invariants(False)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), unchecked:
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int64), none, torch.zeros(0), (1, 1))


def _with_torch_sparse(pattern: SparsePattern, values: Tensor, x: Tensor) -> Tensor:
    import torch_sparse

    matrix = torch_sparse.SparseTensor(
        rowptr=pattern.indptr, col=pattern.indices, value=values, sparse_sizes=pattern.shape
    )
    return cast(Tensor, torch_sparse.matmul(matrix, x.contiguous(), reduce="sum"))
