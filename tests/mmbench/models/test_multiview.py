"""MGCN and SMORE against the plain float64 references, through the real trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.mmbench.models.test_golden import moved_loss
from tests.reference import cases, common, mgcn, smore
from torch import Tensor

from mmbench.config import make_settings
from mmbench.core.sampling import Batch, Init
from mmbench.errors import UsageError
from mmbench.models import model_class
from mmbench.models.base import Content, Recommender


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


REFERENCES: dict[str, ModuleType] = {"mgcn": mgcn, "smore": smore}
ALONE = ("preference.", "common.")
"""Of MGCN's parameters, those that fuse several modalities: their gradient is zero with one."""


def problem(name: str, size: str, n_modalities: int = 2) -> Problem:
    alone = ALONE if name == "mgcn" and n_modalities == 1 else ()
    adapter = replace(ADAPTERS[name], absent=lambda key: key.startswith(alone))
    return Problem(name, "paper", size, adapter, n_modalities, REFERENCES[name])


def _smore_settings(case: common.Case, preset: str) -> dict[str, Any]:
    given = dict(case.config)
    by_modality = given.pop("knn_k_by")
    return {**given, "neighbours": {m: by_modality[m] for m in case.modalities}}


def _smore_extra(case: common.Case, preset: str, epochs: Sequence[Any]) -> dict[str, Any]:
    return {"masks": smore.draw_masks(case, epochs, np.random.default_rng(13))}


def _smore_inject(model: Recommender, extra: dict[str, Any]) -> None:
    n_users = model.n_users

    def kept(name: str, side: str, rows: Tensor, batch: Batch) -> Tensor:
        epoch, step = batch.clock.tolist()
        view = "fused" if name == "fused_preference" else name.removeprefix("preference.")
        mask = torch.from_numpy(extra["masks"][epoch - 1][step][view])
        return mask[rows + (n_users if side == "item" else 0)]

    model._kept = kept  # type: ignore[assignment]


ADAPTERS = {
    "mgcn": Adapter(),
    "smore": Adapter(
        settings=_smore_settings,
        extra=_smore_extra,
        first=lambda extra: {"masks": extra["masks"][0][0]},
        inject=_smore_inject,
    ),
}
every_problem = pytest.mark.parametrize(
    ("name", "size", "n_modalities"),
    [
        (name, *one)
        for name in ADAPTERS
        for one in (("small", 2), *(("middle", n) for n in (1, 2, 3)))
    ],
)


def first_terms(p: Problem, params: common.Parameters) -> dict[str, Tensor]:
    assert p.reference is not None
    terms: dict[str, Tensor] = p.reference.loss_terms(
        params, p.case, p.preset, p.epochs[0][0], **p.adapter.first(p.extra)
    )
    return terms


@every_problem
def test_scores_and_loss_terms(name: str, size: str, n_modalities: int) -> None:
    p = problem(name, size, n_modalities)
    assert deviation(p.scores(), p.reference.scores(p.start, p.case, "paper")) <= 1e-12
    p.model.train()
    ours, theirs = p.first_terms(), first_terms(p, p.start)
    assert ours.keys() == theirs.keys()
    for term in theirs:
        assert float(ours[term].detach()) == pytest.approx(float(theirs[term]), rel=1e-12), term


@every_problem
def test_parameters_after_1_2_and_30_steps(name: str, size: str, n_modalities: int) -> None:
    p = problem(name, size, n_modalities)
    theirs = p.reference.run(p.start, p.case, "paper", p.epochs, cases.LEARNING_RATE, **p.extra)
    ours = p.run()
    for step in (1, 2, 30):
        assert ours[step].keys() == {key for key in theirs[step] if not p.adapter.absent(key)}
        for key, value in ours[step].items():
            assert not torch.equal(value, p.start[key]), key
            assert deviation(value, theirs[step][key]) <= 1e-9, (step, key)
        for key in filter(p.adapter.absent, theirs[step]):
            assert torch.equal(theirs[step][key], p.start[key]), key
    assert deviation(p.scores(), p.reference.scores(theirs[30], p.case, "paper")) <= 1e-9


@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_reach_the_documented_tensors_and_are_right(name: str) -> None:
    p = problem(name, "small")
    found = p.gradients()
    reached = {key for key, x in found.items() if x is not None and x.abs().max() > 1e-12}
    assert reached == REFERENCES[name].GRADIENTS["paper"]
    theirs = common.gradients(p.start, sorted(reached), lambda now: first_terms(p, now))
    rng, h = np.random.default_rng(43), 1e-6
    for key, value in theirs.items():
        gradient = found[key]
        assert gradient is not None
        assert value is not None
        assert deviation(gradient, value) <= 1e-9, key
        for flat in rng.choice(gradient.numel(), min(3, gradient.numel()), replace=False):
            expected = (moved_loss(p, key, flat, h) - moved_loss(p, key, flat, -h)) / (2 * h)
            assert float(gradient.reshape(-1)[flat]) == pytest.approx(
                expected, rel=1e-6, abs=2e-9
            ), key


@pytest.mark.parametrize("name", ADAPTERS)
def test_scoring_between_steps_changes_nothing(name: str) -> None:
    undisturbed, p = problem(name, "small").run(after=(30,))[30], problem(name, "small")

    def score(step: int) -> None:
        if step % 3 == 0:
            p.scores()
            p.model.train()

    for key, value in p.run(after=(30,), visit=score)[30].items():
        assert torch.equal(value, undisturbed[key]), key


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_modality_may_have_as_many_neighbours_as_it_likes(name: str) -> None:
    p = problem(name, "middle")
    content = Content.complete({m: p.case.feature(m) for m in p.case.modalities})

    def graphs(value: object) -> dict[str, int]:
        config = make_settings(name, {"neighbours": value})
        model = model_class(name)(p.train, content, config, Init(0))  # type: ignore[call-arg]
        return {m: graph.pattern.nnz // 40 for m, graph in model.item_graphs.items()}  # type: ignore[union-attr]

    asked = {"textual": 3, "visual": 7}
    assert {m: graphs(asked)[m] for m in asked} == asked
    assert {m: graphs(99)[m] for m in asked} == {"visual": 40, "textual": 40}  # all there are
    with pytest.raises(UsageError, match="the modalities are visual, textual"):
        graphs({"visual": 3})
    with pytest.raises(UsageError, match="neighbours = .*each number must be at least 1"):
        graphs({"visual": 0, "textual": 3})
