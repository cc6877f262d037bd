"""Content-style against the plain float64 reference, and what its settings mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.mmbench.conftest import known
from tests.mmbench.models import golden
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.reference import cases, common, content_style
from tests.reference.common import Case
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Init, Triples, UniformUsers
from mmbench.errors import UsageError
from mmbench.models.base import Content, Recommender
from mmbench.models.content_style import ContentStyle, ContentStyleConfig

N_MODALITIES = (1, 2, 3)
SIDE = {"small": 4, "middle": 5}  # of a map; 5 is odd


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(golden, "with_modalities", with_roles)
    with double_precision():
        yield


def with_roles(case: Case, n: int) -> Case:
    """The case with colours, then shapes, then classes that the small case takes as they are."""
    rng, small = np.random.default_rng(31), case.n_items == 10
    side, d = SIDE["small" if small else "middle"], case.config["factors"]
    maps = rng.random((case.n_items, side * side)) * (rng.random((case.n_items, side**2)) < 0.5)
    maps[1] = 0.0
    features = {
        "colour": case.features["visual"],
        "shape": maps,
        "class": rng.normal(size=(case.n_items, d if small else d + 2)),
    }
    return dataclasses.replace(case, features={m: features[m] for m in list(features)[:n]})


def drawn(case: Case, preset: str, epochs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Masks for each batch: a row for each item, and one for each pair."""
    rng, s = np.random.default_rng(23), case.config
    widths = {"colour": case.features["colour"].shape[1], "shape": s["channels"]}

    def mask(rows: int, columns: int) -> np.ndarray:
        return 1.0 * (rng.random((rows, columns)) < 1 - s["dropout"])

    return {
        "masks": [
            [
                {m: mask(case.n_items, k) for m, k in widths.items()}
                | {"score": mask(2 * len(rows["users"]), 2 * s["factors"])}
                for rows in epoch
            ]
            for epoch in epochs
        ]
    }


def inject(model: Recommender, extra: dict[str, Any]) -> None:
    def kept(name: str, shape: tuple[int, ...], batch: Triples) -> Tensor:
        epoch, step = batch.clock.tolist()
        mask = torch.from_numpy(extra["masks"][epoch - 1][step][name])
        found = mask if name == "score" else mask[torch.cat([batch.pos, batch.neg]).unique()]
        assert found.shape == shape
        return found

    model._kept = kept  # type: ignore[assignment]


ADAPTER = Adapter(extra=drawn, inject=inject, first=lambda extra: {"masks": extra["masks"][0][0]})
every_problem = pytest.mark.parametrize(
    ("size", "n"), [(size, n) for size in cases.SIZES for n in N_MODALITIES]
)


def problem(size: str, n: int = 3) -> Problem:
    return Problem("content-style", "paper", size, ADAPTER, n, reference=content_style)


def terms_of(p: Problem) -> dict[str, Tensor]:
    return p.reference.loss_terms(  # type: ignore[no-any-return, union-attr]
        p.start, p.case, p.preset, p.epochs[0][0], **ADAPTER.first(p.extra)
    )


@every_problem
def test_scores_and_loss_terms(size: str, n: int) -> None:
    p = problem(size, n)
    assert deviation(p.scores(), content_style.scores(p.start, p.case, "paper")) <= 1e-12
    p.model.train()
    ours, theirs = p.first_terms(), terms_of(p)
    assert ours.keys() == theirs.keys()
    for term, value in theirs.items():
        assert float(ours[term].detach()) == pytest.approx(float(value), rel=1e-12), term


@every_problem
def test_parameters_after_1_2_and_30_steps(size: str, n: int) -> None:
    p = problem(size, n)
    theirs = content_style.run(p.start, p.case, "paper", p.epochs, cases.LEARNING_RATE, **p.extra)
    ours = p.run()
    for step in (1, 2, 30):
        assert ours[step].keys() == theirs[step].keys()
        for key, value in ours[step].items():
            assert not torch.equal(value, p.start[key]), key
            assert deviation(value, theirs[step][key]) <= 1e-9, (step, key)
    assert deviation(p.scores(), content_style.scores(theirs[30], p.case, "paper")) <= 1e-9


@pytest.mark.parametrize("size", cases.SIZES)
def test_gradients_are_right_and_reach_everything(size: str) -> None:
    p = problem(size)
    found = p.gradients()
    names = content_style.trainable(p.case, "paper")
    assert set(found) == set(names)
    mask = ADAPTER.first(p.extra)["masks"]
    expected = common.gradients(
        p.start,
        names,
        lambda now: content_style.loss_terms(now, p.case, "paper", p.epochs[0][0], mask),
    )
    for key, value in expected.items():
        assert value is not None and value.abs().max() > 1e-9, key
        assert deviation(found[key], value) <= 1e-9, key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attention", "combination"),
    [("product", "product"), ("sum", "sum"), ("sum", "product"), ("concat", "sum")],
)
def test_other_ways_to_meet_and_combine(
    attention: str, combination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"attention": attention, "combination": combination}
    monkeypatch.setitem(
        content_style.CONFIGS, "small", {**content_style.CONFIGS["small"], **chosen}
    )
    p = problem("small")
    theirs = content_style.run(
        p.start, p.case, "paper", p.epochs, cases.LEARNING_RATE, after=(3,), **p.extra
    )[3]
    for key, value in p.run(after=(3,))[3].items():
        assert deviation(value, theirs[key]) <= 1e-9, key
    assert deviation(p.scores(), content_style.scores(theirs, p.case, "paper")) <= 1e-9


@pytest.mark.parametrize("n", N_MODALITIES)
@pytest.mark.parametrize("attention", ["product", "concat"])
def test_blocks_of_pairs_change_nothing(
    attention: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        content_style.CONFIGS, "small", {**content_style.CONFIGS["small"], "attention": attention}
    )
    whole = problem("small", n).scores()
    for size in (1, 5000, 20_000):  # a pair at a time, a few, some blocks
        monkeypatch.setattr("mmbench.models.content_style._BLOCK_BYTES", size)
        assert deviation(problem("small", n).scores(), whole) <= 1e-13


def small(
    content: dict[str, Tensor], n_items: int = 6, **settings: Any
) -> tuple[ContentStyle, TrainSet]:
    users, items = np.array([[u, (u + k) % n_items] for u in range(4) for k in range(2)]).T
    train = TrainSet.from_pairs(users, items, 4, n_items)
    config = ContentStyleConfig(embedding_dim=4, channels=2, **settings)
    return ContentStyle(train, Content.complete(content), config, Init(1)), train


def test_roles_follow_the_modalities_names_and_the_setting() -> None:
    content = {"visual": torch.rand(6, 9), "shape": torch.rand(6, 16), "class": torch.rand(6, 4)}
    model, _ = small(content)
    kinds = {m: type(one).__name__ for m, one in model.encoders.items()}
    assert kinds == {"visual": "Colour", "shape": "Shape", "class": "Class"}
    model, _ = small(content, roles={"visual": "shape", "shape": "class"})
    kinds = {m: type(one).__name__ for m, one in model.encoders.items()}
    assert kinds == {"visual": "Shape", "shape": "Class", "class": "Class"}


def test_roles_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="no modality edges; there are visual"):
        small({"visual": torch.rand(6, 9)}, roles={"edges": "shape"})
    with pytest.raises(UsageError, match="visual has vectors of 10 numbers"):
        small({"visual": torch.rand(6, 10)}, roles={"visual": "shape"})


def test_a_map_that_is_turned_is_another_one_and_one_that_is_moved_is_not() -> None:
    """The mean over cells knows no place, but the kernels know a direction."""
    maps = torch.zeros(6, 8, 8)
    maps[0, 2, 1:5] = 1.0  # a line
    maps[1, 4, 3:7] = 1.0  # the same, two cells away
    maps[2, 1:5, 2] = 1.0  # upright
    model, _ = small({"shape": maps.view(6, 64)})
    with torch.no_grad():
        line, moved, upright = model.encoders["shape"](maps.view(6, 64))[:3]
    assert torch.allclose(line, moved, atol=1e-12)
    assert not torch.allclose(line, upright, atol=1e-3)


def test_users_are_drawn_uniformly_and_factors_start_small() -> None:
    model, train = small({"colour": torch.rand(6, 5)})
    assert isinstance(model.make_sampler(train, 4, 1, "cpu"), UniformUsers)
    for factors in (model.user_factors, model.item_factors):
        assert 0.005 < float(factors.detach().std()) < 0.02


def test_an_unseen_item_is_scored_by_its_content() -> None:
    content = {"colour": torch.rand(6, 5), "shape": torch.rand(6, 16), "class": torch.rand(6, 4)}
    copies = {m: x[2:3].clone() for m, x in content.items()}
    model, train = small(content)
    model.train(False)
    with torch.no_grad():
        model.item_factors[2] = 0.0
        found = model.scorer(known(train, Content.complete(content), copies))(torch.arange(4))
    assert torch.allclose(found[:, 6], found[:, 2], atol=1e-12)
    assert not model.represents_unseen(ContentStyleConfig(combination="product"))
