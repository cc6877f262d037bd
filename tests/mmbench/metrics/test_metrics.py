"""Metrics against the oracle, golden values, fractions worked by hand, and generic properties."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mmbench.metrics.conformance import EVERY, PROPERTIES, clean_case, prepare, score
from tests.reference import metrics as oracle

from mmbench.core.interactions import HeldOut, Index, TrainSet
from mmbench.errors import DataError, ShapeError, UsageError
from mmbench.evaluation.scoring import RankedLists, evaluate
from mmbench.metrics import METRICS, NEEDS, PAPER, ItemVectors, Metric, Topics, resolve
from mmbench.metrics.foreign import DIFFERENCES

GOLDEN = Path(__file__).parents[2] / "data" / "golden-metrics" / "expected.json"
GOLDEN_METRICS = resolve(
    [key.partition("@")[0] for key in json.loads(GOLDEN.read_text())["rated"]["expected"]]
)
WITH_ORACLE = [metric for metric in EVERY if metric.name in oracle.NAMES]


def assert_equal(found: dict[str, float | None], expected: dict[str, float | None]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


# -- the oracle


@given(
    seed=st.integers(0, 2**32),
    n_users=st.integers(0, 12),
    n_items=st.integers(1, 15),
    n_outside=st.integers(0, 3),
    width=st.integers(1, 6),
    threshold=st.sampled_from([0.0, 2.5, 4.0]),
    missing_users=st.sampled_from(["leave-out", "zero"]),
)
@settings(max_examples=150, deadline=None)
def test_random_cases_equal_the_oracle(**arguments: Any) -> None:
    case = oracle.random_case(**arguments)
    found = score(case, WITH_ORACLE)
    assert_equal(found.overall, oracle.expected(case))
    for name, values in found.per_user.items():
        metric, _, cutoff = name.partition("@")
        expected = oracle.expected_per_user(case, metric, int(cutoff))
        for user, value in zip(found.users.tolist(), values.tolist(), strict=True):
            wanted = expected.get(user)
            assert (
                math.isnan(value) if wanted is None else value == pytest.approx(wanted, abs=1e-12)
            ), (name, user)


def test_synthetic_golden_values() -> None:
    for name, entry in json.loads(GOLDEN.read_text()).items():
        assert_equal(score(entry["case"], GOLDEN_METRICS).overall, entry["expected"]), name


def test_the_golden_file_is_what_its_script_writes() -> None:
    stored = json.loads(GOLDEN.read_text())
    fresh = json.loads(json.dumps(oracle.golden()))
    assert {name: entry["case"] for name, entry in stored.items()} == {
        n: entry["case"] for n, entry in fresh.items()
    }
    for name, entry in stored.items():
        again = {key: fresh[name]["expected"][key] for key in entry["expected"]}
        assert_equal(again, entry["expected"])


# -- the peer's values on real data


class Office:
    """Amazon Office, rows in the order of numeric ids, items outside training last."""

    def __init__(self, folder: Path) -> None:
        train = self._table(folder / "train.tsv")
        self.user_ids = np.unique(train[:, 0]).astype(np.int64)
        self.item_ids = np.unique(train[:, 1]).astype(np.int64)
        self.train = TrainSet.from_pairs(
            self.users(train[:, 0]), self.items(train[:, 1]), self.user_ids.size, self.item_ids.size
        )
        self.folder = folder

    @staticmethod
    def _table(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
            return np.array([row for row in csv.reader(file, delimiter="\t")], np.float64)

    def users(self, ids: Any) -> Index:
        place = np.searchsorted(self.user_ids, np.asarray(ids, np.int64))
        assert (self.user_ids[place] == ids).all()
        return place

    def items(self, ids: Any) -> Index:
        ids = np.asarray(ids, np.int64)
        place = np.minimum(np.searchsorted(self.item_ids, ids), self.item_ids.size - 1)
        return np.where(self.item_ids[place] == ids, place, self.item_ids.size + ids)

    def held_out(self, split: str) -> HeldOut:
        rows = self._table(self.folder / f"{split}.tsv")
        return HeldOut.from_pairs(self.users(rows[:, 0]), self.items(rows[:, 1]), rows[:, 2])

    def lists(self, path: Path) -> RankedLists:
        rows = self._table(path).reshape(-1, 20, 3)
        return RankedLists(self.users(rows[:, 0, 0]), self.items(rows[:, :, 1]))

    def topics(self, path: Path) -> Topics:
        rows = self._table(path)
        return Topics.from_pairs(
            self.items(np.repeat(rows[:, 0], rows.shape[1] - 1)),
            rows[:, 1:].astype(np.int64).ravel(),
        )


@pytest.fixture(scope="module")
def office(real_data: Path) -> Office:
    return Office(real_data / "amazon-office")


@pytest.mark.parametrize(
    ("split", "file"), [("test", "expected.json"), ("validation", "expected_validation.json")]
)
def test_the_peers_values_on_office(office: Office, golden: Path, split: str, file: str) -> None:
    topics = office.topics(golden / "metrics" / "office_topics.tsv")
    for name, expected in json.loads((golden / "metrics" / file).read_text()).items():
        found = evaluate(
            office.lists(golden / "metrics" / f"recs_{name}.tsv.gz"),
            office.train,
            office.held_out(split),
            metrics=EVERY,
            cutoffs=(5, 10, 20),
            topics=topics,
            content=ItemVectors(
                np.ones((office.item_ids.size, 1)), np.ones(office.item_ids.size, bool)
            ),
        )
        assert len(expected) == 72
        for key, value in expected.items():
            metric, _, cutoff = key.partition("@")
            (resolved,) = resolve([metric])
            assert found.overall[f"{resolved.name}@{cutoff}"] == pytest.approx(
                value, rel=1e-9, abs=0
            ), (name, key)
        percent, count = found.overall["iCov@20"], found.overall["ItemCoverage@20"]
        assert percent is not None and count is not None
        assert percent == pytest.approx(100 * count / 2414)


def test_the_peers_values_user_by_user(office: Office, golden: Path) -> None:
    for name, expected in json.loads((golden / "metrics" / "per_user.json").read_text()).items():
        found = evaluate(
            office.lists(golden / "metrics" / f"recs_{name}.tsv.gz"),
            office.train,
            office.held_out("test"),
            metrics=resolve([key.partition("@")[0] for key in expected]),
            cutoffs=(10,),
        )
        for key, values in expected.items():
            rows = np.searchsorted(found.users, office.users([int(user) for user in values]))
            np.testing.assert_allclose(
                found.per_user[key][rows], list(values.values()), rtol=1e-9, atol=0
            )


# -- by hand

# Items 0-4 with 4, 3, 1, 1, 1 training users: |T| = 10, the head is {0, 1, 2} (4 + 3 + 1 >= 8), the
# tail {3, 4}. User 0 liked 1, 3 and 5 (outside training), user 1 liked 4; user 2 has held-out rows
# below the threshold only.
HAND = {
    "n_users": 4,
    "n_items": 5,
    "width": 3,
    "cutoffs": [2, 3],
    "threshold": 3.0,
    "missing_users": "leave-out",
    "train": [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1), (2, 2), (3, 3), (3, 4)],
    "held_out": [(0, 1, 3.0), (0, 3, 5.0), (0, 5, 4.0), (1, 4, 4.0), (2, 3, 1.0)],
    "lists": {"0": [1, 2, 3], "1": [3, 4], "2": [4, 3, 1]},
    "topics": {"0": [0, 1], "1": [1], "3": [1, 2], "4": [3]},
    "vectors": {"0": [1.0, 0.0], "1": [0.0, 2.0], "3": [3.0, 4.0], "4": [-1.0, 0.0]},
}
D = [1.0, 1 / math.log2(3), 0.5]


@pytest.mark.parametrize(
    ("name", "at_2", "at_3"),
    [
        ("Recall", Fraction(1 / 3) / 2 + Fraction(1, 2), (Fraction(2, 3) + 1) / 2),
        ("Precision", Fraction(1, 2), (Fraction(2, 3) + Fraction(1, 3)) / 2),
        ("HitRate", 1, 1),
        ("MRR", (1 + Fraction(1, 2)) / 2, (1 + Fraction(1, 2)) / 2),
        ("F1", (Fraction(2, 5) + Fraction(2, 3)) / 2, (Fraction(4, 6) + Fraction(2, 4)) / 2),
        # hits(n) / n: user 0 has 1, 1/2, 2/3; user 1 has 0, 1/2, 1/3
        ("MAP", (Fraction(3, 4) + Fraction(1, 4)) / 2, (Fraction(13, 18) + Fraction(5, 18)) / 2),
        (
            "MAP-textbook",
            (Fraction(1, 2) + Fraction(1, 2)) / 2,
            (Fraction(5, 9) + Fraction(1, 2)) / 2,
        ),
        ("MAR", (Fraction(1, 3) + Fraction(1, 2)) / 2, (Fraction(4, 9) + Fraction(2, 3)) / 2),
        ("NumRetrieved", 2, Fraction(5, 2)),
        # gains 2^(rating - 2) - 1: 1, 7, 3 for user 0, 3 for user 1
        (
            "nDCG",
            (1 / (7 + 3 * D[1]) + D[1]) / 2,
            ((1 + 7 / 2) / (7 + 3 * D[1] + 1 / 2) + D[1]) / 2,
        ),
        ("nDCGRendle2020", (1 / (1 + D[1]) + D[1]) / 2, (1.5 / sum(D) + D[1]) / 2),
        (
            "EFD",
            (math.log2(10 / 3) + D[1] * math.log2(10)) / (1 + D[1]) / 2,
            ((math.log2(10 / 3) + math.log2(10) / 2) / sum(D) + D[1] * math.log2(10) / (1 + D[1]))
            / 2,
        ),
        (
            "EPC",
            (Fraction(1, 4) + D[1] * 3 / 4) / (1 + D[1]) / 2,
            ((1 / 4 + 3 / 8) / sum(D) + D[1] * 3 / 4 / (1 + D[1])) / 2,
        ),
        # candidates n: 5 - 1 - 3 + 1 = 2 for user 0, 5 - 2 - 1 + 1 = 3 for user 1
        (
            "LAUC",
            (Fraction(1, 2) + Fraction(2, 3)) / 2,
            ((1 + Fraction(1, 2)) / 3 + Fraction(2, 3)) / 2,
        ),
        ("SRecall", (Fraction(1, 4) + Fraction(1, 4)) / 2, (Fraction(2, 4) + Fraction(1, 4)) / 2),
        ("APLT", Fraction(2, 3), (Fraction(1, 3) + 1 + Fraction(2, 3)) / 3),
        ("ACLT", Fraction(4, 3), Fraction(5, 3)),
        ("ARP", (2 + 1 + 1) / 3, (Fraction(5, 3) + 1 + Fraction(5, 3)) / 3),
        # counts 1, 1, 2, 2 of C = 6 at 2 and 1, 2, 2, 3 of C = 8 at 3, one item with none
        ("Gini", 1 - Fraction(-2 * 1 + 0 + 2 * 2 + 4 * 2, 6 * 4), None),
        ("ItemCoverage", 4, 4),
        ("iCov", 80, 80),
        ("UserCoverage", 3, 3),
        ("UserCoverageAtN", 3, 2),
        # head: 1 of 1 found at both; tail: 1 of 2 at 2, 2 of 2 at 3
        ("PopREO", Fraction(1, 3), 0),
        # users 0, 1, 2 trained on 6 head and no tail items: head 2 of 3 at 2 and 3 of 3 at 3; tail
        # 4 and 5 of 6
        ("PopRSP", 0, (1 - Fraction(5, 6)) / (1 + Fraction(5, 6))),
        # unit vectors of items 0, 1, 3, 4: (1, 0), (0, 1), (3/5, 4/5), (-1, 0); item 2 has none, so
        # user 0 has one item at 2 and no distance. At 3: 1-3 is 1/5; 3-4 is 8/5 for user 1; 4-3,
        # 4-1 and 3-1 are 8/5, 1 and 1/5 for user 2.
        ("ILD", Fraction(8, 5), (Fraction(1, 5) + Fraction(8, 5) + Fraction(14, 15)) / 3),
        # distances to item 0: 1 for item 1, 2/5 for 3, 2 for 4; to item 1: 0, 1/5, 1.
        (
            "Unexpectedness",
            (
                1
                + (Fraction(2, 5) + 2 + Fraction(1, 5) + 1) / 4
                + (2 + Fraction(2, 5) + 1 + Fraction(1, 5)) / 4
            )
            / 3,
            (Fraction(7, 10) + Fraction(9, 10) + (Fraction(18, 5) + 1 + 0) / 6) / 3,
        ),
        # Centroids of the histories: (1, 0) for user 0, (1/2, 1/2) for users 1 and 2. Of the lists
        # at 2: (0, 1), and (-1/5, 2/5) twice; at 3: (3/10, 9/10), (-1/5, 2/5), (-2/15, 3/5).
        (
            "VisDiv",
            (math.sqrt(2) + 2 * math.sqrt(0.5)) / 3,
            (math.sqrt(1.3) + math.sqrt(0.5) + math.sqrt((19 / 30) ** 2 + 0.01)) / 3,
        ),
        # Histories: topics 0 and 1 with 1/2 each for user 0, with 1/4 and 3/4 for users 1 and 2
        # (item 2 has no topic).
        (
            "Miscalibration",
            (
                math.log(0.5 / 0.005) / 2
                + math.log(0.5 / 0.995) / 2  # q: 1 on topic 1
                + 2
                * (
                    math.log(100) / 4 + math.log(0.75 / (0.99 / 4 + 0.0075)) * 3 / 4
                )  # q: 1/4 on topics 1, 2; 1/2 on 3
            )
            / 3,
            (
                math.log(100) / 2
                + math.log(0.5 / (0.99 * 3 / 4 + 0.005)) / 2  # q: 3/4 on topic 1
                + math.log(100) / 4
                + math.log(0.75 / (0.99 / 4 + 0.0075)) * 3 / 4
                + math.log(100) / 4
                + math.log(0.75 / (0.99 / 2 + 0.0075)) * 3 / 4  # q: 1/3 + 1/6 on topic 1
            )
            / 3,
        ),
    ],
)
def test_by_hand(name: str, at_2: Any, at_3: Any) -> None:
    found = score(HAND, resolve([name])).overall
    assert found[f"{name}@2"] == pytest.approx(float(at_2), rel=1e-12)
    if at_3 is not None:
        assert found[f"{name}@3"] == pytest.approx(float(at_3), rel=1e-12)


def test_entropy_by_hand() -> None:
    # At 2 the counts are 1, 1, 2, 2 of 6 and every list has two items, so it is the entropy of the
    # counts.
    found = score(HAND, resolve(["entropy"])).overall["SEntropy@2"]
    assert found == pytest.approx(
        2 * (1 / 6 * math.log2(6)) + 2 * (1 / 3 * math.log2(3)), rel=1e-12
    )


def test_every_golden_metric_was_worked_by_hand() -> None:
    """A new metric may come without: see `conformance`. One in the golden file has everything."""
    (mark,) = [mark for mark in test_by_hand.pytestmark if mark.name == "parametrize"]
    golden = {metric.name for metric in GOLDEN_METRICS}
    assert {row[0] for row in mark.args[1]} | {"SEntropy"} >= golden
    assert len(golden) >= 29
    assert golden <= oracle.NAMES <= set(METRICS)


# -- the properties of every metric


@pytest.mark.parametrize("check", PROPERTIES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_every_metric_has_the_property(
    check: Callable[[list[Metric], int], None], seed: int
) -> None:
    check(EVERY, seed)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_the_property(name: str) -> None:
    """Without the other metrics, few cases: the one to select while a metric is written."""
    for check in PROPERTIES:
        for seed in range(3):
            check([METRICS[name]], seed)


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_what_grows_with_the_cutoff(seed: int) -> None:
    case = clean_case(seed)
    case["cutoffs"] = list(range(1, case["width"] + 1))
    found = score(case)
    for name in ("Recall", "HitRate", "MRR", "MAR", "SRecall", "NumRetrieved", "ACLT"):
        steps = np.diff(np.stack([found.per_user[f"{name}@{k}"] for k in case["cutoffs"]]), axis=0)
        assert np.nanmin(steps, initial=0.0) >= -1e-12, name
    coverage = [found.overall[f"ItemCoverage@{k}"] for k in case["cutoffs"]]
    assert coverage == sorted(coverage)


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_ideal_lists_score_one_and_useless_ones_zero(seed: int) -> None:
    case = clean_case(seed)
    truth: dict[int, list[tuple[float, int]]] = {}
    for user, item, rating in dict.fromkeys(map(tuple, case["held_out"])):
        truth.setdefault(user, []).append((-rating, item))
    case["held_out"] = [
        (user, item, -rating)
        for user, rows in truth.items()
        for rating, item in dict.fromkeys(rows)
    ]
    case["held_out"] = list(
        {(user, item): (user, item, rating) for user, item, rating in case["held_out"]}.values()
    )
    ratings = {(user, item): rating for user, item, rating in case["held_out"]}
    liked = {user: [item for _, item in rows] for user, rows in truth.items()}
    best, worst = dict(case), dict(case)
    best["lists"], worst["lists"] = {}, {}
    for user, items in liked.items():
        ranked = sorted(set(items), key=lambda item, user=user: -ratings[user, item])
        others = [item for item in range(case["n_items"]) if item not in items]
        best["lists"][str(user)] = (ranked + others)[: case["width"]]
        worst["lists"][str(user)] = others[: case["width"]]
    names = ["nDCG", "nDCG-binary", "MAP-textbook", "MRR", "HitRate"]
    for value in score(best, resolve(names)).overall.values():
        assert value is None or value == pytest.approx(1.0)
    for value in score(
        worst, resolve([*names, "Recall", "MAP", "MAR", "F1", "EFD", "EPC", "LAUC"])
    ).overall.values():
        assert value is None or value == 0.0


# -- the registry


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("recall", "Recall"),
        ("NDCG", "nDCG"),
        ("hr", "HitRate"),
        ("Hit", "HitRate"),
        ("hit_rate", "HitRate"),
        ("icov", "iCov"),
        ("itemcoverage", "ItemCoverage"),
        ("recall_at_k", "Recall"),
        ("mean_reciprocal_rank", "MRR"),
        ("ndcg-binary", "nDCGRendle2020"),
        ("map_textbook", "MAP-textbook"),
        ("calibration_kl", "Miscalibration"),
        ("intra-list distance", "ILD"),
    ],
)
def test_names_are_understood_in_any_case_and_by_alias(given_name: str, name: str) -> None:
    assert [metric.name for metric in resolve([given_name])] == [name]


@pytest.mark.parametrize(
    "names",
    [
        # Elliot, WarpRec; RecBole, MMRec; Cornac, LensKit
        "Recall nDCG nDCGRendle2020 EFD EPC Gini SEntropy ItemCoverage UserCoverage "
        "UserCoverageAtN NumRetrieved APLT ACLT "
        "ARP PopREO PopRSP Precision HR MRR MAP MAR F1 LAUC SRecall HitRate REO RSP",
        "recall ndcg precision map hit mrr itemcoverage averagepopularity",
        "Recall NDCG Precision FMeasure HitRatio MRR MAP Hit RecipRank",
    ],
)
def test_the_names_of_other_frameworks_are_understood_in_any_case(names: str) -> None:
    for name in names.split():
        assert resolve([name]) == resolve([name.upper()]) == resolve([name.lower()])


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("GiniIndex", "less is better; Gini is 1 minus"),
        ("giniindex", "less is better; Gini is 1 minus"),
        ("shannon_entropy", "in nats"),
        ("TailPercentage", "rarest tenth"),
        ("CalibratedRecallK", r"min\(k, \|Rel\|\)"),
        ("rmse", "error of predicted ratings"),
    ],
)
def test_other_definitions_under_a_known_name_are_refused_with_the_difference(
    name: str, difference: str
) -> None:
    with pytest.raises(UsageError, match=difference):
        resolve(["Recall", name])


def test_no_name_is_both_accepted_and_refused() -> None:
    for name in DIFFERENCES:
        with pytest.raises(UsageError, match="`mmbench metrics` lists all"):
            resolve([name])


def test_groups_of_names() -> None:
    assert tuple(metric.name for metric in resolve(["paper"])) == PAPER
    assert [metric.name for metric in resolve(["ALL"], at_hand=NEEDS)] == list(METRICS)
    assert {metric.name for metric in resolve(["all"])} == {
        name for name, metric in METRICS.items() if not metric.needs
    }
    assert [metric.name for metric in resolve(["MRR", "paper", "mrr"])] == ["MRR", *PAPER]


def test_an_unknown_name_is_an_error_with_the_closest_match() -> None:
    with pytest.raises(UsageError, match=r"unknown metric 'Recal'\. Did you mean 'Recall'\?"):
        resolve(["nDCG", "Recal"])


def test_a_cut_off_is_given_apart() -> None:
    with pytest.raises(UsageError, match=r"'NDCG@10': say NDCG, and the cut-off apart: 10"):
        resolve(["NDCG@10"])


def test_the_registry_is_complete_and_unambiguous() -> None:
    names = [
        name.casefold() for metric in METRICS.values() for name in (metric.name, *metric.aliases)
    ]
    assert len(names) == len(set(names))
    for metric in METRICS.values():
        assert resolve([metric.name]) == [metric]
        assert metric.formula and metric.source and "\n" not in metric.formula
        assert all(resolve([alias]) == [metric] for alias in metric.aliases)


@pytest.mark.parametrize(
    ("name", "need"), [(m.name, need) for m in METRICS.values() for need in m.needs]
)
def test_side_data_are_asked_for_by_name(name: str, need: str) -> None:
    arguments = prepare(HAND) | {need: None}
    with pytest.raises(
        UsageError, match=f"{name}: needs .*--.*; supply it or leave the metric out"
    ):
        evaluate(**arguments, metrics=resolve([name]))


def test_lists_in_blocks_equal_lists_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case, names = oracle.random_case(5), resolve(["ILD", "Unexpectedness", "VisDiv"])
    whole = score(case, names)
    monkeypatch.setattr(
        "mmbench.metrics.item_data._NUMBERS_AT_A_TIME", 9
    )  # three vectors at a time
    for name, values in score(case, names).per_user.items():
        np.testing.assert_allclose(values, whole.per_user[name], rtol=1e-12, atol=1e-12)


def test_equal_items_have_no_distance_and_the_same_topics_no_divergence() -> None:
    case = dict(
        HAND,
        vectors={str(item): [0.3, 0.1] for item in range(5)},
        topics={str(item): [4, 5] for item in range(5)},
    )
    found = score(case, resolve(["ILD", "Unexpectedness", "Miscalibration"])).overall
    assert all(value == pytest.approx(0.0, abs=1e-12) for value in found.values())


def test_content_of_the_wrong_shape() -> None:
    with pytest.raises(ShapeError, match=r"expected \(n, d\), \(n,\)"):
        ItemVectors(np.ones((3, 2)), np.ones(2, bool))


def test_a_gain_that_overflows_is_an_error() -> None:
    case = dict(HAND, held_out=[(0, 1, 5000.0)])
    with pytest.raises(DataError, match="nDCG: ratings reach 4997 above the threshold"):
        score(case, resolve(["nDCG"]))
    assert score(case, resolve(["Recall", "nDCG-binary"])).overall["Recall@3"] == 1.0
