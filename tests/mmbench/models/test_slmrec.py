"""SLMRec against the plain float64 reference, and what the reference cannot say."""

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
from tests.reference import cases, common, slmrec
from tests.reference.common import Case
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Pairs
from mmbench.models import propagated
from mmbench.models.base import Content, Recommender
from mmbench.models.slmrec import SLMRec


def _extra(case: Case, preset: str, epochs: Sequence[Any]) -> dict[str, Any]:
    rng = np.random.default_rng(13)
    return {"draws": [[slmrec.draw(case, preset, rng) for _ in epoch] for epoch in epochs]}


def _inject(model: Recommender, extra: dict[str, Any]) -> None:
    def of(batch: Pairs) -> dict[str, Any]:
        epoch, step = batch.clock.tolist()
        return extra["draws"][epoch - 1][step]  # type: ignore[no-any-return]

    def kept(name: str, layer: Tensor, nodes: Tensor | None, batch: Pairs) -> Tensor:
        mask = torch.from_numpy(of(batch)["masks"][name])
        return mask if nodes is None else mask[nodes]

    model._kept = kept  # type: ignore[assignment]
    model._hidden = lambda batch, n_parts: torch.from_numpy(of(batch)["hidden"])  # type: ignore[assignment]


@pytest.fixture(name="double")
def _double() -> Iterator[None]:
    with double_precision():
        yield


def problem(size: str, n: int = 2, preset: str = "paper", task: str = "FAC") -> Problem:
    adapter = Adapter(
        settings=lambda case, preset: {**case.config, "ssl_task": task},
        extra=lambda case, preset, epochs: _extra(_with(case, task), preset, epochs),
        inject=_inject,
        absent=slmrec.is_entry_bias,
    )
    configs = {key: {**one, "ssl_task": task} for key, one in slmrec.CONFIGS.items()}
    module = type("Reference", (), {**vars(slmrec), "CONFIGS": configs})
    return Problem("slmrec", preset, size, adapter, n, reference=module)  # type: ignore[arg-type]


def _with(case: Case, task: str) -> Case:
    return dataclasses.replace(case, config={**case.config, "ssl_task": task})


def first_terms(p: Problem, now: dict[str, Tensor]) -> dict[str, Tensor]:
    draws = p.extra["draws"][0][0]
    return slmrec.loss_terms(now, p.case, p.preset, p.epochs[0][0], draws=draws)


PROBLEMS = [
    ("small", 1, "paper", "FAC"),
    ("small", 2, "paper", "FAC"),
    ("small", 2, "original", "FAC"),
    ("middle", 3, "original", "FAC"),
    ("small", 1, "original", "FM"),
    ("middle", 2, "paper", "FM"),
    ("small", 3, "original", "FM"),
    ("small", 2, "original", "FD"),
    ("middle", 2, "paper", "FD+FM"),
    ("small", 2, "original", "FD+FM"),
]
every_problem = pytest.mark.parametrize(("size", "n", "preset", "task"), PROBLEMS)


@every_problem
def test_scores_terms_gradients_and_steps(
    double: None, size: str, n: int, preset: str, task: str
) -> None:
    p = problem(size, n, preset, task)
    assert deviation(p.scores(), slmrec.scores(p.start, p.case, preset)) <= 1e-12
    ours, theirs = p.first_terms(), first_terms(p, p.start)
    assert ours.keys() == theirs.keys()
    for term, value in theirs.items():
        assert float(ours[term].detach()) == pytest.approx(float(value), rel=1e-12), term
    found = p.gradients()
    names = slmrec.trainable(p.case, preset)
    for key, value in common.gradients(p.start, names, lambda now: first_terms(p, now)).items():
        if slmrec.is_entry_bias(key):
            assert value is not None and value.abs().max() <= 1e-12
            assert key not in found
        else:
            assert value is not None and value.abs().max() > 1e-9, key
            assert deviation(found[key], value) <= 1e-9, key  # type: ignore[arg-type]
    draws = p.extra["draws"]
    expected = slmrec.run(p.start, p.case, preset, p.epochs, cases.LEARNING_RATE, draws=draws)
    steps = p.run()
    for step in (1, 2, 30):
        assert steps[step].keys() == {key for key in names if not slmrec.is_entry_bias(key)}
        for key, value in steps[step].items():
            assert not torch.equal(value, p.start[key]), key
            assert deviation(value, expected[step][key]) <= 1e-9, (step, key)
    assert deviation(p.scores(), slmrec.scores(expected[30], p.case, preset)) <= 1e-9


def test_presets_are_the_reference_s() -> None:
    for preset, values in slmrec.PRESETS.items():
        config = SLMRec.Config(preset=preset)  # type: ignore[call-arg]
        assert dataclasses.asdict(config.variant) == values  # type: ignore[attr-defined]


def test_two_different_parts_are_hidden_each_equally_often() -> None:
    p = problem("small", 2, "paper", "FM")
    model = p.model
    del model._hidden
    batch = p.batch(p.epochs[0][0], 1, 0)
    steps = [dataclasses.replace(batch, clock=torch.tensor([1, step])) for step in range(1200)]
    drawn = torch.stack([model._hidden(one, 3) for one in steps])  # type: ignore[operator]
    assert (drawn[:, 0] != drawn[:, 1]).all()
    pairs = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9).reshape(3, 3)
    off = pairs[~torch.eye(3, dtype=torch.bool)]
    assert off.sum() == 1200 and (off - 200).abs().max() < 4 * (200 * 5 / 6) ** 0.5


@pytest.mark.parametrize("task", ["FAC", "FD", "FM", "FD+FM"])
def test_stand_ins_take_the_place_of_propagated_constants(
    task: str, block_train: TrainSet, block_features: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = make("slmrec", block_train, without(block_features), ssl_task=task)
    assert isinstance(model, SLMRec)
    model.start_epoch(1, 0)
    m = next(iter(block_features))
    assert m not in model._propagated
    complete, _ = make("slmrec", block_train, block_features, ssl_task=task)
    assert isinstance(complete, SLMRec)
    complete.start_epoch(1, 0)
    nodes = torch.tensor([3, 30, 30, 0])
    with torch.no_grad():
        expected = complete._of_content(m, None)[nodes]
        torch.testing.assert_close(complete._of_content(m, nodes), expected)
        complete._propagated._made.clear()
        width = complete.get_buffer(f"features_{m}").shape[1]
        monkeypatch.setattr(propagated, "_LARGEST", 40 * width * 4 - 1)
        complete.start_epoch(2, 0)
        assert m not in complete._propagated
        torch.testing.assert_close(complete._of_content(m, nodes), expected)
