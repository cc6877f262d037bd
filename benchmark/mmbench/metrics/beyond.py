"""Novelty, coverage, concentration and popularity bias of ranked lists.

Each function takes the judged lists and a cut-off k, and gives one value per evaluated user, shape
(n,), or one number for all lists together. NaN where a value is not defined. Letters as in
`mmbench.metrics.judged_lists`.
"""

from __future__ import annotations

import math

import numpy as np

from mmbench.metrics.item_data import Mask, Values
from mmbench.metrics.judged_lists import Judged
from mmbench.metrics.ranking import divide


def expected_free_discovery(lists: Judged, k: int) -> Values:
    """Discounted self-information of the hits, -log2(pop / |T|), over the discounts of the whole list.

    An item without a training row is as surprising as the rarest item that has one.
    """
    popularity = lists.popularity_of(lists.hits.item)
    novelty = -np.log2(np.maximum(popularity, lists.rarest) / max(lists.train.n_edges, 1))
    return _discounted_share(lists, novelty, k)


def expected_popularity_complement(lists: Judged, k: int) -> Values:
    """Discounted share of users who do not know the hits, 1 - pop / |U|, over the discounts of the whole list."""
    n_users = int(np.count_nonzero(lists.train.user_degree))
    return _discounted_share(lists, 1.0 - lists.popularity_of(lists.hits.item) / max(n_users, 1), k)


def _discounted_share(lists: Judged, novelty: Values, k: int) -> Values:
    """Discounted novelty of the hits over the sum of the discounts of L[:k]; 0 for an empty list."""
    total = np.append(1.0, np.cumsum(lists.discount[:k]))  # an empty list has no hits: 0 / 1
    return divide(
        lists.sum_hits(lists.discount[lists.hits.rank] * novelty, k), total[lists.length_at(k)]
    )


def gini(lists: Judged, k: int) -> float:
    """1 minus the Gini index of the recommendation counts: 1 is even, 0 is one item only."""
    counts = lists.counts(k)
    counts = np.sort(counts[counts > 0])  # items never listed come first and add nothing
    n_items = lists.train.n_items
    if not counts.size:
        return 1.0
    if n_items < 2:
        return math.nan
    place = np.arange(n_items - counts.size, n_items) + 1.0
    return float(
        1.0 - np.sum((2.0 * place - n_items - 1.0) * counts) / counts.sum() / (n_items - 1)
    )


def shannon_entropy(lists: Judged, k: int) -> float:
    """Mean over the lists of the self-information of their items, -log2(count / all counts), in bits."""
    counts = lists.counts(k)
    if not lists.n_users or not counts.any():
        return math.nan
    listed = counts > 0
    information = -np.log2(counts[listed] / counts.sum())
    return float(np.sum(lists.inverse_length_sums(k)[listed] * information) / lists.n_users)


def item_coverage(lists: Judged, k: int) -> float:
    """Number of different items in all lists."""
    return float(np.count_nonzero(lists.counts(k)))


def item_coverage_percent(lists: Judged, k: int) -> float:
    """Different items in all lists, in percent of the candidate items."""
    return (
        100.0 * item_coverage(lists, k) / lists.train.n_items if lists.train.n_items else math.nan
    )


def user_coverage(lists: Judged, k: int) -> float:
    """Number of users with a list that is not empty; the cut-off plays no part."""
    return float(np.count_nonzero(lists.length))


def user_coverage_at_n(lists: Judged, k: int) -> float:
    """Number of users whose whole list has at least k items."""
    return float(np.count_nonzero(lists.length >= k))


def tail_share(lists: Judged, k: int) -> Values:
    """Share of tail items in each list; not defined for an empty one."""
    return divide(lists.n_tail(k).astype(float), lists.length_at(k))


def tail_count(lists: Judged, k: int) -> Values:
    """Number of tail items in each list."""
    return lists.n_tail(k).astype(float)


def mean_popularity(lists: Judged, k: int) -> Values:
    """Mean number of training users of the listed items; not defined for an empty list."""
    return divide(lists.popularity_sum(k).astype(float), lists.length_at(k))


def equal_opportunity(lists: Judged, k: int) -> float:
    """How differently relevant head and relevant tail items are found: spread over mean of the two shares."""
    found = lists.head_and_tail(lists.hits.item[lists.hits.rank < k])
    relevant = lists.relevant
    findable = ~lists.train.contains(lists.users[relevant.user], relevant.item)
    of_pairs = lists.head_and_tail(relevant.item)
    return _spread(
        (_count(found[0]), _count(found[1])),
        (_count(of_pairs[0] & findable), _count(of_pairs[1] & findable)),
    )


def statistical_parity(lists: Judged, k: int) -> float:
    """How differently head and tail items are recommended: spread over mean of the two shares."""
    n_head = _count(lists.is_head)
    trained_head = np.bincount(
        lists.train.users, lists.is_head[lists.train.items], lists.train.n_users + 1
    )
    known_head = int(trained_head[np.minimum(lists.users, lists.train.n_users)].sum())
    known_tail = int(lists.n_trained.sum()) - known_head
    return _spread(
        lists.n_listed(k),
        (
            lists.n_users * n_head - known_head,
            lists.n_users * (lists.train.n_items - n_head) - known_tail,
        ),
    )


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))


def _spread(found: tuple[int, int], possible: tuple[int, int]) -> float:
    """Population standard deviation over mean of the two shares found / possible, |a - b| / (a + b); NaN if 0 / 0."""
    if not all(possible) or not any(found):
        return math.nan
    head, tail = found[0] / possible[0], found[1] / possible[1]
    return abs(head - tail) / (head + tail)
