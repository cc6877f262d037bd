"""Large tables of ids under deferred Adam: the model of dense Adam, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.mmbench.models.test_conformance import make, scores, trainer_of

from mmbench.core.interactions import TrainSet
from mmbench.models.base import Content, Recommender
from mmbench.ops.id_table import LARGE, IdTable

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bpr-mf", {}),
    ("bpr-mf", {"biases": False}),
    *(("vbpr", {"preset": preset}) for preset in ("paper", "original", "corrected")),
    ("schema", {}),
    ("schema", {"fusion": "late", "operator": "mean"}),
    ("schema", {"operator": "attention", "query": "user", "ids": "users"}),
    ("schema", {"side": "user", "operator": "sum", "backbone": "mlp"}),
]
every_case = pytest.mark.parametrize(("name", "settings"), CASES)


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbench.ops.id_table.LARGE", 1)


def tables(model: Recommender) -> dict[str, IdTable]:
    return {name: one for name, one in model.named_modules() if isinstance(one, IdTable)}


def trained(
    name: str, train: TrainSet, content: Content, settings: dict[str, Any], *, dense: bool = False
) -> Recommender:
    # Few pairs in a batch: most rows miss most steps.
    trainer = trainer_of(name, train, content, 3, **{**settings, "batch_size": 4})
    if dense:
        step = trainer.optimiser.step

        def every_row() -> None:
            step()
            for table in trainer.optimiser.tables.values():
                table.flush()

        trainer.optimiser.step = every_row  # type: ignore[method-assign]
    assert len(list(trainer.run())) == 3
    return trainer.model


@every_case
def test_deferred_is_dense_bit_for_bit(
    name: str,
    settings: dict[str, Any],
    block_train: TrainSet,
    block_features: Content,
    all_large: None,
) -> None:
    model = trained(name, block_train, block_features, settings)
    dense = trained(name, block_train, block_features, settings, dense=True).state_dict()
    assert tables(model)
    assert model.state_dict().keys() == dense.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, dense[key]), key


@every_case
def test_summed_steps_are_dense_up_to_rounding(
    name: str,
    settings: dict[str, Any],
    block_train: TrainSet,
    block_features: Content,
    all_large: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense = trained(name, block_train, block_features, settings, dense=True).state_dict()
    monkeypatch.setattr("mmbench.ops.glide.BEGIN", 30)
    monkeypatch.setattr("mmbench.ops.glide.LEAST", 4)
    model = trained(name, block_train, block_features, settings)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, dense[key], rtol=2e-3, atol=1e-4)


@every_case
def test_deferred_is_the_model_of_parameters_up_to_rounding(
    name: str,
    settings: dict[str, Any],
    block_train: TrainSet,
    block_features: Content,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = trained(name, block_train, block_features, settings)
    assert not tables(plain)
    monkeypatch.setattr("mmbench.ops.id_table.LARGE", 1)
    model = trained(name, block_train, block_features, settings)
    torch.testing.assert_close(
        scores(model, block_train), scores(plain, block_train), rtol=2e-3, atol=2e-4
    )
    # A checkpoint from before loads into tables, and means the same.
    again, _ = make(name, block_train, block_features, **settings)
    assert plain.weights().keys() != again.weights().keys()
    again.load_weights(plain.weights())
    torch.testing.assert_close(scores(again, block_train), scores(plain, block_train))
    assert again.parameter_counts() == plain.parameter_counts()


@pytest.mark.parametrize("name", ["bpr-mf", "vbpr", "schema"])
def test_a_resumed_training_ends_in_the_same_bits(
    name: str, block_train: TrainSet, block_features: Content, all_large: None
) -> None:
    whole = trainer_of(name, block_train, block_features, 4)
    records = whole.run()
    next(records), next(records)
    kept = {key: value.clone() for key, value in whole.tensors().items()}
    rest = trainer_of(name, block_train, block_features, 4)
    rest.restore(kept, type(whole.progress)(epoch=2, best_epoch=None))
    list(records), list(rest.run())
    ends = whole.tensors(), rest.tensors()
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_small_tables_and_those_of_a_graph_stay_parameters(
    block_train: TrainSet, block_features: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LARGE > 39_387 * 64  # Amazon Clothing, as published: its bytes stay as they were
    for name in ("bpr-mf", "vbpr", "schema"):
        assert not tables(make(name, block_train, block_features)[0])
    monkeypatch.setattr("mmbench.ops.id_table.LARGE", 1)
    model, _ = make("schema", block_train, block_features, backbone="lightgcn")
    assert not tables(model)
