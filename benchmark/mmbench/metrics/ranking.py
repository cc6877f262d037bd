"""Accuracy of ranked lists: one value per user, from the ranks of the relevant items.

Each function takes the judged lists and a cut-off k and returns one value per evaluated user, shape
(n,). The value of a user without a relevant item means nothing; the evaluator leaves it out.
Letters as in `mmbench.metrics.judged_lists`.
"""

from __future__ import annotations

import math

import numpy as np

from mmbench.core.interactions import Index
from mmbench.metrics.item_data import Values, required
from mmbench.metrics.judged_lists import ELLIOT, Judged, over_relevant


def divide(numerator: Values | Index, denominator: Values | Index) -> Values:
    """Element by element, NaN where the denominator is 0."""
    quotient: Values = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


@over_relevant(
    "Precision",
    formula="mean over R of |L[:k] ∩ Rel| / k",
    source="information retrieval; k also for shorter lists",
    aliases=("Prec", "precision-at-k", "PrecisionK"),
)
def precision(lists: Judged, k: int) -> Values:
    """Hits divided by k, also for lists shorter than k."""
    return lists.n_hits(k) / k


@over_relevant(
    "Recall",
    formula="mean over R of |L[:k] ∩ Rel| / |Rel|",
    source="information retrieval; the denominator is not cut at k",
    aliases=("recall-at-k", "RecallK"),
)
def recall(lists: Judged, k: int) -> Values:
    """Hits divided by the number of relevant items, also where that exceeds k."""
    return divide(lists.n_hits(k), lists.n_relevant)


@over_relevant(
    "F1",
    formula="mean over R of 2 |L[:k] ∩ Rel| / (k + |Rel|)",
    source="harmonic mean of precision and recall user by user, then averaged",
    aliases=("F-score", "F-measure", "F1-score"),
)
def f1(lists: Judged, k: int) -> Values:
    """Harmonic mean of precision and recall, user by user."""
    return 2.0 * lists.n_hits(k) / (k + lists.n_relevant)


@over_relevant(
    "HitRate",
    formula="mean over R of [|L[:k] ∩ Rel| > 0]",
    source="information retrieval",
    aliases=("HR", "Hit", "Hits", "HitRatio", "hit-rate-at-k"),
)
def hit_rate(lists: Judged, k: int) -> Values:
    """1 where any relevant item was found."""
    return np.where(lists.n_hits(k) > 0, 1.0, 0.0)


@over_relevant(
    "MRR",
    formula="mean over R of 1 / (r + 1), r the rank of the first hit; 0 without a hit in L[:k]",
    source="Voorhees, TREC-8 question answering track (1999)",
    aliases=("ReciprocalRank", "RecipRank", "MeanReciprocalRank", "ReciprocalRankK"),
)
def mrr(lists: Judged, k: int) -> Values:
    """Reciprocal 1-based rank of the first hit, 0 without one."""
    # The first hit alone has a weight: the sum over a user's hits is its reciprocal rank.
    first = lists.hits.ordinal == 0
    return lists.sum_hits(np.where(first, 1.0 / (lists.hits.rank + 1.0), 0.0), k)


@over_relevant(
    "nDCG",
    formula="mean over R of DCG / ideal DCG, DCG = Σ_r<k (2^(rating - threshold + 1) - 1) d(r) "
    "over relevant items",
    source=f"Järvelin and Kekäläinen (TOIS 2002), graded as in {ELLIOT}",
    aliases=("nDCG-graded",),
)
def ndcg(lists: Judged, k: int) -> Values:
    """Discounted graded gain as a share of the best possible one."""
    # An item that is not relevant has no gain, so that the hits make up the DCG.
    dcg = lists.sum_hits(lists.gain[lists.hits.pair] * lists.discount[lists.hits.rank], k)
    gain, rank = lists.ideal_gain
    within = rank < k
    # The ideal DCG: the min(k, |Rel|) largest gains at the first ranks.
    ideal = np.zeros(gain.shape)
    ideal[within] = gain[within] * lists.discount[rank[within]]
    return divide(dcg, np.bincount(lists.relevant.user, ideal, lists.n_users))


@over_relevant(
    "nDCGRendle2020",
    formula="mean over R of Σ_hits d(r) / Σ_r<min(k, |Rel|) d(r)",
    source="nDCG with binary relevance; Krichene and Rendle, On sampled metrics (KDD 2020)",
    aliases=("nDCG-binary", "binary-nDCG"),
)
def ndcg_binary(lists: Judged, k: int) -> Values:
    """Discounted number of hits as a share of the best possible one."""
    # ideal[n]: n hits at the first n ranks.
    ideal = np.append(0.0, np.cumsum(lists.discount[:k]))
    return divide(
        lists.sum_hits(lists.discount[lists.hits.rank], k), ideal[np.minimum(lists.n_relevant, k)]
    )


@over_relevant(
    "MAP",
    formula="mean over R of 1/k Σ_n=1..k |L[:n] ∩ Rel| / n",
    source=f"{ELLIOT}: the mean of precision over the cut-offs 1 … k, not average precision "
    "(MAP-textbook)",
)
def mean_precision(lists: Judged, k: int) -> Values:
    """Mean over n = 1 … k of precision at n; a hit at rank r counts in every n > r."""
    # Σ_n |L[:n] ∩ Rel| / n = Σ_hits Σ_n>r 1 / n = Σ_hits (H_k - H_r), H the harmonic numbers.
    harmonic = np.append(0.0, np.cumsum(1.0 / np.arange(1.0, k + 1.0)))
    return lists.sum_hits(harmonic[k] - harmonic[np.minimum(lists.hits.rank, k)], k) / k


@over_relevant(
    "MAR",
    formula="mean over R of 1/k Σ_n=1..k |L[:n] ∩ Rel| / |Rel|",
    source=f"{ELLIOT}: the mean of recall over the cut-offs 1 … k",
)
def mean_recall(lists: Judged, k: int) -> Values:
    """Mean over n = 1 … k of recall at n."""
    # A hit at rank r counts in the recall at n = r + 1, …, k: k - r times.
    return divide(lists.sum_hits(k - lists.hits.rank.astype(float), k) / k, lists.n_relevant)


@over_relevant(
    "MAP-textbook",
    formula="mean over R of Σ_hits precision at the hit / min(k, |Rel|)",
    source="Manning et al., Introduction to Information Retrieval (2008), section 8.4, cut at k",
    aliases=("MAPtextbook", "AP", "MeanAveragePrecision"),
)
def average_precision(lists: Judged, k: int) -> Values:
    """Precision at each hit, summed, over the most hits possible."""
    # With h hits before it, the precision at a hit is (h + 1) / (r + 1).
    at_hit = (lists.hits.ordinal + 1.0) / (lists.hits.rank + 1.0)
    return divide(lists.sum_hits(at_hit, k), np.minimum(lists.n_relevant, k))


@over_relevant(
    "LAUC",
    formula="mean over R of Σ_hits (n - r + h) / n / min(k, |Rel|), h earlier hits, n = |I| - "
    "|T_u| - |Rel| + 1",
    source="area under the curve limited to the list; Schröder et al. (UCERSTI at RecSys 2011), "
    f"as in {ELLIOT}",
    aliases=("LimitedAUC",),
)
def limited_auc(lists: Judged, k: int) -> Values:
    """Share of candidates ranked below each hit, over the most hits possible."""
    candidates = lists.train.n_items - lists.n_masked - lists.n_relevant + 1.0
    of_hit: Values = np.asarray(candidates[lists.hits.user])
    # Of the r items above a hit, h are hits: r - h other candidates are ranked above it.
    below = of_hit - lists.hits.rank + lists.hits.ordinal
    return divide(lists.sum_hits(divide(below, of_hit), k), np.minimum(lists.n_relevant, k))


@over_relevant(
    "NumRetrieved",
    formula="mean over R of len(L[:k])",
    source=ELLIOT,
    higher_is_better=None,
    bounds=(0.0, math.inf),
)
def n_retrieved(lists: Judged, k: int) -> Values:
    """Length of the list, cut at k."""
    return lists.length_at(k).astype(float)


@over_relevant(
    "SRecall",
    formula="mean over R of |topics of L[:k] ∩ Rel| / |topics of I|",
    source="subtopic recall; Zhai et al., Beyond independent relevance (SIGIR 2003)",
    aliases=("SubtopicRecall",),
    needs=("topics",),
)
def subtopic_recall(lists: Judged, k: int) -> Values:
    """Distinct topics of the hits as a share of all topics.

    Raises:
        UsageError: The lists were judged without topics.
    """
    of_items = required(lists.topics, "topics", "SRecall")
    hit, pair = of_items.of(lists.hits.item)  # in the order of the hits, best rank first
    names, topic = np.unique(of_items.topics, return_inverse=True)
    key = lists.hits.user[hit] * max(names.size, 1) + topic[pair]
    _, best = np.unique(key, return_index=True)  # a topic counts once, at its best rank
    found = hit[best][lists.hits.rank[hit[best]] < k]
    # Only topics of candidates: an unseen item must not raise the denominator.
    n_topics = np.unique(of_items.topics[of_items.items < lists.train.n_items]).size
    return divide(
        np.bincount(lists.hits.user[found], minlength=lists.n_users),
        np.full(lists.n_users, n_topics),
    )
