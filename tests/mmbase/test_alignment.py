"""Whether vectors belong to their ids: how often that is told rightly, and wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmbase.checks import alignment
from mmbase.checks.reading import SKETCH, _of_length_one, pairs_of_users
from mmbase.checks.subject import Dataset, Vectors

ITEMS, USERS = 400, 500


def catalogue(seed: int, noise: float) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Vectors of items, and pairs that one user has; `noise` hides the style in the vectors."""
    rng = np.random.default_rng(seed)
    style = rng.integers(0, 10, ITEMS)
    vectors = np.eye(10)[style] @ rng.standard_normal((10, 32))
    vectors += rng.normal(0, noise, (ITEMS, 32))
    likes = np.where(np.arange(10)[:, None] == style, 1.0, 0.1)
    likes /= likes.sum(1, keepdims=True)
    users = np.repeat(np.arange(USERS), 10)
    items = np.concatenate(
        [rng.choice(ITEMS, 10, False, likes[user % 10]) for user in range(USERS)]
    )
    names = np.array([f"i{item}" for item in range(ITEMS)], object)
    return vectors, pairs_of_users(users.astype(np.int32), items.astype(np.int32), names)


def told(vectors: np.ndarray, pairs: list[tuple[str, str]], ok: np.ndarray | None = None) -> str:
    ids = np.array([f"i{item}" for item in range(ITEMS)], object)
    there = np.ones(ITEMS, bool) if ok is None else ok
    sketch = np.asarray(vectors, np.float32)[:, :SKETCH]
    none = np.empty(0, np.int64)
    one = Vectors("visual/x", ids, there, [], none, (1, 0), ITEMS, _of_length_one(sketch, there))
    data = Dataset(Path(), sets=[one], related={"users": pairs})
    found = [*alignment.shifted(data)]
    return found[0].what if found else "shuffled" if [*alignment.shuffled(data)] else ""


def test_sound_vectors_are_never_called_shuffled_and_others_always() -> None:
    for seed in range(12):
        vectors, pairs = catalogue(seed, noise=1.0)
        assert told(vectors, pairs) == ""
        order = np.random.default_rng(seed).permutation(ITEMS)
        assert told(vectors[order], pairs) == "shuffled"
        for moved, where in ((1, "1 row after"), (-1, "1 row before"), (2, "2 rows after")):
            what = told(np.roll(vectors, -moved, 0), pairs)
            assert where in what, (moved, what)


def test_missing_vectors_and_weak_ones() -> None:
    vectors, pairs = catalogue(0, noise=3.0)
    assert told(vectors, pairs) == ""
    ok = np.random.default_rng(1).random(ITEMS) < 0.85
    assert told(vectors, pairs, ok) == ""


def test_too_few_pairs_say_nothing() -> None:
    vectors, pairs = catalogue(0, noise=1.0)
    assert told(vectors[::-1], pairs[:150]) == ""
    assert told(vectors[np.random.default_rng(0).permutation(ITEMS)], pairs[:2000]) == ""
