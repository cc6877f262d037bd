"""What must hold for every metric of the registry, with or without an oracle of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.reference import metrics as oracle

from mmbench.core.interactions import HeldOut, TrainSet
from mmbench.evaluation.scoring import RankedLists, Scores, evaluate
from mmbench.metrics import NEEDS, ItemVectors, Metric, Topics, resolve

EVERY = resolve(["all"], at_hand=NEEDS)


def prepare(case: oracle.Case) -> dict[str, Any]:
    """The arguments of `evaluate` for a case of the oracle."""
    users, items = np.array(case["train"], np.int64).reshape(-1, 2).T
    rows = np.array(case["held_out"], np.float64).reshape(-1, 3)
    listed = {int(user): row for user, row in case["lists"].items()}
    lists = np.full((len(listed), case["width"]), -1, np.int64)
    for place, row in enumerate(listed.values()):
        lists[place, : len(row)] = row
    pairs = np.array(
        [(item, topic) for item, topics in case["topics"].items() for topic in topics], np.int64
    )
    pairs = pairs.reshape(-1, 2)
    return {
        "lists": RankedLists(np.array(list(listed), np.int64), lists),
        "train": TrainSet.from_pairs(users, items, case["n_users"], case["n_items"]),
        "held_out": HeldOut.from_pairs(
            rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2]
        ),
        "cutoffs": case["cutoffs"],
        "threshold": case["threshold"],
        "missing_users": case["missing_users"],
        "topics": Topics.from_pairs(pairs[:, 0], pairs[:, 1]),
        "content": content_of(case),
    }


def content_of(case: oracle.Case) -> ItemVectors:
    """The case's vectors, exact in float32; what fills the rows of absent ones must not matter."""
    vectors = {int(item): vector for item, vector in case["vectors"].items()}
    present = np.array([item in vectors for item in range(1 + max(vectors, default=-1))], bool)
    width = max(map(len, vectors.values()), default=1)
    rows = np.array([vectors.get(item, [7.0] * width) for item in range(present.size)], np.float32)
    return ItemVectors(rows.reshape(-1, width), present)


def score(case: oracle.Case, metrics: list[Metric] = EVERY) -> Scores:
    return evaluate(**prepare(case), metrics=metrics)


def clean_case(seed: int, **arguments: Any) -> oracle.Case:
    """A case as a recommender makes them: full lists of candidates, none of them trained on."""
    case = oracle.random_case(seed, n_outside=0, **arguments)
    trained = set(map(tuple, case["train"]))
    order = np.random.default_rng(seed)
    for user in case["lists"]:
        candidates = [item for item in range(case["n_items"]) if (int(user), item) not in trained]
        case["lists"][user] = order.permutation(candidates)[: case["width"]].tolist()
    case["held_out"] = [row for row in case["held_out"] if (row[0], row[1]) not in trained]
    return case


def check_bounds(metrics: list[Metric], seed: int) -> None:
    """Lists of candidates give values within the declared bounds, for each user and overall."""
    bounds = {metric.name: metric.bounds for metric in metrics}
    found = score(clean_case(seed), metrics)
    for name, value in found.overall.items():
        low, high = bounds[name.partition("@")[0]]
        assert value is None or low <= value <= high + 1e-12, name
        if name in found.per_user:
            defined = found.per_user[name][~np.isnan(found.per_user[name])]
            assert ((low <= defined) & (defined <= high + 1e-12)).all(), name


def check_order_of_users(metrics: list[Metric], seed: int) -> None:
    """Values do not depend on the order in which users come, to the last bit."""
    arguments = prepare(oracle.random_case(seed))
    straight = evaluate(**arguments, metrics=metrics)
    lists = arguments["lists"]
    order = np.random.default_rng(seed).permutation(lists.users.size)
    arguments["lists"] = RankedLists(lists.users[order], lists.items[order])
    shuffled = evaluate(**arguments, metrics=metrics)
    assert straight.overall == shuffled.overall
    assert (straight.users == shuffled.users).all()
    for name, values in straight.per_user.items():
        np.testing.assert_array_equal(values, shuffled.per_user[name], err_msg=name)


def check_undefined(metrics: list[Metric], seed: int) -> None:
    """Undefined is NaN for a user and None overall: never infinite, never a mean of nothing.

    The cases have empty lists, users without training rows or relevant items, and no users at all.
    """
    for n_users in (0, 1, 12):
        case = oracle.random_case(seed, n_users=n_users, threshold=4.0, missing_users="zero")
        found = score(case, metrics)
        for metric in metrics:
            for k in case["cutoffs"]:
                key = f"{metric.name}@{k}"
                assert (key in found.per_user) == (metric.kind == "per-user"), key
                value = found.overall[key]
                assert value is None or (type(value) is float and math.isfinite(value)), key
                if metric.kind == "per-user":
                    values = found.per_user[key]
                    assert values.shape == found.users.shape, key
                    assert values.dtype == np.float64, key
                    assert not np.isinf(values).any(), key
                    defined = values[~np.isnan(values)]
                    assert (value is None) == (not defined.size), key
                    if value is not None:
                        assert value == pytest.approx(defined.mean(), rel=1e-12, abs=1e-15), key
                    if metric.population == "relevant":
                        assert defined.size <= found.n_relevant, key


PROPERTIES = [check_bounds, check_order_of_users, check_undefined]
