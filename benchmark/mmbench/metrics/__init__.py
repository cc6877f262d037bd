"""Metrics of ranked lists, by name.

A metric is a function of (judged lists, cut-off) with a declaration above it, in a module of this
folder, and a line in `METRICS`; averaging, cut-offs and populations happen once, in
`mmbench.evaluation.scoring`. Shared names mean what the Elliot framework computes under them,
because the published tables of the field were made with it; a textbook's other meaning of the same
name has a name of its own, and what other frameworks mean by further names is in
`mmbench.metrics.foreign`.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence

from mmbench.errors import UsageError, unknown_name
from mmbench.metrics.foreign import DIFFERENCES
from mmbench.metrics.item_data import NEEDS, ItemVectors, Need, Topics
from mmbench.metrics.judged_lists import Judged, Metric

__all__ = [
    "METRICS",
    "NEEDS",
    "PAPER",
    "ItemVectors",
    "Judged",
    "Metric",
    "Need",
    "Topics",
    "resolve",
    "sign",
    "spelled",
]


def _imported(path: str) -> Metric:
    module, _, function = path.partition(":")
    metric: Metric = getattr(importlib.import_module(module), function)
    return metric


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in map(
        _imported,
        (
            "mmbench.metrics.ranking:recall",
            "mmbench.metrics.ranking:ndcg",
            "mmbench.metrics.beyond:expected_free_discovery",
            "mmbench.metrics.beyond:gini",
            "mmbench.metrics.beyond:tail_share",
            "mmbench.metrics.beyond:item_coverage_percent",
            "mmbench.metrics.beyond:item_coverage",
            "mmbench.metrics.ranking:precision",
            "mmbench.metrics.ranking:hit_rate",
            "mmbench.metrics.ranking:mrr",
            "mmbench.metrics.ranking:mean_precision",
            "mmbench.metrics.ranking:average_precision",
            "mmbench.metrics.ranking:mean_recall",
            "mmbench.metrics.ranking:f1",
            "mmbench.metrics.ranking:ndcg_binary",
            "mmbench.metrics.ranking:limited_auc",
            "mmbench.metrics.ranking:subtopic_recall",
            "mmbench.metrics.beyond:expected_popularity_complement",
            "mmbench.metrics.beyond:mean_popularity",
            "mmbench.metrics.beyond:tail_count",
            "mmbench.metrics.beyond:shannon_entropy",
            "mmbench.metrics.ranking:n_retrieved",
            "mmbench.metrics.beyond:user_coverage",
            "mmbench.metrics.beyond:user_coverage_at_n",
            "mmbench.metrics.beyond:equal_opportunity",
            "mmbench.metrics.beyond:statistical_parity",
            "mmbench.metrics.content:intra_list_distance",
            "mmbench.metrics.content:unexpectedness",
            "mmbench.metrics.content:visual_diversity",
            "mmbench.metrics.calibration:miscalibration",
        ),
    )
}

PAPER = ("Recall", "nDCG", "EFD", "Gini", "APLT", "iCov")


def resolve(names: Sequence[str], *, at_hand: Collection[Need] = ()) -> list[Metric]:
    """Return the metrics of the given names, in their order, each once.

    Args:
        names: Names or aliases; case, hyphens, underscores and spaces do not matter. `paper` stands
            for the six of `PAPER`, `all` for every metric that the data allow.
        at_hand: Side data that are there; `all` includes the metrics that need them.

    Raises:
        UsageError: A name is unknown, with the closest match; or means something else in other
            frameworks, with the difference.
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
        elif "@" in name and _fold(name.partition("@")[0]) in _BY_FOLDED_NAME:
            metric, _, cutoff = name.partition("@")
            raise UsageError(f"metric {name!r}: say {metric}, and the cut-off apart: {cutoff}")
        elif folded in _DIFFERENT:
            raise UsageError(f"metric {name!r}: {_DIFFERENT[folded]} (`mmbench metrics` lists all)")
        else:
            raise unknown_name("metric", name, [*METRICS, "all", "paper"])
        chosen |= {metric.name: metric for metric in found}
    return list(chosen.values())


def sign(name: str) -> int | None:
    """Return 1 if more of a metric, e.g. `Recall@20`, is better, -1 if less is, None if neither."""
    higher = resolve([name.partition("@")[0]])[0].higher_is_better
    return None if higher is None else 1 if higher else -1


def spelled(name: str) -> str:
    """Return `nDCG@20` for `ndcg@20`.

    Raises:
        UsageError: The metric is unknown, or the cut-off is missing.
    """
    metric, at, cutoff = name.partition("@")
    if not (at and cutoff.isdigit()):
        raise UsageError(f"--metric {name}: expected NAME@K, e.g. Recall@20")
    return f"{resolve([metric])[0].name}@{cutoff}"


def _fold(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "").replace(" ", "")


_BY_FOLDED_NAME = {
    _fold(name): metric for metric in METRICS.values() for name in (metric.name, *metric.aliases)
}
_DIFFERENT = {_fold(name): difference for name, difference in DIFFERENCES.items()}
