"""The reference's forward passes against worked examples and independent formulations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from . import bm3, cases, common, freedom, grcn, lattice, mmgcn, vbpr
from .cases import SIZES
from .common import Case, Parameters


def biggest(x: Tensor) -> float:
    return float(x.abs().max())


# ------------------------------------------------------------------------------------------- kNN
# and item graphs


@pytest.mark.parametrize("k", cases.TIED_NEIGHBOURS)
def test_equal_cosines_are_ordered_by_index(k: int) -> None:
    assert (
        common.nearest(common.cosines(torch.tensor(cases.TIED_FEATURES)), k)
        == cases.TIED_NEIGHBOURS[k]
    )


def test_a_zero_row_has_cosine_zero_to_others_and_one_to_itself() -> None:
    x = torch.tensor(cases.TIED_FEATURES, requires_grad=True)
    c = common.cosines(x)
    assert c[3].tolist() == c[:, 3].tolist() == [0, 0, 0, 1, 0, 0, 0]
    c.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_cosines_equal_numpy() -> None:
    x = cases.case("middle", "vbpr").features["visual"]
    norm = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(
        common.cosines(torch.tensor(x)).numpy(), x @ x.T / np.outer(norm, norm), atol=1e-14
    )


@pytest.mark.parametrize("size", SIZES)
def test_freedom_item_graph_rows_sum_to_one(size: str) -> None:
    case = cases.case(size, "freedom")
    graph = freedom.item_graph(case, "paper")
    k = freedom.settings(case, "paper")["top_k"]
    torch.testing.assert_close(
        graph.sum(1), torch.ones(case.n_items).double() * k / (k + 1e-7), rtol=1e-14, atol=0
    )
    torch.testing.assert_close(graph.sum(1), torch.ones(case.n_items).double(), rtol=1e-7, atol=0)
    assert not torch.equal(graph, graph.T) and (graph.diagonal() > 0).all()


def test_freedom_without_dropping_trains_on_the_graph_of_inference() -> None:
    case, params = (
        cases.case("small", "freedom", drop=0.0),
        cases.parameters("small", "freedom", "paper"),
    )
    kept = freedom.draw_kept(case, "paper", np.random.default_rng(0))
    assert kept.tolist() == list(range(case.n_edges))
    z, q = freedom.representation(params, case, "paper", kept)
    assert torch.equal(z @ q.T, freedom.scores(params, case, "paper"))
    pruned, _ = freedom.representation(params, case, "paper", kept[::2])
    assert biggest(z - pruned) > 1e-3


@pytest.mark.parametrize(("size", "n"), [("small", 13), ("middle", 48)])
def test_freedom_keeps_the_floor_of_the_edges_and_renormalises_them(size: str, n: int) -> None:
    case = cases.case(size, "freedom")
    assert freedom.n_kept(case, "paper") == n  # floor(33 x 0.4), floor(241 x 0.19999..)
    kept = cases.kept(size, "paper")[0]
    assert len(set(kept.tolist())) == n
    a = common.symmetric_normalised(common.adjacency(case, kept))
    d_u, d_i = np.bincount(case.train_users[kept]), np.bincount(case.train_items[kept])
    for e in kept:
        u, i = int(case.train_users[e]), int(case.train_items[e])
        assert float(a[u, case.n_users + i]) == pytest.approx(
            ((d_u[u] + 1e-7) * (d_i[i] + 1e-7)) ** -0.5, rel=1e-14
        )
    assert int((a > 0).sum()) == 2 * n


def test_lattice_diagonal_is_forced_to_one_in_paper_only() -> None:
    # Item 2 and item 5 equal item 0: with one neighbour each they select item 0 instead of
    # themselves.
    w = lattice.knn(torch.tensor(cases.TIED_FEATURES), 1)
    free, forced = (lattice.laplacian(w, force_diagonal=flag) for flag in (False, True))
    assert w.diagonal().tolist() == [1, 1, 0, 1, 0, 0, 1]
    assert free.diagonal().tolist() == [1, 1, 0, 1, 0, 0, 1]
    assert forced.diagonal() == pytest.approx([1, 1, 0.5, 1, 0.5, 0.5, 1])
    assert float(forced[2, 0]) == pytest.approx(2**-0.5)  # row sums 2 and 1


def test_lattice_laplacian_guards_rows_without_positive_sum() -> None:
    w = torch.tensor(
        [[1.0, -2.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]],
        dtype=torch.float64,
        requires_grad=True,
    )
    s = lattice.laplacian(w, force_diagonal=False)
    assert s.tolist() == [[0, 0, 0], [0, pytest.approx(1 / 1.5), 0], [0, 0, 0]]
    s.sum().backward()
    assert torch.isfinite(w.grad).all()


def test_lattice_left_normalisation_cancels_under_row_norms() -> None:
    case, params = cases.case("small", "lattice"), cases.parameters("small", "lattice", "paper")
    z, _ = lattice.representation(params, case, "paper", torch.eye(case.n_items).double())
    a = common.adjacency(case)
    x = torch.cat([params["user_embedding"], params["item_embedding"]])
    degree, layers = a.sum(1) + 1, [x]
    for _ in range(2):
        scaled = layers[-1] / degree[:, None]
        layers.append(common.rn(scaled + a @ scaled))
    torch.testing.assert_close(z, (sum(layers) / 3)[: case.n_users], rtol=1e-13, atol=1e-14)


# -----------------------------------------------------------------------------------------------
# the other models


def test_vbpr_clamps_large_negative_differences_in_paper_only() -> None:
    case, batch = (
        cases.case("small", "vbpr", l_w=0.0, lambda_w=0.0, lambda_b=0.0, lambda_e=0.0),
        cases.epochs("small")[0][-1],
    )
    for preset, clamped in (("paper", True), ("original", False)):
        params = cases.parameters("small", "vbpr", preset)
        u, i, j = (int(batch[key][0]) for key in ("users", "pos", "neg"))
        params["user_factors"][u] = 100.0
        params["item_factors"][i], params["item_factors"][j] = -1.0, 1.0
        terms = vbpr.loss_terms(params, case, preset, batch)
        assert (float(terms["bpr"]) == 80.0) == clamped
        found = common.gradients(
            params, ["user_factors"], lambda now, p=preset: vbpr.loss_terms(now, case, p, batch)
        )
        assert (biggest(found["user_factors"]) == 0.0) == clamped


def test_vbpr_penalty_does_not_reach_the_projection() -> None:
    case, params = cases.case("small", "vbpr"), cases.parameters("small", "vbpr", "paper")
    batch = cases.epochs("small")[0][0]

    def only_l2(now: Parameters) -> dict[str, Tensor]:
        return {"l2": vbpr.loss_terms(now, case, "paper", batch)["l2"]}

    found = common.gradients(
        params, ["projection.weight", "projection.bias", "user_factors"], only_l2
    )
    assert biggest(found["projection.weight"]) < 1e-15 and biggest(found["projection.bias"]) < 1e-15
    assert biggest(found["user_factors"]) > 1e-4


def test_mmgcn_concatenation_with_an_identity_half_is_the_sum() -> None:
    paper, params = cases.case("small", "mmgcn"), cases.parameters("small", "mmgcn", "paper")
    joined = dict(params)
    for name in params:
        if name.startswith("mix.") and name.endswith(".weight"):
            joined[name] = torch.cat([params[name], torch.eye(4, dtype=torch.float64)], dim=1)
    concatenated = cases.case("small", "mmgcn", concatenation=True)
    torch.testing.assert_close(
        mmgcn.scores(params, paper, "paper"),
        mmgcn.scores(joined, concatenated, "paper"),
        rtol=1e-12,
        atol=1e-13,
    )


def test_bm3_targets_are_scaled_copies_of_the_views() -> None:
    case, params = cases.case("small", "bm3"), cases.parameters("small", "bm3", "paper")
    masks = cases.masks("small", "paper")[0][0]
    targets = bm3.targets(params, case, "paper", masks)
    hu, hi = bm3.propagated(params, case, "paper")
    assert torch.equal(targets["user"], torch.tensor(masks["user"]) * hu * 2)  # dropout 0.5
    assert torch.equal(targets["item"], torch.tensor(masks["item"]) * hi * 2)
    assert 0.3 < masks["item"].mean() < 0.7


# --------------------------------------------------------------------------------------------- GRCN


def grcn_item_side_by_slots(
    case: Case, s: np.ndarray, p: np.ndarray, f: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """alphaI per slot and r_i in Elliot's order: written from the rule, not the matrices."""
    order = sorted(range(case.n_edges), key=lambda e: (case.train_items[e], case.train_users[e]))
    alpha = np.zeros(case.n_edges)
    for k in range(case.n_edges):
        mates = [
            q
            for q in range(case.n_edges)
            if case.train_items[order[q]] == case.train_items[order[k]]
        ]
        alpha[k] = np.exp(s[k]) / sum(np.exp(s[q]) for q in mates)
    r = f.copy()
    for k in range(case.n_edges):
        r[case.train_items[order[k]]] += alpha[k] * p[case.train_users[order[k]]]
    return alpha, r


@pytest.mark.parametrize("size", ["two", "small", "middle"])
def test_grcn_edge_order_of_elliot_follows_the_slot_rule(size: str) -> None:
    overrides = {"routing": False, "edge_order": "elliot", "num_layers": 1}
    case = cases.two_by_two(**overrides) if size == "two" else cases.case(size, "grcn", **overrides)
    params = grcn.parameters(case, "paper", np.random.default_rng(43))
    _, items = (x.numpy() for x in grcn.representation(params, case, "paper"))
    d, kappa = (grcn.settings(case, "paper")[key] for key in ("factors", "factors_multimod"))
    alphas = []
    for number, m in enumerate(case.modalities):
        p = common.rn(params[f"preference.{m}"]).numpy()
        g = (
            case.features[m] @ params[f"projection.{m}.weight"].numpy().T
            + params[f"projection.{m}.bias"].numpy()
        )
        f = common.rn(torch.tensor(np.maximum(g, 0.01 * g))).numpy()
        s = (p[case.train_users] * f[case.train_items]).sum(1)
        alpha, r = grcn_item_side_by_slots(case, s, p, f)
        np.testing.assert_allclose(
            items[:, d + number * kappa : d + (number + 1) * kappa], r, atol=1e-13
        )
        alphas.append(alpha)
    order = sorted(range(case.n_edges), key=lambda e: (case.train_items[e], case.train_users[e]))
    confidence = params["confidence"].numpy()[case.n_users :]
    x_u, x_i = (common.rn(params[name]).numpy() for name in ("user_embedding", "item_embedding"))
    y = np.zeros_like(x_i)
    for k in range(case.n_edges):
        weight = max(
            alpha[k] * confidence[case.train_items[k], m] for m, alpha in enumerate(alphas)
        )
        y[case.train_items[order[k]]] += max(weight, 0.0) * x_u[case.train_users[order[k]]]
    np.testing.assert_allclose(items[:, :d], x_i + common.rn(torch.tensor(y)).numpy(), atol=1e-12)


@pytest.mark.parametrize("size", ["two", "small", "middle"])
def test_grcn_edge_orders_differ_on_items_and_agree_on_user_content(size: str) -> None:
    def sides(edge_order: str) -> tuple[Tensor, Tensor]:
        override = {"edge_order": edge_order}
        case = (
            cases.two_by_two(**override) if size == "two" else cases.case(size, "grcn", **override)
        )
        return grcn.representation(
            grcn.parameters(case, "paper", np.random.default_rng(47)), case, "paper"
        )

    (users, items), (aligned_users, aligned_items) = sides("elliot"), sides("aligned")
    d = 8 if size == "middle" else 4
    assert biggest(items - aligned_items) > 1e-3
    assert torch.equal(users[:, d:], aligned_users[:, d:])


def test_grcn_edge_order_of_two_by_two_by_hand() -> None:
    """Edges (0,0) (0,1) (1,0), item-sorted (0,0) (1,0) (0,1): slots 1 and 2 swap scores."""
    case = cases.two_by_two()
    s = np.log([1.0, 2.0, 3.0])
    alpha, _ = grcn_item_side_by_slots(case, s, np.zeros((2, 1)), np.zeros((2, 1)))
    assert alpha == pytest.approx([1 / 3, 2 / 3, 1.0])  # aligned: 1/4 and 3/4 for item 0
    slots = torch.as_tensor(np.lexsort((case.train_users, case.train_items)))
    segments = grcn.one_hot(case.train_items, 2)[:, slots]
    assert grcn.edge_softmax(torch.tensor(s), segments).tolist() == pytest.approx(alpha.tolist())


def test_grcn_routing_is_a_no_op_in_original_only() -> None:
    batch = cases.epochs("small")[0][0]
    for preset, changes in (("paper", True), ("original", False), ("corrected", True)):
        params = cases.parameters("small", "grcn", preset)
        bpr = [
            float(
                grcn.loss_terms(params, cases.case("small", "grcn", num_routings=t), preset, batch)[
                    "bpr"
                ]
            )
            for t in (1, 5)
        ]
        assert (bpr[0] != bpr[1]) == changes


def test_grcn_preference_penalty_ignores_l_w_in_paper_only() -> None:
    batch = cases.epochs("small")[0][0]
    for preset, power in (("paper", 0), ("original", 1), ("corrected", 1)):
        params = cases.parameters("small", "grcn", preset)
        small, large = (
            grcn.loss_terms(params, cases.case("small", "grcn", l_w=l_w), preset, batch)
            for l_w in (0.01, 0.1)
        )
        assert float(large["preference_l2"] / small["preference_l2"]) == pytest.approx(10.0**power)
        assert float(large["id_l2"] / small["id_l2"]) == pytest.approx(10.0)
