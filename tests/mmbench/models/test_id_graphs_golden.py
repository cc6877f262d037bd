"""LayerGCN and SimGCL against the plain float64 reference, through the real trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.reference import cases, common, freedom, layergcn, simgcl
from tests.reference.common import Case
from torch import Tensor

from mmbench.config import make_settings
from mmbench.core.sampling import Triples
from mmbench.models.base import Recommender
from mmbench.ops.contrast import first_of_equals, info_nce


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


def _kept(case: Case, preset: str, epochs: Sequence[Any]) -> dict[str, Any]:
    rng = np.random.default_rng(17)
    return {"kept": [freedom.draw_kept(case, preset, rng) for _ in epochs]}


def _inject_kept(model: Recommender, extra: dict[str, Any]) -> None:
    model._kept_edges = lambda pruning, epoch, seed: torch.from_numpy(  # type: ignore[assignment]
        np.asarray(extra["kept"][epoch - 1])
    )


def _noise(case: Case, preset: str, epochs: Sequence[Any]) -> dict[str, Any]:
    rng = np.random.default_rng(23)
    return {"noise": [[simgcl.draw(case, batch, rng) for batch in epoch] for epoch in epochs]}


def _inject_noise(model: Recommender, extra: dict[str, Any]) -> None:
    def uniform(view: str, layer: int, like: Tensor, sizes: list[int], batch: Triples) -> Tensor:
        epoch, step = batch.clock.tolist()
        number = ("first", "second").index(view)
        return torch.from_numpy(extra["noise"][epoch - 1][step][number, layer])

    model._uniform = uniform  # type: ignore[assignment]


REFERENCES: dict[str, ModuleType] = {"layergcn": layergcn, "simgcl": simgcl}
ADAPTERS = {
    "layergcn": Adapter(
        extra=_kept,
        first=lambda extra: {"kept": extra["kept"][0]},
        inject=_inject_kept,
    ),
    "simgcl": Adapter(
        settings=lambda case, preset: {
            "cl_weight" if key == "cl" else key: value for key, value in case.config.items()
        },
        extra=_noise,
        first=lambda extra: {"noise": extra["noise"][0][0]},
        inject=_inject_noise,
    ),
}
PROBLEMS = [
    (name, preset, size)
    for name in ADAPTERS
    for preset in ("paper", "original")
    for size in cases.SIZES
]
every_problem = pytest.mark.parametrize(("name", "preset", "size"), PROBLEMS)


def problem(name: str, preset: str, size: str) -> Problem:
    return Problem(name, preset, size, ADAPTERS[name], 1, REFERENCES[name])


def first_terms(p: Problem, now: dict[str, Tensor]) -> dict[str, Tensor]:
    extra, batch = p.adapter.first(p.extra), p.epochs[0][0]
    return p.reference.loss_terms(now, p.case, p.preset, batch, **extra)  # type: ignore[no-any-return, union-attr]


@every_problem
def test_scores_and_loss_terms(name: str, preset: str, size: str) -> None:
    p = problem(name, preset, size)
    assert deviation(p.scores(), p.reference.scores(p.start, p.case, preset)) <= 1e-12  # type: ignore[union-attr]
    ours, theirs = p.first_terms(), first_terms(p, p.start)
    assert ours.keys() == theirs.keys()
    for term in theirs:
        assert float(ours[term].detach()) == pytest.approx(float(theirs[term]), rel=1e-12), term
    # Scores are of the whole graph, whatever the epoch's.
    assert deviation(p.scores(), p.reference.scores(p.start, p.case, preset)) <= 1e-12  # type: ignore[union-attr]


@every_problem
def test_gradients_are_the_reference_s(name: str, preset: str, size: str) -> None:
    p = problem(name, preset, size)
    found = p.gradients()
    reached = {key for key, x in found.items() if x is not None and x.abs().max() > 1e-12}
    assert reached == REFERENCES[name].GRADIENTS[preset]
    names = REFERENCES[name].trainable(p.case, preset)
    for key, x in common.gradients(p.start, names, lambda now: first_terms(p, now)).items():
        assert x is not None
        assert deviation(found[key], x) <= 1e-9, key  # type: ignore[arg-type]


@every_problem
def test_parameters_after_1_2_and_30_steps(name: str, preset: str, size: str) -> None:
    p = problem(name, preset, size)
    reference = REFERENCES[name]
    theirs = reference.run(p.start, p.case, preset, p.epochs, cases.LEARNING_RATE, **p.extra)
    ours = p.run()
    for step in (1, 2, 30):
        for key, value in ours[step].items():
            assert deviation(value, theirs[step][key]) <= 1e-9, (step, key)
    assert deviation(p.scores(), reference.scores(theirs[30], p.case, preset)) <= 1e-9


@pytest.mark.parametrize(("preset", "by_degrees"), [("paper", 4), ("original", 2)])
def test_layergcn_draws_every_epoch_or_every_second_one_by_degrees(
    preset: str, by_degrees: int
) -> None:
    p = problem("layergcn", preset, "middle")
    del p.model._kept_edges
    p.model.start_epoch(1, 0)
    told: list[bool] = []

    class Pruning:
        users = torch.zeros(1)

        def draw(self, stream: object, *, uniform: bool) -> Tensor:
            told.append(not uniform)
            return self.users

    for epoch in (1, 2, 3, 4):
        p.model._kept_edges(Pruning(), epoch, 0)  # type: ignore[operator]
    assert told[::2] == [True, True]
    assert sum(told) == by_degrees


def test_layergcn_without_edge_dropout_trains_on_the_full_graph() -> None:
    p = problem("layergcn", "paper", "small")
    del p.model._kept_edges
    p.model.config = p.config.model_copy(update={"edge_dropout": 0.0})
    p.model.start_epoch(1, 0)
    assert torch.equal(p.model.epoch_graph.values, p.model.full_graph.values)  # type: ignore[union-attr]


def test_simgcl_draws_anew_for_each_step_view_and_layer() -> None:
    p = problem("simgcl", "paper", "middle")
    del p.model._uniform
    batches = [p.batch(p.epochs[0][0], 1, step) for step in (0, 0, 1)]
    like = torch.zeros(40, 8)
    draw = p.model._uniform  # type: ignore[operator]
    first, again, later = (draw("first", 1, like, [30, 10], batch) for batch in batches)
    assert torch.equal(first, again)
    others = [later, draw("second", 1, like, [30, 10], batches[0])]
    others.append(draw("first", 2, like, [30, 10], batches[0]))
    assert torch.equal(draw("first", 1, like[:32], [25, 7], batches[0])[25:], first[30:37])
    assert not any(torch.equal(first, other) for other in others)
    assert 0 <= float(first.min()) < float(first.max()) < 1
    assert float(first.mean()) == pytest.approx(0.5, abs=4 / (12 * first.numel()) ** 0.5)


def test_simgcl_without_contrast_is_a_lightgcn_without_the_ids_own_layer() -> None:
    p = problem("simgcl", "paper", "middle")
    p.model.config = p.config.model_copy(update={"cl_weight": 0.0})
    assert p.first_terms().keys() == {"bpr", "l2"}


def test_copies_at_the_end_change_nothing_of_a_contrast() -> None:
    """What a GPU appends, so that shapes do not depend on the data."""
    rng = np.random.default_rng(3)
    views = [torch.tensor(rng.normal(size=(5, 4)), requires_grad=True) for _ in range(2)]
    expected = info_nce(*views, 0.3)
    of_expected = torch.autograd.grad(expected, views)
    more = [torch.cat([x, x[-1:], x[-1:]]) for x in views]
    rows = torch.tensor([0, 2, 3, 7, 9, 9, 9])
    real = torch.ones(7, dtype=torch.bool)
    real[1:] = rows[1:] != rows[:-1]
    found = info_nce(*more, 0.3, real.double())
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for x, y in zip(torch.autograd.grad(found, views), of_expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
    assert first_of_equals(rows) is None  # on the CPU there are no copies


@pytest.mark.parametrize("tau", [0.01, 0.2])
def test_a_contrast_of_low_temperature_stays_finite(tau: float) -> None:
    a = torch.eye(3, requires_grad=True)
    loss = info_nce(a, -torch.eye(3), tau)
    (gradient,) = torch.autograd.grad(loss, [a])
    assert loss.item() == pytest.approx(1 / tau + np.log(2 + np.exp(-1 / tau)), rel=1e-12)
    assert torch.isfinite(gradient).all()


def test_aliases_of_other_frameworks() -> None:
    theirs = {"lambda": 0.7, "eps": 0.3, "n_layer": 1, "temp": 0.5}
    simgcl_settings = make_settings("simgcl", theirs)
    assert simgcl_settings.model_dump().items() >= {
        "cl_weight": 0.7, "noise": 0.3, "n_layers": 1, "temperature": 0.5,
    }.items()  # fmt: skip
    assert make_settings("layergcn", {"dropout": 0.3}).model_dump()["edge_dropout"] == 0.3


def test_a_contrast_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    a, b = (torch.tensor(rng.normal(size=(8, 4)), requires_grad=True) for _ in range(2))
    whole = info_nce(a, b, 0.3)
    of_whole = torch.autograd.grad(whole, [a, b])
    monkeypatch.setattr("mmbench.ops.partition._BLOCK", 1)
    parts = info_nce(a, b, 0.3)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
    for x, y in zip(torch.autograd.grad(parts, [a, b]), of_whole, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
