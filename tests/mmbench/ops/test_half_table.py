"""Content vectors in half precision."""

from __future__ import annotations

import pytest
import torch

from mmbench.errors import DataError
from mmbench.ops.half_table import HalfTable, in_half


def test_a_half_table_projects_rounded_vectors_as_a_full_one_projects_them() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(10_000, 7, generator=generator)  # three blocks, the last one short
    rounded = vectors.half().float()
    table = HalfTable(vectors)
    weight = torch.randn(5, 7, generator=generator, requires_grad=True)
    bias = torch.randn(5, generator=generator, requires_grad=True)
    out = torch.randn(10_000, 5, generator=generator)
    for index in (None, torch.tensor([0, 4095, 4096, 9999])):
        rows = slice(None) if index is None else index
        results, gradients = [], []
        for image in (table.project(index, weight, bias), rounded[rows] @ weight.T + bias):
            weight.grad = bias.grad = None
            image.backward(out[rows])
            assert weight.grad is not None and bias.grad is not None
            results.append(image.detach())
            gradients += [weight.grad, bias.grad]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(gradients[:2], gradients[2:], rtol=1e-5, atol=1e-4)
    assert table.values.dtype is torch.float16 and not table.state_dict()


def test_numbers_beyond_half_precision_are_refused() -> None:
    vectors = torch.ones(5_000, 2)
    assert in_half(vectors * 65_504).isfinite().all()
    vectors[4_999, 1] = -7e4
    with pytest.raises(DataError, match=r"half-features: the vectors hold numbers up to 7e\+04"):
        in_half(vectors)
