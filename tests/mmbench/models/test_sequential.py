"""Histories in order: batches of them, cross-entropy over all items, what sequence models share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.elsewhere import elsewhere
from tests.mmbench.conftest import known
from tests.mmbench.models.test_conformance import fit, make, others, scores
from tests.mmbench.models.test_stand_ins import without

from mmbench.config import Recipe, make_settings
from mmbench.core.content import Known
from mmbench.core.interactions import Histories, TrainSet
from mmbench.core.sequences import Latest, NextItems, Sequences, Steps
from mmbench.errors import DataError, ShapeError, UsageError
from mmbench.models.base import Content
from mmbench.ops import softmax
from mmbench.runs.inputs import load_inputs

HISTORIES = [[3, 1, 4, 1, 5, 0, 2], [2], [6, 5], [], [0, 3, 0], [1, 2]]


@pytest.fixture
def train() -> TrainSet:
    """Six users, one of them with a repeated item, one with one interaction, one with none."""
    indptr = np.concatenate([[0], np.cumsum([len(own) for own in HISTORIES])])
    in_order = Histories(indptr, np.concatenate(HISTORIES).astype(np.int64), None)
    return replace(in_order.distinct(8), in_order=in_order)


def sampler(train: TrainSet, size: int = 2, **more: Any) -> NextItems:
    return NextItems(train, size, 7, **{"max_len": 4, "negatives": True, **more})


def test_an_epoch_has_every_user_with_a_next_item_once_and_the_latest_items(
    train: TrainSet,
) -> None:
    expected = sorted(own[-5:] for own in HISTORIES if len(own) > 1)
    for epoch in (1, 2):
        batches = list(sampler(train).epoch(epoch))
        assert [(b.first, b.last, len(b.items)) for b in batches] == [
            (True, False, 2),
            (False, True, 2),
        ]
        rows = [row for b in batches for row in b.items.tolist()]
        assert sorted([i for i in row if i >= 0] for row in rows) == expected
        assert all(row == sorted(row, key=lambda item: item < 0) for row in rows)
        for b in batches:
            lengths = (b.items >= 0).sum(1) - 1
            assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
            at = [int((lengths > t).sum()) for t in range(int(lengths.max()))]
            assert b.rows_at == tuple(at)


def test_negatives_are_uniform_over_what_a_user_has_not_seen(train: TrainSet) -> None:
    counts = np.zeros((6, 8), int)
    by_row = {tuple(own[-5:]): user for user, own in enumerate(HISTORIES) if len(own) > 1}
    for epoch in range(1, 301):
        for b in sampler(train, 4).epoch(epoch):
            assert b.neg is not None
            for items, neg in zip(b.items.tolist(), b.neg.tolist(), strict=True):
                user = by_row[tuple(i for i in items if i >= 0)]
                np.add.at(counts[user], neg, 1)
    for user, own in enumerate(HISTORIES):
        if len(own) < 2:
            assert not counts[user].any()
            continue
        unseen = np.setdiff1d(np.arange(8), own)
        assert not counts[user, own].any()
        share = counts[user, unseen] / counts[user].sum()
        assert np.abs(share - 1 / unseen.size).max() < 0.06


def test_batches_follow_from_seed_and_epoch_alone(train: TrainSet) -> None:
    def drawn(epoch: int, **more: Any) -> list[Sequences]:
        return list(sampler(train, **more).epoch(epoch))

    def same(one: list[Sequences], other: list[Sequences]) -> bool:
        pairs = zip(one, other, strict=True)
        return all(torch.equal(a.items, b.items) and torch.equal(a.neg, b.neg) for a, b in pairs)  # type: ignore[arg-type]

    repeated = sampler(train)
    list(repeated.epoch(1))
    assert same(list(repeated.epoch(2)), drawn(2))
    assert not same(drawn(1), drawn(2))
    with elsewhere() as device:
        there = list(NextItems(train, 2, 7, device, max_len=4, negatives=True).epoch(2))
        found = [(b.items.cpu(), b.neg.cpu(), b.rows_at) for b in there if b.neg is not None]
    for (items, neg, at), here in zip(found, drawn(2), strict=True):
        assert torch.equal(items, here.items)
        assert torch.equal(neg, here.neg)  # type: ignore[arg-type]
        assert at == (len(items),) * 4  # every place, whatever the data


def test_without_a_next_item_there_is_nothing_to_learn() -> None:
    single = TrainSet.from_pairs(np.arange(3), np.arange(3), 3, 5)
    with pytest.raises(DataError, match="two training interactions"):
        sampler(single)


def test_places_blocks_and_numbers_agree(train: TrainSet) -> None:
    latest = Latest(train.histories, 6, torch.device("cpu"))
    users = torch.arange(6)[latest.longest_first(torch.arange(6))]
    items, at = latest(users), latest.rows_at(users)
    steps = Steps(items, at)
    assert len(steps) == sum(min(len(own), 6) for own in HISTORIES)
    assert torch.equal(steps.of(items), items.T[items.T >= 0])
    # Blocks hold every row once, each place where `in_blocks` says.
    held = torch.cat(
        [steps.place[:width, start:stop].T.reshape(-1) for start, stop, width in steps.blocks]
    )
    assert torch.equal(held[steps.in_blocks], torch.arange(len(steps)))
    assert [start for start, _, _ in steps.blocks] == [0, *(b for _, b, _ in steps.blocks[:-1])]
    with elsewhere() as device:
        there = Steps(items.to(device), (6,) * 6)
        exists, numbers = there.there.cpu(), there.numbers
        assert numbers is not None
        assert torch.equal(numbers.cpu()[exists], torch.arange(len(steps)))


def test_cross_entropy_in_blocks_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(softmax, "_FEWEST_ROWS", 3)
    draw = torch.Generator().manual_seed(1)
    x = (30 * torch.randn(8, 4, generator=draw, dtype=torch.float64)).requires_grad_()
    items = torch.randn(6, 4, generator=draw, dtype=torch.float64).requires_grad_()
    target = torch.randint(6, (8,), generator=draw)
    weight = torch.rand(8, generator=draw, dtype=torch.float64)
    each = torch.nn.functional.cross_entropy(x @ items.T, target, reduction="none")
    expected = torch.autograd.grad(3 * (each * weight).sum(), [x, items])
    loss = softmax.cross_entropy(x, items, target, weight)
    torch.testing.assert_close(loss, (each * weight).sum(), rtol=1e-12, atol=0)
    for ours, theirs in zip(torch.autograd.grad(3 * loss, [x, items]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)
    # Where a share is 0 in floating point, its logarithm is not.
    far = torch.tensor([[1000.0, 0.0]])
    (loss,) = softmax.cross_entropy(far, torch.eye(2), torch.tensor([1]), torch.ones(1))[None]
    assert float(loss) == 1000.0
    with pytest.raises(ShapeError, match="do not fit"):
        softmax.cross_entropy(x, items[:, :3], target, weight)


ORDERED = ("sasrec", "gru4rec")


@pytest.mark.parametrize("name", ORDERED)
def test_scores_are_products_of_the_embeddings(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    model = fit(name, block_train, block_features, 1, items="both").train(False)
    with torch.no_grad():
        users, items = model.embeddings()
    torch.testing.assert_close(users @ items.T, scores(model, block_train), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ORDERED)
def test_order_and_repetition_of_a_history_count(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    model = fit(name, block_train, block_features, 2).train(False)

    def after(*items: int) -> torch.Tensor:
        own = Histories(np.array([0, len(items)]), np.array(items, np.int64), None)
        with torch.inference_mode():
            return model.scorer(Known(16, {}, lambda: own))(torch.tensor([0]))[0]

    assert not torch.allclose(after(2, 4, 6), after(4, 2, 6))
    assert not torch.allclose(after(2, 4, 6), after(2, 2, 4, 6))
    assert torch.equal(after(2, 4, 6, 17), after(2, 4, 6))  # an id that training has not seen
    assert torch.equal(after(17), torch.zeros(16))
    assert torch.equal(after(), torch.zeros(16))


@pytest.mark.parametrize("name", ORDERED)
def test_content_stands_for_items_that_training_has_not_seen(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    copies = {m: x[3:4].clone() for m, x in block_features.vectors.items()}
    kinds = [("content", "attention"), ("content", "max"), ("both", "gate"), ("both", "concat")]
    for items, operator in kinds:
        settings = {"items": items, "operator": operator}
        model = fit(name, block_train, block_features, 1, **settings).train(False)
        assert any(map(model.of_ids, model.weights())) == (items == "both")
        if items == "both":  # an id that is not there is zero
            with torch.no_grad():
                model.get_parameter("item_embedding")[3] = 0.0
        usual = known(block_train, block_features, copies)
        own, with_copy = (
            Histories(np.array([0, 3]), np.array([5, item, 7]), None) for item in (3, 16)
        )
        with torch.inference_mode():
            first, second = (
                model.scorer(Known(17, usual.content, lambda h=h: h))(torch.tensor([0]))[0]
                for h in (own, with_copy)
            )
        torch.testing.assert_close(first[3], first[16])
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", ORDERED)
def test_a_model_of_content_moves_to_another_catalogue(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    source = fit(name, block_train, block_features, 2, items="content").train(False)
    there, content = others()
    moved = make(name, there, content, seed=9, items="content")[0].train(False)
    moved.start_from({k: x for k, x in source.weights().items() if not source.of_ids(k)})
    # Without an epoch it scores the other catalogue as the source does where it meets it.
    with torch.inference_mode():
        expected = source.scorer(
            Known(
                16 + 19,
                known(block_train, block_features, content.vectors).content,
                lambda: Histories(there.indptr, there.items + 16, None),
            )
        )(torch.arange(29))
        found = moved.scorer(known(there, content))(torch.arange(29))
    torch.testing.assert_close(found, expected[:, 16:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ORDERED)
def test_absent_content_has_stand_ins(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    model = fit(name, block_train, without(block_features), 2, items="content")
    tokens = [value for key, value in model.named_parameters() if key.endswith(".token")]
    assert len(tokens) == 2
    assert torch.isfinite(scores(model, block_train)).all()
    assert type(model).learns_absent_with(model.config)  # type: ignore[arg-type]
    assert not type(model).learns_absent_with(type(model).Config())


def test_settings_that_make_no_sense_are_refused(
    block_train: TrainSet, block_features: Content
) -> None:
    with pytest.raises(UsageError, match="no multiple of n_heads = 3"):
        make_settings("sasrec", {"n_heads": 3})
    with pytest.raises(UsageError, match="operator = gate: an item of ids has one part"):
        make_settings("gru4rec", {"operator": "gate"})
    with pytest.raises(UsageError, match="items=content: there is no content"):
        make("sasrec", block_train, Content({}), items="content")


def test_content_is_read_where_items_have_it_and_the_order_names_the_run(dataset: Path) -> None:
    def recipe(model: str, grid: dict[str, Any] | None = None, **settings: Any) -> Recipe:
        return Recipe(
            data=str(dataset),
            model=model,
            settings=make_settings(model, settings),
            grid=grid or {},
        )

    assert not recipe("sasrec").loads_features
    assert recipe("sasrec", items="both").loads_features
    assert recipe("sasrec", grid={"items": ("ids", "content")}).loads_features
    ordered, plain = (load_inputs(recipe(model))[1] for model in ("sasrec", "bpr-mf"))
    shared = load_inputs(recipe("bpr-mf"), ordered)[1]
    assert "histories" in ordered.evaluation
    assert plain.digests == shared.digests
    assert load_inputs(recipe("sasrec"), plain)[1].digests == ordered.digests
