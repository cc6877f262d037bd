"""MMGCN and GRCN against the plain float64 reference, through the real trainer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tests.mmbench.models import golden
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.reference import cases, common
from tests.reference.common import Case, Parameters
from torch import Tensor


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(golden, "with_modalities", with_modalities)
    with double_precision():
        yield


def with_modalities(case: Case, n: int) -> Case:
    """The case with one, two or three modalities, and the widths of MMGCN for as many."""
    case = golden_with_modalities(case, n)
    if isinstance(case.config["factors_multimod"], tuple):
        case.config["factors_multimod"] = (*case.config["factors_multimod"], 2)[:n]
    return case


ADAPTERS = {"mmgcn": Adapter(), "grcn": Adapter()}
golden_with_modalities = golden.with_modalities
OURS = [  # the reference's names in ours
    (r"(preference|projection)\.(\w+)(.*)", r"networks.\2.\1\3"),
    (r"(conv|linear|mix)\.(\w+)\.(\d+)(.*)", r"networks.\2.layers.\3.\1\4"),
]
FROZEN = {"user_embedding", "item_embedding", "preference"}  # by MMGCN's preset `original`


def our_name(model: str, name: str) -> str:
    if model == "mmgcn":
        for pattern, replacement in OURS:
            name = re.sub(f"^{pattern}$", replacement, name)
    return name


class Renamed(Problem):
    """A problem whose model names its parameters by modality first."""

    def put(self, params: Mapping[str, Tensor]) -> None:
        weights = self.model.weights()
        ours = {our_name(self.name, name): value.clone() for name, value in params.items()}
        if self.case.config.get("weight_mode", "confid") != "confid":
            del ours["confidence"]  # which the reference has and does not use
        self.model.load_weights({**_stale(weights), **ours})

    def get(self) -> Parameters:
        weights = self.model.weights()
        assert weights.keys() - _stale(weights).keys() == {
            our_name(self.name, name) for name in self.start
        }
        return {name: weights[our_name(self.name, name)].clone() for name in self.start}

    def gradients(self) -> dict[str, Tensor | None]:
        found = super().gradients()
        return {name: found.get(our_name(self.name, name)) for name in self.start}

    def tensor(self, name: str) -> Tensor:
        return self.model.get_parameter(our_name(self.name, name))


def _stale(weights: Parameters) -> Parameters:
    return {name: value for name, value in weights.items() if name.startswith("stale_")}


def problem(name: str, preset: str, size: str, n_modalities: int = 2) -> Renamed:
    return Renamed(name, preset, size, ADAPTERS[name], n_modalities)


def reference_terms(p: Renamed, params: Parameters) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = p.reference.loss_terms(params, p.case, p.preset, p.epochs[0][0])
    return terms


PAIRS = [(model, preset) for model in ADAPTERS for preset in cases.NAMES]
every_problem = pytest.mark.parametrize(
    ("name", "preset", "size", "n_modalities"),
    [(*pair, "small", 2) for pair in PAIRS]
    + [(*pair, "middle", n) for pair in PAIRS for n in (1, 2, 3)],
)


@every_problem
def test_scores_and_loss_terms(name: str, preset: str, size: str, n_modalities: int) -> None:
    p = problem(name, preset, size, n_modalities)
    assert deviation(p.scores(), p.reference.scores(p.start, p.case, preset)) <= 1e-12
    ours, theirs = p.first_terms(), reference_terms(p, p.start)
    assert ours.keys() == theirs.keys()
    for term in theirs:
        assert float(ours[term].detach()) == pytest.approx(
            float(theirs[term]), rel=1e-12, abs=1e-15
        ), term


@every_problem
def test_parameters_after_1_2_and_30_steps(
    name: str, preset: str, size: str, n_modalities: int
) -> None:
    p = problem(name, preset, size, n_modalities)
    theirs = p.reference.run(p.start, p.case, preset, p.epochs, cases.LEARNING_RATE)
    ours = p.run()
    for step in (1, 2, 30):
        for key, value in ours[step].items():
            frozen = (name, preset) == ("mmgcn", "original") and key.split(".")[0] in FROZEN
            assert torch.equal(value, p.start[key]) == frozen, key
            assert deviation(value, theirs[step][key]) <= cases.tolerance(name, preset, key), (
                step,
                key,
            )
    assert deviation(p.scores(), p.reference.scores(theirs[30], p.case, preset)) <= 1e-9


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_gradients_reach_the_documented_tensors_and_are_right(name: str, preset: str) -> None:
    p = problem(name, preset, "small")
    found = p.gradients()
    reached = {
        key for key, value in found.items() if value is not None and value.abs().max() > 1e-12
    }
    assert reached == cases.GRADIENTS[name, preset]
    theirs = common.gradients(p.start, sorted(reached), lambda now: reference_terms(p, now))
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


@torch.no_grad()
def moved_loss(p: Renamed, key: str, flat: int, h: float) -> float:
    """Our loss of the first batch with one entry of one tensor moved."""
    entries = p.tensor(key).view(-1)
    before = float(entries[flat])
    entries[flat] += h
    loss = sum(float(term) for term in p.first_terms().values())
    entries[flat] = before
    return loss


@pytest.mark.parametrize(
    "change",
    [
        {"weight_mode": "mean"},
        {"weight_mode": "max"},
        {"pruning": False},
        {"fusion_mode": "id"},
        {"fusion_mode": "mean", "factors_multimod": 8},
        {"confidence": "sender"},
        {"routing": False, "layer_norm": False},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_the_other_modes_of_grcn(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(case: Case, n: int) -> Case:
        case = with_modalities(case, n)
        case.config.update(change)
        return case

    monkeypatch.setattr(golden, "with_modalities", changed)
    names = {"confidence": "confidence_of", "layer_norm": "normalise_layers"}
    settings = Adapter(
        settings=lambda case, preset: {names.get(k, k): v for k, v in case.config.items()}
    )
    p = Renamed(
        "grcn", "paper", "middle", settings, 3
    )  # not two: those parameters are stored for the plain case
    assert deviation(p.scores(), p.reference.scores(p.start, p.case, "paper")) <= 1e-12
    found = p.gradients()
    theirs = common.gradients(p.start, sorted(p.start), lambda now: reference_terms(p, now))
    for key, gradient in theirs.items():
        ours = found[key]
        assert (ours is None) == (gradient is None), key
        if ours is not None and gradient is not None:
            assert (
                float((ours - gradient).abs().max()) <= 1e-9 * float(gradient.abs().max()) + 1e-15
            ), key


@pytest.mark.parametrize("size", cases.SIZES)
def test_the_edge_orders_of_grcn_differ(size: str) -> None:
    elliot, aligned = problem("grcn", "paper", size), problem("grcn", "corrected", size)
    aligned.put(elliot.start)
    assert deviation(aligned.scores(), elliot.scores()) > 1e-3


@pytest.mark.parametrize("name", ADAPTERS)
def test_stale_inference_ranks_by_the_parameters_before_the_last_step_of_an_epoch(
    name: str,
) -> None:
    settings = {"stale_inference": True, "batch_size": cases.BATCH_SIZE["small"]}
    adapter = Adapter(
        settings=lambda case, preset: {**ADAPTERS[name].settings(case, preset), **settings}
    )
    p = Renamed(name, "paper", "small", adapter)
    seen: dict[int, Tensor] = {}

    def look(step: int) -> None:
        seen[step] = p.scores()
        p.model.train()

    n = len(p.epochs[0])
    kept = p.run(after=(n - 1, n, 2 * n - 1, 2 * n), visit=look)
    for end in (n, 2 * n):
        assert deviation(seen[end], p.reference.scores(kept[end - 1], p.case, "paper")) <= 1e-9
        assert deviation(seen[end], p.reference.scores(kept[end], p.case, "paper")) > 1e-6
    assert torch.equal(seen[n], seen[2 * n - 1])
    theirs = p.reference.run(
        p.start, p.case, "paper", p.epochs, cases.LEARNING_RATE, after=(2 * n,)
    )[2 * n]
    for key, value in kept[2 * n].items():
        assert deviation(value, theirs[key]) <= cases.tolerance(name, "paper", key)
