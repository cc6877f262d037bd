"""Every missing-content policy: what is present stays, nothing but training is learnt from."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from tests.reference import missing

from mmbench.core.interactions import TrainSet
from mmbench.data.draws import ranks_of
from mmbench.data.missing import OLD_NAMES, POLICIES, graph, policy_of, series, spelled
from mmbench.data.missing.base import Gaps, Present, Vectors
from mmbench.data.missing.graph import as_published, corrected, matrix, product
from mmbench.data.missing.series import resolvent
from mmbench.errors import UsageError

N_USERS, N_TRAINED, N_ITEMS, DIM = 30, 20, 26, 5
IDS = [f"i{item}" for item in range(N_ITEMS)]


def pairs(seed: int = 0) -> TrainSet:
    rng = np.random.default_rng(seed)
    items = np.r_[np.arange(N_TRAINED), rng.integers(0, N_TRAINED, 100)]
    return TrainSet.from_pairs(rng.integers(0, N_USERS, items.size), items, N_USERS, N_TRAINED)


def incomplete(share: float = 0.4) -> tuple[Vectors, Present]:
    rng = np.random.default_rng(1)
    vectors, present = rng.standard_normal((N_ITEMS, DIM)).astype(np.float32), rng.random(N_ITEMS)
    vectors[present < share] = np.nan
    return vectors, present >= share


def fill(name: object, vectors: Vectors, present: Present, **other: object) -> Vectors:
    given = {"n_trained": N_TRAINED, "item_ids": IDS, "train": pairs(), **other}
    return policy_of(name).fill(Gaps(vectors.copy(), present, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_fills_all_keeps_what_is_there_and_learns_from_training_alone(name: str) -> None:
    vectors, present = incomplete()
    filled = fill(name, vectors, present)
    assert np.isfinite(filled).all() and filled.dtype == np.float32
    np.testing.assert_array_equal(filled[present], vectors[present])
    other = vectors.copy()
    other[N_TRAINED:][present[N_TRAINED:]] += 1
    np.testing.assert_array_equal(fill(name, other, present)[:N_TRAINED], filled[:N_TRAINED])


@pytest.mark.parametrize("name", POLICIES)
def test_where_nothing_is_missing_a_policy_changes_nothing(name: str) -> None:
    vectors, present = incomplete(share=0)
    np.testing.assert_array_equal(fill(name, vectors, present), vectors)


def test_old_names_are_understood() -> None:
    assert spelled("zero") == spelled("zeros") == "zeros"
    assert set(OLD_NAMES.values()) <= set(POLICIES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("meen", "unknown missing-content policy 'meen'. Did you mean 'mean'"),
        ("mean:alpha=1", "the policy mean has no settings"),
        ("mean:alpha", "expected NAME:SETTING=VALUE"),
        ({"alpha": 1}, "expected `policy`"),
    ],
)
def test_what_is_no_policy_is_one_clear_error(given: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        policy_of(given)


SETTINGS = {
    "neighbours": {},
    "multihop": {"n_hops": 3},
    "pagerank": {"alpha": 0.15, "n_hops": 2},
    "heat": {"t": 2.5, "n_hops": 2},
}


@pytest.mark.parametrize("n_hops", [1, 2])
@pytest.mark.parametrize("form", ["corrected", "paper"])
@pytest.mark.parametrize("top_k", [1, 3, 50])
@pytest.mark.parametrize("policy", SETTINGS)
def test_a_graph_policy_is_its_dense_formula(
    policy: str, form: str, top_k: int, n_hops: int
) -> None:
    settings = dict(SETTINGS[policy])
    if "n_hops" in settings:
        settings["n_hops"] = n_hops
    vectors, present = incomplete()
    train = pairs()
    n, trained = N_TRAINED, slice(N_TRAINED)
    order = ranks_of(IDS[:n], 0, "graph of items")
    a = missing.adjacency(missing.co_counts(train.users, train.items, n), top_k, order, form)
    s = missing.operator(a, policy, form, top_k, settings.get("alpha", 0.1), settings.get("t", 5.0))
    hops = 1 if policy == "neighbours" else n_hops
    known = vectors[trained].astype(np.float64), present[trained]
    expected, there = missing.fill(s, *known, hops, form)
    mean = vectors[trained][present[trained]].mean(0)
    filled = fill({"policy": policy, "top_k": top_k, "form": form, **settings}, vectors, present)
    np.testing.assert_allclose(filled[trained][there], expected[there], rtol=1e-3, atol=2e-4)
    absent = np.r_[~there, ~present[n:]]
    np.testing.assert_allclose(filled[absent], np.tile(mean, (absent.sum(), 1)), rtol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.02])
def test_the_series_of_pagerank_is_the_inverse(alpha: float) -> None:
    rng = np.random.default_rng(2)
    a = rng.random((15, 15)) < 0.3
    directed = sp.csr_matrix((a + np.eye(15)) / (a.sum(1) + 1)[:, None])
    symmetric = sp.csr_matrix(missing.normalised((a | a.T) + np.eye(15)))
    rotation = sp.csr_matrix(np.roll(np.eye(15), 1, axis=1))  # no eigenvalue but two is real
    for h in (directed, symmetric, rotation):
        found = resolvent(matrix(h), torch.eye(15), alpha).numpy()
        expected = alpha * np.linalg.inv(np.eye(15) - (1 - alpha) * h.toarray())
        np.testing.assert_allclose(found, expected, atol=2e-4 * expected.max())


def test_propagation_ends_where_the_signal_is_smoothest() -> None:
    vectors, present = incomplete()
    n, train = N_TRAINED, pairs()
    present[:5] = True
    vectors[:5] = 1
    order = ranks_of(IDS[:n], 0, "graph of items")
    a = missing.adjacency(missing.co_counts(train.users, train.items, n), 4, order, "corrected")
    x = np.nan_to_num(vectors[:n].astype(np.float64))
    settings = {"top_k": 4, "n_iterations": 5000, "tolerance": 0}
    filled = fill({"policy": "propagation", **settings}, vectors, present)
    np.testing.assert_allclose(filled[:n], missing.harmonic(a, x, present[:n]), atol=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_renamed_rows_change_nothing_but_their_order(name: str) -> None:
    # As another split has them: the same items with the same ids in other rows.
    vectors, present = incomplete()
    train, rng = pairs(), np.random.default_rng(3)
    order = np.r_[rng.permutation(N_TRAINED), N_TRAINED + rng.permutation(N_ITEMS - N_TRAINED)]
    row = np.argsort(order)
    moved = TrainSet.from_pairs(train.users, row[train.items], N_USERS, N_TRAINED)
    ids = [IDS[item] for item in order]
    found = fill(name, vectors[order], present[order], item_ids=ids, train=moved)
    np.testing.assert_allclose(found, fill(name, vectors, present)[order], rtol=1e-4, atol=1e-5)


def test_items_that_the_graph_does_not_reach_get_the_mean() -> None:
    # Users 0 and 1 have items 0-2, user 2 has items 3 and 4, of which none has a vector.
    train = TrainSet.from_pairs(np.r_[0, 0, 1, 1, 2, 2], np.r_[0, 1, 1, 2, 3, 4], 3, 5)
    vectors = np.array([[1, 2], [np.nan] * 2, [3, 6]] + [[np.nan] * 2] * 3, np.float32)
    present = ~np.isnan(vectors[:, 0])
    for name in ("neighbours", "multihop", "propagation", "pagerank", "heat"):
        gaps = Gaps(vectors.copy(), present, 5, list("abcdef"), train=train)
        filled = policy_of(name).fill(gaps)
        np.testing.assert_allclose(filled[3:], [[2, 4]] * 3)
    # The item between two others, under the weighted mean of either: the mean of the two.
    for name in ("neighbours", "multihop:n_hops=1"):
        gaps = Gaps(vectors.copy(), present, 5, list("abcdef"), train=train)
        np.testing.assert_allclose(policy_of(name).fill(gaps)[1], [2, 4], rtol=1e-6)


def test_co_counts_are_added_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    order = ranks_of(IDS[:N_TRAINED], 0, "graph of items")
    whole = [build(pairs(), 3, order).adjacency for build in (corrected, as_published)]
    monkeypatch.setattr(graph, "_PRODUCTS", 7)
    for build, expected in zip((corrected, as_published), whole, strict=True):
        assert (build(pairs(), 3, order).adjacency != expected).nnz == 0


def test_pagerank_of_a_symmetric_graph_takes_few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    a = rng.random((30, 30)) < 0.2
    h, calls = matrix(sp.csr_matrix(missing.normalised((a | a.T) + np.eye(30)))), []
    monkeypatch.setattr(series, "product", lambda *pair: calls.append(1) or product(*pair))
    resolvent(h, torch.eye(30), 0.1)
    assert len(calls) < 30  # the power series would take 116


@pytest.mark.parametrize("name", ["neighbours", "multihop", "propagation", "pagerank", "heat"])
def test_where_users_follow_content_a_graph_tells_more_than_the_mean(name: str) -> None:
    rng = np.random.default_rng(5)
    kind = np.arange(60) % 3  # users of a kind have items of that kind, mostly
    users = np.repeat(np.arange(90), 6)
    wanted = np.where(rng.random(users.size) < 0.85, users % 3, rng.integers(0, 3, users.size))
    items = 3 * rng.integers(0, 20, users.size) + wanted
    train = TrainSet.from_pairs(np.r_[users, [0] * 60], np.r_[items, np.arange(60)], 90, 60)
    real = (3 * np.eye(3)[kind] + 0.3 * rng.standard_normal((60, 3))).astype(np.float32)
    present = rng.random(60) < 0.5

    def error(policy: str) -> float:
        vectors = np.where(present[:, None], real, np.float32(np.nan))
        gaps = Gaps(vectors, present, 60, [str(item) for item in range(60)], train=train)
        filled = policy_of(policy).fill(gaps)
        return float(np.square(filled - real)[~present].sum(1).mean())

    assert error(f"{name}:top_k=8") < 0.6 * error("mean") < error("zeros")
