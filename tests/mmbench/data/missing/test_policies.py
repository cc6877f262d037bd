"""Every missing-content policy: what is present stays, nothing but training is learnt from."""

from __future__ import annotations

import numpy as np
import pytest

from mmbench.core.interactions import TrainSet
from mmbench.data.missing import OLD_NAMES, POLICIES, policy_of, spelled
from mmbench.data.missing.base import Gaps, Present, Vectors
from mmbench.errors import UsageError

N_USERS, N_TRAINED, N_ITEMS, DIM = 30, 20, 26, 5
IDS = [f"i{item}" for item in range(N_ITEMS)]


def pairs(seed: int = 0) -> TrainSet:
    rng = np.random.default_rng(seed)
    items = np.r_[np.arange(N_TRAINED), rng.integers(0, N_TRAINED, 100)]
    return TrainSet.from_pairs(rng.integers(0, N_USERS, items.size), items, N_USERS, N_TRAINED)


def incomplete(share: float = 0.4) -> tuple[Vectors, Present]:
    rng = np.random.default_rng(1)
    vectors, present = rng.standard_normal((N_ITEMS, DIM)).astype(np.float32), rng.random(N_ITEMS)
    vectors[present < share] = np.nan
    return vectors, present >= share


def fill(name: str, vectors: Vectors, present: Present, **other: object) -> Vectors:
    given = {"n_trained": N_TRAINED, "item_ids": IDS, "train": pairs(), **other}
    return policy_of(name).fill(Gaps(vectors.copy(), present, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_fills_all_keeps_what_is_there_and_learns_from_training_alone(name: str) -> None:
    vectors, present = incomplete()
    filled = fill(name, vectors, present)
    assert np.isfinite(filled).all() and filled.dtype == np.float32
    np.testing.assert_array_equal(filled[present], vectors[present])
    other = vectors.copy()
    other[N_TRAINED:][present[N_TRAINED:]] += 1
    np.testing.assert_array_equal(fill(name, other, present)[:N_TRAINED], filled[:N_TRAINED])


@pytest.mark.parametrize("name", POLICIES)
def test_where_nothing_is_missing_a_policy_changes_nothing(name: str) -> None:
    vectors, present = incomplete(share=0)
    np.testing.assert_array_equal(fill(name, vectors, present), vectors)


def test_old_names_are_understood() -> None:
    assert spelled("zero") == spelled("zeros") == "zeros"
    assert set(OLD_NAMES.values()) <= set(POLICIES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("meen", "unknown missing-content policy 'meen'. Did you mean 'mean'"),
        ("mean:alpha=1", "the policy mean has no settings"),
        ("mean:alpha", "expected NAME:SETTING=VALUE"),
        ({"alpha": 1}, "expected `policy`"),
    ],
)
def test_what_is_no_policy_is_one_clear_error(given: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        policy_of(given)
