"""Trained stand-ins: where content is absent a model sees the token, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.mmbench.conftest import known
from tests.mmbench.models.test_conformance import make, trainer_of

from mmbench.config import Recipe
from mmbench.core.content import ItemContent
from mmbench.core.interactions import TrainSet
from mmbench.errors import UsageError
from mmbench.models import MODELS, model_class
from mmbench.models.base import Content, TrainsContent
from mmbench.models.stand_ins import StandIn
from mmbench.ops.dense import linear

LEARN = [name for name in MODELS if model_class(name).learns_absent]
every_model = pytest.mark.parametrize("name", LEARN)


def without(content: Content, dropout: float | None = 0.25) -> Content:
    """The content, of which some items have none."""
    found = {}
    for n, (m, one) in enumerate(content.items()):
        present = torch.arange(16) % (3 + n) != 1
        found[m] = ItemContent(torch.where(present[:, None], one.vectors, 0.0), present)
    return Content(found, dropout=dropout, categories=content.categories)


def test_which_models_take_part() -> None:
    assert {"vbpr", "freedom", "lattice", "bm3", "grcn", "mmgcn"} <= set(LEARN)


@every_model
def test_tokens_are_trained_and_their_part_is_resumed(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    content = without(block_features)
    whole = trainer_of(name, block_train, content, epochs=4)
    start = {n: t.clone() for n, t in whole.model.state_dict().items() if n.endswith(".token")}
    assert len(start) == 2
    losses = [record.loss for record in whole.run()]
    half = trainer_of(name, block_train, content, epochs=2)
    list(half.run())
    rest = trainer_of(name, block_train, content, epochs=4)
    rest.restore(half.tensors(), replace(half.progress))
    assert [record.loss for record in rest.run()] == losses[2:]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[key]), key
        assert key not in start or not torch.equal(value, start[key])


@every_model
def test_where_all_have_content_there_are_none(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    content = Content(dict(block_features), dropout=0.5, categories=block_features.categories)
    plain, learned = (
        trainer_of(name, block_train, one, epochs=2) for one in (block_features, content)
    )
    assert [r.loss for r in plain.run()] == [r.loss for r in learned.run()]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vbpr", {}),
        ("vbpr", {"preset": "original"}),
        ("deepstyle", {}),
        ("grcn", {}),
        ("mmgcn", {}),
        ("lgmrec", {}),
        ("slmrec", {}),
        ("dualgnn", {}),
        ("schema", {}),
        ("schema", {"representation": "joint", "fusion": "early"}),
    ],
)
def test_a_model_ranks_as_if_the_token_were_the_items_vector(
    name: str, settings: dict[str, object], block_train: TrainSet, block_features: Content
) -> None:
    content = without(block_features)
    trainer = trainer_of(name, block_train, content, epochs=3, **settings)
    list(trainer.run())
    model = trainer.model.train(False)
    tokens = {module.modality: module for module in model.modules() if isinstance(module, StandIn)}
    filled = {
        m: torch.where(one.present[:, None], one.vectors, tokens[m].token.detach())
        for m, one in content.items()
    }
    complete = Content.complete(filled, categories=content.categories)
    other, _ = make(name, block_train, complete, **settings)
    own = {n: t for n, t in model.weights().items() if not n.endswith(".token")}
    other.load_weights(own)
    users = torch.arange(24)
    with torch.no_grad():
        expected = other.train(False).scorer(known(block_train, Content.complete(filled)))(users)
        found = model.scorer(known(block_train, content))(users)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in LEARN if issubclass(model_class(n), TrainsContent)])
def test_a_trained_table_is_projected_with_the_token(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    content = without(block_features)
    model, _ = make(name, block_train, content)
    assert isinstance(model, TrainsContent)
    stand_in = next(one for one in model.modules() if isinstance(one, StandIn))
    m = stand_in.modality
    projection = model.projection[m]
    stand_in.start_epoch(1, 7)
    dropped = stand_in.replaced & content[m].present
    assert dropped.any() and stand_in.replaced[~content[m].present].all()
    for training, expected in ((True, stand_in.replaced), (False, ~content[m].present)):
        model.train(training)
        with torch.no_grad():
            rows = model._project(m, None)
            token = linear(stand_in.token[None], projection.weight, projection.bias)  # type: ignore[arg-type]
        assert torch.equal((rows == token).all(1), expected)


def test_an_epochs_losses_are_drawn_by_seed_epoch_and_modality(block_features: Content) -> None:
    one = StandIn("visual", ItemContent(torch.ones(4000, 2), torch.arange(4000) > 0), 0.25)
    drawn = []
    for epoch, seed in ((1, 3), (2, 3), (1, 4), (1, 3)):
        one.start_epoch(epoch, seed)
        drawn.append(one.replaced.clone())
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].float().mean().item() == pytest.approx(0.25, abs=0.03)
    other = StandIn("textual", ItemContent(torch.ones(4000, 2), torch.arange(4000) > 0), 0.25)
    other.start_epoch(1, 3)
    assert not torch.equal(other.replaced, drawn[0])


def test_vbpr_gives_unseen_items_without_content_the_token(
    block_train: TrainSet, block_features: Content
) -> None:
    content = without(block_features)
    model, _ = make("vbpr", block_train, content)
    seen = known(
        block_train, content, {m: torch.zeros(2, x.shape[1]) for m, x in content.vectors.items()}
    )
    there = torch.tensor([False, True])  # of the two unseen items
    unseen, filled = {}, {}
    for m, one in seen.content.items():
        unseen[m] = ItemContent(one.vectors, torch.cat([content[m].present, there]))
        vectors = one.vectors.clone()
        vectors[16] = 0.5
        filled[m] = ItemContent(vectors, torch.ones(18, dtype=torch.bool))
    model.train(False)
    with torch.no_grad():
        for token in (one for one in model.modules() if isinstance(one, StandIn)):
            token.token.fill_(0.5)
        users = torch.arange(24)
        scores = model.scorer(replace(seen, content=unseen))(users)
        expected = model.scorer(replace(seen, content=filled))(users)
    torch.testing.assert_close(scores[:, 16:], expected[:, 16:])
    assert not torch.allclose(scores[:, 16], scores[:, 17])


def test_a_schema_whose_users_have_content_is_refused(
    block_train: TrainSet, block_features: Content
) -> None:
    with pytest.raises(UsageError, match="needs side=item"):
        make("schema", block_train, without(block_features), side="both")
    with pytest.raises(UsageError, match="has no place with these settings"):
        Recipe(model="schema", missing="learned", settings={"side": "both"})
