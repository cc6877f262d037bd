"""What a miniature says of a training is what the training itself comes to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmbase import gemm
from mmbench.models import MODELS, ModelConfig, model_class
from mmbench.ops import kernels
from mmbench.runs import miniature
from mmbench.runs.costs import Shapes
from mmbench.runs.miniature import Meter, estimate

SHAPES = Shapes(2_500, 1_600, 18_000, {"visual": 64, "textual": 32})
"""Five to nine times the miniature, in other proportions."""

BATCH = 256
MEMORY, PRODUCTS = 1.5, 2.0
"""Factors within which estimates are; `runs.miniature` and docs/scaling.md state them."""


def case(name: str, **settings: Any) -> tuple[ModelConfig, Shapes]:
    model = model_class(name)
    shapes = replace(SHAPES, per_edge=model.content_of != "item")
    if model.trained:
        settings = {"batch_size": BATCH, "embedding_dim": 16, "epochs": 1, **settings}
    return model.Config(**settings), shapes


def counted(name: str, settings: ModelConfig, shapes: Shapes) -> Any:
    """The same as in a miniature, at the size itself."""
    model = model_class(name)
    size = miniature._Sizes(shapes.n_users, shapes.n_items, shapes.n_edges, BATCH)
    widths = tuple(shapes.widths.items()) if model.uses_features else ()
    return miniature._miniature(name, settings, size, widths, (), None)


def within(estimated: float, found: float, factor: float) -> bool:
    return found / factor <= estimated <= found * factor


@pytest.mark.parametrize("name", MODELS)
def test_estimates_are_within_the_stated_factors(name: str) -> None:
    settings, shapes = case(name)
    cost, found = estimate(name, settings, shapes), counted(name, settings, shapes)
    assert cost.parameters == {"ids": found.ids, "others": found.others}
    assert within(cost.tensor_bytes, found.trained, MEMORY)
    assert within(cost.multiply_adds, found.multiply_adds, PRODUCTS)
    assert cost.kept_bytes == found.kept
    assert bool(cost.steps) == model_class(name).trained
    assert (cost.searches > 0) == (name in ("content-knn", *_WITH_NEIGHBOURS))


def test_products_of_all_items_with_each_other_grow_with_their_square() -> None:
    settings, shapes = case("lattice")  # which takes cosines of all items
    cost, found = estimate("lattice", settings, shapes), counted("lattice", settings, shapes)
    assert within(cost.multiply_adds, found.multiply_adds, 1.1)


_WITH_NEIGHBOURS = ("freedom", "lattice", "mgcn", "smore", "dragon")


def test_settings_that_make_tables_count() -> None:
    settings, shapes = case("vbpr", embedding_dim=24)
    cost = estimate("vbpr", settings, shapes)
    # gamma, theta, beta: users twice, items once with a bias; E and the bias of content.
    model = counted("vbpr", settings, shapes)
    assert cost.parameters == {"ids": model.ids, "others": model.others}
    assert cost.parameters["others"] > estimate("vbpr", *case("vbpr")).parameters["others"]
    frozen = estimate("freedom", *case("freedom"), approximate=("frozen-features",))
    assert frozen.parameters["ids"] < estimate("freedom", *case("freedom")).parameters["ids"]
    absent = estimate("vbpr", settings, shapes, dropout=0.1)
    assert absent.parameters["others"] == cost.parameters["others"] + 64 + 32  # the tokens


def test_data_smaller_than_a_miniature_cost_no_less_than_nothing() -> None:
    for name in ("freedom", "sasrec", "item-knn"):
        cost = estimate(name, case(name)[0], Shapes(6, 5, 12, {"visual": 3}))
        assert min(cost.tensor_bytes, cost.multiply_adds, *cost.parameters.values()) >= 0


def test_a_meter_counts_what_is_alive_and_products() -> None:
    with Meter() as meter:
        a = torch.ones(100, 10)
        b = a.view(10, 100)  # on the memory of `a`
        assert meter.alive_bytes == 4_000
        c = a @ b
        assert meter.alive_bytes == 4_000 + 40_000
        del c
        assert meter.alive_bytes == 4_000
        kernels.split(8, work=500.0)
    assert (meter.peak_bytes, meter.multiply_adds) == (44_000, 100 * 10 * 100 + 500.0)
    kernels.split(8, work=500.0)
    assert meter.multiply_adds == 100 * 10 * 100 + 500.0


def test_an_estimate_leaves_the_kernel_of_products_as_it_was() -> None:
    before = gemm.chosen()
    estimate("bpr-mf", *case("bpr-mf", embedding_dim=5))
    assert gemm.chosen() == before
