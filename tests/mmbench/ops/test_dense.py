"""What the formulas in `references` do not say of the fused dense operations."""

from __future__ import annotations

import pytest
import torch

from mmbench.errors import ShapeError
from mmbench.ops.dense import leaky_mix, normalise_rows
from mmbench.ops.sparse import SparseMatrix, SparsePattern


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("constant", [False, True])
def test_the_backward_of_leaky_mix_sums_over_blocks(
    block: int, constant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(9, 5), (5, 6), (3, 6), (3,)]
    start = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    gradients = []
    for rows in (4096, block):
        monkeypatch.setattr("mmbench.ops.dense._BLOCK", rows)
        leaves = [x.clone().requires_grad_() for x in start]
        leaves[0].requires_grad_(not constant)
        leaky_mix(*leaves).sin().sum().backward()
        assert (leaves[0].grad is None) == constant
        gradients.append([leaf.grad for leaf in leaves[constant:]])
    for whole, blocked in zip(*gradients, strict=True):
        torch.testing.assert_close(blocked, whole, rtol=1e-12, atol=1e-14)


def test_shapes_must_fit() -> None:
    with pytest.raises(ShapeError, match="leaky_mix"):
        leaky_mix(torch.ones(2, 3), torch.ones(4, 4), torch.ones(2, 4), torch.ones(2))
    pattern = SparsePattern(torch.tensor([0, 1]), torch.tensor([0]), 5)
    with pytest.raises(ShapeError, match="1 x 5"):
        mean = SparseMatrix(pattern, torch.ones(1))
        leaky_mix(torch.ones(2, 4), torch.ones(4, 4), torch.ones(2, 4), torch.ones(2), mean)
    with pytest.raises(ShapeError, match="matrix"):
        normalise_rows(torch.ones(3))
