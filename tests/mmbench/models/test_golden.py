"""Scores, loss terms, gradients and steps of the models against the reference, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.mmbench.conftest import known
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.reference import bm3, cases, common, freedom, lattice
from tests.reference.common import Case
from torch import Tensor

from mmbench.config import make_settings
from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Edges, Init, Pairs
from mmbench.errors import UsageError
from mmbench.models import model_class
from mmbench.models.base import Content, Recommender
from mmbench.models.freedom import modality_weights
from mmbench.ops.row_table import RowTable
from mmbench.trainer import Trainer


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


# ------------------------------------------------------------------------------------------- how
# each model is met


def _vbpr_settings(case: Case, preset: str) -> dict[str, Any]:
    weights = ["lambda_w", "lambda_b", "lambda_e"] if preset == "original" else ["l_w"]
    names = ["reg_weight", "bias_reg_weight", "content_reg_weight"]
    given = {name: case.config[key] for name, key in zip(names, weights, strict=False)}
    return {"factors": case.config["factors"], **given}


def _freedom_settings(case: Case, preset: str) -> dict[str, Any]:
    config = {**case.config}
    weights = {1: (1.0,), 2: config.pop("mw"), 3: (0.2, 0.5, 0.3)}[len(case.modalities)]
    config.pop("mw", None)
    case.config["mw"] = weights
    return {**config, "modality_weights": dict(zip(case.modalities, weights, strict=True))}


def _freedom_extra(case: Case, preset: str, epochs: Sequence[Any]) -> dict[str, Any]:
    rng = np.random.default_rng(17)
    return {"kept": [freedom.draw_kept(case, preset, rng) for _ in epochs]}


def _freedom_inject(model: Recommender, extra: dict[str, Any]) -> None:
    model._kept_edges = lambda pruning, epoch, seed: torch.from_numpy(  # type: ignore[assignment]
        np.asarray(extra["kept"][epoch - 1])
    )


def _bm3_extra(case: Case, preset: str, epochs: Sequence[Any]) -> dict[str, Any]:
    rng, s = np.random.default_rng(13), bm3.settings(case, preset)
    rows = {
        "user": case.n_users,
        "item": case.n_items,
        **dict.fromkeys(case.modalities, case.n_items),
    }
    keep = 1 - s["dropout"]
    return {
        "masks": [
            [{k: 1.0 * (rng.random((n, s["factors"])) < keep) for k, n in rows.items()} for _ in e]
            for e in epochs
        ]
    }


def _bm3_inject(model: Recommender, extra: dict[str, Any]) -> None:
    def target(name: str, view: Tensor, batch: Pairs) -> Tensor:
        epoch, step = batch.clock.tolist()
        mask = torch.from_numpy(extra["masks"][epoch - 1][step][name.removeprefix("features.")])
        rows = (batch.users if name == "user" else batch.pos).unique()
        return view.detach() * mask[rows] / (1 - model.config.dropout)  # type: ignore[union-attr, operator]

    model._target = target  # type: ignore[assignment]


ADAPTERS = {
    "vbpr": Adapter(settings=_vbpr_settings),
    "lattice": Adapter(),
    "bm3": Adapter(
        extra=_bm3_extra, first=lambda extra: {"masks": extra["masks"][0][0]}, inject=_bm3_inject
    ),
    "freedom": Adapter(
        settings=_freedom_settings,
        extra=_freedom_extra,
        first=lambda extra: {"kept": extra["kept"][0]},
        inject=_freedom_inject,
        absent=lambda name: (
            name.startswith("projection.") and name.endswith(".bias")
        ),  # cancels in every difference
    ),
}
PAIRS = [
    (model, preset)
    for model in ADAPTERS
    for preset in cases.NAMES
    if preset == "paper" or "preset" in model_class(model).Config.model_fields
]
PROBLEMS = [
    (model, preset, size, n)
    for model, preset in PAIRS
    for size in cases.SIZES
    for n in ADAPTERS[model].modalities
    if n == 2 or size == "middle"
]
every_problem = pytest.mark.parametrize(("name", "preset", "size", "n_modalities"), PROBLEMS)


def problem(name: str, preset: str, size: str, n_modalities: int = 2) -> Problem:
    return Problem(name, preset, size, ADAPTERS[name], n_modalities)


def first_terms(p: Problem) -> dict[str, Tensor]:
    """The reference's terms of the first batch, as `Problem.first_terms`."""
    return p.reference.loss_terms(
        p.start, p.case, p.preset, p.epochs[0][0], **p.adapter.first(p.extra)
    )  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- tests


@every_problem
def test_scores_and_loss_terms(name: str, preset: str, size: str, n_modalities: int) -> None:
    p = problem(name, preset, size, n_modalities)
    assert deviation(p.scores(), p.reference.scores(p.start, p.case, preset)) <= 1e-12
    ours, theirs = p.first_terms(), first_terms(p)
    assert ours.keys() == theirs.keys()
    for term in theirs:
        assert float(ours[term].detach()) == pytest.approx(
            float(theirs[term].detach()), rel=1e-12, abs=1e-15
        ), term
    assert (
        deviation(p.scores(), p.reference.scores(p.start, p.case, preset)) <= 1e-12
    )  # whatever the epoch's graph


@every_problem
def test_parameters_after_1_2_and_30_steps(
    name: str, preset: str, size: str, n_modalities: int
) -> None:
    p = problem(name, preset, size, n_modalities)
    theirs = p.reference.run(p.start, p.case, preset, p.epochs, cases.LEARNING_RATE, **p.extra)
    ours = p.run()
    for step in (1, 2, 30):
        assert ours[step].keys() == {key for key in theirs[step] if not p.adapter.absent(key)}
        for key, value in ours[step].items():
            assert torch.equal(value, p.start[key]) == torch.equal(
                theirs[step][key], p.start[key]
            ), key  # who moves
            assert deviation(value, theirs[step][key]) <= cases.tolerance(name, preset, key), (
                step,
                key,
            )
    assert deviation(p.scores(), p.reference.scores(theirs[30], p.case, preset)) <= 1e-9


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_scoring_between_steps_changes_nothing(name: str, preset: str) -> None:
    undisturbed = problem(name, preset, "small").run(after=(30,))[30]
    p = problem(name, preset, "small")

    def score(step: int) -> None:
        if step % 3 == 0:
            p.scores()
            p.model.train()

    for key, value in p.run(after=(30,), visit=score)[30].items():
        assert torch.equal(value, undisturbed[key]), key


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_gradients_reach_the_documented_tensors_and_are_right(name: str, preset: str) -> None:
    p = problem(name, preset, "small")
    found = p.gradients()
    reached = {
        key for key, value in found.items() if value is not None and value.abs().max() > 1e-12
    }
    assert reached == cases.GRADIENTS[name, preset]
    names = p.reference.trainable(p.case, preset)
    for key, value in common.gradients(p.start, names, lambda now: {**_terms_of(p, now)}).items():
        if key in reached:
            assert value is not None
            assert deviation(found[key], value) <= 1e-9, key  # type: ignore[arg-type]
    if name == "bm3":
        fix_targets(p.model)
        p.first_terms()
    rng, h = np.random.default_rng(43), 1e-6
    for key in sorted(reached):
        gradient = found[key]
        assert gradient is not None
        for flat in rng.choice(gradient.numel(), min(3, gradient.numel()), replace=False):
            expected = (moved_loss(p, key, flat, h) - moved_loss(p, key, flat, -h)) / (2 * h)
            assert float(gradient.reshape(-1)[flat]) == pytest.approx(
                expected, rel=1e-6, abs=2e-9
            ), key


def _terms_of(p: Problem, now: dict[str, Tensor]) -> dict[str, Tensor]:
    before, p.start = p.start, now
    try:
        return first_terms(p)
    finally:
        p.start = before


def fix_targets(model: Any) -> None:
    """BM3's targets are constants: finite differences must not move them."""
    compute, targets = model._target, {}

    def target(name: str, view: Tensor, batch: Pairs) -> Tensor:
        if name not in targets:
            targets[name] = compute(name, view, batch)
        return targets[name]

    model._target = target


@torch.no_grad()
def moved_loss(p: Problem, key: str, flat: int, h: float) -> float:
    """Our loss of the first batch with one entry of one tensor moved."""
    tensor = dict(p.model.named_parameters()).get(key)
    if tensor is None:
        table = p.model.get_submodule(key)
        assert isinstance(table, RowTable)
        tensor = table.values
    entries = tensor.view(-1)
    before = float(entries[flat])
    entries[flat] += h
    loss = sum(float(term) for term in p.first_terms().values())
    entries[flat] = before
    return loss


# --------------------------------------------------------------------------------------------------
# what differs by


@pytest.mark.parametrize("preset", cases.NAMES)
def test_lattice_presets_are_the_reference_s(preset: str) -> None:
    ours = make_settings("lattice", {"preset": preset}).variant  # type: ignore[attr-defined]
    names = {
        "top_k": "neighbours",
        "l_m": "raw_weight",
        "column_normalised": "both_sides",
        "force_diagonal": "unit_diagonal",
    }
    expected = {names.get(key, key): value for key, value in lattice.PRESETS[preset].items()}
    assert dataclasses.asdict(ours) == expected


def test_lattice_goes_on_by_momentum_under_legacy_zero_grad_only() -> None:
    """Between two steps that do not build the item graph."""
    for preset, moves in (("paper", True), ("original", True), ("corrected", False)):
        p = problem("lattice", preset, "small")
        after = p.run(after=(2, 3))
        for key in ("features.visual", "projection.textual.weight", "modality_weights"):
            assert torch.equal(after[2][key], after[3][key]) != moves, (preset, key)


def test_bm3_modality_losses_leave_the_embeddings_alone() -> None:
    p = problem("bm3", "paper", "small")
    terms = p.first_terms()
    torch.stack(
        [term for key, term in terms.items() if key.endswith(("_inter", "_intra"))]
    ).sum().backward()  # type: ignore[no-untyped-call]
    parameters = dict(p.model.named_parameters())
    assert all(parameters[name].grad is None for name in ("user_embedding", "item_embedding"))
    assert parameters["predictor.weight"].grad is not None


def test_bm3_draws_one_mask_for_each_row_of_a_batch_and_keeps_the_right_share() -> None:
    case = cases.case("middle", "bm3")
    p = problem("bm3", "paper", "middle")
    model = type(p.model)(
        p.train, Content.complete({m: case.feature(m) for m in case.modalities}), p.config, Init(0)
    )  # type: ignore[call-arg]
    batch = p.batch(p.epochs[0][0], 1, 0)

    def draw(name: str, batch: Pairs) -> Tensor:
        ones = torch.ones(40, p.config.embedding_dim)
        return model._target(name, ones, batch)  # type: ignore[operator, no-any-return]

    share = 1 - p.config.dropout  # type: ignore[attr-defined]
    targets = torch.stack(
        [draw("item", dataclasses.replace(batch, clock=torch.tensor([1, k]))) for k in range(200)]
    )
    kept = targets != 0
    assert targets[kept].numpy() == pytest.approx(1 / share)
    assert float(kept.double().mean()) == pytest.approx(
        share, abs=4 * (share * (1 - share) / kept.numel()) ** 0.5
    )
    assert torch.equal(draw("item", batch), draw("item", batch))
    assert not torch.equal(draw("item", batch), draw("user", batch))


def test_freedom_weighs_modalities_as_asked() -> None:
    assert modality_weights(None, ["visual", "textual"]) == {"visual": 0.1, "textual": 0.9}
    assert modality_weights(None, ["visual", "textual", "acoustic"]) == {
        "visual": 0.1,
        "textual": 0.45,
        "acoustic": 0.45,
    }
    assert modality_weights(None, ["textual", "acoustic"]) == {"textual": 0.5, "acoustic": 0.5}
    assert modality_weights(None, ["visual"]) == {"visual": 1.0}
    assert modality_weights({"b": 2.0, "a": 1.0}, ["a", "b"]) == {"a": 1.0, "b": 2.0}
    with pytest.raises(UsageError, match="the modalities are a, b"):
        modality_weights({"a": 1.0}, ["a", "b"])


def test_freedom_without_edge_dropout_trains_on_the_full_graph() -> None:
    p = problem("freedom", "paper", "small")
    del p.model._kept_edges
    p.model.config = p.config.model_copy(update={"edge_dropout": 0.0})
    p.model.start_epoch(1, 0)
    assert torch.equal(p.model.epoch_graph.values, p.model.full_graph.values)  # type: ignore[union-attr]


@pytest.mark.parametrize("n_layers", [0, 1, 3])
def test_lightgcn_against_a_dense_computation(n_layers: int) -> None:
    case = cases.case("middle", "freedom")
    train = TrainSet.from_pairs(case.train_users, case.train_items, case.n_users, case.n_items)
    settings = {
        "n_layers": n_layers,
        "embedding_dim": 8,
        "lr": 0.01,
        "reg_weight": 0.1,
        "epochs": 2,
        "batch_size": 16,
    }
    config = make_settings("lightgcn", settings)
    model = model_class("lightgcn")(train, Content.complete({}), config, Init(5))  # type: ignore[call-arg]
    a = common.adjacency(case)
    a = a / torch.sqrt(a.sum(1)[:, None] * a.sum(1)[None, :])
    names = ("user_embedding", "item_embedding")
    leaves = {name: model.get_parameter(name).detach().clone().requires_grad_() for name in names}
    optimiser = torch.optim.Adam(leaves.values(), lr=0.01)

    def represented() -> tuple[Tensor, Tensor]:
        x = torch.cat([leaves[name] for name in names])
        return x, torch.stack(
            [torch.linalg.matrix_power(a, n) @ x for n in range(n_layers + 1)]
        ).mean(0)

    for epoch in (1, 2):
        for batch in Edges(train, 16, 3).epoch(epoch):
            x, z = represented()
            u, i, j = batch.users, batch.pos + case.n_users, batch.neg + case.n_users
            difference = (z[u] * (z[i] - z[j])).sum(1)
            loss = common.bpr(difference) + 0.1 / (2 * len(u)) * common.sum_of_squares(
                x[u], x[i], x[j]
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    trainer = Trainer(
        model, train, config, lambda _: {"x": 0.0}, metric="x", every=9, patience=None, seed=3
    )
    list(trainer.run())
    z = represented()[1].detach()
    for name in names:
        assert deviation(model.get_parameter(name).detach(), leaves[name].detach()) <= 1e-9
    with torch.inference_mode():
        ours = model.scorer(known(train))(torch.arange(case.n_users))
    assert deviation(ours, z[: case.n_users] @ z[case.n_users :].T) <= 1e-9
