"""Splitting interactions. Rows in, a part for each row out; no files, no ids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmbench.core.rng import numpy_rng
from mmbench.errors import ShapeError

TRAIN, VALID, TEST = 0, 1, 2


def random_per_user(
    users: NDArray[np.int64], *, test_ratio: float, valid_ratio: float, seed: int = 42
) -> NDArray[np.int8]:
    """A random share of each user's rows goes to test, then a share of the rest to validation.

    Row for row the split of the Elliot framework (`random_subsampling`), which made the data of arXiv 2309.05273: users in
    ascending order, floor(n (1 - ratio)) rows stay and the others go, chosen by shuffling with NumPy's legacy generator, whose
    state runs on from the test pass to the validation pass. So test rounds up: a user with one row has it in test.

    Args:
        users: User of each row, shape (n,); ascending order of these numbers is the order in which users are drawn.
        test_ratio: Share of each user's rows that becomes test, in [0, 1).
        valid_ratio: Share of each user's remaining rows that becomes validation, in [0, 1).
        seed: Of the legacy generator; Elliot's default is 42.

    Returns:
        TRAIN, VALID or TEST for each row, shape (n,).

    Raises:
        ShapeError: A ratio is out of range.
    """
    for name, ratio in (("test_ratio", test_ratio), ("valid_ratio", valid_ratio)):
        if not 0 <= ratio < 1:
            raise ShapeError(f"random_per_user: {name} is {ratio}, must be in [0, 1)")
    generator = np.random.RandomState(seed)
    parts = np.full(users.size, TRAIN, np.int8)
    for part, ratio in ((TEST, test_ratio), (VALID, valid_ratio)):
        if not ratio:
            continue
        rows = np.flatnonzero(parts == TRAIN)
        rows = rows[np.argsort(users[rows], kind="stable")]  # grouped by user, file order within a user
        _, starts = np.unique(users[rows], return_index=True)
        for group in np.split(rows, starts[1:]):
            held_out = np.ones(group.size, bool)
            held_out[: int(np.floor(group.size * (1 - ratio)))] = False
            generator.shuffle(held_out)
            parts[group[held_out]] = part
    return parts


def eighths_per_user(users: NDArray[np.int64], *, seed: int = 42) -> NDArray[np.int8]:
    """About eight, one and one tenth of each user's rows: the rule behind LATTICE's data, which the 5-core sets share.

    A user with fewer than ten rows has one in test and one in validation; of n >= 10 rows floor(n / 5) are drawn, the smaller
    half of which is test and the larger half validation. Users with fewer than three rows keep all in training.

    Args:
        users: User of each row, shape (n,).
        seed: Any integer.

    Returns:
        TRAIN, VALID or TEST for each row, shape (n,).
    """
    rng = numpy_rng(seed, "eighths")
    parts = np.full(users.size, TRAIN, np.int8)
    rows = np.argsort(users, kind="stable")
    _, starts = np.unique(users[rows], return_index=True)
    for group in np.split(rows, starts[1:]):
        if group.size < 3:
            continue
        n_test, n_valid = (1, 1) if group.size < 10 else (group.size // 5 // 2, group.size // 5 - group.size // 5 // 2)
        drawn = rng.permutation(group)[: n_test + n_valid]
        parts[drawn[:n_test]], parts[drawn[n_test:]] = TEST, VALID
    return parts
