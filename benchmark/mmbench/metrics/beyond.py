"""Novelty, coverage, concentration and popularity bias of ranked lists.

Each function takes the judged lists and a cut-off k and returns one value per evaluated user, shape
(n,), or one number for all lists; NaN means not defined. Letters as in
`mmbench.metrics.judged_lists`.
"""

from __future__ import annotations

import math

import numpy as np

from mmbench.metrics.item_data import Mask, Values
from mmbench.metrics.judged_lists import (
    ELLIOT,
    NOVELTY,
    Judged,
    over_evaluated,
    over_relevant,
    overall,
)
from mmbench.metrics.ranking import divide

_BIAS = "Abdollahpouri et al., Managing popularity bias by personalized re-ranking (FLAIRS 2019)"
_FAIRNESS = "Zhu et al., Measuring and mitigating item under-recommendation bias (SIGIR 2020)"


@over_relevant(
    "EFD",
    formula="mean over R of Σ_hits d(r) · -log2(pop / |T|) / Σ_r<len(L[:k]) d(r); an item outside "
    "training counts as the rarest in it",
    source=f"expected free discovery; {NOVELTY}",
    bounds=(0.0, math.inf),
)
def expected_free_discovery(lists: Judged, k: int) -> Values:
    """Discounted self-information of the hits over the discounts of the whole list.

    An item without a training row is as surprising as the rarest item that has one.
    """
    popularity = lists.popularity_of(lists.hits.item)
    # -log2 P(i) with P(i) = pop / |T|: the share of interactions, not of users.
    novelty = -np.log2(np.maximum(popularity, lists.rarest) / max(lists.train.n_edges, 1))
    return _discounted_share(lists, novelty, k)


@over_relevant(
    "EPC",
    formula="mean over R of Σ_hits d(r) · (1 - pop / |U|) / Σ_r<len(L[:k]) d(r), U the training "
    "users",
    source=f"expected popularity complement; {NOVELTY}",
)
def expected_popularity_complement(lists: Judged, k: int) -> Values:
    """Discounted share of users who do not know the hits, over the discounts of the whole list."""
    # |U| counts users with a training item.
    n_users = int(np.count_nonzero(lists.train.user_degree))
    return _discounted_share(lists, 1.0 - lists.popularity_of(lists.hits.item) / max(n_users, 1), k)


def _discounted_share(lists: Judged, novelty: Values, k: int) -> Values:
    # An empty list has no hits: 0 / 1.
    # Σ d(r) runs over the list's actual length, not over k.
    total = np.append(1.0, np.cumsum(lists.discount[:k]))
    return divide(
        lists.sum_hits(lists.discount[lists.hits.rank] * novelty, k), total[lists.length_at(k)]
    )


@overall(
    "Gini",
    formula="1 - Σ_j=1..|I| (2j - |I| - 1) c_(j) / C / (|I| - 1), c the ascending item counts, C "
    "their sum",
    source=f"1 minus the Gini index, so that higher is more even; {ELLIOT}",
)
def gini(lists: Judged, k: int) -> float:
    """1 minus the Gini index of the recommendation counts: 1 is even, 0 is one item only."""
    counts = lists.counts(k)
    counts = np.sort(counts[counts > 0])  # items never listed come first and add nothing
    n_items = lists.train.n_items
    # No item is listed: even, as in Elliot.
    if not counts.size:
        return 1.0
    if n_items < 2:
        return math.nan
    # j of the listed items, which are the last of the |I| ascending counts.
    place = np.arange(n_items - counts.size, n_items) + 1.0
    return float(
        1.0 - np.sum((2.0 * place - n_items - 1.0) * counts) / counts.sum() / (n_items - 1)
    )


@overall(
    "SEntropy",
    formula="mean over E of Σ_L[:k] -log2(c_i / C) / len(L[:k]), in bits",
    source=f"Shannon entropy of the recommendation counts; {ELLIOT}",
    bounds=(0.0, math.inf),
    aliases=("Entropy",),
)
def shannon_entropy(lists: Judged, k: int) -> float:
    """Mean over the lists of the mean self-information of their items, in bits."""
    counts = lists.counts(k)
    if not lists.n_users or not counts.any():
        return math.nan
    listed = counts > 0
    information = -np.log2(counts[listed] / counts.sum())
    # Each list weighs its items by 1 / len(L[:k]): with lists of unequal length this is not the
    # entropy of c / C.
    return float(np.sum(lists.inverse_length_sums(k)[listed] * information) / lists.n_users)


@overall(
    "ItemCoverage",
    formula="|∪_E L[:k]|",
    source=f"item coverage as a count; {ELLIOT}",
    bounds=(0.0, math.inf),
    aliases=("NumItems", "ItemCov"),
)
def item_coverage(lists: Judged, k: int) -> float:
    """Number of different items in all lists."""
    return float(_n_covered(lists, k))


def _n_covered(lists: Judged, k: int) -> int:
    return int(np.count_nonzero(lists.counts(k)))


@overall(
    "iCov",
    formula="100 · |∪_E L[:k]| / |I|",
    source="item coverage in percent of the candidate items",
    bounds=(0.0, 100.0),
    aliases=("ItemCoveragePercent", "Coverage", "CatalogueCoverage", "CatalogCoverage"),
)
def item_coverage_percent(lists: Judged, k: int) -> float:
    """Different items in all lists, in percent of the candidate items."""
    n_items = lists.train.n_items
    return 100.0 * _n_covered(lists, k) / n_items if n_items else math.nan


@overall(
    "UserCoverage",
    formula="number of users of E whose list is not empty, whatever k",
    source=ELLIOT,
    bounds=(0.0, math.inf),
    aliases=("uCov",),
)
def user_coverage(lists: Judged, k: int) -> float:
    """Number of users with a list that is not empty; the cut-off plays no part."""
    return float(np.count_nonzero(lists.length))


@overall(
    "UserCoverageAtN",
    formula="number of users of E with len(L) >= k",
    source=ELLIOT,
    bounds=(0.0, math.inf),
)
def user_coverage_at_n(lists: Judged, k: int) -> float:
    """Number of users whose whole list has at least k items."""
    return float(np.count_nonzero(lists.length >= k))


@over_evaluated(
    "APLT",
    formula="mean over E of |L[:k] ∩ tail| / len(L[:k]); head the fewest items, by descending "
    "pop, ties by id, that hold 80 % of T; tail the rest",
    source=f"average percentage of long-tail items, as a fraction; {_BIAS}",
    aliases=("LongTail",),
)
def tail_share(lists: Judged, k: int) -> Values:
    """Share of tail items in each list; not defined for an empty one."""
    return divide(lists.n_tail(k).astype(float), lists.length_at(k))


@over_evaluated(
    "ACLT",
    formula="mean over E of |L[:k] ∩ tail|",
    source=f"average coverage of long-tail items, a count per user; {_BIAS}",
    bounds=(0.0, math.inf),
)
def tail_count(lists: Judged, k: int) -> Values:
    """Number of tail items in each list."""
    return lists.n_tail(k).astype(float)


@over_evaluated(
    "ARP",
    formula="mean over E of Σ_L[:k] pop / len(L[:k])",
    source="average recommendation popularity; Yin et al., Challenging the long tail "
    "recommendation (VLDB 2012)",
    higher_is_better=False,
    bounds=(0.0, math.inf),
    aliases=("AveragePopularity", "AvgPop"),
)
def mean_popularity(lists: Judged, k: int) -> Values:
    """Mean number of training users of the listed items; not defined for an empty list."""
    return divide(lists.popularity_sum(k).astype(float), lists.length_at(k))


@overall(
    "PopREO",
    population="relevant",
    formula="|p_h - p_t| / (p_h + p_t), p_g = Σ_R |L[:k] ∩ Rel ∩ g| / Σ_R |(Rel ∩ g) minus T_u|, "
    "g head or tail",
    source=f"ranking-based equal opportunity; {_FAIRNESS}",
    higher_is_better=False,
    aliases=("REO",),
)
def equal_opportunity(lists: Judged, k: int) -> float:
    """Spread over mean of the shares of relevant head and of relevant tail items that are found."""
    found = lists.head_and_tail(lists.hits.item[lists.hits.rank < k])
    relevant = lists.relevant
    # A masked item is no candidate for u, so that it does not count as findable.
    findable = ~lists.masked.contains(lists.users[relevant.user], relevant.item)
    of_pairs = lists.head_and_tail(relevant.item)
    return _spread(
        (_count(found[0]), _count(found[1])),
        (_count(of_pairs[0] & findable), _count(of_pairs[1] & findable)),
    )


@overall(
    "PopRSP",
    formula="|p_h - p_t| / (p_h + p_t), p_g = Σ_E |L[:k] ∩ g| / Σ_E |g minus T_u|, g head or tail",
    source=f"ranking-based statistical parity; {_FAIRNESS}",
    higher_is_better=False,
    aliases=("RSP",),
)
def statistical_parity(lists: Judged, k: int) -> float:
    """Spread over mean of the shares of head and of tail items that are recommended."""
    n_head = _count(lists.is_head)
    # Σ_E |g minus T_u| = |E| |g| - Σ_E |T_u ∩ g|, which needs no users x items array. The extra
    # place serves users without a training row.
    trained_head = np.bincount(
        lists.masked.users, lists.is_head[lists.masked.items], lists.train.n_users + 1
    )
    known_head = int(trained_head[np.minimum(lists.users, lists.train.n_users)].sum())
    known_tail = int(lists.n_masked.sum()) - known_head
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
    # Of two values the population deviation over the mean is |a - b| / (a + b).
    if not all(possible) or not any(found):
        return math.nan
    head, tail = found[0] / possible[0], found[1] / possible[1]
    return abs(head - tail) / (head + tail)
