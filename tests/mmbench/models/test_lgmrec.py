"""LGMRec against the plain float64 reference, and what the reference cannot say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.mmbench.models.test_conformance import make
from tests.mmbench.models.test_stand_ins import without
from tests.reference import cases, common, lgmrec
from tests.reference.common import Case
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Batch, Init
from mmbench.models.base import Content, Recommender
from mmbench.models.lgmrec import LGMRec, LGMRecConfig


def _extra(case: Case, preset: str, epochs: Sequence[Any]) -> dict[str, Any]:
    rng = np.random.default_rng(13)
    return {"draws": [[lgmrec.draw(case, preset, rng) for _ in epoch] for epoch in epochs]}


def _inject(model: Recommender, extra: dict[str, Any]) -> None:
    def drawn(name: str, parts: Tensor, rows: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
        epoch, step = batch.clock.tolist()
        tables = extra["draws"][epoch - 1][step]
        noise, mask = (torch.from_numpy(tables[key][name]) for key in ("noise", "masks"))
        return (noise, mask) if rows is None else (noise[rows], mask[rows])

    model._drawn = drawn  # type: ignore[assignment]


ADAPTER = Adapter(extra=_extra, first=lambda extra: {"draws": extra["draws"][0][0]}, inject=_inject)


@pytest.fixture(name="double")
def _double() -> Iterator[None]:
    with double_precision():
        yield


def problem(size: str, n_modalities: int = 2) -> Problem:
    return Problem("lgmrec", "paper", size, ADAPTER, n_modalities, reference=lgmrec)


def first_terms(p: Problem, now: dict[str, Tensor]) -> dict[str, Tensor]:
    return lgmrec.loss_terms(now, p.case, "paper", p.epochs[0][0], **ADAPTER.first(p.extra))


every_problem = pytest.mark.parametrize(
    ("size", "n"), [("small", 1), ("small", 2), ("small", 3), ("middle", 2)]
)


@every_problem
def test_scores_terms_and_steps(double: None, size: str, n: int) -> None:
    p = problem(size, n)
    assert deviation(p.scores(), lgmrec.scores(p.start, p.case, "paper")) <= 1e-12
    ours, theirs = p.first_terms(), first_terms(p, p.start)
    assert ours.keys() == theirs.keys() == {"bpr", "reg"} | ({"contrast"} if n > 1 else set())
    for term, value in theirs.items():
        assert float(ours[term].detach()) == pytest.approx(float(value), rel=1e-12), term
    expected = lgmrec.run(
        p.start, p.case, "paper", p.epochs, cases.LEARNING_RATE, draws=p.extra["draws"]
    )
    found = p.run()
    for step in (1, 2, 30):
        assert found[step].keys() == expected[step].keys()
        for key, value in found[step].items():
            assert not torch.equal(value, p.start[key]), key
            assert deviation(value, expected[step][key]) <= 1e-9, (step, key)
    assert deviation(p.scores(), lgmrec.scores(expected[30], p.case, "paper")) <= 1e-9


@pytest.mark.parametrize("size", ["small", "middle"])
def test_gradients_are_the_reference_s_and_reach_every_tensor(double: None, size: str) -> None:
    p = problem(size)
    found = p.gradients()
    expected = common.gradients(
        p.start, lgmrec.trainable(p.case, "paper"), lambda now: first_terms(p, now)
    )
    assert {key for key, value in found.items() if value is not None} == lgmrec.GRADIENTS["paper"]
    for key, value in expected.items():
        assert value is not None and value.abs().max() > 1e-9, key
        assert deviation(found[key], value) <= 1e-9, key  # type: ignore[arg-type]


def test_scoring_between_steps_changes_nothing(double: None) -> None:
    undisturbed = problem("small").run(after=(8,))[8]
    p = problem("small")

    def score(step: int) -> None:
        p.scores()
        p.model.train()

    for key, value in p.run(after=(8,), visit=score)[8].items():
        assert torch.equal(value, undisturbed[key]), key


def test_without_weight_there_is_no_contrast(double: None) -> None:
    p = problem("small")
    p.model.config = p.config.model_copy(update={"cl_weight": 0.0})
    p.case.config["cl_weight"] = 0.0
    ours, theirs = p.first_terms(), first_terms(p, p.start)
    assert ours.keys() == {"bpr", "reg"}
    for term, value in ours.items():
        assert float(value.detach()) == pytest.approx(float(theirs[term]), rel=1e-12), term


def _model(**settings: Any) -> tuple[LGMRec, Problem]:
    p = problem("middle")
    config = LGMRecConfig(embedding_dim=6, **settings)
    content = Content.complete({m: p.case.feature(m) for m in p.case.modalities})
    return LGMRec(p.train, content, config, Init(0)), p


@pytest.mark.parametrize(
    ("law", "mean", "variance"),
    [("gumbel", 0.5772156649, np.pi**2 / 6), ("logistic", 0.0, np.pi**2 / 3)],
)
def test_draws_have_their_law_and_one_place_for_each_row(
    double: None, law: str, mean: float, variance: float
) -> None:
    model, p = _model(noise=law, keep_rate=0.8, n_hyperedges=50)
    batch, parts = p.batch(p.epochs[0][0], 1, 0), torch.zeros(40, 50)
    steps = [dataclasses.replace(batch, clock=torch.tensor([1, step])) for step in range(50)]
    drawn = [model._drawn("items:visual", parts, None, one) for one in steps]
    noise, kept = (torch.stack(part).double() for part in zip(*drawn, strict=True))
    n = noise.numel()
    assert float(noise.mean()) == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    assert float(noise.var()) == pytest.approx(variance, rel=0.05)
    assert float(kept.mean()) == pytest.approx(0.8, abs=4 * (0.16 / n) ** 0.5)
    assert abs(np.corrcoef(noise.flatten(), kept.flatten())[0, 1]) < 4 / n**0.5
    some = model._drawn("items:visual", parts[:7], None, steps[0])
    assert all(torch.equal(a, b[:7]) for a, b in zip(some, drawn[0], strict=True))
    other = model._drawn("items:textual", parts, None, steps[0])
    assert not any(torch.equal(a, b) for a, b in zip(other, drawn[0], strict=True))


def test_stand_ins_take_the_place_of_propagated_constants(
    block_train: TrainSet, block_features: Content
) -> None:
    content = without(block_features)
    model, _ = make("lgmrec", block_train, content)
    assert isinstance(model, LGMRec)
    model.start_epoch(1, 0)
    m = next(iter(block_features))
    assert m not in model._propagated
    complete, _ = make("lgmrec", block_train, block_features)
    assert isinstance(complete, LGMRec)
    complete.start_epoch(1, 0)
    assert all(m in complete._propagated for m in block_features)
    rows = torch.tensor([3, 30, 30, 0])
    with torch.no_grad():
        expected = complete._content(m, None)[rows]
        torch.testing.assert_close(complete._content(m, rows), expected)
        complete._propagated._made.clear()
        torch.testing.assert_close(complete._content(m, rows), expected)
