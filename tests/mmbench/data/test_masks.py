"""Induced missing content: nested, exact, drawn by id, blind to what is held out."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest

from mmbench.data.masks import Pattern, Present, masked

N, TRAINED = 60, 40
IDS = [f"i{item}" for item in range(N)]
SHARES = [0.1, 0.3, 0.5, 0.9, 0.97]
every_pattern = pytest.mark.parametrize("pattern", get_args(Pattern))


def presence() -> dict[str, Present]:
    rng = np.random.default_rng(0)
    return {"visual": rng.random(N) < 0.8, "textual": rng.random(N) < 0.9}


POPULARITY = np.random.default_rng(1).integers(1, 6, TRAINED)


def mask(
    shares: dict[str, float], pattern: Pattern = "random", seed: int = 0
) -> dict[str, Present]:
    return masked(presence(), shares, IDS, POPULARITY, pattern=pattern, seed=seed)


@every_pattern
def test_what_is_missing_at_a_share_is_missing_at_every_larger_one(pattern: Pattern) -> None:
    kept = [mask({"visual": share, "textual": share}, pattern) for share in SHARES]
    for smaller, larger in itertools.pairwise(kept):
        for modality in ("visual", "textual"):
            assert not (larger[modality] & ~smaller[modality]).any()
            assert larger[modality].sum() < smaller[modality].sum()


@every_pattern
def test_only_what_is_there_is_taken_and_as_much_as_was_asked_for(pattern: Pattern) -> None:
    there = presence()["visual"]
    (kept,) = mask({"visual": 0.3}, pattern).values()
    assert not (kept & ~there).any()
    for group in (slice(TRAINED), slice(TRAINED, N)):
        n = there[group].sum()
        assert kept[group].sum() == n - round(0.3 * n)


def test_who_loses_first() -> None:
    there = presence()["visual"][:TRAINED]
    for pattern, towards in (("unpopular", 1), ("popular", -1)):
        (kept,) = mask({"visual": 0.2}, pattern).values()  # type: ignore[arg-type]
        left = kept[:TRAINED]
        assert (POPULARITY[there & ~left] * towards).max() <= (POPULARITY[left] * towards).min()


def test_jointly_takes_the_same_items_of_all_modalities() -> None:
    there = presence()
    kept = mask({"visual": 0.5, "textual": 0.5}, "jointly")
    both = there["visual"] & there["textual"]
    np.testing.assert_array_equal(kept["visual"][both], kept["textual"][both])
    apart = mask({"visual": 0.5, "textual": 0.5})
    assert (apart["visual"][both] != apart["textual"][both]).any()


@every_pattern
def test_a_mask_follows_the_ids_and_the_seed(pattern: Pattern) -> None:
    shares = {"visual": 0.4, "textual": 0.4}
    kept, again, other = (mask(shares, pattern, seed) for seed in (0, 0, 1))
    rng = np.random.default_rng(2)
    order = np.r_[rng.permutation(TRAINED), TRAINED + rng.permutation(N - TRAINED)]
    moved = masked(
        {modality: one[order] for modality, one in presence().items()},
        shares,
        [IDS[item] for item in order],
        POPULARITY[order[:TRAINED]],
        pattern=pattern,
    )
    for modality in shares:
        np.testing.assert_array_equal(kept[modality], again[modality])
        np.testing.assert_array_equal(moved[modality], kept[modality][order])
        assert (kept[modality] != other[modality]).any()


@every_pattern
def test_items_outside_training_move_no_item_of_training(pattern: Pattern) -> None:
    shares = {"visual": 0.4, "textual": 0.4}
    fewer = masked(
        {modality: one[:TRAINED] for modality, one in presence().items()},
        shares,
        IDS[:TRAINED],
        POPULARITY,
        pattern=pattern,
    )
    for modality, kept in mask(shares, pattern).items():
        np.testing.assert_array_equal(kept[:TRAINED], fewer[modality])
