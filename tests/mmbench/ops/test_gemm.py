"""Dense products of both routines against double precision, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mmbase import gemm as kernels
from mmbench.errors import ShapeError
from mmbench.ops import dense

HAS_ONEDNN = kernels.onednn_is_right()


@pytest.fixture(
    params=[
        "torch",
        pytest.param("onednn", marks=pytest.mark.skipif(not HAS_ONEDNN, reason="no oneDNN")),
    ]
)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    kernels.use(request.param)
    yield request.param
    kernels.use(None)


def test_products_and_gradients(backend: str) -> None:
    for case in range(50):
        rng = np.random.default_rng(case)
        n, width, out = (int(v) for v in rng.integers(1, 150, 3))
        torch.manual_seed(case)
        x, weight, bias = torch.randn(n, width), torch.randn(out, width), torch.randn(out)
        probe = torch.randn(n, out)
        if case % 2:
            x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        doubles = [t.detach().double().requires_grad_() for t in leaves]
        double_product = doubles[0] @ doubles[1].t()
        pairs = [
            (dense.linear(*leaves), double_product + doubles[2], 3),
            (dense.linear(x, weight), double_product, 2),
        ]
        for ours, plain, used in pairs:
            torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=2e-4)
            got = torch.autograd.grad((ours * probe).sum(), leaves[:used])
            want = torch.autograd.grad((plain * probe).sum(), doubles[:used], retain_graph=True)
            for g, w in zip(got, want, strict=True):
                torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=2e-4)


def test_large_products_take_the_chosen_routine(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.Size] = []
    plain = kernels.onednn
    monkeypatch.setattr(
        kernels, "onednn", lambda a, b, bias=None: calls.append(a.shape) or plain(a, b, bias)
    )
    a, b = torch.randn(128, 64), torch.randn(64, 64)
    dense.product(a, b)
    dense.product(a[:2], b)  # small
    dense.product(a.double(), b.double())
    assert calls == ([a.shape] if backend == "onednn" else [])


def test_no_routine_rounds_to_half_precision(backend: str) -> None:
    a = torch.full((128, 64), 1 + 2**-12)
    assert dense.product(a, torch.eye(64)).eq(a).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="weight"):
        dense.linear(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="bias"):
        dense.linear(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3))
