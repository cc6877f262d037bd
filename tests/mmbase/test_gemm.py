"""The choice between torch's and oneDNN's matrix product."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmbase import gemm


def sample() -> tuple[Tensor, Tensor]:
    return torch.ones(8, 16), torch.ones(4, 16)


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    gemm.use(None)
    gemm.onednn_is_right.cache_clear()
    yield
    gemm.use(None)
    gemm.onednn_is_right.cache_clear()


def test_a_wrong_operator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias).bfloat16().float()

    monkeypatch.setattr(gemm, "onednn", half)
    assert not gemm.onednn_is_right()
    assert gemm.chosen(sample) == "torch"
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


def test_a_process_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = gemm.chosen(sample)
    rates = gemm.rates()
    monkeypatch.setattr(gemm, "_onednn_is_faster", lambda *_: pytest.fail("measured again"))
    assert gemm.chosen(sample) == kernel
    assert gemm.rates() == rates
    gemm.use("torch")
    assert (gemm.chosen(sample), gemm.rates()) == ("torch", {})


@pytest.mark.parametrize(("slower", "expected"), [("torch", "onednn"), ("onednn", "torch")])
def test_the_clearly_faster_kernel_is_chosen(
    monkeypatch: pytest.MonkeyPatch, slower: str, expected: str
) -> None:
    if not gemm.onednn_is_right():
        pytest.skip("this build of torch has no working oneDNN")
    plain = torch.nn.functional.linear

    def slow(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        time.sleep(0.005)
        return plain(x, weight, bias)

    if slower == "torch":
        monkeypatch.setattr(torch.nn.functional, "linear", slow)
    else:
        monkeypatch.setattr(gemm, "onednn", slow)
    threads = torch.get_num_threads()
    assert gemm.chosen(sample, threads=1) == expected
    assert torch.get_num_threads() == threads
