"""The metrics as their definitions read: plain Python, user by user, no shared code.

The oracle of the metric tests. Run as a script it writes the golden file:

    python tests/reference/metrics.py tests/data/golden-metrics/expected.json
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

Case = dict[str, Any]


class Split:
    """One case, read into dictionaries."""

    def __init__(self, case: Case, k: int) -> None:
        self.k = k
        self.n_items: int = case["n_items"]
        self.theta: float = case["threshold"]
        self.trained: dict[int, set[int]] = {}
        for user, item in case["train"]:
            self.trained.setdefault(user, set()).add(item)
        self.n_train = sum(len(items) for items in self.trained.values())
        self.pop = {item: 0 for item in range(self.n_items)}
        for items in self.trained.values():
            for item in items:
                self.pop[item] += 1
        self.truth: dict[int, dict[int, float]] = {}
        for user, item, rating in case["held_out"]:
            self.truth.setdefault(user, {})[item] = rating
        self.whole = {int(user): items for user, items in case["lists"].items()}
        if case["missing_users"] == "zero":
            for user in self.truth:
                self.whole.setdefault(user, [])
        self.evaluated = sorted(user for user in self.truth if user in self.whole)
        self.relevant = {
            user: {item for item, rating in self.truth[user].items() if rating >= self.theta}
            for user in self.evaluated
        }
        self.with_relevant = [user for user in self.evaluated if self.relevant[user]]
        self.list = {user: self.whole[user][:k] for user in self.evaluated}
        self.topics = {int(item): set(topics) for item, topics in case["topics"].items()}
        self.vectors = {
            int(item): vector for item, vector in case["vectors"].items() if any(vector)
        }
        self.head, self.tail = self._head_and_tail()

    def _head_and_tail(self) -> tuple[set[int], set[int]]:
        order = sorted(range(self.n_items), key=lambda item: (-self.pop[item], item))
        head: set[int] = set()
        held = 0
        for item in order:
            if held * 10 >= self.n_train * 8:
                break
            head.add(item)
            held += self.pop[item]
        return head, set(order) - head

    def hits(self, user: int) -> list[int]:
        """Ranks of the hits of the cut list."""
        return [rank for rank, item in enumerate(self.list[user]) if item in self.relevant[user]]

    def counts(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for user in self.evaluated:
            for item in self.list[user]:
                counts[item] = counts.get(item, 0) + 1
        return counts


def d(rank: int) -> float:
    return math.log(2) / math.log(rank + 2)


# Per user: a value for every user of the population that the metric averages over.


def recall(s: Split, user: int) -> float:
    return len(s.hits(user)) / len(s.relevant[user])


def precision(s: Split, user: int) -> float:
    return len(s.hits(user)) / s.k


def f1(s: Split, user: int) -> float:
    p, r = precision(s, user), recall(s, user)
    return 2 * p * r / (p + r) if p + r else 0.0


def hit_rate(s: Split, user: int) -> float:
    return 1.0 if s.hits(user) else 0.0


def mrr(s: Split, user: int) -> float:
    hits = s.hits(user)
    return 1 / (hits[0] + 1) if hits else 0.0


def ndcg(s: Split, user: int) -> float:
    def gain(item: int) -> float:
        return 2 ** (s.truth[user][item] - s.theta + 1) - 1 if item in s.relevant[user] else 0.0

    dcg = sum(gain(item) * d(rank) for rank, item in enumerate(s.list[user]))
    best = sorted((gain(item) for item in s.relevant[user]), reverse=True)
    ideal = sum(value * d(rank) for rank, value in enumerate(best[: s.k]))
    return dcg / ideal


def ndcg_binary(s: Split, user: int) -> float:
    ideal = sum(d(rank) for rank in range(min(s.k, len(s.relevant[user]))))
    return sum(d(rank) for rank in s.hits(user)) / ideal


def mean_precision(s: Split, user: int) -> float:
    return sum(sum(1 for rank in s.hits(user) if rank < n) / n for n in range(1, s.k + 1)) / s.k


def mean_recall(s: Split, user: int) -> float:
    return (
        sum(
            sum(1 for r in s.hits(user) if r < n) / len(s.relevant[user]) for n in range(1, s.k + 1)
        )
        / s.k
    )


def average_precision(s: Split, user: int) -> float:
    total = 0.0
    for found, rank in enumerate(s.hits(user)):
        total += (found + 1) / (rank + 1)
    return total / min(s.k, len(s.relevant[user]))


def lauc(s: Split, user: int) -> float | None:
    n = s.n_items - len(s.trained.get(user, ())) - len(s.relevant[user]) + 1
    if n == 0 and s.hits(user):
        return None
    total = sum((n - rank + earlier) / n for earlier, rank in enumerate(s.hits(user)))
    return total / min(s.k, len(s.relevant[user]))


def subtopic_recall(s: Split, user: int) -> float | None:
    everything: set[int] = set()
    for item in range(s.n_items):
        everything |= s.topics.get(item, set())
    found: set[int] = set()
    for rank in s.hits(user):
        found |= s.topics.get(s.list[user][rank], set())
    return len(found) / len(everything) if everything else None


def n_retrieved(s: Split, user: int) -> float:
    return float(len(s.list[user]))


def _novelty_metric(s: Split, user: int, novelty: Any) -> float:
    if not s.list[user]:
        return 0.0
    total = sum(d(rank) * novelty(s.list[user][rank]) for rank in s.hits(user))
    return total / sum(d(rank) for rank in range(len(s.list[user])))


def efd(s: Split, user: int) -> float:
    rarest = min(count for count in s.pop.values() if count > 0)
    return _novelty_metric(
        s, user, lambda item: -math.log((s.pop.get(item, 0) or rarest) / s.n_train) / math.log(2)
    )


def epc(s: Split, user: int) -> float:
    return _novelty_metric(s, user, lambda item: 1 - s.pop.get(item, 0) / len(s.trained))


def aplt(s: Split, user: int) -> float | None:
    cut = s.list[user]
    return sum(1 for item in cut if item in s.tail) / len(cut) if cut else None


def aclt(s: Split, user: int) -> float:
    return float(sum(1 for item in s.list[user] if item in s.tail))


def arp(s: Split, user: int) -> float | None:
    cut = s.list[user]
    return sum(s.pop.get(item, 0) for item in cut) / len(cut) if cut else None


def distance(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def ild(s: Split, user: int) -> float | None:
    vectors = [s.vectors[item] for item in s.list[user] if item in s.vectors]
    pairs = [distance(a, b) for place, a in enumerate(vectors) for b in vectors[:place]]
    return sum(pairs) / len(pairs) if pairs else None


def unexpectedness(s: Split, user: int) -> float | None:
    listed = [s.vectors[item] for item in s.list[user] if item in s.vectors]
    known = [s.vectors[item] for item in s.trained.get(user, ()) if item in s.vectors]
    pairs = [distance(a, b) for a in listed for b in known]
    return sum(pairs) / len(pairs) if pairs else None


def visual_diversity(s: Split, user: int) -> float | None:
    groups = []
    for items in (s.list[user], s.trained.get(user, ())):
        vectors = [s.vectors[item] for item in items if item in s.vectors]
        units = [[x / math.hypot(*vector) for x in vector] for vector in vectors]
        if not units:
            return None
        groups.append([sum(column) / len(units) for column in zip(*units, strict=True)])
    return math.dist(*groups)


def topic_shares(s: Split, items: Any) -> dict[int, float]:
    shares: dict[int, float] = {}
    with_topic = [item for item in items if s.topics.get(item)]
    for item in with_topic:
        for topic in s.topics[item]:
            shares[topic] = shares.get(topic, 0.0) + 1 / len(s.topics[item]) / len(with_topic)
    return shares


def miscalibration(s: Split, user: int) -> float | None:
    p, q = topic_shares(s, s.trained.get(user, ())), topic_shares(s, s.list[user])
    if not p or not q:
        return None
    return sum(
        share * math.log(share / (0.99 * q.get(topic, 0.0) + 0.01 * share))
        for topic, share in p.items()
    )


# Overall: one value for all lists.


def gini(s: Split) -> float | None:
    counts = s.counts()
    if not counts:
        return 1.0
    if s.n_items == 1:
        return None
    ascending = sorted([0] * max(s.n_items - len(counts), 0) + list(counts.values()))
    total = sum(ascending)
    offset = s.n_items - len(ascending)  # negative if items from outside are listed as well
    value = sum(
        (2 * (place + 1 + offset) - s.n_items - 1) * count / total
        for place, count in enumerate(ascending)
    )
    return 1 - value / (s.n_items - 1)


def item_coverage(s: Split) -> float:
    return float(len(s.counts()))


def item_coverage_percent(s: Split) -> float:
    return 100 * len(s.counts()) / s.n_items


def shannon_entropy(s: Split) -> float | None:
    counts = s.counts()
    total = sum(counts.values())
    if not total:
        return None
    value = 0.0
    for user in s.evaluated:
        for item in s.list[user]:
            value += -math.log(counts[item] / total) / math.log(2) / len(s.list[user])
    return value / len(s.evaluated)


def user_coverage(s: Split) -> float:
    return float(sum(1 for user in s.evaluated if s.whole[user]))


def user_coverage_at_n(s: Split) -> float:
    return float(sum(1 for user in s.evaluated if len(s.whole[user]) >= s.k))


def _bias(shares: list[tuple[int, int]]) -> float | None:
    if any(possible == 0 for _, possible in shares):
        return None
    p = [found / possible for found, possible in shares]
    mean = sum(p) / 2
    return math.sqrt(sum((x - mean) ** 2 for x in p) / 2) / mean if mean else None


def pop_reo(s: Split) -> float | None:
    shares = []
    for group in (s.head, s.tail):
        found = sum(1 for u in s.with_relevant for rank in s.hits(u) if s.list[u][rank] in group)
        possible = sum(
            len((group & s.relevant[u]) - s.trained.get(u, set())) for u in s.with_relevant
        )
        shares.append((found, possible))
    return _bias(shares)


def pop_rsp(s: Split) -> float | None:
    shares = []
    for group in (s.head, s.tail):
        found = sum(1 for u in s.evaluated for item in s.list[u] if item in group)
        possible = sum(len(group - s.trained.get(u, set())) for u in s.evaluated)
        shares.append((found, possible))
    return _bias(shares)


OVER_RELEVANT = {
    "Recall": recall,
    "nDCG": ndcg,
    "EFD": efd,
    "Precision": precision,
    "HitRate": hit_rate,
    "MRR": mrr,
    "MAP": mean_precision,
    "MAP-textbook": average_precision,
    "MAR": mean_recall,
    "F1": f1,
    "nDCGRendle2020": ndcg_binary,
    "LAUC": lauc,
    "SRecall": subtopic_recall,
    "EPC": epc,
    "NumRetrieved": n_retrieved,
}
OVER_EVALUATED = {
    "APLT": aplt,
    "ARP": arp,
    "ACLT": aclt,
    "ILD": ild,
    "Unexpectedness": unexpectedness,
    "VisDiv": visual_diversity,
    "Miscalibration": miscalibration,
}
OVERALL = {
    "Gini": gini,
    "iCov": item_coverage_percent,
    "ItemCoverage": item_coverage,
    "SEntropy": shannon_entropy,
    "UserCoverage": user_coverage,
    "UserCoverageAtN": user_coverage_at_n,
    "PopREO": pop_reo,
    "PopRSP": pop_rsp,
}


NAMES = {*OVER_RELEVANT, *OVER_EVALUATED, *OVERALL}
"""The metrics with an oracle."""


def expected(case: Case) -> dict[str, float | None]:
    """Every metric at every cut-off of a case; None where it is not defined."""
    values: dict[str, float | None] = {}
    for k in case["cutoffs"]:
        s = Split(case, k)
        for name in OVER_RELEVANT | OVER_EVALUATED:
            per_user = expected_per_user(case, name, k)
            defined = [value for value in per_user.values() if value is not None]
            values[f"{name}@{k}"] = sum(defined) / len(defined) if defined else None
        for name, overall in OVERALL.items():
            values[f"{name}@{k}"] = overall(s)
    return values


def expected_per_user(case: Case, name: str, k: int) -> dict[int, float | None]:
    """One per-user metric for every user of its population."""
    s = Split(case, k)
    if name in OVER_RELEVANT:
        return {user: OVER_RELEVANT[name](s, user) for user in s.with_relevant}
    return {user: OVER_EVALUATED[name](s, user) for user in s.evaluated}


# Cases


def random_case(
    seed: int,
    *,
    n_users: int = 24,
    n_items: int = 30,
    n_outside: int = 4,
    width: int = 8,
    threshold: float = 0.0,
    ratings: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0),
    missing_users: str = "leave-out",
    topics: bool = True,
) -> Case:
    """A long tail, ties, short and empty lists, users without a list, rows or training."""
    draw = random.Random(seed)
    weights = [1 / (1 + item) for item in range(n_items)]
    everything = list(range(n_items + n_outside))
    train, held_out, lists = [], [], {}
    for user in range(n_users):
        if draw.random() < 0.93:
            train += sorted(
                {(user, i) for i in draw.choices(range(n_items), weights, k=draw.randint(1, 6))}
            )
        liked = draw.sample(everything, k=min(draw.choice([0, 1, 2, 3, 5, 10]), len(everything)))
        held_out += [(user, item, draw.choice(ratings)) for item in liked]
        if liked and draw.random() < 0.2:  # rated again: the last row counts
            held_out.append((user, draw.choice(liked), draw.choice(ratings)))
        if draw.random() < 0.85:
            candidates = draw.sample(everything, k=len(everything))
            candidates.sort(key=lambda item: item not in liked or draw.random() < 0.5)
            length = draw.choice([0, 1, 3, width, width, width, width])
            near = candidates[: 2 * width]
            lists[str(user)] = draw.sample(near, k=min(length, width, len(near)))
    if n_users and not train:
        train.append((0, 0))
    return {
        "n_users": n_users,
        "n_items": n_items,
        "width": width,
        "cutoffs": sorted({1, 3, 5, width} & set(range(1, width + 1))),
        "threshold": threshold,
        "missing_users": missing_users,
        "train": train,
        "held_out": held_out,
        "lists": lists,
        "topics": {
            str(item): draw.sample(range(7), k=draw.randint(item % 5 > 0, 3)) for item in everything
        }
        if topics
        else {},
        "vectors": random_vectors(everything, seed),
    }


def random_vectors(items: list[int], seed: int) -> dict[str, list[float]]:
    """Vectors of most items, one of them zero."""
    draw = random.Random(f"vectors of {seed}")
    vectors = {
        str(item): [draw.randint(-4, 6) / 4 for _ in range(3)]
        for item in items
        if draw.random() < 0.9
    }
    return vectors | {str(items[-1]): [0.0, 0.0, 0.0]}


def even_case() -> Case:
    """Five tied items with two training users each: the fourth reaches exactly 80 %."""
    train = [(user, item) for item in range(5) for user in (item, (item + 1) % 5)]
    return {
        "n_users": 6,  # the last one has no training row
        "n_items": 5,
        "width": 4,
        "cutoffs": [1, 2, 4],
        "threshold": 3.0,
        "missing_users": "leave-out",
        "train": train,
        "held_out": [
            (0, 2, 3.0),
            (0, 6, 5.0),
            (1, 4, 4.0),
            (1, 3, 2.0),
            (2, 0, 3.0),
            (3, 0, 1.0),
            (4, 2, 5.0),
            (5, 4, 3.0),
        ],
        "lists": {
            "0": [6, 2, 3],
            "1": [4, 3, 0, 2],
            "2": [4, 0],
            "3": [2, 1, 0, 4],
            "5": [3, 4, 0, 1],
        },
        "topics": {"0": [0], "1": [0, 1], "2": [2], "3": [1], "4": [3], "6": [9]},
        "vectors": {
            "0": [1.0, 0.0],
            "1": [1.0, 1.0],
            "2": [0.0, 2.0],
            "4": [-1.0, 0.0],
            "6": [3.0, -3.0],
        },
    }


def cases() -> dict[str, Case]:
    """The cases of the golden file."""
    return {
        "rated": random_case(1),
        "threshold": random_case(2, threshold=4.0),
        "missing-zero": random_case(3, threshold=2.0, missing_users="zero"),
        "unrated": random_case(4, ratings=(1.0,), n_outside=0),
        "even": even_case(),
    }


def golden() -> dict[str, dict[str, Any]]:
    return {name: {"case": case, "expected": expected(case)} for name, case in cases().items()}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(golden(), separators=(",", ":")) + "\n")
