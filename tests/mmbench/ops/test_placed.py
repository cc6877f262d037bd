"""A matrix in the memory of another one, where captured steps read it."""

from __future__ import annotations

import pytest
import torch
from tests.mmbench.interpreted import interpreted
from torch import Tensor

from mmbench.ops.sparse import SparseMatrix, SparsePattern


def matrix(seed: int, nnz: int = 9) -> SparseMatrix:
    """5 x 4 with `nnz` distinct entries."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randperm(20, generator=generator)[:nnz]
    pattern, _ = SparsePattern.from_edges(keys // 4, keys % 4, (5, 4))
    return SparseMatrix(pattern, torch.randn(nnz, generator=generator))


def looked_up(x: SparseMatrix) -> list[Tensor]:
    """What a matrix derives from its entries."""
    pattern, order = x.pattern.transpose
    return [x.pattern.degree, x.pattern.row, pattern.indptr, pattern.indices, order]


def check(placed: SparseMatrix, expected: SparseMatrix) -> None:
    """Products, both ways and of some rows, and what is looked up are those of `expected`."""
    dense, some = expected.to_dense(), torch.tensor([3, 0, 3])
    x = torch.linspace(-1, 1, 8).view(4, 2).requires_grad_()
    for found, want in (
        (placed @ x, dense @ x),
        (placed.rows(some) @ x, (dense @ x)[some]),
        (placed.T @ torch.ones(5, 2), dense.T @ torch.ones(5, 2)),
    ):
        torch.testing.assert_close(found, want)
    (gradient,) = torch.autograd.grad((placed @ x).square().sum(), x)
    torch.testing.assert_close(gradient, 2 * dense.T @ (dense @ x))
    torch.testing.assert_close(placed.to_dense(), dense)
    for found, want in zip(looked_up(placed), looked_up(expected), strict=True):
        assert torch.equal(found, want)
    for found, want in zip(looked_up(placed.T), looked_up(expected.T), strict=True):
        assert torch.equal(found, want)


def test_new_values_in_the_same_memory() -> None:
    with interpreted():
        memory, new, expected = matrix(1).ready(), matrix(2).ready(), matrix(2)
        looked_up(memory), looked_up(memory.T)
        places = [x.data_ptr() for x in memory._read()]
        placed = new.placed_in(memory)
        assert placed is memory
        assert [x.data_ptr() for x in placed._read()] == places
        check(placed, expected)


def test_another_matrix_of_the_same_pattern() -> None:
    with interpreted():
        memory = matrix(1).ready()
        new = SparseMatrix(memory.pattern, memory.values * 2).ready()
        placed = new.placed_in(memory)
        assert placed is memory
        check(placed, SparseMatrix(matrix(1).pattern, matrix(1).values * 2))


def test_a_symmetric_matrix() -> None:
    def symmetric(edges: list[tuple[int, int]], value: float) -> SparseMatrix:
        rows, columns = torch.tensor(edges + [(b, a) for a, b in edges]).T
        pattern, _ = SparsePattern.from_edges(rows, columns, (4, 4))
        return SparseMatrix(pattern, torch.full((pattern.nnz,), value), symmetric=True)

    with interpreted():
        memory, new = symmetric([(0, 1), (2, 3)], 1.0), symmetric([(0, 2), (0, 3)], 2.0)
        placed = new.ready().placed_in(memory.ready())
        expected = symmetric([(0, 2), (0, 3)], 2.0).to_dense()
        assert placed is memory is placed.T
        torch.testing.assert_close(placed @ torch.eye(4), expected)
        torch.testing.assert_close(placed.to_dense(), expected)


@pytest.mark.parametrize("nnz", [8, 10])
def test_a_matrix_of_another_size_stays_where_it_is(nnz: int) -> None:
    with interpreted():
        memory, new = matrix(1).ready(), matrix(2, nnz).ready()
        assert new.placed_in(memory) is new
        check(memory, matrix(1))


def test_without_memory_it_stays_where_it_is() -> None:
    new = matrix(2)
    with interpreted():
        assert new.placed_in(None) is new
    assert new.placed_in(matrix(1)) is new  # nothing is captured on a CPU
