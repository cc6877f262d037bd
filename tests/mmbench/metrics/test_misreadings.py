"""Plausible misreadings of the definitions, planted one by one: the golden values notice each.

    python -m pytest tests/mmbench/metrics/test_misreadings.py -s

prints which values give each one away. An edit is of the source as `ast.unparse` writes it, so that
reformatting does not matter.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import math
import sys
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mmbench.core.interactions import HeldOut, TrainSet

GOLDEN = Path(__file__).parents[2] / "data" / "golden-metrics" / "expected.json"
# Imported in this order, so that each finds the planted version of those before it.
MODULES = (
    "mmbench.metrics.item_data",
    "mmbench.metrics.judged_lists",
    "mmbench.metrics.ranking",
    "mmbench.metrics.beyond",
    "mmbench.metrics.content",
    "mmbench.metrics.calibration",
    "mmbench.metrics",
    "mmbench.evaluation.scoring",
)


@dataclass(frozen=True)
class Misreading:
    """One edit of the source, and the metrics that it must change."""

    what: str
    module: str
    ours: str
    theirs: str
    noticed_by: str

    def __str__(self) -> str:
        return self.what


S, J, R, B, C, K, M, E = MODULES
MISREADINGS = [
    Misreading(
        "recall over min(k, relevant)", R,
        "divide(lists.n_hits(k), lists.n_relevant)",
        "divide(lists.n_hits(k), np.minimum(lists.n_relevant, k))",
        "Recall",
    ),
    Misreading(
        "precision over the length of short lists", R,
        "lists.n_hits(k) / k",
        "lists.n_hits(k) / np.maximum(lists.length_at(k), 1)",
        "Precision",
    ),
    Misreading(
        "F1 with the length of short lists", R,
        "(k + lists.n_relevant)",
        "(lists.length_at(k) + lists.n_relevant)",
        "F1",
    ),
    Misreading(
        "hits instead of hit rate", R,
        "np.where(lists.n_hits(k) > 0, 1.0, 0.0)",
        "lists.n_hits(k)",
        "HitRate",
    ),
    Misreading(
        "reciprocal ranks of all hits", R,
        "lists.hits.ordinal == 0",
        "lists.hits.ordinal >= 0",
        "MRR",
    ),
    Misreading(
        "reciprocal rank counted from zero", R,
        "1.0 / (lists.hits.rank + 1.0), 0.0)",
        "1.0 / (lists.hits.rank + 2.0), 0.0)",
        "MRR",
    ),
    Misreading(
        "discount of the next rank", J,
        "np.arange(self.by_rank.shape[0]) + 2.0",
        "np.arange(self.by_rank.shape[0]) + 3.0",
        "nDCG",
    ),
    Misreading(
        "no discount at all", J,
        "1.0 / np.log2(np.arange(self.by_rank.shape[0]) + 2.0)",
        "np.ones(self.by_rank.shape[0])",
        "nDCG",
    ),
    Misreading(
        "linear gain", J,
        "np.exp2(exponent) - 1.0",
        "exponent",
        "nDCG",
    ),
    Misreading(
        "binary gain", J,
        "np.exp2(exponent) - 1.0",
        "np.ones(exponent.shape)",
        "nDCG",
    ),
    Misreading(
        "gain without minus one", J,
        "np.exp2(exponent) - 1.0",
        "np.exp2(exponent)",
        "nDCG",
    ),
    Misreading(
        "gain without the extra one in the exponent", J,
        "exponent = self.relevant.rating + 1.0",
        "exponent = self.relevant.rating",
        "nDCG",
    ),
    Misreading(
        "gain not counted from the threshold", E,
        "held_out.ratings[kept] - threshold",
        "held_out.ratings[kept]",
        "nDCG",
    ),
    Misreading(
        "ideal list in the order of the items", J,
        "np.lexsort((-self.gain,",
        "np.lexsort((0 * self.gain,",
        "nDCG",
    ),
    Misreading(
        "ideal list not cut at k", R,
        "within = rank < k\n    ideal =",
        "within = rank < lists.discount.size\n    ideal =",
        "nDCG",
    ),
    Misreading(
        "ideal list of k hits for everyone", R,
        "ideal[np.minimum(lists.n_relevant, k)]",
        "ideal[np.full(lists.n_users, k)]",
        "nDCGRendle2020",
    ),
    Misreading(
        "MAP as average precision", R,
        "lists.sum_hits(harmonic[k] - harmonic[np.minimum(lists.hits.rank, k)], k) / k",
        "average_precision.compute(lists, k)",
        "MAP",
    ),
    Misreading(
        "MAP summed over the hits' own ranks", R,
        "harmonic[k] - harmonic[np.minimum(lists.hits.rank, k)]",
        "1.0 / (lists.hits.rank + 1.0)",
        "MAP",
    ),
    Misreading(
        "average precision over all relevant items", R,
        "divide(lists.sum_hits(at_hit, k), np.minimum(lists.n_relevant, k))",
        "divide(lists.sum_hits(at_hit, k), lists.n_relevant)",
        "MAP-textbook",
    ),
    Misreading(
        "MAR without the cut-off of the hit itself", R,
        "k - lists.hits.rank.astype(float)",
        "k - 1.0 - lists.hits.rank.astype(float)",
        "MAR",
    ),
    Misreading(
        "LAUC that keeps the training items", R,
        "lists.train.n_items - lists.n_masked - lists.n_relevant",
        "lists.train.n_items - lists.n_relevant",
        "LAUC",
    ),
    Misreading(
        "LAUC without the earlier hits", R,
        "- lists.hits.rank + lists.hits.ordinal",
        "- lists.hits.rank",
        "LAUC",
    ),
    Misreading(
        "topics of items outside training in the denominator", R,
        "of_items.topics[of_items.items < lists.train.n_items]",
        "of_items.topics",
        "SRecall",
    ),
    Misreading(
        "a topic counted once per hit", R,
        "_, best = np.unique(key, return_index=True)",
        "best = np.arange(key.size)",
        "SRecall",
    ),
    Misreading(
        "length of the uncut list", R,
        "lists.length_at(k).astype(float)",
        "lists.length.astype(float)",
        "NumRetrieved",
    ),
    Misreading(
        "novelty over the users", B,
        "np.maximum(popularity, lists.rarest) / max(lists.train.n_edges, 1)",
        "np.maximum(popularity, lists.rarest) / lists.train.n_users",
        "EFD",
    ),
    Misreading(
        "novelty in nats", B,
        "-np.log2(np.maximum(popularity",
        "-np.log(np.maximum(popularity",
        "EFD",
    ),
    Misreading(
        "an unseen item as novel as one training row", B,
        "np.maximum(popularity, lists.rarest)",
        "np.maximum(popularity, 1)",
        "EFD",
    ),
    Misreading(
        "novelty normalised by k", B,
        "total[lists.length_at(k)])",
        "total[np.full(lists.n_users, k)])",
        "EFD EPC",
    ),
    Misreading(
        "novelty normalised by the length", B,
        "total = np.append(1.0, np.cumsum(lists.discount[:k]))",
        "total = np.maximum(np.arange(k + 1.0), 1.0)",
        "EFD EPC",
    ),
    Misreading(
        "popularity complement over the interactions", B,
        "lists.popularity_of(lists.hits.item) / max(n_users, 1)",
        "lists.popularity_of(lists.hits.item) / lists.train.n_edges",
        "EPC",
    ),
    Misreading(
        "popularity complement over users without training", B,
        "int(np.count_nonzero(lists.train.user_degree))",
        "lists.train.n_users",
        "EPC",
    ),
    Misreading(
        "the Gini index itself", B,
        "float(1.0 - np.sum(",
        "float(np.sum(",
        "Gini",
    ),
    Misreading(
        "Gini over the recommended items only", B,
        "np.arange(n_items - counts.size, n_items) + 1.0",
        "np.arange(counts.size) + 1.0",
        "Gini",
    ),
    Misreading(
        "Gini over n instead of n - 1", B,
        "counts.sum() / (n_items - 1)",
        "counts.sum() / n_items",
        "Gini",
    ),
    Misreading(
        "entropy of the pooled counts", B,
        "np.sum(lists.inverse_length_sums(k)[listed] * information) / lists.n_users",
        "np.sum(counts[listed] * information) / counts.sum()",
        "SEntropy",
    ),
    Misreading(
        "entropy in nats", B,
        "information = -np.log2(",
        "information = -np.log(",
        "SEntropy",
    ),
    Misreading(
        "coverage of items outside training left out", B,
        "np.count_nonzero(lists.counts(k))",
        "np.count_nonzero(lists.counts(k)[: lists.train.n_items])",
        "ItemCoverage iCov",
    ),
    Misreading(
        "coverage as a fraction", B,
        "100.0 * _n_covered",
        "1.0 * _n_covered",
        "iCov",
    ),
    Misreading(
        "empty lists cover their user", B,
        "np.count_nonzero(lists.length))",
        "lists.length.size)",
        "UserCoverage",
    ),
    Misreading(
        "lists longer than k only", B,
        "lists.length >= k",
        "lists.length > k",
        "UserCoverageAtN",
    ),
    Misreading(
        "head as a fifth of the items", J,
        "np.searchsorted(5 * held, 4 * self.train.n_edges) + 1",
        "self.train.n_items // 5",
        "APLT ACLT PopREO PopRSP",
    ),
    Misreading(
        "head beyond 80 %, not up to it", J,
        "np.searchsorted(5 * held, 4 * self.train.n_edges)",
        "np.searchsorted(5 * held, 4 * self.train.n_edges, side='right')",
        "APLT ACLT",
    ),
    Misreading(
        "the item that crosses the line in the tail", J,
        "np.searchsorted(5 * held, 4 * self.train.n_edges) + 1",
        "np.searchsorted(5 * held, 4 * self.train.n_edges)",
        "APLT ACLT",
    ),
    Misreading(
        "ties of popularity by descending row", J,
        "np.argsort(-self.train.popularity, kind='stable')",
        "np.argsort(self.train.popularity, kind='stable')[::-1]",
        "APLT ACLT",
    ),
    Misreading(
        "tail share over k", B,
        "divide(lists.n_tail(k).astype(float), lists.length_at(k))",
        "lists.n_tail(k) / k",
        "APLT",
    ),
    Misreading(
        "tail share of users with relevant items only", B,
        "@over_evaluated('APLT'",
        "@over_relevant('APLT'",
        "APLT",
    ),
    Misreading(
        "popularity over k", B,
        "divide(lists.popularity_sum(k).astype(float), lists.length_at(k))",
        "lists.popularity_sum(k) / k",
        "ARP",
    ),
    Misreading(
        "opportunity of any listed item", B,
        "lists.head_and_tail(lists.hits.item[lists.hits.rank < k])",
        "lists.head_and_tail(lists.by_rank[:k][lists.by_rank[:k] >= 0])",
        "PopREO",
    ),
    Misreading(
        "opportunity of trained items too", B,
        "_count(of_pairs[0] & findable), _count(of_pairs[1] & findable)",
        "_count(of_pairs[0]), _count(of_pairs[1])",
        "PopREO",
    ),
    Misreading(
        "items outside training in the tail", J,
        "return (head, inside & ~head)",
        "return (head, ~head)",
        "PopREO",
    ),
    Misreading(
        "parity that ignores the training items", B,
        "(lists.n_users * n_head - known_head, lists.n_users * (lists.train.n_items - "
        "n_head) - known_tail)",
        "(lists.n_users * n_head, lists.n_users * (lists.train.n_items - n_head))",
        "PopRSP",
    ),
    Misreading(
        "sample instead of population deviation", B,
        "abs(head - tail) / (head + tail)",
        "2 ** 0.5 * abs(head - tail) / (head + tail)",
        "PopREO PopRSP",
    ),
    Misreading(
        "relevant above the threshold only", E,
        "held_out.ratings >= threshold",
        "held_out.ratings > threshold",
        "Recall nDCG MRR",
    ),
    Misreading(
        "every held-out row relevant", E,
        "(held_out.ratings >= threshold)",
        "(held_out.ratings > -np.inf)",
        "Recall Precision",
    ),
    Misreading(
        "users without a relevant item score zero", E,
        "'relevant': judged.n_relevant > 0",
        "'relevant': judged.n_relevant >= 0",
        "Precision HitRate MRR",
    ),
    Misreading(
        "users without a list always left out", E,
        "evaluated = np.flatnonzero(has_rows if missing_users == 'zero' else has_rows & has_list)",
        "evaluated = np.flatnonzero(has_rows & has_list)",
        "Recall SEntropy",
    ),
    Misreading(
        "users without a list always scored zero", E,
        "evaluated = np.flatnonzero(has_rows if missing_users == 'zero' else has_rows & has_list)",
        "evaluated = np.flatnonzero(has_rows)",
        "Recall SEntropy",
    ),
    Misreading(
        "lists put into the order of the items", E,
        "= lists.items[source[listed]].T",
        "= -np.sort(-lists.items[source[listed]], axis=1).T",
        "nDCG MRR",
    ),
    Misreading(
        "an item's distance to itself counted", C,
        "1.0 - divide(cosines, n * (n - 1.0))",
        "1.0 - divide(cosines + n, n * n)",
        "ILD",
    ),
    Misreading(
        "similarity instead of distance", C,
        "1.0 - divide(cosines, n * (n - 1.0))",
        "divide(cosines, n * (n - 1.0))",
        "ILD",
    ),
    Misreading(
        "distances over the whole list", C,
        "lists.n_users)\n    n = np.diff",
        "lists.n_users)\n    listed = content.indicator(*lists.listed(99), "
        "lists.n_users)\n    n = np.diff",
        "ILD",
    ),
    Misreading(
        "distance to the sum of the profile", C,
        "n * m)",
        "n)",
        "Unexpectedness",
    ),
    Misreading(
        "distance to the list itself", C,
        "content.inner(listed, known), n * m",
        "content.inner(listed, listed), n * n",
        "Unexpectedness",
    ),
    Misreading(
        "inner products of vectors of any length", S,
        "unit = block * per_vector",
        "unit = block",
        "ILD Unexpectedness",
    ),
    Misreading(
        "the stand-in of an absent vector used", S,
        "np.where(self.present, np.sqrt(squares), 0.0)",
        "np.sqrt(squares)",
        "ILD Unexpectedness",
    ),
    Misreading(
        "divergence the other way round", K,
        "np.log(p / ((1.0 - ALPHA) * q + ALPHA * p))",
        "np.log(((1.0 - ALPHA) * q + ALPHA * p) / p)",
        "Miscalibration",
    ),
    Misreading(
        "divergence in bits", K,
        "p * np.log(p",
        "p * np.log2(p",
        "Miscalibration",
    ),
    Misreading(
        "a tenth of the history mixed in", K,
        "ALPHA = 0.01",
        "ALPHA = 0.1",
        "Miscalibration",
    ),
    Misreading(
        "the list mixed into the history", K,
        "(1.0 - ALPHA) * q + ALPHA * p)",
        "ALPHA * q + (1.0 - ALPHA) * p)",
        "Miscalibration",
    ),
    Misreading(
        "every topic of an item with full weight", K,
        "1.0 / n_topics[place]",
        "1.0 + 0.0 * n_topics[place]",
        "Miscalibration",
    ),
    Misreading(
        "items without a topic in the denominator", K,
        "n_with_topic = np.bincount(users[n_topics > 0],",
        "n_with_topic = np.bincount(users,",
        "Miscalibration",
    ),
    Misreading(
        "items outside training not relevant", E,
        "judged = Judged(evaluated, by_rank, relevant,",
        "relevant = Pairs(*(x[relevant.item < train.n_items] for x in vars(relevant).values()))\n"
        "    judged = Judged(evaluated, by_rank, relevant,",
        "Recall nDCG",
    ),
]  # fmt: skip


class Planted(SourceFileLoader):
    """Loads a module with one passage of its source replaced, and never from a cache."""

    edit = ("", "")

    def get_code(self, fullname: str) -> Any:
        source = ast.unparse(ast.parse(self.get_data(self.path)))
        ours, theirs = self.edit
        if ours:
            assert source.count(ours) == 1, f"{ours!r} must occur exactly once in {fullname}"
            source = source.replace(ours, theirs)
        return self.source_to_code(source, self.path)


def plant(misreading: Misreading) -> tuple[ModuleType, ModuleType]:
    """Import `mmbench.metrics` and `mmbench.evaluation.scoring` anew, misread."""
    saved = {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        del sys.modules[name]
    try:
        for name, original in saved.items():
            loader = Planted(name, str(original.__file__))
            if name == misreading.module:
                loader.edit = (misreading.ours, misreading.theirs)
            spec = importlib.util.spec_from_loader(name, loader)
            assert spec is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            loader.exec_module(sys.modules[name])
        return sys.modules["mmbench.metrics"], sys.modules["mmbench.evaluation.scoring"]
    finally:
        sys.modules.update(saved)


def differing(metrics: ModuleType, evaluator: ModuleType) -> list[str]:
    """Return the golden values that a version of the code does not reproduce."""
    wrong = []
    for name, entry in json.loads(GOLDEN.read_text()).items():
        case = entry["case"]
        names = {key.partition("@")[0] for key in entry["expected"]}
        train, rows = np.array(case["train"]), np.array(case["held_out"])
        lists = np.array(
            [row + [-1] * (case["width"] - len(row)) for row in case["lists"].values()]
        )
        pairs = np.array(
            [(item, topic) for item, topics in case["topics"].items() for topic in topics], np.int64
        )
        present = np.zeros(1 + max(map(int, case["vectors"])), bool)
        vectors = np.ones((present.size, len(next(iter(case["vectors"].values())))))
        for item, vector in case["vectors"].items():
            present[int(item)], vectors[int(item)] = True, vector
        with np.errstate(all="ignore"):
            found = evaluator.evaluate(
                evaluator.RankedLists(np.array(list(case["lists"]), np.int64), lists),
                TrainSet.from_pairs(train[:, 0], train[:, 1], case["n_users"], case["n_items"]),
                HeldOut.from_pairs(
                    rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2]
                ),
                metrics=[metrics.METRICS[name] for name in names],
                cutoffs=case["cutoffs"],
                threshold=case["threshold"],
                missing_users=case["missing_users"],
                topics=metrics.Topics.from_pairs(pairs[:, 0], pairs[:, 1]),
                content=metrics.ItemVectors(vectors, present),
            )
        for key, value in entry["expected"].items():
            ours = found.overall[key]
            same = (
                ours is value
                if ours is None or value is None
                else math.isclose(ours, value, rel_tol=1e-9, abs_tol=1e-12)
            )
            if not same:
                wrong.append(f"{name}:{key}")
    return wrong


def test_the_code_as_it_is_reproduces_every_value() -> None:
    assert differing(*plant(Misreading("none", "", "", "", ""))) == []


@pytest.mark.parametrize("misreading", MISREADINGS, ids=str)
def test_a_misreading_is_noticed(misreading: Misreading) -> None:
    wrong = differing(*plant(misreading))
    print(f"{misreading.what}: {len(wrong)} values, {', '.join(wrong[:3])} …")
    metrics = {key.partition(":")[2].partition("@")[0] for key in wrong}
    assert metrics >= set(misreading.noticed_by.split())


def test_every_golden_metric_has_a_misreading() -> None:
    golden = json.loads(GOLDEN.read_text())["rated"]["expected"]
    noticed = {name for misreading in MISREADINGS for name in misreading.noticed_by.split()}
    assert noticed >= {name.partition("@")[0] for name in golden}
    assert len({misreading.what for misreading in MISREADINGS}) == len(MISREADINGS)
