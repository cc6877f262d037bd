"""Sparse products against dense ones, forward and backward."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbase.errors import install_extra
from mmbench.errors import ShapeError, UsageError
from mmbench.ops import sparse
from mmbench.ops.graph import propagate
from mmbench.ops.sparse import SparseMatrix, SparsePattern, weighted_product

CASES = range(50)


def random_matrix(
    rng: np.random.Generator, dtype: torch.dtype, *, square: bool = False
) -> SparseMatrix:
    rows, columns = (int(n) for n in rng.integers(1, 30, 2))
    if square:
        columns = rows
    edges = [torch.from_numpy(rng.integers(0, n, rng.integers(0, 60))) for n in (rows, columns)]
    length = min(map(len, edges))
    pattern, _ = SparsePattern.from_edges(edges[0][:length], edges[1][:length], (rows, columns))
    return SparseMatrix(pattern, torch.from_numpy(rng.normal(size=pattern.nnz)).to(dtype))


def normal(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape)).to(dtype).requires_grad_()


def test_product_of_rows_is_the_rows_of_the_product() -> None:
    for case in CASES:
        rng = np.random.default_rng(case)
        matrix = random_matrix(rng, torch.float64)
        x = normal(rng, (matrix.shape[1], 5))
        index = torch.from_numpy(
            rng.integers(0, matrix.shape[0], rng.integers(0, 40))
        )  # repetitions included
        weight = normal(rng, (index.numel(), 5))
        (gradient,) = torch.autograd.grad(((matrix.rows(index) @ x) * weight).sum(), x)
        (expected,) = torch.autograd.grad(((matrix.to_dense() @ x)[index] * weight).sum(), x)
        assert torch.equal(matrix.rows(index) @ x, (matrix @ x)[index])
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_propagation_of_rows_is_the_rows_of_the_propagation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for case in CASES:
        rng = np.random.default_rng(case)
        matrix = random_matrix(rng, torch.float64, square=True)
        x = normal(rng, (matrix.shape[0], 3))
        index = torch.from_numpy(
            rng.integers(0, matrix.shape[0], rng.integers(0, 40))
        )  # repetitions included
        weight = normal(rng, (index.numel(), 3))
        if case % 2:
            monkeypatch.setattr(
                SparsePattern, "compiled", lambda self, x: False
            )  # as on other devices
        pair = propagate(matrix, x, case % 4, rows=index), propagate(matrix, x, case % 4)[index]
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)
        gradients = (torch.autograd.grad((y * weight).sum(), x)[0] for y in pair)
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
        monkeypatch.undo()


def test_threads_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    edges = torch.from_numpy(rng.integers(0, 3000, (2, 60_000)))
    pattern, _ = SparsePattern.from_edges(edges[0], edges[1], (3000, 3000))
    matrix = SparseMatrix(pattern, torch.rand(pattern.nnz))
    x = torch.randn(3000, 64)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((matrix @ x, matrix.rows(torch.arange(3000)) @ x, pattern.dots(x, x)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_torch_path_equals_the_compiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of CUDA tensors, taken here on the CPU."""
    rng = np.random.default_rng(1)
    matrix = random_matrix(rng, torch.float64)
    x = normal(rng, (matrix.shape[1], 6))
    index = torch.from_numpy(rng.integers(0, matrix.shape[0], 9))

    def everything() -> list[Tensor]:
        y, some = matrix @ x, matrix.rows(index) @ x
        gradients = torch.autograd.grad(y.sin().sum() + some.cos().sum(), x)
        return [y, some, matrix.pattern.dots(y, x), *gradients]

    compiled = everything()
    monkeypatch.setattr(SparsePattern, "compiled", lambda self, x: False)
    for a, b in zip(compiled, everything(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
def test_the_gpu_multiplies_as_the_cpu_does() -> None:
    for case in CASES:
        rng = np.random.default_rng(case)
        matrix = random_matrix(rng, torch.float64)
        x, index = (
            normal(rng, (matrix.shape[1], 1 + case % 5)),
            torch.from_numpy(rng.integers(0, matrix.shape[0], 9)),
        )
        there = matrix.to("cuda")
        pairs = [
            (matrix @ x, there @ x.cuda()),
            (matrix.rows(index) @ x, there.rows(index.cuda()) @ x.cuda()),
        ]
        pairs += [
            tuple(torch.autograd.grad(y.sin().sum(), x, retain_graph=True)[0] for y in pair)
            for pair in pairs
        ]
        for here, elsewhere in pairs:
            torch.testing.assert_close(elsewhere.cpu(), here, rtol=1e-12, atol=1e-12)


def test_torch_says_nothing_of_its_sparse_rows() -> None:
    """A process of its own: it would be said once."""
    code = (
        "import torch; from mmbench.ops.sparse import SparsePattern, _torch_csr\n"
        "p = SparsePattern(torch.tensor([0, 1]), torch.tensor([0]), 1)\n"
        "print((_torch_csr(p, torch.ones(1)) @ torch.ones(1, 2)).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[[1.0, 1.0]]\n", "")


def test_torch_sparse_gives_the_same() -> None:
    pytest.importorskip("torch_sparse", exc_type=ImportError)
    rng = np.random.default_rng(2)
    matrix = random_matrix(rng, torch.float64)
    x = normal(rng, (matrix.shape[1], 6))
    index = torch.from_numpy(rng.integers(0, matrix.shape[0], 9))
    values = matrix.values.clone().requires_grad_()

    def everything() -> list[Tensor]:
        y, some, weighted = (
            matrix @ x,
            matrix.rows(index) @ x,
            weighted_product(matrix.pattern, values, x),
        )
        gradients = torch.autograd.grad(
            y.sin().sum() + some.cos().sum() + weighted.sin().sum(), [x, values]
        )
        return [y, some, weighted, *gradients]

    ours = everything()
    try:
        sparse.use("torch-sparse")
        theirs = everything()
    finally:
        sparse.use("torch")
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_an_absent_back_end_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_sparse", None)
    with pytest.raises(UsageError, match=re.escape(install_extra("sparse"))):
        sparse.use("torch-sparse")
    assert sparse.backend() == "torch"


def test_repeated_edges_share_an_entry() -> None:
    rows, columns = torch.tensor([1, 0, 1, 1]), torch.tensor([2, 1, 2, 0])
    pattern, entry = SparsePattern.from_edges(rows, columns, (2, 3))
    assert pattern.indptr.tolist() == [0, 1, 3]
    assert pattern.indices.tolist() == [1, 0, 2]
    assert entry.tolist() == [2, 0, 2, 1]


def test_shapes_that_do_not_fit_are_refused() -> None:
    matrix = random_matrix(np.random.default_rng(3), torch.float32)
    rows, columns = matrix.shape
    with pytest.raises(ShapeError, match="cannot multiply"):
        matrix @ torch.zeros(columns + 1, 2)
    with pytest.raises(ShapeError, match="float64"):
        matrix @ torch.zeros(columns, 2, dtype=torch.float64)
    with pytest.raises(ShapeError, match="values for"):
        weighted_product(
            matrix.pattern, torch.zeros(matrix.pattern.nnz + 1), torch.zeros(columns, 2)
        )
    with pytest.raises(ShapeError, match="outside"):
        SparsePattern.from_edges(torch.tensor([rows]), torch.tensor([0]), matrix.shape)
    with pytest.raises(ShapeError, match="equal"):
        SparsePattern.from_edges(torch.tensor([0, 0]), torch.tensor([0]), matrix.shape)
    with pytest.raises(ShapeError, match="do not fit"):
        matrix.pattern.dots(torch.zeros(rows, 2), torch.zeros(columns, 3))
    with pytest.raises(ShapeError, match="square"):
        propagate(
            SparseMatrix(
                SparsePattern(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), 2),
                torch.zeros(0),
            ),
            torch.zeros(2, 1),
            1,
        )
