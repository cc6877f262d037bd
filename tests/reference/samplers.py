"""The laws of the batch samplers: plain draws, and checks of another implementation's.

    S1  E independent draws per epoch: u uniform over users, i uniform over N(u); one negative each
    S2  per batch B distinct users, for each one i uniform over N(u); one negative each
    S3  every train edge once per epoch, in a fresh order; one negative each
    S4  as S3 without negatives
A negative is uniform over the items outside N(u). Users who have every item are skipped wherever
negatives are drawn.

The checks take all rows of one or many epochs side by side, raise AssertionError with what is
wrong, and return the p-values of their chi-square tests. A p-value below `P_MIN` fails: with a
fixed seed the outcome is fixed too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from .common import Case

P_MIN = 1e-6


# -------------------------------------------------------------------------------------- plain draws


def eligible_users(case: Case) -> np.ndarray:
    """Users who lack at least one item."""
    return np.array([u for u, items in enumerate(case.positives) if len(items) < case.n_items])


def negatives(case: Case, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    lacking = [np.setdiff1d(np.arange(case.n_items), list(items)) for items in case.positives]
    return np.array([rng.choice(lacking[u]) for u in users])


def positives(case: Case, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    owned = [np.array(sorted(items)) for items in case.positives]
    return np.array([rng.choice(owned[u]) for u in users])


def draw_s1(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One epoch: users, positives, negatives, each (n_edges,)."""
    users = rng.choice(eligible_users(case), case.n_edges)
    return users, positives(case, users, rng), negatives(case, users, rng)


def draw_s2(
    case: Case, batch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One batch: users, positives, negatives, each (batch_size,)."""
    users = rng.permutation(eligible_users(case))[:batch_size]
    return users, positives(case, users, rng), negatives(case, users, rng)


def draw_s3(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One epoch: users, positives, negatives."""
    users, items = draw_s4(case, rng)
    keep = np.isin(users, eligible_users(case))
    return users[keep], items[keep], negatives(case, users[keep], rng)


def draw_s4(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One epoch: users, positives."""
    order = rng.permutation(case.n_edges)
    return case.train_users[order], case.train_items[order]


# ------------------------------------------------------------------------------------------- checks


def check_s1(case: Case, users: np.ndarray, pos: np.ndarray, neg: np.ndarray) -> dict[str, float]:
    """Check whole epochs of draws: users uniform, positives and negatives by law."""
    assert len(users) % case.n_edges == 0, (
        f"S1: {len(users)} draws are no multiple of the {case.n_edges} edges"
    )
    eligible = eligible_users(case)
    assert np.isin(users, eligible).all(), "S1: a user who has every item was drawn"
    return {
        "users": _uniform("S1 users", users, eligible),
        "positives": check_positives(case, users, pos),
        "negatives": check_negatives(case, users, neg),
    }


def check_s2(
    case: Case, batches: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], batch_size: int
) -> dict[str, float]:
    """Many batches (users, positives, negatives): users distinct within each, uniform over all."""
    for number, (users, _, _) in enumerate(batches):
        assert len(users) <= batch_size, (
            f"S2: batch {number} has {len(users)} rows (at most {batch_size})"
        )
        assert len(np.unique(users)) == len(users), f"S2: batch {number} holds a user twice"
    users, pos, neg = (np.concatenate(column) for column in zip(*batches, strict=True))
    eligible = eligible_users(case)
    assert np.isin(users, eligible).all(), "S2: a user who has every item was drawn"
    return {
        # Without replacement the counts vary less than under a chi-square, so this can only be too
        # kind.
        "users": _uniform("S2 users", users, eligible),
        "positives": check_positives(case, users, pos),
        "negatives": check_negatives(case, users, neg),
    }


def check_s3(
    case: Case, epochs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """Check many epochs: each edge of an eligible user once, negatives by law."""
    p = check_s4(case, [(users, pos) for users, pos, _ in epochs], skip_full_users=True)
    users = np.concatenate([users for users, _, _ in epochs])
    return {
        **p,
        "negatives": check_negatives(case, users, np.concatenate([neg for _, _, neg in epochs])),
    }


def check_s4(
    case: Case, epochs: Sequence[tuple[np.ndarray, np.ndarray]], *, skip_full_users: bool = False
) -> dict[str, float]:
    """Check many epochs: each edge once, in a changing order; the first edge is uniform."""
    allowed = set(eligible_users(case)) if skip_full_users else set(range(case.n_users))
    expected = [
        (int(u), int(i))
        for u, i in zip(case.train_users, case.train_items, strict=True)
        if int(u) in allowed
    ]
    for number, (users, pos) in enumerate(epochs):
        got = sorted((int(u), int(i)) for u, i in zip(users, pos, strict=True))
        assert got == expected, f"epoch {number}: the rows are not each train edge once"
    orders = {tuple(zip(users.tolist(), pos.tolist(), strict=True)) for users, pos in epochs}
    assert len(orders) == len(epochs), "two epochs share one order"
    # A shuffle puts each edge in each place equally often; look at the mean place of each edge.
    place = np.zeros(len(expected))
    index = {edge: e for e, edge in enumerate(expected)}
    for users, pos in epochs:
        for rank, (u, i) in enumerate(zip(users, pos, strict=True)):
            place[index[int(u), int(i)]] += rank
    n, k = len(expected), len(epochs)
    z = (place / k - (n - 1) / 2) / np.sqrt((n * n - 1) / 12 / k)
    # Ranks of one permutation sum to a constant: n - 1 degrees of freedom, scaled by (n - 1) / n.
    p = float(stats.chi2.sf((z * z).sum() * (n - 1) / n, n - 1))
    assert p > P_MIN, f"the order of the edges is not uniform: p = {p:.2g}"
    return {"order": p}


def check_positives(case: Case, users: np.ndarray, pos: np.ndarray) -> float:
    """Given the users, positives uniform over N(u); none outside."""
    return _conditional("positives", case, users, pos, [sorted(items) for items in case.positives])


def check_negatives(case: Case, users: np.ndarray, neg: np.ndarray) -> float:
    """Given the users, negatives uniform over the items outside N(u); none inside."""
    outside = [sorted(set(range(case.n_items)) - items) for items in case.positives]
    return _conditional("negatives", case, users, neg, outside)


def _uniform(what: str, drawn: np.ndarray, support: np.ndarray) -> float:
    counts = np.array([(drawn == value).sum() for value in support])
    assert counts.sum() / len(support) >= 5, (
        f"{what}: fewer than 5 expected draws per cell; draw more"
    )
    p = float(stats.chisquare(counts).pvalue)
    assert p > P_MIN, f"{what} are not uniform: p = {p:.2g}"
    return p


def _conditional(
    what: str, case: Case, users: np.ndarray, items: np.ndarray, support: list[list[int]]
) -> float:
    """One chi-square over all users: items uniform over the support of their user."""
    assert len(users) == len(items), f"{what}: {len(items)} items for {len(users)} users"
    counts = np.zeros((case.n_users, case.n_items))
    np.add.at(counts, (users, items), 1)
    statistic, freedom, left_out = 0.0, 0, 0
    for u in range(case.n_users):
        outside = counts[u].sum() - counts[u, support[u]].sum()
        assert outside == 0, f"{what}: user {u} got {int(outside)} items that are not allowed"
        if counts[u].sum() == 0 or len(support[u]) < 2:
            continue
        expected = counts[u].sum() / len(support[u])
        if expected < 5:
            left_out += 1
            continue
        statistic += float(((counts[u, support[u]] - expected) ** 2 / expected).sum())
        freedom += len(support[u]) - 1
    assert freedom > 0, (
        f"{what}: fewer than 5 expected draws per cell for all {left_out} users; draw more"
    )
    p = float(stats.chi2.sf(statistic, freedom))
    assert p > P_MIN, f"{what} are not uniform given the user: p = {p:.2g}"
    return p


# ------------------------------------------------------------------------------------------------
# edge sampling


def inclusion_probabilities(weights: np.ndarray, n: int, n_nodes: int = 4000) -> np.ndarray:
    """Probability of each element to be among `n` draws without replacement by `weights`.

    The draw equals keeping the n smallest of independent keys Exp(1) / weight. So with q_f(t) = 1 -
    exp(-w_f t), P(e kept) = integral of dq_e(t) P(at most n - 1 of the others have a key below t),
    the latter a Poisson-binomial sum; midpoint rule over q_e in (0, 1).
    """
    weights = np.asarray(weights, dtype=np.float64)
    result = np.zeros(len(weights))
    middle = (np.arange(n_nodes) + 0.5) / n_nodes
    for e in range(len(weights)):
        t = -np.log1p(-middle) / weights[e]
        below = np.zeros(
            (n, n_nodes)
        )  # below[c]: probability that c of the others are below t, c < n
        below[0] = 1.0
        for f in range(len(weights)):
            if f != e:
                q = -np.expm1(-weights[f] * t)
                below[1:] = below[1:] * (1 - q) + below[:-1] * q
                below[0] *= 1 - q
        result[e] = below.sum(0).mean()
    return result


def check_kept(weights: np.ndarray, draws: Sequence[np.ndarray], n: int) -> float:
    """Check many epochs of kept edges: n distinct each, each edge by law (Bonferroni)."""
    counts = np.zeros(len(weights))
    for number, draw in enumerate(draws):
        assert len(draw) == n, f"epoch {number}: {len(draw)} edges kept (expected {n})"
        assert len(np.unique(draw)) == n, f"epoch {number}: an edge is kept twice"
        counts[draw] += 1
    chance = inclusion_probabilities(weights, n)
    p = min(
        stats.binomtest(int(count), len(draws), float(np.clip(c, 0, 1))).pvalue
        for count, c in zip(counts, chance, strict=True)
    )
    assert p * len(weights) > P_MIN, f"edges are not kept by their weights: smallest p = {p:.2g}"
    return float(p)
