"""The choice between torch's and oneDNN's matrix product."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmbase import gemm


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    gemm.use(None)
    gemm.onednn_is_right.cache_clear()
    gemm._of_this_processor.cache_clear()
    yield
    gemm.use(None)
    gemm.onednn_is_right.cache_clear()
    gemm._of_this_processor.cache_clear()


def test_a_wrong_operator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias).bfloat16().float()

    monkeypatch.setattr(gemm, "onednn", half)
    assert not gemm.onednn_is_right()
    assert gemm.by_processor("AuthenticAMD", "AVX512") == "torch"
    with pytest.raises(RuntimeError, match="oneDNN"):
        gemm.use("onednn")


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_an_operator_that_fails_is_refused(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*tensors: Tensor | None) -> Tensor:
        raise error

    monkeypatch.setattr(gemm, "onednn", fail)
    assert not gemm.onednn_is_right()


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [
        ("AuthenticAMD", "AVX512", "onednn"),
        ("AuthenticAMD", "AVX2", "torch"),
        ("GenuineIntel", "AVX512", "torch"),
        ("", "DEFAULT", "torch"),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, expected: str
) -> None:
    monkeypatch.setattr(gemm, "onednn_is_right", lambda: True)
    assert gemm.by_processor(vendor, capability) == expected
    monkeypatch.setattr(gemm, "onednn_is_right", lambda: False)
    assert gemm.by_processor(vendor, capability) == "torch"


def test_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        time.sleep(0.005)
        return plain(x, weight, bias)

    plain, before = torch.nn.functional.linear, gemm.chosen()
    for module, name in ((torch.nn.functional, "linear"), (gemm, "onednn")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, slow)
            gemm._of_this_processor.cache_clear()
            assert gemm.chosen() == before


def test_a_fixed_kernel_stays_until_it_is_released() -> None:
    own = gemm.chosen()
    gemm.use("torch")
    assert gemm.chosen() == "torch"
    gemm.use(None)
    assert gemm.chosen() == own
