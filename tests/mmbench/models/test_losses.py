"""The losses of an epoch: means over its batches, and the step where one is not finite."""

from __future__ import annotations

import pytest
import torch
from tests.mmbench.models.test_conformance import first_batch, make

from mmbench.core.interactions import TrainSet
from mmbench.errors import Diverged
from mmbench.models.base import Content
from mmbench.trainer import Trainer


def trainer(train: TrainSet, content: Content) -> Trainer:
    model, config = make("bpr-mf", train, content, batch_size=16, epochs=2)
    return Trainer(
        model, train, config, lambda _: {"x": 0.0}, metric="x", every=9, patience=None, seed=3
    )


def test_an_epochs_loss_is_the_mean_over_its_batches(
    block_train: TrainSet, block_features: Content
) -> None:
    ours, seen = trainer(block_train, block_features), []
    loss = ours.model.loss

    def kept(batch: object) -> dict[str, torch.Tensor]:
        terms = loss(batch)
        seen.append(terms["bpr"].item())
        return terms

    ours.model.loss = kept  # type: ignore[method-assign]
    record = next(ours.run())
    assert len(seen) == len(ours.sampler) > 2
    assert record.loss["bpr"] == pytest.approx(sum(seen) / len(seen), rel=1e-6)


def test_the_step_and_the_term_that_are_not_finite_are_named(
    block_train: TrainSet, block_features: Content
) -> None:
    ours, n = trainer(block_train, block_features), 0
    loss = ours.model.loss

    def breaks(batch: object) -> dict[str, torch.Tensor]:
        nonlocal n
        n += 1
        terms = loss(batch)
        return {**terms, "l2": terms["l2"] * float("inf")} if n == 3 else terms

    ours.model.loss = breaks  # type: ignore[method-assign]
    with pytest.raises(Diverged, match="epoch 1, step 2: loss term 'l2' is inf"):
        next(ours.run())


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("kind", ["squared", "norm"])
def test_the_penalty_of_bpr_mf_in_either_kind(
    block_train: TrainSet, block_features: Content, kind: str, biases: bool
) -> None:
    settings = {"penalty": kind, "biases": biases, "reg_weight": 0.3}
    model, _ = make("bpr-mf", block_train, block_features, **settings)
    batch = first_batch(model, block_train)
    rows = [model.user_factors[batch.users]]  # type: ignore[attr-defined, index]
    rows += [model.item_factors[x] for x in (batch.pos, batch.neg)]  # type: ignore[attr-defined, index]
    if biases:
        rows += [model.item_bias[x] for x in (batch.pos, batch.neg)]  # type: ignore[attr-defined, index]
    size = len(batch.users)  # type: ignore[attr-defined]
    expected = {
        "squared": 0.3 / (2 * size) * sum(float((x * x).sum().detach()) for x in rows),
        "norm": 0.3 / size * sum(float(x.norm().detach()) for x in rows),
    }
    found = model.loss(batch)["l2"].item()
    assert found == pytest.approx(expected[kind], rel=1e-5)
    assert ("item_bias" in model.weights()) == biases


def test_the_norm_penalty_of_lightgcn_is_that_of_three_matrices(
    block_train: TrainSet, block_features: Content
) -> None:
    model, _ = make("lightgcn", block_train, block_features, penalty="norm", reg_weight=0.3)
    batch = first_batch(model, block_train)
    user, item = model.user_embedding, model.item_embedding
    rows = [user[batch.users], item[batch.pos], item[batch.neg]]  # type: ignore[attr-defined, index]
    expected = 0.3 / len(batch.users) * sum(float(x.norm().detach()) for x in rows)  # type: ignore[attr-defined]
    assert model.loss(batch)["l2"].item() == pytest.approx(expected, rel=1e-5)


def test_a_gain_that_rounding_hides_is_none(block_train: TrainSet, block_features: Content) -> None:
    values = [0.07512, 0.07514, 0.07516, 0.07549, 0.0755, 0.0756]
    best = {}
    for decimals in (None, 4):
        model, config = make("bpr-mf", block_train, block_features, batch_size=16, epochs=6)
        given = iter(values)
        ours = Trainer(
            model, block_train, config, lambda _, given=given: {"x": next(given)}, metric="x",
            every=1, patience=2, seed=3, decimals=decimals,
        )  # fmt: skip
        best[decimals] = [record.epoch for record in ours.run() if record.improved]
    # To four decimals: .0751, .0751, .0752, .0755, .0755, .0756.
    assert best == {None: [1, 2, 3, 4, 5, 6], 4: [1, 3, 4, 6]}
