"""The fixed cases are as documented; every model starts from its documented distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from . import cases
from .cases import MODELS, NAMES, SIZES
from .common import Case, Parameters


def biggest(x: Tensor) -> float:
    return float(x.abs().max())


@pytest.mark.parametrize("size", SIZES)
def test_cases_hold_the_odd_shapes_they_promise(size: str) -> None:
    case = cases.case(size, "vbpr")
    edges = list(zip(case.train_users.tolist(), case.train_items.tolist(), strict=True))
    assert edges == sorted(set(edges))
    d_u, d_i = np.bincount(case.train_users), np.bincount(case.train_items)
    assert (len(d_u), len(d_i)) == (case.n_users, case.n_items)
    assert d_u.min() == d_i.min() == 1 and d_u.max() > 5 and d_i.max() > 5
    first, second = cases.EQUAL_ROWS[size]
    assert (case.features["visual"][first] == case.features["visual"][second]).all()
    assert not case.features["textual"][cases.ZERO_ROW[size]].any()
    for x in case.features.values():
        assert (x == x.astype(np.float32)).all()


@pytest.mark.parametrize("size", SIZES)
def test_batches_hold_duplicates_and_end_in_a_single_row(size: str) -> None:
    case, epochs = cases.case(size, "vbpr"), cases.epochs(size)
    positives = case.positives
    assert sum(len(epoch) for epoch in epochs) >= 30
    for epoch in epochs:
        assert len(epoch[-1]["users"]) == 1
        rows = list(zip(*(epoch[0][key].tolist() for key in ("users", "pos", "neg")), strict=True))
        assert len(set(rows)) < len(rows)
        for batch in epoch:
            for u, i, j in zip(batch["users"], batch["pos"], batch["neg"], strict=True):
                assert i in positives[u] and j not in positives[u]


@pytest.mark.parametrize("model", MODELS)
def test_presets_name_the_same_switches(model: str) -> None:
    presets = MODELS[model].PRESETS
    assert tuple(presets) == NAMES
    assert len({frozenset(fields) for fields in presets.values()}) == 1


@pytest.mark.parametrize("model", ["vbpr", "mmgcn", "grcn", "lattice"])
def test_paper_and_original_score_differently_on_the_same_parameters(model: str) -> None:
    case = cases.case("small", model)
    params = cases.parameters("small", model, "original")
    if model == "mmgcn":
        params = {**cases.parameters("small", model, "paper"), **params}
        smaller = cases.parameters("small", model, "paper")
        paper = MODELS[model].scores(smaller, case, "paper")
    else:
        paper = MODELS[model].scores(params, case, "paper")
    assert biggest(paper - MODELS[model].scores(params, case, "original")) > 1e-3


@pytest.mark.parametrize("model", ["bm3", "freedom"])
def test_presets_of_bm3_and_freedom_are_one_model(model: str) -> None:
    case, params = cases.case("small", model), cases.parameters("small", model, "paper")
    paper = MODELS[model].scores(params, case, "paper")
    for preset in NAMES[1:]:
        assert torch.equal(paper, MODELS[model].scores(params, case, preset))


# -------------------------------------------------------------------------------------------------
# initialisation

WIDE = 64


def wide_case(model: str, **config: Any) -> Case:
    rng = np.random.default_rng(3)
    users = np.repeat(np.arange(300), 1)
    features = {"visual": rng.normal(size=(200, 150)), "textual": rng.normal(size=(200, 120))}
    return Case(300, 200, users, users % 200, features, {"factors": WIDE, **config})


def assert_uniform(x: Tensor, a: float) -> None:
    assert 0.9 * a < biggest(x) <= a
    assert float(x.var()) == pytest.approx(a * a / 3, rel=0.1)


def assert_normal(x: Tensor, variance: float) -> None:
    assert biggest(x) > 2.5 * variance**0.5
    assert float(x.var()) == pytest.approx(variance, rel=0.1)
    assert abs(float(x.mean())) < 5 * (variance / x.numel()) ** 0.5


def start(model: str, preset: str, **config: Any) -> Parameters:
    return MODELS[model].parameters(wide_case(model, **config), preset, np.random.default_rng(5))


def test_vbpr_starts_from_the_documented_distributions() -> None:
    xu_u, xu_i = (6 / (300 + WIDE)) ** 0.5, (6 / (200 + WIDE)) ** 0.5
    paper, original, corrected = (start("vbpr", preset) for preset in NAMES)
    for params in (paper, original, corrected):
        assert_uniform(params["user_factors"], xu_u)
        assert_uniform(params["item_factors"], xu_i)
        assert params["projection.weight"].shape == (WIDE, 270)
    assert_normal(paper["user_content_factors"], 1.0)
    assert_uniform(original["user_content_factors"], xu_u)
    assert_uniform(corrected["user_content_factors"], xu_u)
    assert_uniform(paper["projection.weight"], 270**-0.5)
    assert biggest(paper["projection.bias"]) <= 270**-0.5
    assert_uniform(original["projection.weight"], (6 / (270 + WIDE)) ** 0.5)
    assert not original["item_bias"].any() and original["content_bias"].shape == (270,)
    assert "projection.bias" not in original


def test_mmgcn_starts_from_the_documented_distributions() -> None:
    paper, original = (
        start("mmgcn", "paper", factors_multimod=(100, None)),
        start("mmgcn", "original", factors_multimod=(100, None)),
    )
    assert_uniform(paper["user_embedding"], (6 / (300 + WIDE)) ** 0.5)
    assert_uniform(paper["preference.visual"], (6 / 400) ** 0.5)
    assert_uniform(paper["preference.textual"], (6 / 420) ** 0.5)
    assert_uniform(paper["conv.visual.0"], (6 / 200) ** 0.5)
    assert_uniform(paper["conv.textual.2"], (6 / 128) ** 0.5)
    assert_uniform(paper["mix.visual.0.weight"], (6 / 164) ** 0.5)
    assert_uniform(paper["projection.visual.weight"], 150**-0.5)
    assert "projection.textual.weight" not in paper
    assert biggest(paper["linear.textual.0.bias"]) <= 120**-0.5
    both = torch.cat([original["user_embedding"], original["item_embedding"]])
    assert_normal(both, 2 / (500 + WIDE))
    assert_normal(original["preference.visual"], 2 / 400)
    assert_normal(original["conv.visual.0"], 2 / 200)
    assert_normal(original["mix.visual.0.weight"], 2 / (164 + WIDE))
    assert_uniform(original["mix.visual.1.weight"], (2 * WIDE) ** -0.5)
    assert_uniform(original["projection.visual.weight"], 150**-0.5)


def test_grcn_starts_from_the_documented_distributions() -> None:
    paper, original = start("grcn", "paper"), start("grcn", "original")
    assert paper["preference.visual"].shape == (300, 128) and original[
        "preference.visual"
    ].shape == (300, 64)
    assert_uniform(paper["preference.visual"], (6 / 428) ** 0.5)
    assert_uniform(paper["confidence"], (6 / 502) ** 0.5)
    assert_uniform(paper["projection.visual.weight"], 150**-0.5)
    assert_normal(
        torch.cat([original["user_embedding"], original["item_embedding"]]), 2 / (500 + WIDE)
    )
    assert_normal(original["preference.textual"], 2 / 364)
    assert_normal(original["confidence"], 2 / 502)
    assert_uniform(original["projection.visual.weight"], 150**-0.5)


@pytest.mark.parametrize("model", ["lattice", "bm3", "freedom"])
def test_feature_models_start_from_raw_features(model: str) -> None:
    params = start(model, "paper")
    for m, x in wide_case(model).features.items():
        assert (params[f"features.{m}"].numpy() == x).all()
    assert_uniform(params["user_embedding"], (6 / (300 + WIDE)) ** 0.5)
    if model == "bm3":
        assert_normal(params["projection.visual.weight"], 2 / (150 + WIDE))
        assert_normal(params["predictor.weight"], 2 / (2 * WIDE))
        assert biggest(params["predictor.bias"]) <= WIDE**-0.5
    else:
        assert_uniform(params["projection.visual.weight"], 150**-0.5)
    if model == "lattice":
        assert params["modality_weights"].tolist() == [0.5, 0.5]
