"""Controls keep the form of the vectors, and say nothing about the items."""

from __future__ import annotations

import numpy as np
import pytest

from mmbench.data.controls import Control, replaced

N, TRAINED, DIM = 600, 400, 4
IDS = [f"i{item}" for item in range(N)]


def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((N, DIM)) * [1, 2, 3, 0] + [5, 0, -5, 7]).astype(np.float32)
    present = rng.random(N) < 0.8
    x[~present] = np.nan
    return x, present


def control(name: Control, seed: int = 0) -> np.ndarray:
    x, present = vectors()
    return replaced(x, present, TRAINED, name, IDS, seed=seed, modality="visual")


def test_shuffled_vectors_are_those_of_others_in_the_same_part() -> None:
    x, present = vectors()
    found = control("shuffled")
    for group in (slice(TRAINED), slice(TRAINED, N)):
        mine, theirs = (one[group][present[group]] for one in (found, x))
        assert sorted(mine[:, 0].tolist()) == sorted(theirs[:, 0].tolist())
        assert (mine[:, 0] == theirs[:, 0]).mean() < 0.05
    np.testing.assert_array_equal(found[~present], x[~present])
    assert (control("shuffled", seed=1)[present] != found[present]).any()


def test_noise_has_the_moments_of_the_real_vectors() -> None:
    x, present = vectors()
    found, trained = control("noise"), x[:TRAINED][present[:TRAINED]]
    own = found[:TRAINED][present[:TRAINED]]
    np.testing.assert_allclose(own.mean(0), trained.mean(0), atol=4 * 3 / TRAINED**0.5)
    np.testing.assert_allclose(own.std(0), trained.std(0), rtol=0.2, atol=1e-6)
    correlation = np.corrcoef(own[:, 0], trained[:, 0])[0, 1]
    assert abs(correlation) < 4 / TRAINED**0.5


def test_constant_is_the_mean_of_the_training_items() -> None:
    x, present = vectors()
    mean = x[:TRAINED][present[:TRAINED]].mean(0)
    np.testing.assert_allclose(control("constant")[present] - mean, 0, atol=1e-5)


@pytest.mark.parametrize("name", ["shuffled", "noise", "constant"])
def test_a_control_follows_the_ids_and_is_blind_to_other_items(name: Control) -> None:
    x, present = vectors()
    rng = np.random.default_rng(2)
    order = np.r_[rng.permutation(TRAINED), TRAINED + rng.permutation(N - TRAINED)]
    ids = [IDS[item] for item in order]
    moved = replaced(x[order], present[order], TRAINED, name, ids, modality="visual")
    np.testing.assert_allclose(moved, control(name)[order], rtol=1e-5, atol=1e-6)
    other = x.copy()
    other[TRAINED:] += 1
    found = replaced(other, present, TRAINED, name, IDS, modality="visual")
    np.testing.assert_array_equal(found[:TRAINED], control(name)[:TRAINED])
