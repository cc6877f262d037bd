"""Gradients and optimiser steps of the reference against finite differences and torch's Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from . import bm3, cases, common, freedom, grcn, lattice, mmgcn
from .cases import GRADIENTS, MODELS, NAMES, SIZES
from .common import Parameters

EVERY = [(model, preset) for model in MODELS for preset in NAMES]
SIZED = [(size, model, preset) for size in SIZES for model, preset in EVERY]


def first_terms(
    size: str, model: str, preset: str
) -> tuple[Parameters, Callable[[Parameters], dict[str, Tensor]]]:
    """Initial parameters, and the first batch's loss terms as a function of the parameters."""
    case, start = cases.case(size, model), cases.parameters(size, model, preset)
    extra = cases.first_batch_extra(size, model, preset)
    if (
        model == "bm3"
    ):  # the targets carry no gradient: finite differences must not move them either
        extra["fixed_targets"] = bm3.targets(start, case, preset, extra["masks"])
    return start, lambda now: MODELS[model].loss_terms(
        now, case, preset, cases.epochs(size)[0][0], **extra
    )


def total(terms: dict[str, Tensor]) -> float:
    return float(sum(float(term.detach()) for term in terms.values()))


def biggest(x: Tensor | None) -> float:
    return 0.0 if x is None else float(x.abs().max())


# ---------------------------------------------------------------------------------------- gradients


def assert_finite_differences(
    params: Parameters,
    names: list[str],
    terms: Callable[[Parameters], dict[str, Tensor]],
    h: float = 1e-6,
) -> None:
    rng = np.random.default_rng(29)
    found = common.gradients(params, names, terms)
    for name in names:
        gradient = found[name] if found[name] is not None else torch.zeros_like(params[name])
        directions = [torch.tensor(rng.normal(size=params[name].shape)) for _ in range(2)]
        for flat in rng.choice(params[name].numel(), min(4, params[name].numel()), replace=False):
            unit = torch.zeros(params[name].numel(), dtype=torch.float64)
            unit[flat] = 1.0
            directions.append(unit.reshape(params[name].shape))
        for direction in directions:
            up, down = (
                total(terms({**params, name: params[name] + sign * h * direction}))
                for sign in (1, -1)
            )
            expected = float((gradient * direction).sum())
            assert (up - down) / (2 * h) == pytest.approx(expected, rel=1e-6, abs=2e-8), name


@pytest.mark.parametrize(("model", "preset"), EVERY)
def test_gradients_equal_finite_differences(model: str, preset: str) -> None:
    params, terms = first_terms("small", model, preset)
    assert_finite_differences(
        params, MODELS[model].trainable(cases.case("small", model), preset), terms
    )


@pytest.mark.parametrize(
    "overrides",
    [
        {"weight_mode": "mean"},
        {"weight_mode": "max", "pruning": False},
        {"fusion_mode": "id"},
        {"fusion_mode": "mean", "factors_multimod": 4},
    ],
)
def test_gradients_of_grcn_variants_equal_finite_differences(overrides: dict[str, Any]) -> None:
    case = cases.case("small", "grcn", **overrides)
    params = grcn.parameters(case, "paper", np.random.default_rng(31))
    batch = cases.epochs("small")[0][0]
    names = grcn.trainable(case, "paper")
    assert_finite_differences(params, names, lambda now: grcn.loss_terms(now, case, "paper", batch))


def test_gradients_between_lattice_rebuilds_reach_the_id_tables_only() -> None:
    case, params = cases.case("small", "lattice"), cases.parameters("small", "lattice", "paper")
    graph, batch = lattice.item_graph(params, case, "paper"), cases.epochs("small")[0][1]

    def terms(now: Parameters) -> dict[str, Tensor]:
        return lattice.loss_terms(now, case, "paper", batch, rebuild=False, graph=graph)

    names = lattice.trainable(case, "paper")
    found = common.gradients(params, names, terms)
    assert {name for name in names if found[name] is not None} == lattice.BETWEEN_REBUILDS
    assert_finite_differences(params, sorted(lattice.BETWEEN_REBUILDS), terms)


@pytest.mark.parametrize(("model", "preset"), EVERY)
def test_the_documented_tensors_and_no_others_receive_gradients(model: str, preset: str) -> None:
    params, terms = first_terms("small", model, preset)
    names = MODELS[model].trainable(cases.case("small", model), preset)
    found = common.gradients(params, names, terms)
    assert {name for name in names if biggest(found[name]) > 1e-12} == GRADIENTS[model, preset]
    for name in set(names) - GRADIENTS[model, preset]:
        assert model == "freedom" and name in freedom.ZERO_GRADIENTS
        assert biggest(found[name]) < 1e-16


def test_ids_and_preferences_of_the_original_mmgcn_stay_where_they_start() -> None:
    case, params = cases.case("small", "mmgcn"), cases.parameters("small", "mmgcn", "original")
    end = mmgcn.run(params, case, "original", cases.epochs("small"), 0.01, after=(3,))[3]
    still = {name for name in params if torch.equal(end[name], params[name])}
    assert still == {"user_embedding", "item_embedding", "preference.visual", "preference.textual"}


def test_bm3_modality_losses_leave_the_id_tables_alone() -> None:
    case, params = cases.case("small", "bm3"), cases.parameters("small", "bm3", "paper")
    extra, batch = cases.first_batch_extra("small", "bm3", "paper"), cases.epochs("small")[0][0]
    names = bm3.trainable(case, "paper")

    def reached(chosen: Callable[[str], bool]) -> set[str]:
        def terms(now: Parameters) -> dict[str, Tensor]:
            return {
                k: v
                for k, v in bm3.loss_terms(now, case, "paper", batch, **extra).items()
                if chosen(k)
            }

        found = common.gradients(params, names, terms)
        assert all(found[n] is None or biggest(found[n]) > 1e-12 for n in names)
        return {n for n in names if found[n] is not None}

    ids = {"user_embedding", "item_embedding"}
    assert reached(lambda k: k.endswith(("_inter", "_intra"))) == bm3.MODALITY_GRADIENTS
    assert reached(lambda k: k.endswith("_alignment")) == ids | {
        "predictor.weight",
        "predictor.bias",
    }
    assert reached(lambda k: k == "norm") == ids


# ---------------------------------------------------------------------------------------- optimiser


@pytest.mark.parametrize("zero_for_missing", [False, True])
def test_adam_equals_torch(zero_for_missing: bool) -> None:
    rng = np.random.default_rng(37)
    params = {
        "always": torch.tensor(rng.normal(size=(5, 3))),
        "sometimes": torch.tensor(rng.normal(size=(4,))),
    }
    tables = torch.tensor(rng.normal(size=(25, 5, 3)))
    used = [step % 6 == 0 for step in range(25)]

    def terms(now: Parameters, step: int) -> dict[str, Tensor]:
        loss = (
            (now["always"] * tables[step]).sigmoid()[:3].sum()
        )  # rows 3 and 4 have a zero gradient
        return {"loss": loss + (now["sometimes"] ** 2).sum() if used[step] else loss}

    rates = [0.01 * 0.96 ** (step / 5) for step in range(25)]
    steps = [((lambda now, step=step: terms(now, step)), rates[step]) for step in range(25)]
    ours = common.adam(params, list(params), steps, (1, 7, 25), zero_for_missing=zero_for_missing)

    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimiser = torch.optim.Adam(list(leaves.values()), lr=0.01)
    for step in range(25):
        optimiser.param_groups[0]["lr"] = rates[step]
        optimiser.zero_grad(set_to_none=not zero_for_missing)
        terms(leaves, step)["loss"].backward()
        optimiser.step()
        if step + 1 in ours:
            for name, leaf in leaves.items():
                torch.testing.assert_close(
                    ours[step + 1][name], leaf.detach(), rtol=1e-13, atol=1e-14
                )


def test_legacy_zero_grad_moves_lattice_features_between_rebuilds() -> None:
    epochs = cases.epochs("small")[:1]
    moved = {}
    for legacy in (False, True):
        case = cases.case("small", "lattice", legacy_zero_grad=legacy)
        params = lattice.parameters(case, "paper", np.random.default_rng(19))
        end = lattice.run(params, case, "paper", epochs, 0.01, after=(1, 2, 5))
        moved[legacy] = {n for n in params if not torch.equal(end[1][n], end[5][n])}
        assert all(not torch.equal(params[n], end[1][n]) for n in params)
    assert moved[False] == lattice.BETWEEN_REBUILDS
    assert moved[True] == lattice.GRADIENTS["paper"]


def test_lattice_rate_decays_once_per_epoch() -> None:
    case, params = cases.case("small", "lattice"), cases.parameters("small", "lattice", "corrected")
    one_step = [[epoch[0]] for epoch in cases.epochs("small")]
    fast = lattice.run(params, case, "corrected", one_step, 0.01, after=(1, 2))
    constant = cases.case("small", "lattice", lr_sched=(1.0, 50))
    slow = lattice.run(params, constant, "corrected", one_step, 0.01, after=(1, 2))
    for name in params:
        assert torch.equal(fast[1][name], slow[1][name])
        ratio = (fast[2][name] - fast[1][name]) / (slow[2][name] - slow[1][name])
        assert ratio[ratio.isfinite()] == pytest.approx(0.96 ** (1 / 50), rel=1e-6)


@pytest.mark.parametrize(("size", "model", "preset"), SIZED)
def test_golden_steps_can_be_reproduced_to_their_tolerance(
    size: str, model: str, preset: str
) -> None:
    """Rounding must not grow to the tolerance: start 1e-14 away and compare after 30 steps."""
    case, start, module = (
        cases.case(size, model),
        cases.parameters(size, model, preset),
        MODELS[model],
    )
    rng = np.random.default_rng(41)
    shaken = {
        name: value * (1 + 1e-14 * torch.tensor(rng.choice([-1.0, 1.0], value.shape)))
        for name, value in start.items()
    }
    first, second = cases.EQUAL_ROWS[size]
    if "features.visual" in shaken:  # equal rows stay equal
        shaken["features.visual"][second] = shaken["features.visual"][first]
    ends = [
        module.run(
            s,
            case,
            preset,
            cases.epochs(size),
            cases.LEARNING_RATE,
            **cases.extra(size, model, preset),
        )[30]
        for s in (start, shaken)
    ]
    for name in start:
        distance = biggest(ends[0][name] - ends[1][name]) / max(biggest(ends[0][name]), 1e-3)
        assert distance < cases.tolerance(model, preset, name) / 3, name
    a, b = (module.scores(end, case, preset) for end in ends)
    assert biggest(a - b) < 1e-10 * biggest(a)


@pytest.mark.parametrize(("size", "preset"), [(size, preset) for size in SIZES for preset in NAMES])
def test_no_neighbour_of_the_golden_steps_hangs_on_rounding(size: str, preset: str) -> None:
    case, start = cases.case(size, "lattice"), cases.parameters(size, "lattice", preset)
    k, zero = lattice.settings(case, preset)["top_k"], cases.ZERO_ROW[size]
    assert k == freedom.settings(cases.case(size, "freedom"), preset)["top_k"]
    steps = {
        0: start,
        **lattice.run(
            start, case, preset, cases.epochs(size), cases.LEARNING_RATE, after=range(1, 31)
        ),
    }
    tables = [case.feature(m) for m in case.modalities]
    tables[1] = tables[1][torch.arange(case.n_items) != zero]  # its ties are exact zeros
    tables += [
        common.linear(now[f"features.{m}"], now, f"projection.{m}")
        for now in steps.values()
        for m in case.modalities
    ]
    for x in tables:
        ordered = common.cosines(x).sort(dim=1, descending=True).values
        assert float((ordered[:, k - 1] - ordered[:, k]).min()) > 1e-6


@pytest.mark.parametrize(("model", "preset"), EVERY)
def test_a_last_batch_of_one_row_has_a_finite_loss(model: str, preset: str) -> None:
    case, params = cases.case("small", model), cases.parameters("small", model, preset)
    batch = cases.epochs("small")[0][-1]
    terms = MODELS[model].loss_terms(
        params, case, preset, batch, **cases.first_batch_extra("small", model, preset)
    )
    assert all(term.shape == () and torch.isfinite(term) for term in terms.values())
    expected = {
        "vbpr": {"bpr", "l2"},
        "mmgcn": {"bpr", "id_l2", "preference_l2"},
        "grcn": {"bpr", "id_l2", "preference_l2"},
        "lattice": {"bpr", "l2"},
        "bm3": {
            "user_alignment",
            "item_alignment",
            "visual_inter",
            "visual_intra",
            "textual_inter",
            "textual_intra",
            "norm",
        },
        "freedom": {"bpr", "bpr_visual", "bpr_textual"},
    }
    assert set(terms) == expected[model]
