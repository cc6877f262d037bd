"""Metrics of ranked lists, by name.

Adding one takes a function of (judged lists, cut-off) in a module of this folder and an entry in
`METRICS`; averaging, cut-offs and populations happen once, in `mmbench.evaluation.evaluate`. Shared
names mean what the Elliot framework computes under them, because the published tables of the field
were made with it; where a textbook means something else by the same name, that has a name of its
own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from mmbench.errors import unknown_name
from mmbench.metrics import beyond, calibration, content, ranking
from mmbench.metrics.item_data import NEEDS, Content, Need, Topics, Values
from mmbench.metrics.judged_lists import Judged

__all__ = [
    "METRICS",
    "NEEDS",
    "PAPER",
    "Content",
    "Judged",
    "Metric",
    "Need",
    "Topics",
    "resolve",
    "sign",
]

PER_USER: Literal["per-user"] = "per-user"
OVERALL: Literal["overall"] = "overall"


@dataclass(frozen=True)
class Metric:
    """One metric: how it is computed, and what its number means.

    Attributes:
        name: The one printed form.
        compute: Judged lists and cut-off to one value per evaluated user, shape (n,), or to one
            number.
        kind: `per-user` metrics are averaged over their population; `overall` ones are one number
            for all lists.
        population: `relevant` (R): evaluated users with at least one relevant item; `evaluated`
            (E): all of them.
        formula: One readable line; letters as in `mmbench.metrics.judged_lists`.
        source: Paper or framework the definition comes from.
        higher_is_better: None where neither direction is better by itself.
        bounds: Smallest and largest value of lists that hold candidates only; infinite where there
            is none. Lists from elsewhere may hold items outside I and exceed them.
        aliases: Other names that are understood.
        needs: Side data without which the metric does not exist; see
            `mmbench.metrics.item_data.NEEDS`.
    """

    name: str
    compute: Callable[[Judged, int], Values | float]
    kind: Literal["per-user", "overall"]
    population: Literal["relevant", "evaluated"]
    formula: str
    source: str
    higher_is_better: bool | None = True
    bounds: tuple[float, float] = (0.0, 1.0)
    aliases: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()


_ELLIOT = "Anelli et al., Elliot (SIGIR 2021)"
_BIAS = "Abdollahpouri et al., Managing popularity bias by personalized re-ranking (FLAIRS 2019)"
_NOVELTY = "Vargas and Castells, Rank and relevance in novelty and diversity metrics (RecSys 2011)"
_FAIRNESS = "Zhu et al., Measuring and mitigating item under-recommendation bias (SIGIR 2020)"
_INF = math.inf


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS = _by_name(
    Metric(
        name="Recall",
        compute=ranking.recall,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of |L[:k] ∩ Rel| / |Rel|",
        source="information retrieval; the denominator is not cut at k",
    ),
    Metric(
        name="nDCG",
        compute=ranking.ndcg,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of DCG / ideal DCG, DCG = Σ_r<k (2^(rating - threshold + 1) - 1) d(r) "
        "over relevant items",
        source=f"Järvelin and Kekäläinen (TOIS 2002), graded as in {_ELLIOT}",
        aliases=("nDCG-graded",),
    ),
    Metric(
        name="EFD",
        compute=beyond.expected_free_discovery,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of Σ_hits d(r) · -log2(pop / |T|) / Σ_r<len(L[:k]) d(r); an item "
        "outside training counts as the "
        "rarest in it",
        source=f"expected free discovery; {_NOVELTY}",
        bounds=(0.0, _INF),
    ),
    Metric(
        name="Gini",
        compute=beyond.gini,
        kind=OVERALL,
        population="evaluated",
        formula="1 - Σ_j=1..|I| (2j - |I| - 1) c_(j) / C / (|I| - 1), c the ascending item counts, "
        "C their sum",
        source=f"1 minus the Gini index, so that higher is more even; {_ELLIOT}",
        aliases=("GiniIndex", "Gini-index"),
    ),
    Metric(
        name="APLT",
        compute=beyond.tail_share,
        kind=PER_USER,
        population="evaluated",
        formula="mean over E of |L[:k] ∩ tail| / len(L[:k]); head the fewest items, by descending "
        "pop, ties by id, that hold "
        "80 % of T; tail the rest",
        source=f"average percentage of long-tail items, as a fraction; {_BIAS}",
        aliases=("LongTail", "TailPercentage"),
    ),
    Metric(
        name="iCov",
        compute=beyond.item_coverage_percent,
        kind=OVERALL,
        population="evaluated",
        formula="100 · |∪_E L[:k]| / |I|",
        source="item coverage in percent of the candidate items",
        bounds=(0.0, 100.0),
        aliases=("ItemCoveragePercent", "Coverage", "CatalogueCoverage", "CatalogCoverage"),
    ),
    Metric(
        name="ItemCoverage",
        compute=beyond.item_coverage,
        kind=OVERALL,
        population="evaluated",
        formula="|∪_E L[:k]|",
        source=f"item coverage as a count; {_ELLIOT}",
        bounds=(0.0, _INF),
        aliases=("NumItems", "ItemCov"),
    ),
    Metric(
        name="Precision",
        compute=ranking.precision,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of |L[:k] ∩ Rel| / k",
        source="information retrieval; k also for shorter lists",
        aliases=("Prec",),
    ),
    Metric(
        name="HitRate",
        compute=ranking.hit_rate,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of [|L[:k] ∩ Rel| > 0]",
        source="information retrieval",
        aliases=("HR", "Hit", "Hits", "HitRatio"),
    ),
    Metric(
        name="MRR",
        compute=ranking.mrr,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of 1 / (r + 1), r the rank of the first hit; 0 without a hit in L[:k]",
        source="Voorhees, TREC-8 question answering track (1999)",
        aliases=("ReciprocalRank", "RecipRank"),
    ),
    Metric(
        name="MAP",
        compute=ranking.mean_precision,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of 1/k Σ_n=1..k |L[:n] ∩ Rel| / n",
        source=f"{_ELLIOT}: the mean of precision over the cut-offs 1 … k, not average precision "
        "(MAP-textbook)",
    ),
    Metric(
        name="MAP-textbook",
        compute=ranking.average_precision,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of Σ_hits precision at the hit / min(k, |Rel|)",
        source="Manning et al., Introduction to Information Retrieval (2008), section 8.4, cut at k",
        aliases=("MAPtextbook", "AP", "MeanAveragePrecision"),
    ),
    Metric(
        name="MAR",
        compute=ranking.mean_recall,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of 1/k Σ_n=1..k |L[:n] ∩ Rel| / |Rel|",
        source=f"{_ELLIOT}: the mean of recall over the cut-offs 1 … k",
    ),
    Metric(
        name="F1",
        compute=ranking.f1,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of 2 |L[:k] ∩ Rel| / (k + |Rel|)",
        source="harmonic mean of precision and recall user by user, then averaged",
        aliases=("F-score", "F-measure"),
    ),
    Metric(
        name="nDCGRendle2020",
        compute=ranking.ndcg_binary,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of Σ_hits d(r) / Σ_r<min(k, |Rel|) d(r)",
        source="nDCG with binary relevance; Krichene and Rendle, On sampled metrics (KDD 2020)",
        aliases=("nDCG-binary", "binary-nDCG"),
    ),
    Metric(
        name="LAUC",
        compute=ranking.limited_auc,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of Σ_hits (n - r + h) / n / min(k, |Rel|), h earlier hits, n = |I| - "
        "|T_u| - |Rel| + 1",
        source="area under the curve limited to the list; Schröder et al. (UCERSTI at RecSys "
        f"2011), as in {_ELLIOT}",
        aliases=("LimitedAUC",),
    ),
    Metric(
        name="SRecall",
        compute=ranking.subtopic_recall,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of |topics of L[:k] ∩ Rel| / |topics of I|",
        source="subtopic recall; Zhai et al., Beyond independent relevance (SIGIR 2003)",
        aliases=("SubtopicRecall",),
        needs=("topics",),
    ),
    Metric(
        name="EPC",
        compute=beyond.expected_popularity_complement,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of Σ_hits d(r) · (1 - pop / |U|) / Σ_r<len(L[:k]) d(r), U the "
        "training users",
        source=f"expected popularity complement; {_NOVELTY}",
    ),
    Metric(
        name="ARP",
        compute=beyond.mean_popularity,
        kind=PER_USER,
        population="evaluated",
        formula="mean over E of Σ_L[:k] pop / len(L[:k])",
        source="average recommendation popularity; Yin et al., Challenging the long tail "
        "recommendation (VLDB 2012)",
        higher_is_better=False,
        bounds=(0.0, _INF),
        aliases=("AveragePopularity", "AvgPop"),
    ),
    Metric(
        name="ACLT",
        compute=beyond.tail_count,
        kind=PER_USER,
        population="evaluated",
        formula="mean over E of |L[:k] ∩ tail|",
        source=f"average coverage of long-tail items, a count per user; {_BIAS}",
        bounds=(0.0, _INF),
    ),
    Metric(
        name="SEntropy",
        compute=beyond.shannon_entropy,
        kind=OVERALL,
        population="evaluated",
        formula="mean over E of Σ_L[:k] -log2(c_i / C) / len(L[:k]), in bits",
        source=f"Shannon entropy of the recommendation counts; {_ELLIOT}",
        bounds=(0.0, _INF),
        aliases=("ShannonEntropy", "Entropy"),
    ),
    Metric(
        name="NumRetrieved",
        compute=ranking.n_retrieved,
        kind=PER_USER,
        population="relevant",
        formula="mean over R of len(L[:k])",
        source=_ELLIOT,
        higher_is_better=None,
        bounds=(0.0, _INF),
    ),
    Metric(
        name="UserCoverage",
        compute=beyond.user_coverage,
        kind=OVERALL,
        population="evaluated",
        formula="number of users of E whose list is not empty, whatever k",
        source=_ELLIOT,
        bounds=(0.0, _INF),
        aliases=("uCov",),
    ),
    Metric(
        name="UserCoverageAtN",
        compute=beyond.user_coverage_at_n,
        kind=OVERALL,
        population="evaluated",
        formula="number of users of E with len(L) >= k",
        source=_ELLIOT,
        bounds=(0.0, _INF),
    ),
    Metric(
        name="PopREO",
        compute=beyond.equal_opportunity,
        kind=OVERALL,
        population="relevant",
        formula="|p_h - p_t| / (p_h + p_t), p_g = Σ_R |L[:k] ∩ Rel ∩ g| / Σ_R |(Rel ∩ g) minus "
        "T_u|, g head or tail",
        source=f"ranking-based equal opportunity; {_FAIRNESS}",
        higher_is_better=False,
        aliases=("REO",),
    ),
    Metric(
        name="PopRSP",
        compute=beyond.statistical_parity,
        kind=OVERALL,
        population="evaluated",
        formula="|p_h - p_t| / (p_h + p_t), p_g = Σ_E |L[:k] ∩ g| / Σ_E |g minus T_u|, g head or "
        "tail",
        source=f"ranking-based statistical parity; {_FAIRNESS}",
        higher_is_better=False,
        aliases=("RSP",),
    ),
    Metric(
        name="ILD",
        compute=content.intra_list_distance,
        kind=PER_USER,
        population="evaluated",
        formula="mean over E of Σ_i≠j (1 - cos(x_i, x_j)) / (n (n - 1)), i and j the n items of "
        "L[:k] with a vector x",
        source="intra-list distance; Zhang and Hurley, Avoiding monotony (RecSys 2008), as in "
        f"{_NOVELTY}",
        bounds=(0.0, 2.0),
        aliases=("IntraListDistance", "IntraListDiversity", "ContentDiversity"),
        needs=("content",),
    ),
    Metric(
        name="Unexpectedness",
        compute=content.unexpectedness,
        kind=PER_USER,
        population="evaluated",
        formula="mean over E of the mean of 1 - cos(x_i, x_j) over i in L[:k] and j in T_u, where "
        "both have a vector x",
        source=f"distance of a list to its user's profile; {_NOVELTY}",
        higher_is_better=None,
        bounds=(0.0, 2.0),
        aliases=("Unexp", "ContentNovelty", "ProfileDistance"),
        needs=("content",),
    ),
    Metric(
        name="Miscalibration",
        compute=calibration.miscalibration,
        kind=PER_USER,
        population="evaluated",
        formula="mean over E of Σ_g p(g) ln(p(g) / (0.99 q(g) + 0.01 p(g))), p and q the topic "
        "shares of T_u and of L[:k]",
        source="Kullback-Leibler divergence C_KL with α = 0.01; Steck, Calibrated recommendations "
        "(RecSys 2018)",
        higher_is_better=False,
        bounds=(0.0, -math.log(calibration.ALPHA)),
        aliases=("Calibration", "CalibrationKL", "CKL"),
        needs=("topics",),
    ),
)


PAPER = ("Recall", "nDCG", "EFD", "Gini", "APLT", "iCov")


def resolve(names: Sequence[str], *, at_hand: Collection[Need] = ()) -> list[Metric]:
    """The metrics of the given names, in their order, each once.

    Args:
        names: Names or aliases in any case, hyphens, underscores and spaces ignored; `paper` stands
            for the six of `PAPER`, `all` for every metric that the data allow.
        at_hand: Side data that are there, so that `all` includes what needs them.

    Raises:
        UsageError: A name is unknown; the message has the closest match.
    """
    chosen: dict[str, Metric] = {}
    for name in names:
        folded = _fold(name)
        if folded == "all":
            found = [metric for metric in METRICS.values() if set(metric.needs) <= set(at_hand)]
        elif folded == "paper":
            found = [METRICS[paper] for paper in PAPER]
        elif folded in _BY_FOLDED_NAME:
            found = [_BY_FOLDED_NAME[folded]]
        else:
            raise unknown_name("metric", name, [*METRICS, "all", "paper"])
        chosen |= {metric.name: metric for metric in found}
    return list(chosen.values())


def sign(name: str) -> int | None:
    """1 where more of a metric, e.g. `Recall@20`, is better, -1 where less is, None where neither."""
    higher = resolve([name.partition("@")[0]])[0].higher_is_better
    return None if higher is None else 1 if higher else -1


def _fold(name: str) -> str:
    """A name without case and separators."""
    return name.casefold().replace("-", "").replace("_", "").replace(" ", "")


_BY_FOLDED_NAME = {
    _fold(name): metric for metric in METRICS.values() for name in (metric.name, *metric.aliases)
}
