"""The exact selection against a full sort, with ties everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.elsewhere import elsewhere
from tests.mmbench.ops.earlier_top_k import earlier_top_k
from tests.mmbench.synchronising import Synchronising
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops.dense import NanScoreError, top_k, unchecked_top_k


def by_sorting(scores: Tensor, k: int) -> list[list[int]]:
    lists = []
    for row in scores.tolist():
        candidates = sorted((-score, item) for item, score in enumerate(row) if score != -math.inf)
        items = [item for _, item in candidates[:k]]
        lists.append(items + [-1] * (k - len(items)))
    return lists


@given(
    seed=st.integers(0, 2**32),
    n_rows=st.integers(0, 6),
    n_items=st.sampled_from([1, 2, 7, 63, 64, 65, 200, 643, 1300, 3001]),
    k=st.integers(1, 30),
    n_levels=st.sampled_from([1, 2, 5, 100, 100_000]),
    masked=st.sampled_from([0.0, 0.1, 0.99, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
@settings(max_examples=200, deadline=None)
def test_equals_a_full_sort(
    seed: int, n_rows: int, n_items: int, k: int, n_levels: int, masked: float, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(
        (rng.integers(0, n_levels, (n_rows, n_items)) - n_levels // 2) / 8
    ).to(dtype)
    scores[torch.from_numpy(rng.random((n_rows, n_items)) < masked)] = -math.inf
    before = scores.clone()
    assert top_k(scores, k).tolist() == by_sorting(scores, k)
    assert torch.equal(scores, before)


@given(
    seed=st.integers(0, 2**32),
    n_rows=st.integers(0, 5),
    n_items=st.sampled_from([1, 2, 63, 64, 65, 643, 1300, 3001]),
    k=st.integers(1, 25),
    levels=st.sampled_from(
        [
            (0.0, -0.0),
            (0.0, -0.0, 1e-45, -1e-45, math.inf, -math.inf),
            (1.0, math.nan, -math.inf),
            (math.inf, -math.nan, math.nan),
            tuple(range(400)),
        ]
    ),
    rare=st.sampled_from([1.0, 0.01]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
@settings(max_examples=200, deadline=None)
def test_equals_the_selection_that_looked_for_nan_at_every_level(
    seed: int,
    n_rows: int,
    n_items: int,
    k: int,
    levels: tuple[float, ...],
    rare: float,
    dtype: torch.dtype,
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.choice(levels, (n_rows, n_items))
    table[rng.random(table.shape) >= rare] = levels[0]
    scores = torch.from_numpy(table).to(dtype)
    holds_nan = scores.isnan().any(1)
    items, bad = unchecked_top_k(scores, k)
    assert bad.tolist() == holds_nan.tolist()
    assert items[~bad].tolist() == earlier_top_k(scores[~holds_nan], k).tolist()
    if not bad.any():
        assert top_k(scores, k).tolist() == items.tolist()
        return
    with pytest.raises(NanScoreError) as before:
        earlier_top_k(scores, k)
    with pytest.raises(NanScoreError) as now:
        top_k(scores, k)
    assert str(now.value) == str(before.value)
    assert now.value.row == int(holds_nan.nonzero()[0, 0])


@pytest.mark.parametrize("n_items", [7, 700, 5_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_waits_for_the_device(n_items: int, dtype: torch.dtype) -> None:
    scores = torch.randn(6, n_items, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[3, 2] = math.nan
    with elsewhere() as device:
        there = scores.to(device)
        with Synchronising() as calls:
            items, bad = unchecked_top_k(there, 5)
        assert calls.names == []
        with Synchronising() as calls, pytest.raises(NanScoreError, match="row 3"):
            top_k(there, 5)
        assert calls.names  # the counter sees what the other does
        items, bad = items.cpu(), bad.cpu()
    assert bad.tolist() == [row == 3 for row in range(6)]
    assert torch.equal(items[~bad], top_k(scores[~bad], 5))


def test_the_boundary_tie_goes_to_the_lower_row() -> None:
    scores = torch.zeros(1, 10_000)
    scores[0, 9_999] = 1.0
    assert top_k(scores, 4).tolist() == [[9_999, 0, 1, 2]]


def test_extreme_scores_keep_their_order() -> None:
    tiny = torch.finfo(torch.float32).tiny
    row = [0.0, -0.0, tiny, -tiny, 1e-45, -1e-45, 3e38, -3e38, math.inf, -math.inf]
    assert top_k(torch.tensor([row]), 10).tolist() == [[8, 6, 2, 4, 0, 1, 5, 3, 7, -1]]
    assert top_k(torch.tensor([row * 200]), 400).tolist()[0][200:204] == [6, 16, 26, 36]


def test_rows_of_any_layout() -> None:
    scores = torch.randint(0, 50, (2_000, 7), generator=torch.Generator().manual_seed(0)).float()
    assert top_k(scores.T, 5).tolist() == by_sorting(scores.T, 5)
    assert top_k(scores[:, 1].expand(3, -1), 5).tolist() == by_sorting(
        scores[:, 1].expand(3, -1), 5
    )


@pytest.mark.parametrize("n_items", [5, 5_000])
@pytest.mark.parametrize("place", [0, -1])
def test_nan_is_refused(n_items: int, place: int) -> None:
    scores = torch.zeros(4, n_items)
    scores[2:, place] = math.nan
    with pytest.raises(NanScoreError, match="row 2: NaN") as caught:
        top_k(scores, 3)
    assert caught.value.row == 2


def test_the_first_row_with_a_nan_is_named_wherever_it_stands() -> None:
    scores = torch.zeros(4, 5_003)
    scores[3, 0] = -math.nan
    scores[1, 5_002] = math.nan
    with pytest.raises(NanScoreError) as caught:
        top_k(scores, 3)
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("scores", "k"),
    [(torch.zeros(3), 1), (torch.zeros(2, 3, dtype=torch.int64), 1), (torch.zeros(2, 3), 0)],
)
def test_impossible_arguments(scores: Tensor, k: int) -> None:
    with pytest.raises(ShapeError, match="top_k: "):
        top_k(scores, k)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("n_items", [50, 700, 20_003])
def test_the_gpu_gives_the_same_lists(n_items: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 300, (64, n_items), generator=generator).to(dtype)
    scores[:, ::7] = -0.0
    scores[8:16] = -math.inf
    scores[16:24, 20:] = -math.inf
    for k in (1, 20):
        assert torch.equal(top_k(scores, k), top_k(scores.cuda(), k).cpu())
    scores[5, 1], scores[3, n_items - 1] = math.nan, -math.nan
    items, bad = unchecked_top_k(scores.cuda(), 20)
    assert bad.nonzero()[:, 0].tolist() == [3, 5]
    assert torch.equal(items.cpu()[~bad.cpu()], unchecked_top_k(scores, 20)[0][~bad.cpu()])
    with pytest.raises(NanScoreError, match="row 3"):
        top_k(scores.cuda(), 20)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_the_gpu_is_not_waited_for() -> None:
    scores = torch.randn(64, 20_003, device="cuda")
    unchecked_top_k(scores, 20)  # libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        unchecked_top_k(scores, 20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
