"""Approximate neighbours: exact cosines of those that are found, and a recall that is true."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.errors import DataError, ShapeError, UsageError
from mmbench.ops import ann
from mmbench.ops.ann import approximate_knn, recall
from mmbench.ops.knn import cosine_knn, gathered_cosines

pytest.importorskip("faiss")


def groups(n: int = 900, d: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, d, generator=generator)
    return centres[torch.arange(n) % 12] + 0.3 * torch.randn(n, d, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lists_are_neighbours_with_their_cosines(dtype: torch.dtype) -> None:
    x = groups().to(dtype)
    near, cosines = approximate_knn(x, 10, exact_below=0)
    exact, _ = cosine_knn(x, 10)
    shared = np.mean(
        [len({*a} & {*b}) / 10 for a, b in zip(near.tolist(), exact.tolist(), strict=True)]
    )
    assert 0.6 < shared < 1  # an approximation, and no bad one
    assert torch.equal(near[:, 0], torch.arange(len(x)))
    assert all(len({*row}) == 10 for row in near.tolist())
    torch.testing.assert_close(cosines, gathered_cosines(x, near), rtol=0, atol=1e-6)
    assert bool((cosines[:, 1:] <= cosines[:, :-1]).all())
    again = approximate_knn(x, 10, exact_below=0)
    assert torch.equal(near, again[0]) and torch.equal(cosines, again[1])


def test_rows_alone_in_their_cells_get_whole_lists() -> None:
    x = torch.eye(40).repeat(2, 1)
    x[7] = 0
    near, _ = approximate_knn(x, 30, exact_below=0)
    assert all(len({*row}) == 30 and min(row) >= 0 for row in near.tolist())
    assert all(number in row for number, row in enumerate(near.tolist()))


def test_recall_counts_the_exact_neighbours_on_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    x = groups()
    exact, _ = cosine_knn(x, 10)
    assert recall(x, exact)["recall"] > 0.999
    half = exact.clone()
    half[:, 5:] = (torch.arange(len(x))[:, None] + torch.arange(1, 6)) % len(x)  # other groups
    assert 0.49 < recall(x, half)["recall"] < 0.52
    monkeypatch.setattr(ann, "SAMPLE", 50)
    found = recall(x, exact)
    assert found["sample"] == 50 and found["k"] == 10 and found["cells"] == 0


def test_few_rows_and_wrong_ones_are_as_in_exact_search() -> None:
    x = groups(100)
    for ours, theirs in zip(approximate_knn(x, 5), cosine_knn(x, 5), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ShapeError):
        approximate_knn(x[:3], 5, exact_below=0)
    x[4, 2] = torch.nan
    with pytest.raises(DataError, match="row 4"):
        approximate_knn(x, 5, exact_below=0)


def test_without_faiss_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"faiss is not installed; pip install .*\[ann\]"):
        approximate_knn(groups(), 5)
