from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmbench.errors import ShapeError
from mmbench.ops.leaky_mix import leaky_mix


def plain(x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor) -> Tensor:
    return functional.leaky_relu(x @ inner) @ outer.T + bias


@pytest.mark.parametrize("block", [1, 4, 4096])
@pytest.mark.parametrize("constant", [False, True])
def test_values_and_gradients_are_those_of_the_composition(
    block: int, constant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbench.ops.leaky_mix._BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    shapes = [(9, 5), (5, 6), (3, 8), (3,)]
    start = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    start[0][2] = 0  # an isolated node: LR at exactly zero
    weights = torch.randn(9, 3, dtype=torch.float64, generator=generator)
    results = []
    for function in (leaky_mix, plain):
        leaves = [
            tensor.clone().requires_grad_(not (constant and k == 0))
            for k, tensor in enumerate(start)
        ]
        x, inner, outer, bias = leaves
        out = function(x, inner, outer[:, 1:7], bias)  # a view, as the mix of a concatenation is
        (out * weights).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    assert (results[0][1] is None) == constant
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_shapes_must_fit() -> None:
    with pytest.raises(ShapeError, match="leaky_mix"):
        leaky_mix(torch.ones(2, 3), torch.ones(4, 4), torch.ones(2, 4), torch.ones(2))
