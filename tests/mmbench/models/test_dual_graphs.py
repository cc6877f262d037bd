"""DualGNN and DRAGON against their plain float64 references, through the real trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests.mmbench.conftest import known
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.mmbench.models.test_conformance import make
from tests.reference import cases, common, dragon, dualgnn
from tests.reference.common import Case
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.models.base import Content, Recommender
from mmbench.ops.sparse import SparsePattern


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


def _extra(case: Case, preset: str, epochs: Sequence[Any]) -> dict[str, Any]:
    """How often each user stands on each list, per epoch."""
    rng = np.random.default_rng(47)
    drawn = preset == "original"
    return {"times": [dualgnn.draw_times(case, preset, rng) for _ in epochs]} if drawn else {}


def _first(extra: dict[str, Any]) -> dict[str, Any]:
    return {"times": extra["times"][0]} if extra else {}


def _inject(model: Recommender, extra: dict[str, Any]) -> None:
    def repetitions(pattern: SparsePattern, epoch: int, seed: int) -> Tensor:
        times = torch.from_numpy(extra["times"][epoch - 1])
        return times[pattern.row, pattern.indices]

    if extra:
        model._repetitions = repetitions  # type: ignore[assignment]


def _settings(case: Case, preset: str) -> dict[str, Any]:
    """Weights of an item graph by modality, of as many as there are."""
    if "mw" in case.config:
        case.config["mw"] = {1: (1.0,), 2: case.config["mw"], 3: (0.2, 0.5, 0.3)}[
            len(case.modalities)
        ]
    config = dict(case.config)
    weights = config.pop("mw", None)
    named = zip(case.modalities, weights or (), strict=bool(weights))
    return {**config, "modality_weights": dict(named)} if weights else config


ADAPTER = Adapter(settings=_settings, extra=_extra, first=_first, inject=_inject)
REFERENCES: dict[str, ModuleType] = {"dualgnn": dualgnn, "dragon": dragon}
PAIRS = [(name, preset) for name in REFERENCES for preset in ("paper", "original")]
every_pair = pytest.mark.parametrize(("name", "preset"), PAIRS)
every_problem = pytest.mark.parametrize(
    ("name", "preset", "size", "n_modalities"),
    [(*pair, "small", 2) for pair in PAIRS]
    + [(*pair, "middle", n) for pair in PAIRS for n in (1, 2, 3)],
)


def problem(name: str, preset: str, size: str, n_modalities: int = 2) -> Problem:
    return Problem(name, preset, size, ADAPTER, n_modalities, reference=REFERENCES[name])


def reference_terms(p: Problem, params: dict[str, Tensor]) -> dict[str, Tensor]:
    first = p.adapter.first(p.extra)
    terms: dict[str, Tensor] = p.reference.loss_terms(  # type: ignore[union-attr]
        params, p.case, p.preset, p.epochs[0][0], **first
    )
    return terms


def reference_scores(p: Problem, params: dict[str, Tensor]) -> Tensor:
    found: Tensor = p.reference.scores(params, p.case, p.preset)  # type: ignore[union-attr]
    return found


@every_problem
def test_scores_and_loss_terms(name: str, preset: str, size: str, n_modalities: int) -> None:
    p = problem(name, preset, size, n_modalities)
    ours, theirs = p.first_terms(), reference_terms(p, p.start)
    assert ours.keys() == theirs.keys()
    for term in theirs:
        assert float(ours[term].detach()) == pytest.approx(float(theirs[term]), rel=1e-12), term
    # Whatever an epoch has drawn.
    assert deviation(p.scores(), reference_scores(p, p.start)) <= 1e-12


@every_problem
def test_parameters_after_1_2_and_30_steps(
    name: str, preset: str, size: str, n_modalities: int
) -> None:
    p = problem(name, preset, size, n_modalities)
    theirs = p.reference.run(  # type: ignore[union-attr]
        p.start, p.case, preset, p.epochs, cases.LEARNING_RATE, **p.extra
    )
    ours = p.run()
    for step in (1, 2, 30):
        assert ours[step].keys() == theirs[step].keys()
        for key, value in ours[step].items():
            assert not torch.equal(value, p.start[key]), key
            assert deviation(value, theirs[step][key]) <= 1e-9, (step, key)
    assert deviation(p.scores(), reference_scores(p, theirs[30])) <= 1e-9


@every_pair
def test_gradients_reach_every_tensor_and_are_right(name: str, preset: str) -> None:
    p = problem(name, preset, "small")
    found = p.gradients()
    theirs = common.gradients(p.start, sorted(p.start), lambda now: reference_terms(p, now))
    assert found.keys() == theirs.keys()
    rng, h = np.random.default_rng(43), 1e-6
    for key, value in theirs.items():
        gradient = found[key]
        assert gradient is not None
        assert value is not None
        assert gradient.abs().max() > 1e-12, key
        assert deviation(gradient, value) <= 1e-9, key
        for flat in rng.choice(gradient.numel(), 3, replace=False):
            expected = (moved_loss(p, key, flat, h) - moved_loss(p, key, flat, -h)) / (2 * h)
            assert float(gradient.reshape(-1)[flat]) == pytest.approx(
                expected, rel=1e-6, abs=2e-9
            ), key


@torch.no_grad()
def moved_loss(p: Problem, key: str, flat: int, h: float) -> float:
    """Our loss of the first batch with one entry of one tensor moved."""
    entries = p.model.get_parameter(key).view(-1)
    before = float(entries[flat])
    entries[flat] += h
    loss = sum(float(term) for term in p.first_terms().values())
    entries[flat] = before
    return loss


@every_pair
def test_co_users_that_all_weigh_the_same(name: str, preset: str) -> None:
    p = problem(name, preset, "middle")
    p.adapter = Adapter(
        settings=lambda case, preset: {**_settings(case, preset), "user_weighting": "mean"},
        extra=_extra, first=_first, inject=_inject,
    )  # fmt: skip
    p.__post_init__()
    softmax = reference_scores(p, p.start)
    p.case.config["user_weighting"] = "mean"
    assert deviation(p.scores(), reference_scores(p, p.start)) <= 1e-12
    assert deviation(p.scores(), softmax) > 1e-3


def test_the_presets_of_dualgnn_differ_in_lists_and_in_the_first_modality() -> None:
    plain, theirs = (problem("dualgnn", preset, "middle") for preset in ("paper", "original"))
    theirs.put(plain.start)
    assert deviation(theirs.scores(), plain.scores()) > 1e-2
    for p in (plain, theirs):
        p.model.start_epoch(1, 0)
    lists = (p.model.epoch_co_users for p in (plain, theirs))  # type: ignore[union-attr]
    values = [each.values for each in lists]
    assert deviation(values[1], values[0]) > 1e-2
    # Nothing is drawn where nothing is filled up, and filled lists are drawn anew.
    assert plain.model.epoch_co_users is plain.model.co_users  # type: ignore[union-attr]
    theirs.model.start_epoch(2, 0)
    assert not torch.equal(theirs.model.epoch_co_users.values, values[1])  # type: ignore[union-attr]


def test_an_item_that_nobody_has_scores_by_its_content(
    block_train: TrainSet, block_features: Content
) -> None:
    """As if its vectors stood in the network, without an edge."""
    vectors = {m: x.double() for m, x in block_features.vectors.items()}
    copies = {m: x[3:4].clone() for m, x in vectors.items()}
    model, _ = make("dualgnn", block_train, Content.complete(vectors))
    train, users = block_train, torch.arange(block_train.n_users)
    wider = TrainSet(train.users, train.items, train.n_users, train.n_items + 1)
    both = Content.complete({m: torch.cat([x, copies[m]]) for m, x in vectors.items()})
    other, _ = make("dualgnn", wider, both)
    other.load_weights(model.weights())
    with torch.inference_mode():
        found = model.scorer(known(train, Content.complete(vectors), copies))(users)
        expected = other.scorer(known(wider))(users)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
