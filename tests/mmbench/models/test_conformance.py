"""What every model must do: a new line in the registry is tested here, and one outside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.mmbench.conftest import known, reviews_of
from tests.mmbench.models.next_item import NextItem

from mmbench.core.content import Known
from mmbench.core.interactions import Histories, TrainSet
from mmbench.core.sampling import Batch, Init
from mmbench.errors import UsageError
from mmbench.evaluation.ranking import rank
from mmbench.models import MODELS, model_class
from mmbench.models.base import Content, ModelConfig, Recommender
from mmbench.models.cells import admissible
from mmbench.models.origins import ORIGINS, grouped, origin
from mmbench.models.sequential import Sequential
from mmbench.ops import sparse
from mmbench.trainer import Trainer

OUTSIDE = {"next-item": NextItem}
"""Models that no registry knows: the suite takes batches of any kind."""

OF_USERS = ("next-item", "sasrec", "gru4rec")
"""Models whose batches are of users, of whom the small datasets have few."""

Preset = dict[str, object]


def kind(name: str) -> type[Recommender]:
    return OUTSIDE.get(name) or model_class(name)


def presets(name: str) -> list[Preset]:
    field = kind(name).Config.model_fields.get("preset")
    return [{}] if field is None else [{"preset": value} for value in field.annotation.__args__]  # type: ignore[union-attr]


CASES = [(name, preset) for name in [*MODELS, *OUTSIDE] for preset in presets(name)]
CASES.append(("sasrec", {"preset": "recbole", "items": "both", "operator": "gate"}))
TRAINED = [(name, preset) for name, preset in CASES if kind(name).trained]
every_case = pytest.mark.parametrize(("name", "preset"), CASES)
every_trained_case = pytest.mark.parametrize(("name", "preset"), TRAINED)


def make(
    name: str, train: TrainSet, features: Content, seed: int = 3, **settings: object
) -> tuple[Recommender, ModelConfig]:
    config = kind(name).Config(**{"embedding_dim": 8, **settings})
    return kind(name)(train, features, config, Init(seed)), config  # type: ignore[call-arg]


def trainer_of(
    name: str, train: TrainSet, features: Content, epochs: int, seed: int = 3, **settings: object
) -> Trainer:
    model, config = make(
        name, train, features, seed, **{"epochs": epochs, "batch_size": 32, "lr": 0.02, **settings}
    )
    return Trainer(
        model, train, config, lambda _: {"x": 0.0}, metric="x", every=999, patience=None, seed=seed
    )


def fit(
    name: str, train: TrainSet, features: Content, epochs: int, seed: int = 3, **settings: object
) -> Recommender:
    trainer = trainer_of(name, train, features, epochs, seed, **settings)
    for record in trainer.run():
        assert all(np.isfinite(value) for value in record.loss.values())
    return trainer.model


def first_batch(model: Recommender, train: TrainSet, batch_size: int = 64) -> Batch:
    model.start_epoch(1, 3)
    return next(iter(model.make_sampler(train, batch_size, 3, "cpu").epoch(1)))


def scores(model: Recommender, train: TrainSet) -> torch.Tensor:
    with torch.inference_mode():
        return model.train(False).scorer(known(train))(torch.arange(train.n_users))


def test_every_model_says_what_kind_it_is_and_where_it_was_published() -> None:
    unsaid = [name for name in MODELS if name not in ORIGINS]
    assert not unsaid, f"add {', '.join(unsaid)} to ORIGINS in mmbench/models/origins.py"
    assert ORIGINS.keys() <= MODELS.keys(), "a line of ORIGINS is of no model"
    for name, one in ORIGINS.items():
        assert (one.year is None) == (not one.paper), name
        assert kind(name).trained == (one.group != "baselines"), name
        if one.group in ("ids", "content", "graph"):
            assert kind(name).uses_features == (one.group != "ids"), name
            # The schema itself is all of its cells.
            assert kind(name).cell or name == "schema", f"{name} has no cell of the schema"
    shown = [name for names in grouped().values() for name in names]
    assert sorted(shown) == sorted(MODELS)


def test_a_model_without_a_line_gets_a_sensible_group(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {name: one.group for name, one in ORIGINS.items() if name != "schema"}
    monkeypatch.setattr("mmbench.models.origins.ORIGINS", {})
    guessed = {name: origin(name).group for name in said}
    # BM3's and MMGCN's backbones are graphs, GRCN's and LATTICE's, too.
    assert guessed == said


@every_case
def test_scores_have_the_right_shape_and_are_finite(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    model, _ = make(name, block_train, block_features, **preset)
    out = scores(model, block_train)
    assert out.shape == (block_train.n_users, block_train.n_items)
    assert torch.isfinite(out).all()
    some = model.scorer(known(block_train, block_features))(torch.tensor([5, 2]))
    torch.testing.assert_close(some, out[[5, 2]])


@every_trained_case
def test_every_parameter_gets_a_gradient(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    model, _ = make(name, block_train, block_features, batch_size=64, **preset)
    terms = model.loss(first_batch(model, block_train))
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in model.untrained:
            continue
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@every_trained_case
def test_training_learns_the_blocks(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    out = scores(fit(name, block_train, block_features, 20, lr=0.06, **preset), block_train)
    same = (torch.arange(24)[:, None] % 2) == (torch.arange(16)[None, :] % 2)
    unseen = torch.ones(24, 16, dtype=torch.bool)
    unseen[block_train.users, block_train.items] = False
    right = torch.stack(
        [
            row[s & n].mean() > row[~s & n].mean()
            for row, s, n in zip(out, same, unseen, strict=True)
            if (s & n).any()
        ]
    )
    assert right.float().mean() > 0.9


@every_case
def test_same_seed_same_scores_other_seed_other_scores(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    first, again = (
        scores(fit(name, block_train, block_features, 2, **preset), block_train) for _ in range(2)
    )
    assert torch.equal(first, again)
    assert kind(name).uses_seed != torch.equal(
        first, scores(fit(name, block_train, block_features, 2, seed=4, **preset), block_train)
    )


@every_trained_case
def test_saved_and_loaded_models_score_the_same(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    model = fit(name, block_train, block_features, 2, **preset)
    fresh, _ = make(name, block_train, block_features, seed=99, **preset)
    fresh.load_weights(model.weights())
    assert torch.equal(scores(model, block_train), scores(fresh, block_train))


@every_trained_case
def test_a_resumed_training_equals_an_uninterrupted_one(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    whole, first, second = (
        trainer_of(name, block_train, block_features, 4, **preset) for _ in range(3)
    )
    list(whole.run())
    records = first.run()
    next(records), next(records)
    second.restore(
        {key: value.clone() for key, value in first.tensors().items()},
        dataclasses.replace(first.progress),
    )
    list(second.run())
    expected = whole.tensors()
    for key, value in second.tensors().items():
        assert torch.equal(value, expected[key]), key


@every_trained_case
def test_a_batch_of_one_row_works(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    model, _ = make(name, block_train, block_features, **preset)
    batch = first_batch(model, block_train, batch_size=1)
    tensors = {name: x for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
    rows = [x for name, x in tensors.items() if name != "clock"]
    assert rows
    assert all(len(value) == 1 for value in rows)
    assert all(torch.isfinite(term) for term in model.loss(batch).values())


def test_controls_rank_as_they_say(block_train: TrainSet, block_features: Content) -> None:
    popular, _ = make("most-popular", block_train, block_features)
    lists = rank(
        popular.scorer(known(block_train, block_features)), block_train, np.arange(24), k=3
    )
    best = np.lexsort((np.arange(16), -block_train.popularity))
    for user, items in zip(lists.users, lists.items, strict=True):
        expected = [
            item for item in best if not block_train.contains(np.array(user), np.array(item))
        ]
        np.testing.assert_array_equal(items, expected[:3])
    for name in ("item-knn", "content-knn"):
        out = scores(make(name, block_train, block_features)[0], block_train)
        same = (torch.arange(24)[:, None] % 2) == (torch.arange(16)[None, :] % 2)
        assert out[same].mean() > 5 * out[~same].mean().clamp(min=1e-3)


def test_item_knn_against_a_dense_computation(
    block_train: TrainSet, block_features: Content
) -> None:
    model, _ = make("item-knn", block_train, block_features, neighbours=4, shrinkage=2.0)
    x = np.zeros((24, 16))
    x[block_train.users, block_train.items] = 1
    together = x.T @ x
    np.fill_diagonal(together, 0)
    norm = np.sqrt(x.sum(0))
    similarity = together / (np.outer(norm, norm) + 2.0)
    for row in similarity:
        row[np.lexsort((np.arange(16), -row))[4:]] = 0
    np.testing.assert_allclose(scores(model, block_train), x @ similarity.T, rtol=1e-6)


def test_random_rows_do_not_depend_on_who_else_is_asked(
    block_train: TrainSet, block_features: Content
) -> None:
    model = make("random", block_train, block_features)[0]
    score = model.scorer(known(block_train, block_features))
    assert torch.equal(score(torch.tensor([3, 9]))[1], score(torch.tensor([9]))[0])


def test_unknown_models_get_the_closest_match() -> None:
    with pytest.raises(UsageError, match="Did you mean 'vbpr'"):
        model_class("vbrp")
    assert model_class("Item_KNN") is model_class("item-knn")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@every_trained_case
def test_one_and_two_threads_agree(
    name: str,
    preset: Preset,
    block_train: TrainSet,
    block_features: Content,
    two_threads: None,
) -> None:
    torch.set_num_threads(1)
    alone = scores(fit(name, block_train, block_features, 2, **preset), block_train)
    torch.set_num_threads(2)
    together = scores(fit(name, block_train, block_features, 2, **preset), block_train)
    # GRCN bears no difference in the last bits: a node's confidence has a gradient that cancels but
    # for rounding wherever one modality wins at all of its edges, and Adam makes whole steps of
    # what is left.
    assert (alone - together).abs().max() <= 1e-6 * alone.abs().max()


@every_trained_case
def test_the_sparse_back_end_changes_nothing_but_rounding(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    pytest.importorskip("torch_sparse", exc_type=ImportError)
    gradients = []
    for backend in ("torch", "torch-sparse"):
        sparse.use(backend)  # type: ignore[arg-type]
        try:
            model, _ = make(name, block_train, block_features, batch_size=64, **preset)
            terms = model.loss(first_batch(model, block_train))
            torch.stack(list(terms.values())).sum().backward()
            parts = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
            gradients.append({**parts, "scores": scores(model, block_train)})
        finally:
            sparse.use("torch")
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][key],
            value,
            rtol=1e-4,
            atol=1e-6,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize("name", ["item-knn", "content-knn"])
def test_neighbours_score_the_history_that_is_known(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    """Another history gives another list; its order and repetitions do not matter here."""
    model, _ = make(name, block_train, block_features)
    usual = known(block_train, block_features)
    expected = model.scorer(usual)(torch.arange(2))
    first, second = (block_train.items[block_train.users == user] for user in (0, 1))
    items = np.concatenate([second[::-1], second[:1], first])
    swapped = Histories(np.array([0, second.size + 1, items.size]), items, None)
    found = model.scorer(Known(usual.n_items, usual.content, lambda: swapped))(torch.arange(2))
    assert torch.equal(found, expected.flip(0))
    assert not torch.equal(found, expected)


def others() -> tuple[TrainSet, Content]:
    """Another dataset: more users and more items than `block_train`, vectors as wide."""
    rng = np.random.default_rng(5)
    users, items = np.nonzero(rng.random((29, 19)) < 0.3)
    draw = torch.Generator().manual_seed(5)
    widths = {"visual": 6, "textual": 5}
    vectors = {m: torch.randn(19, d, generator=draw) for m, d in widths.items()}
    train = TrainSet.from_pairs(users, items, 29, 19)
    reviews, categories = reviews_of(train, widths), torch.arange(19) % 3
    return train, Content.complete(vectors, edges=reviews, categories=categories)


STALE: list[tuple[str, Preset]] = [(name, {"stale_inference": True}) for name in ("grcn", "mmgcn")]
SCHEMAS = [
    {one.name: getattr(choice, one.name) for one in dataclasses.fields(choice)}
    for choice in admissible()
]
CONTENT_ALONE = [choice for choice in SCHEMAS if choice["ids"] == "none"]


def test_the_weights_of_ids_are_those_whose_shape_follows_users_and_items(
    block_train: TrainSet, block_features: Content
) -> None:
    for name, preset in [*CASES, *STALE, *(("schema", choice) for choice in SCHEMAS)]:
        check_weights_of_ids(name, preset, block_train, block_features)


def check_weights_of_ids(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    here, there = (
        make(name, *data, **preset)[0] for data in ((block_train, block_features), others())
    )
    shapes = [{key: x.shape for key, x in model.weights().items()} for model in (here, there)]
    assert shapes[0].keys() == shapes[1].keys()
    for key, shape in shapes[0].items():
        assert here.of_ids(key) == (shape != shapes[1][key]), (name, preset, key)
    if preset.get("ids") == "none":
        assert not any(map(here.of_ids, shapes[0]))
    counts, trained = here.parameter_counts(), dict(here.named_parameters())
    trained |= {f"{key}.values": x.values for key, x in here.named_modules() if hasattr(x, "moved")}
    assert counts["ids"] == sum(x.numel() for key, x in trained.items() if here.of_ids(key))
    assert sum(counts.values()) == sum(x.numel() for x in trained.values())


@pytest.mark.parametrize(("name", "preset"), [*TRAINED, *STALE])
def test_a_model_starts_from_what_one_of_another_dataset_learned(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    source = fit(name, block_train, block_features, 2, **preset)
    carried = {key: x for key, x in source.weights().items() if not source.of_ids(key)}
    fresh, started = (make(name, *others(), seed=9, **preset)[0] for _ in range(2))
    started.start_from(carried)
    for key, value in started.weights().items():
        expected = carried[key] if key in carried else fresh.weights()[key]
        assert torch.equal(value, expected) or key.startswith("stale_"), key
    if preset.get("stale_inference"):  # and not by what the weights were before
        start, now = dict(preset, stale_inference=False), others()[0]
        alike = make(name, *others(), seed=9, **start)[0]
        alike.start_from(carried)
        assert torch.equal(scores(started, now), scores(alike, now))


BY_HISTORY: list[tuple[str, Preset]] = [
    *((name, preset) for name, preset in CASES if kind(name).by_history),
    *(("schema", choice) for choice in CONTENT_ALONE if choice["backbone"] != "lightgcn"),
]


def test_a_user_outside_training_scores_what_one_of_the_same_history_does(
    block_train: TrainSet, block_features: Content
) -> None:
    usual = known(block_train, block_features)
    starts, items = usual.histories.indptr, usual.histories.items
    own = [items[starts[user] : starts[user + 1]] for user in range(3)]
    for name, preset in BY_HISTORY:
        # Where order says nothing, the other way round.
        first = own[0] if issubclass(kind(name), Sequential) else own[0][::-1]
        strangers = np.concatenate([own[2], first])
        more = Histories(np.array([0, own[2].size, strangers.size]), strangers, None)
        others = Known(usual.n_items, usual.content, lambda more=more: usual.histories.and_of(more))
        model = make(name, block_train, block_features, **preset)[0].train(False)
        assert model.by_history, (name, preset)
        with torch.inference_mode():
            expected = model.scorer(usual)(torch.tensor([2, 0]))
            found = model.scorer(others)(torch.tensor([24, 25]))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for choice in [one for one in SCHEMAS if one not in CONTENT_ALONE][::20]:
        assert not make("schema", block_train, block_features, **choice)[0].by_history, choice


@pytest.mark.parametrize("name", ["most-popular", "random", "content-knn", "vbpr"])
def test_models_of_content_and_controls_score_unseen_items(name: str) -> None:
    assert kind(name).scores_unseen


@every_case
def test_items_that_training_has_not_seen(
    name: str, preset: Preset, block_train: TrainSet, block_features: Content
) -> None:
    """Trained items keep their scores; unseen ones are scored by their content, or never listed."""
    model, _ = make(name, block_train, block_features, **preset)
    model.train(False)
    copies = {m: vectors[:5].clone() for m, vectors in block_features.vectors.items()}
    none = {m: vectors[:0] for m, vectors in copies.items()}
    users = torch.arange(block_train.n_users)
    with torch.inference_mode():
        seen, everything, nothing_unseen = (
            model.scorer(known(block_train, block_features, unseen))(users)
            for unseen in (None, copies, none)
        )
    assert everything.shape == (block_train.n_users, block_train.n_items + 5)
    torch.testing.assert_close(everything[:, : block_train.n_items], seen, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(nothing_unseen, seen, rtol=1e-5, atol=1e-6)
    unseen = everything[:, block_train.n_items :]
    assert (
        bool(torch.isfinite(unseen).all())
        if model.scores_unseen
        else bool((unseen == -torch.inf).all())
    )


def test_an_unseen_copy_of_an_item_scores_what_the_items_content_scores(
    block_train: TrainSet, block_features: Content
) -> None:
    copies = {m: vectors[3:4].clone() for m, vectors in block_features.vectors.items()}
    users = torch.arange(block_train.n_users)
    seen, with_copy = (known(block_train, block_features, one) for one in (None, copies))
    for preset in presets("vbpr"):
        model, _ = make("vbpr", block_train, block_features, **preset)
        with torch.inference_mode():
            with_factors = model.scorer(with_copy)(users)[:, -1]
            model.item_factors[3] = 0.0  # type: ignore[operator, index]
            torch.testing.assert_close(
                with_factors, model.scorer(seen)(users)[:, 3], rtol=1e-5, atol=1e-6
            )
    model, _ = make("content-knn", block_train, block_features, neighbours=100)
    with torch.inference_mode():
        copy, original = (
            model.scorer(with_copy)(users)[:, -1],
            model.scorer(seen)(users)[:, 3],
        )
    knows_it = torch.from_numpy(block_train.contains(np.arange(block_train.n_users), np.array(3)))
    # the copy is similar to the original itself as well, by exactly one
    torch.testing.assert_close(copy, original + knows_it, rtol=1e-5, atol=1e-5)
