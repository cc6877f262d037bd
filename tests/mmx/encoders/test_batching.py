"""Pure helpers of the encoders against naive loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmx.encoders.batching import equal_parts, groups_of_equal, pad_batch, pad_rows, pool


def test_pooling_over_pixels_and_tokens() -> None:
    x = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)
    assert torch.equal(pool(x, "mean"), x.mean(dim=(2, 3)))
    assert torch.equal(pool(x, "max"), x.amax(dim=(2, 3)))
    assert torch.equal(pool(x.permute(0, 2, 3, 1), "mean", channels_last=True), x.mean(dim=(2, 3)))
    assert pool(x, "flatten").shape == (2, 12)
    assert torch.equal(pool(x, "all"), x.permute(0, 2, 3, 1).flatten(1, 2))
    tokens = x.reshape(2, 4, 3)
    assert torch.equal(pool(tokens, "all"), tokens)
    assert torch.equal(pool(tokens, "cls"), tokens[:, 0])
    assert torch.equal(pool(tokens[:, :1], "none"), tokens[:, 0])
    assert torch.equal(pool(tokens[:, 0], "none"), tokens[:, 0])


@pytest.mark.parametrize(
    ("shape", "how"),
    [((1, 3, 2, 2), "cls"), ((1, 4, 3), "none"), ((1, 4, 3), "median"), ((1,), "mean")],
)
def test_pooling_that_does_not_fit(shape: tuple[int, ...], how: str) -> None:
    with pytest.raises(ValueError, match=r"shape"):
        pool(torch.zeros(shape), how)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    st.booleans(),
)
def test_padded_rows_hold_the_rows(rows: list[list[int]], left: bool) -> None:
    padded = pad_rows([np.array(row) for row in rows], -1, left=left)
    assert padded.shape == (len(rows), max(map(len, rows)))
    for row, line in zip(rows, padded.tolist(), strict=True):
        fill = [-1] * (len(line) - len(row))
        assert line == (fill + row if left else row + fill)


def test_a_short_batch_is_filled_with_its_last_row() -> None:
    batch = np.array([[1], [2]])
    assert pad_batch(batch, 4).tolist() == [[1], [2], [2], [2]]
    assert pad_batch(batch, 2) is batch
    assert pad_batch(batch, None) is batch


@given(st.lists(st.integers(0, 3), max_size=12))
def test_groups_hold_every_position_once_and_one_key_each(keys: list[int]) -> None:
    groups = groups_of_equal(keys)
    assert sorted(position for group in groups for position in group) == list(range(len(keys)))
    assert [len({keys[position] for position in group}) for group in groups] == [1] * len(set(keys))


@given(st.integers(1, 500), st.integers(1, 50))
def test_equal_parts_cover_the_sequence(length: int, longest: int) -> None:
    parts = equal_parts(length, longest)
    sizes = [stop - start for start, stop in parts]
    assert parts[0][0] == 0 and parts[-1][1] == length
    assert all(left[1] == right[0] for left, right in itertools.pairwise(parts))
    assert max(sizes) <= longest and max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-length // longest)
