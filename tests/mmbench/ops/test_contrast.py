"""The contrastive loss in blocks, beside a plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmbench.ops import partition
from mmbench.ops.contrast import info_nce
from mmbench.ops.rows import distinct, occurrences, take


def plain(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    cosines = functional.normalize(x, dim=1) @ functional.normalize(y, dim=1).T
    return functional.cross_entropy(cosines / temperature, torch.arange(len(x)))


def views(n: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 5, generator=draw, dtype=torch.float64) for _ in range(2)]


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(3 * loss, leaves))


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_any_block_size_gives_the_plain_loss(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_BLOCK", block)
    x, y = (v.requires_grad_() for v in views(13))
    ours, theirs = info_nce(x, y, 0.3), plain(x, y, 0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for found, expected in zip(gradients(ours, x, y), gradients(theirs, x, y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_a_counted_row_is_a_repeated_one() -> None:
    x, y = (v.requires_grad_() for v in views(9, seed=1))
    batch = torch.tensor([8, 0, 3, 3, 0, 5, 3, 8, 1])
    rows, places = distinct(batch)
    often = occurrences(places, take(x, rows))
    assert often.tolist() == [2, 1, 3, 1, 2]
    ours = info_nce(take(x, rows), take(y, rows), 0.2, often)
    theirs = plain(x[batch], y[batch], 0.2)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for found, expected in zip(gradients(ours, x, y), gradients(theirs, x, y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_rows_that_do_not_count_change_nothing_even_where_exponentials_vanish() -> None:
    x, y = (v.float() for v in views(6, seed=2))
    x[4], y[0] = y[5], -x[0]  # row 0 is nothing like itself, row 5 is just like row 4
    often = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0, 0.0])
    for temperature in (0.2, 0.002):
        leaves = [v.clone().requires_grad_() for v in (x, y)]
        ours = info_nce(*leaves, temperature, often)
        fewer = info_nce(x[:5], y[:5], temperature, often[:5])
        torch.testing.assert_close(ours, fewer)
        found = gradients(ours, *leaves)
        assert all(torch.isfinite(g).all() and not g[5].any() for g in found)


def test_a_single_row_has_nothing_to_differ_from() -> None:
    x, y = (v.requires_grad_() for v in views(1))
    loss = info_nce(x, y, 0.2)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
    assert max(float(g.abs().max()) for g in gradients(loss, x, y)) < 1e-14
