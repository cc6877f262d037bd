"""Nearest neighbours in blocks against the dense definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.elsewhere import elsewhere
from tests.mmbench.synchronising import Synchronising
from torch import Tensor

from mmbase import gemm
from mmbench.errors import DataError, ShapeError
from mmbench.ops import knn
from mmbench.ops.knn import cosine_knn, gathered_cosines


def dense(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All cosines in double precision, then sorted by (value as returned, row)."""
    x = features.double()
    norms = x.norm(dim=1)
    scale = norms[:, None] * norms
    cosines = (
        torch.where(scale > 0, (x @ x.T) / scale, 0.0)
        .fill_diagonal_(1.0)
        .clamp(-1, 1)
        .to(features.dtype)
    )
    values, order = cosines.sort(dim=1, descending=True, stable=True)
    return order[:, :k], values[:, :k]


def integers(seed: int, n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Features whose dots are exact and often tie, with zero rows, duplicates, negative cosines."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, (n, d))
    x[rng.integers(0, n, 2)] = 0
    x[rng.integers(0, n, 3)] = x[rng.integers(0, n, 3)]
    return torch.from_numpy(x).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lists_equal_the_dense_ones(dtype: torch.dtype) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(1, 200)), int(rng.integers(1, 80))
        k = int(rng.integers(1, min(n, 30) + 1))
        x = torch.from_numpy(rng.normal(size=(n, d))).to(dtype)
        if seed % 3 == 0:
            x[rng.integers(0, n)] = 0
        if seed % 3 == 1:
            x[rng.integers(0, n)] = x[0]
        indices, values = cosine_knn(x, k, block_bytes=int(rng.integers(1, 100_000)))
        want_indices, want_values = dense(x, k)
        torch.testing.assert_close(
            values, want_values, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14
        )
        assert values.dtype == dtype
        if (
            d > 1 and seed % 3 != 1
        ):  # equal rows tie here to the last bit, but not in the dense product
            assert torch.equal(indices, want_indices)


def test_ties_go_to_the_lower_row() -> None:
    for seed in range(50):
        x = integers(seed, 12, 4, torch.float32)  # so few rows that all are shortlisted
        indices, values = cosine_knn(x, 5, block_bytes=600)
        for row, (near, cosines) in enumerate(zip(indices.tolist(), values.tolist(), strict=True)):
            keys = [(-c, i) for c, i in zip(cosines, near, strict=True)]
            assert keys == sorted(keys)
            everything = (x.double() @ x[row].double()) / (
                x.double().norm(dim=1) * x[row].double().norm()
            )
            everything = everything.nan_to_num(0.0)
            everything[row] = 1
            rounded = [
                (-float(np.float32(min(1, c))), i) for i, c in enumerate(everything.tolist())
            ]
            np.testing.assert_allclose(
                [c for c, _ in keys], [c for c, _ in sorted(rounded)[:5]], rtol=1e-6
            )


def test_neither_blocks_nor_threads_nor_routine_change_a_bit() -> None:
    x = torch.randn(700, 300, generator=torch.Generator().manual_seed(1))
    x[500:505] = x[3]
    reference = cosine_knn(x, 10)
    before = torch.get_num_threads()
    try:
        for threads, block_bytes, routine in (
            (1, 50_000, "torch"),
            (2, 400_000, "auto"),
            (3, 10**9, "torch"),
        ):
            torch.set_num_threads(threads)
            gemm.use(routine)  # type: ignore[arg-type]
            other = cosine_knn(x, 10, block_bytes=block_bytes)
            assert all(torch.equal(a, b) for a, b in zip(reference, other, strict=True))
    finally:
        torch.set_num_threads(before)
        gemm.use(None)


def catalogue(n: int = 150, d: int = 40) -> Tensor:
    """Vectors of which more than the margin are the same: items that have no content of their own.

    Small whole numbers, so that their products are the same whichever routine multiplies.
    """
    x = torch.randint(-9, 10, (n, d), generator=torch.Generator().manual_seed(2)).float()
    x[30 : 30 + 2 * knn.MARGIN + 9] = x[3]
    x[7] = 0
    return x


@pytest.mark.parametrize("block_bytes", [2_000, 20_000, None])
def test_path_of_other_devices(monkeypatch: pytest.MonkeyPatch, block_bytes: int | None) -> None:
    x = catalogue()
    expected = cosine_knn(x, 6)
    assert expected[0][40].tolist() == [3, 30, 31, 32, 33, 34]  # ties go to the lower row
    assert expected[0][7].tolist() == [7, 0, 1, 2, 3, 4]
    monkeypatch.setattr(knn, "_compiled", knn._plain)
    indices, values = cosine_knn(x, 6, block_bytes=block_bytes)
    torch.testing.assert_close(values, expected[1], rtol=0, atol=1e-7)
    assert torch.equal(indices, expected[0])


@pytest.mark.parametrize("block_bytes", [20_000, 10**9])
def test_another_device_is_waited_for_once(block_bytes: int) -> None:
    x = catalogue()
    expected = cosine_knn(x, 6)
    with elsewhere() as device:
        there = x.to(device)
        with Synchronising() as calls:
            indices, values = cosine_knn(there, 6, block_bytes=block_bytes)
        assert {indices.device, values.device} == {device}
        with Synchronising() as none:
            again = cosine_knn(there, 6, block_bytes=block_bytes, finite=True)
        assert torch.equal(again[0].cpu(), expected[0])
        indices, values = indices.cpu(), values.cpu()
    assert calls.names == ["_local_scalar_dense"]  # is every feature finite?
    assert none.names == []
    assert torch.equal(indices, expected[0])
    torch.testing.assert_close(values, expected[1], rtol=0, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("block_bytes", [400_000, None])
def test_the_gpu_finds_the_same(block_bytes: int | None) -> None:
    photographs = torch.randn(3_000, 512, generator=torch.Generator().manual_seed(5))
    for x in (catalogue(1_500, 64), photographs):
        for ours, theirs in zip(
            cosine_knn(x.cuda(), 12, block_bytes=block_bytes), cosine_knn(x, 12), strict=True
        ):
            assert ours.device.type == "cuda"
            assert torch.equal(ours.cpu(), theirs)


def test_zero_rows_are_nobodys_favourite() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 0.0], [-1.0, 0.0]])
    indices, values = cosine_knn(x, 3)
    assert indices.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 2, 1]]
    assert values[2].tolist() == [1.0, 0.0, 0.0]
    assert values.isfinite().all()


def test_huge_and_tiny_features_have_directions_too() -> None:
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(3))
    scaled = x * torch.tensor([1e-18, 1.0, 1e18, 1e30])[torch.arange(20) % 4, None]
    indices, values = cosine_knn(scaled, 5)
    assert torch.equal(indices, cosine_knn(x, 5)[0])
    torch.testing.assert_close(values, cosine_knn(x, 5)[1])


def test_bad_input_is_refused() -> None:
    x = torch.randn(5, 3)
    with pytest.raises(ShapeError, match="k = 6"):
        cosine_knn(x, 6)
    with pytest.raises(ShapeError, match="k = 0"):
        cosine_knn(x, 0)
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[3, 1] = bad
        for finite in (False, True):
            with pytest.raises(DataError, match="row 3"):
                cosine_knn(broken, 2, finite=finite)
    with pytest.raises(ShapeError, match="lists"):
        gathered_cosines(x, torch.zeros(4, 2, dtype=torch.int64))
