from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mmbench.errors import ShapeError
from mmbench.ops.normalise import normalise_rows


@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (40, 8), (0, 4)])
def test_values_and_gradients_are_those_of_torch(n: int, d: int) -> None:
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if n > 2:
        x[1] = 0
        x[2] *= 1e-14
    weights = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = normalise_rows(ours)
    torch.testing.assert_close(y, functional.normalize(theirs), rtol=1e-14, atol=0)
    (y * weights).sum().backward()
    (functional.normalize(theirs) * weights).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_gradients_of_strided_views() -> None:
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: normalise_rows(v.t())[1:].sum(0), (x,))


def test_only_matrices() -> None:
    with pytest.raises(ShapeError, match="matrix"):
        normalise_rows(torch.ones(3))
