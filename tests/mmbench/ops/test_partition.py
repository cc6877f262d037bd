"""Blocked log-partition sums against torch, and open uniform numbers against Philox."""

from __future__ import annotations

import pytest
import torch

from mmbench.core.philox import Stream
from mmbench.errors import ShapeError
from mmbench.ops import draws, partition
from mmbench.ops.partition import log_partition


@pytest.mark.parametrize(("n", "m", "block"), [(1, 1, 1), (7, 5, 1), (40, 33, 8), (9, 50, 1 << 16)])
def test_value_and_gradients_are_those_of_logsumexp(
    n: int, m: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    x, y, w = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((n, 3), (m, 3), (n,))
    )
    w, counts = w.abs(), torch.arange(m).double() % 3  # 0 … 2: copies that count nothing, too
    counts[0] = 1
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    expected = (w * torch.logsumexp(leaves[0] @ leaves[1].T + counts.log(), 1)).sum()
    wanted = torch.autograd.grad(3 * expected, leaves)
    found = log_partition(*leaves, w, counts)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(3 * found, leaves), wanted, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(log_partition(x, y, w, counts), expected)
    some = y[counts > 0].repeat_interleave(counts[counts > 0].long(), 0)
    torch.testing.assert_close(log_partition(x, some, w), expected.detach())


def test_large_exponents_do_not_overflow() -> None:
    x = torch.full((2, 1), 1000.0, requires_grad=True)
    value = log_partition(x, torch.tensor([[1.0], [0.5]]), torch.ones(2))
    assert value.item() == pytest.approx(2000.0)
    value.backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [1.0, 1.0]


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"log_partition: \[\(2, 3\), \(2, 4\), \(2,\)\]"):
        log_partition(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2))


def test_numbers_between_0_and_1_are_philox_words() -> None:
    stream = Stream(12345, torch.tensor([3, 7]))
    found = draws.between(stream, (5, 3))
    words = torch.stack(stream.words_of(torch.arange(4)), 1).flatten()[:15].view(5, 3)
    assert torch.equal(found.double(), ((words >> 9) * 2 + 1).double() * 2.0**-24)
    assert torch.equal(draws.between(stream, (5, 3), torch.float64), found.double())
    assert torch.equal(draws.between(stream, (2, 3)), found[:2])
    many = draws.between(stream, (1 << 16,))
    assert float(many.min()) > 0 and float(many.max()) < 1
    for law in (draws.gumbel, draws.logistic):
        assert torch.isfinite(law(stream, (1 << 16,))).all()
    torch.testing.assert_close(draws.gumbel(stream, (5, 3)), -torch.log(-torch.log(found)))
    torch.testing.assert_close(draws.logistic(stream, (5, 3)), found.log() - (1 - found).log())
