"""The schema: its cells against dense computations, against VBPR, against each other, refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.mmbench import test_waiting as waiting
from tests.mmbench.conftest import known, write_dataset
from tests.mmbench.models import test_conformance as conformance
from tests.mmbench.models import test_other_devices as other_devices
from tests.mmbench.models.golden import _Batches, deviation, double_precision
from tests.reference import cases
from tests.reference import schema as reference
from tests.reference.common import Case, Parameters, gradients
from torch import Tensor

from mmbench.cli import cli
from mmbench.config import Recipe, make_settings
from mmbench.core.content import Known
from mmbench.core.interactions import Histories, TrainSet
from mmbench.core.sampling import Init, Triples
from mmbench.errors import UsageError
from mmbench.models import MODELS, alignment, model_class
from mmbench.models.base import Content, Recommender
from mmbench.models.cells import FACTORS, Choice, admissible
from mmbench.runs.inputs import load_inputs
from mmbench.trainer import Trainer

CHOICES = list(admissible())


def settings_of(choice: Choice, **more: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(choice), **more}


@pytest.fixture
def double() -> Iterator[None]:
    with double_precision():
        yield


# ------------------------------------------------------------------------------ the dense reference


class Golden:
    """A cell in both implementations, on the golden problem with three modalities."""

    def __init__(self, **settings: Any) -> None:
        case = cases.case("small", "vbpr")
        third = np.random.default_rng(43).normal(size=(case.n_items, 4))
        features = {**case.features, "acoustic": third}
        self.case: Case = dataclasses.replace(case, features=features, config=settings)
        self.start: Parameters = reference.parameters(self.case, np.random.default_rng(29))
        self.train = TrainSet.from_pairs(
            case.train_users, case.train_items, case.n_users, case.n_items
        )
        content = Content.complete({m: self.case.feature(m) for m in self.case.modalities})
        given = {**reference.DEFAULTS, **settings, "lr": cases.LEARNING_RATE, "epochs": 99}
        self.config = make_settings("schema", given)
        self.model = model_class("schema")(self.train, content, self.config, Init(1))  # type: ignore[call-arg]
        self.model.load_weights({name: value.clone() for name, value in self.start.items()})
        self.epochs = cases.epochs("small")

    def batches(self, epoch: int) -> Iterator[Triples]:
        for step, rows in enumerate(self.epochs[epoch - 1]):
            parts = (torch.from_numpy(rows[key]) for key in ("users", "pos", "neg"))
            yield Triples(0, torch.tensor([epoch, step]), step == 0, False, *parts)

    def scores(self) -> Tensor:
        return scores(self.model, self.train)

    def after(self, steps: int, model: Recommender | None = None) -> Parameters:
        """The weights after some steps of the real trainer; of another model if one is given."""
        model = model or self.model
        trainer = Trainer(
            model, self.train, self.config, lambda _: {"x": 0.0}, metric="x", every=10**6,
            patience=None, seed=0,
        )  # fmt: skip
        taken = 0

        def batches(epoch: int) -> Iterator[Triples]:
            nonlocal taken
            for batch in self.batches(epoch):
                if taken == steps:
                    return
                taken += 1
                yield batch

        trainer.sampler = _Batches(batches)  # type: ignore[assignment]
        for _ in trainer.run():
            if taken == steps:
                break
        return model.weights()


def scores(model: Recommender, train: TrainSet) -> Tensor:
    with torch.inference_mode():
        return model.train(False).scorer(known(train))(torch.arange(train.n_users)).clone()


def check_first_step(golden: Golden) -> None:
    """Scores, loss terms and all gradients at the start."""
    assert deviation(golden.scores(), reference.scores(golden.start, golden.case)) <= 1e-9
    rows = golden.epochs[0][0]
    theirs = reference.loss_terms(golden.start, golden.case, rows)
    ours = golden.model.loss(next(golden.batches(1)))
    assert ours.keys() == theirs.keys()
    for term, value in theirs.items():
        assert float(ours[term].detach()) == pytest.approx(float(value), rel=1e-9), term
    torch.stack(list(ours.values())).sum().backward()  # type: ignore[no-untyped-call]
    expected = gradients(
        golden.start,
        sorted(golden.start),
        lambda params: reference.loss_terms(params, golden.case, rows),
    )
    found = dict(golden.model.named_parameters())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None
        ours_of = found[name].grad
        assert ours_of is not None, name
        # A bias behind which every unit is open cancels but for rounding.
        assert (ours_of - gradient).abs().max() <= 1e-9 * gradient.abs().max() + 1e-15, name


GOLDEN: dict[str, dict[str, Any]] = {
    "as VBPR": {"representation": "joint"},
    "aligned, of both sides": {"side": "both", "alignment_weight": 0.3, "operator": "mean"},
    "content alone, gated, in towers": {
        "side": "both", "ids": "none", "operator": "gate", "backbone": "mlp",
    },
    "users' content, in a graph": {
        "side": "user", "backbone": "lightgcn", "operator": "sum", "normalise": False,
    },
    "attention in a graph": {
        "fusion": "intermediate", "operator": "attention", "backbone": "lightgcn",
    },
    "asked by the user": {"operator": "attention", "query": "user", "ids": "users"},
    "late, weighted, in towers": {
        "fusion": "late", "operator": "weighted", "backbone": "mlp", "n_layers": 3,
    },
    "late, products": {
        "fusion": "late", "operator": "product", "side": "both", "ids": "none",
        "alignment_weight": 0.2,
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", GOLDEN.values(), ids=GOLDEN)
def test_golden_steps(settings: dict[str, Any], double: None) -> None:
    golden = Golden(**settings)
    theirs = reference.run(golden.start, golden.case, golden.epochs, cases.LEARNING_RATE)[30]
    ours = golden.after(30)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert not torch.equal(value, golden.start[name]), name
        assert deviation(ours[name], value) <= 1e-9, name
    assert deviation(golden.scores(), reference.scores(theirs, golden.case)) <= 1e-9


@pytest.mark.parametrize("settings", GOLDEN.values(), ids=GOLDEN)
def test_the_first_step_of_the_golden_cells(settings: dict[str, Any], double: None) -> None:
    check_first_step(Golden(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_first_step_of_every_cell(choice: Choice, double: None) -> None:
    check_first_step(Golden(**varied(choice)))


# -------------------------------------------------------------------------- what a model has to do


def varied(choice: Choice) -> dict[str, Any]:
    """A cell's settings, with other settings that differ from cell to cell."""
    place = CHOICES.index(choice)
    weight = 0.1 if choice.representation == "coordinate" and place % 3 else 0.0
    return settings_of(choice, normalise=place % 2 == 0, alignment_weight=weight)


def covering() -> list[Choice]:
    """Some cells in which any two values that go together do."""
    values = [
        {(a, b) for a in vars(one).items() for b in vars(one).items() if a < b} for one in CHOICES
    ]
    left, chosen = set().union(*values), []
    while left:
        best = max(range(len(CHOICES)), key=lambda k: len(values[k] & left))
        chosen.append(CHOICES[best])
        left -= values[best]
    return chosen


def check_life(choice: Choice, train: TrainSet, content: Content) -> None:
    """It trains, every parameter, is resumed to the bit, saved, loaded, and scored."""
    settings = varied(choice)
    of_model = (train, content)
    conformance.test_every_parameter_gets_a_gradient("schema", settings, *of_model)
    conformance.test_a_batch_of_one_row_works("schema", settings, *of_model)
    conformance.test_a_resumed_training_equals_an_uninterrupted_one("schema", settings, *of_model)
    conformance.test_saved_and_loaded_models_score_the_same("schema", settings, *of_model)
    conformance.test_items_that_training_has_not_seen("schema", settings, *of_model)


@pytest.mark.parametrize("choice", covering()[::2], ids=str)
def test_a_cell_does_what_a_model_must(
    choice: Choice, block_train: TrainSet, block_features: Content
) -> None:
    check_life(choice, block_train, block_features)


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_cell_does_what_a_model_must(
    choice: Choice, block_train: TrainSet, block_features: Content
) -> None:
    check_life(choice, block_train, block_features)


@pytest.mark.parametrize("choice", covering()[::6], ids=str)
def test_a_step_of_a_cell_waits_for_nothing(
    choice: Choice, block_train: TrainSet, block_features: Content
) -> None:
    waiting.test_a_step_waits_for_nothing("schema", varied(choice), block_train, block_features)


# Behind a perceptron's first layer biases have gradients that nearly cancel: Adam makes whole steps
# of what rounding leaves.
@pytest.mark.parametrize("choice", [c for c in covering() if c.backbone != "mlp"][::9], ids=str)
def test_a_cell_trains_the_same_on_another_device(
    choice: Choice, block_train: TrainSet, block_features: Content
) -> None:
    other_devices.test_training_gives_the_same_model(
        "schema", varied(choice), block_train, block_features
    )


@pytest.mark.parametrize("n_modalities", [1, 3])
@pytest.mark.parametrize("choice", covering()[:8], ids=str)
def test_any_number_of_modalities(
    choice: Choice, n_modalities: int, block_train: TrainSet, block_features: Content
) -> None:
    x = block_features.vectors["visual"]
    content = Content.complete({f"m{k}": x[:, k:] for k in range(n_modalities)})
    settings = {**varied(choice), "alignment_weight": 0.0}
    conformance.test_every_parameter_gets_a_gradient("schema", settings, block_train, content)
    out = conformance.scores(
        conformance.fit("schema", block_train, content, 2, **settings), block_train
    )
    assert torch.isfinite(out).all()


# ------------------------------------------------------------------------------- what coincides


def test_joint_early_concat_is_vbpr(double: None) -> None:
    """Without biases, that is preset corrected: same start, same batches, losses and scores."""
    ours = Golden(representation="joint", reg_weight=0.03)
    settings = {"preset": "corrected", "embedding_dim": 4, "reg_weight": 0.03, "lr": ours.config.lr}
    config = make_settings("vbpr", {**settings, "epochs": 99})
    content = Content.complete({m: ours.case.feature(m) for m in ours.case.modalities})
    vbpr = model_class("vbpr")(ours.train, content, config, Init(5))  # type: ignore[call-arg]
    names = {
        "user_id": "user_factors",
        "item_id": "item_factors",
        "user_part.joint": "user_content_factors",
        "projection.joint.weight": "projection.weight",
        "projection.joint.bias": "projection.bias",
    }
    ours.model.load_weights({mine: vbpr.weights()[name] for mine, name in names.items()})
    for batch in ours.batches(1):
        theirs = vbpr.loss(batch)
        for term, value in ours.model.loss(batch).items():
            assert float(value.detach()) == pytest.approx(float(theirs[term].detach()), rel=1e-12)
    trained, expected = ours.after(30), ours.after(30, vbpr)
    for mine, name in names.items():
        assert deviation(trained[mine], expected[name]) <= 1e-9, name
    assert deviation(ours.scores(), scores(vbpr, ours.train)) <= 1e-9


@pytest.mark.parametrize(
    ("backbone", "fusions"),
    [
        ("dot", [("early", "concat"), ("late", "sum")]),
        ("lightgcn", [("early", "concat"), ("intermediate", "concat"), ("late", "sum")]),
    ],
)
def test_a_sum_of_scores_is_a_product_of_concatenations(
    backbone: str, fusions: list[tuple[str, str]], double: None
) -> None:
    """Under linear backbones late fusion by sum is concat, wherever that happens."""
    found = []
    for fusion, operator in fusions:
        golden = Golden(backbone=backbone, fusion=fusion, operator=operator, side="both")
        golden.after(7)
        found.append(golden.scores())
    for other in found[1:]:
        assert deviation(other, found[0]) <= 1e-9


@pytest.mark.parametrize("choice", covering(), ids=str)
def test_embeddings_give_the_scores_where_they_can(
    choice: Choice, block_train: TrainSet, block_features: Content
) -> None:
    model, _ = conformance.make("schema", block_train, block_features, **varied(choice))
    decided = choice.fusion == "late" and choice.operator in ("product", "max")
    assert model.factorises == (
        not decided and (choice.query == "shared" or choice.fusion == "late")
    )
    if model.factorises:
        with torch.inference_mode():
            users, items = model.embeddings()
            found = conformance.scores(model, block_train)
            torch.testing.assert_close(users @ items.T, found, rtol=1e-5, atol=1e-6)


def test_one_modality_makes_joint_of_coordinate(
    block_train: TrainSet, block_features: Content
) -> None:
    content = Content.complete({"joint": block_features.vectors["visual"]})
    both = [
        conformance.fit("schema", block_train, content, 3, representation=name)
        for name in ("joint", "coordinate")
    ]
    assert both[0].weights().keys() == both[1].weights().keys()
    assert torch.equal(*(conformance.scores(model, block_train) for model in both))


# ---------------------------------------------------------------------- without ids, unseen items


def without_ids(**more: Any) -> dict[str, Any]:
    return {"side": "both", "ids": "none", **more}


@pytest.mark.parametrize("backbone", ["dot", "mlp", "lightgcn"])
def test_without_ids_no_parameter_belongs_to_a_user_or_an_item(
    backbone: str, block_train: TrainSet, block_features: Content
) -> None:
    model, _ = conformance.make(
        "schema", block_train, block_features, **without_ids(backbone=backbone)
    )
    widths = {8, 6, 5, 16}  # of embeddings, of the two modalities, of their concatenation
    for name, value in model.weights().items():
        assert set(value.shape) <= widths, name
    assert model.scores_unseen


def test_users_are_scored_by_the_history_that_is_known(
    block_train: TrainSet, block_features: Content
) -> None:
    """A user with the history of another one gets the other one's scores."""
    model, _ = conformance.make("schema", block_train, block_features, **without_ids())
    usual = known(block_train, block_features)
    first, second = (block_train.items[block_train.users == user] for user in (0, 1))
    items = np.concatenate([second[::-1], second[:1], first])
    swapped = Histories(np.array([0, second.size + 1, items.size]), items, None)
    with torch.inference_mode():
        expected = model.scorer(usual)(torch.arange(2))
        found = model.scorer(Known(usual.n_items, usual.content, lambda: swapped))(torch.arange(2))
    torch.testing.assert_close(found, expected.flip(0))
    assert not torch.equal(found, expected)


def test_an_unseen_copy_of_an_item_scores_what_its_content_scores(
    block_train: TrainSet, block_features: Content
) -> None:
    copies = {m: vectors[3:4].clone() for m, vectors in block_features.vectors.items()}
    users = torch.arange(block_train.n_users)
    seen, with_copy = (known(block_train, block_features, one) for one in (None, copies))
    for choice in covering():
        if not choice.scores_unseen or choice.backbone == "lightgcn":  # whose items have neighbours
            continue
        model, _ = conformance.make("schema", block_train, block_features, **settings_of(choice))
        with torch.inference_mode():
            found = model.scorer(with_copy)(users)[:, -1]
            if choice.has_ids("item"):
                model.item_id[3] = 0.0  # type: ignore[operator, index]
            expected = model.scorer(seen)(users)[:, 3]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=str(choice))


# ------------------------------------------------------------------------------------- refusals


def refused(**settings: Any) -> str:
    with pytest.raises(UsageError) as caught:
        make_settings("schema", settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_combinations_without_sense_are_refused_with_those_that_have_some() -> None:
    text = refused(representation="joint", fusion="late", operator="sum")
    assert "joint vector holds all modalities" in text
    assert "fusion=early" in text
    assert "representation=coordinate" in text
    assert "fusion=early" in refused(fusion="intermediate")
    assert "operator=sum|mean" in refused(fusion="late", operator="gate")
    assert "ids=both" in refused(side="user", ids="none")
    assert "side=both" in refused(side="item", ids="none")
    assert "counterpart" in refused(side="both", ids="users")
    assert "fuses nothing" in refused(representation="joint", ids="users", operator="sum")
    assert "operator=attention" in refused(query="user")
    assert "backbone=dot" in refused(query="user", operator="attention", backbone="mlp")
    assert "coordinate" in refused(representation="joint", alignment_weight=0.1)


def test_each_combination_is_accepted_or_refused_and_neighbours_are_right() -> None:
    accepted = set(CHOICES)
    for values in itertools.product(*FACTORS.values()):
        choice = Choice(*values)  # type: ignore[arg-type]
        assert (choice.refusal() is None) == (choice in accepted)
    for choice in CHOICES:
        make_settings("schema", settings_of(choice))
    near = Choice(representation="joint", fusion="late", operator="sum").neighbours()
    assert near == {"representation": ["coordinate"], "fusion": ["early"]}


def test_one_modality_has_nothing_to_align(block_train: TrainSet, block_features: Content) -> None:
    content = Content.complete({"visual": block_features.vectors["visual"]})
    with pytest.raises(UsageError, match=r"one modality \(visual\)"):
        conformance.make("schema", block_train, content, alignment_weight=0.1)


def test_the_alignment_compares_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(3)
    content = [torch.randn(10, 4, generator=draw) for _ in range(3)]
    items = torch.tensor([1, 2, 1, 3, 3, 4, 5, 4, 6, 2])
    monkeypatch.setattr(alignment, "AT_ONCE", 4)
    found = alignment.contrasted(content, items, 0.3)
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    each = [alignment.contrasted([x[p] for x in content], items[p], 0.3) for p in parts]
    expected = (4 * each[0] + 4 * each[1] + 2 * each[2]) / 10
    torch.testing.assert_close(found, expected)
    monkeypatch.setattr(alignment, "AT_ONCE", 256)
    assert not torch.isclose(alignment.contrasted(content, items, 0.3), expected)


def test_the_alignment_brings_an_items_modalities_together(
    block_train: TrainSet, block_features: Content
) -> None:
    def together(weight: float) -> float:
        model = conformance.fit(
            "schema", block_train, block_features, 15, alignment_weight=weight, reg_weight=0.0
        )
        with torch.no_grad():
            visual, textual = model._mu(model._products("item"))  # type: ignore[operator]
        return float((visual * textual).sum(1).mean())

    assert together(1.0) > together(0.0) + 0.3


# ------------------------------------------------------------------------- the models' own cells

# Representation, and where modalities meet: "early" is everything before the score, as arXiv
# 2309.05273 has it. Classified from the models' code with the paper's definitions; its own table
# was not at hand. VBPR and BM3 have nothing that the paper would call a fusion of modalities:
# VBPR's meet in the projection, BM3's in losses alone.
CLASSIFIED = {
    "vbpr": ("joint", None),
    "mmgcn": ("coordinate", "early"),
    "grcn": ("coordinate", "early"),
    "lattice": ("coordinate", "early"),
    "bm3": ("coordinate", None),
    "freedom": ("coordinate", "early"),
}


@pytest.mark.parametrize("name", CLASSIFIED)
def test_a_model_stands_where_the_papers_definitions_put_it(name: str) -> None:
    cell = model_class(name).cell
    assert cell is not None
    representation, fusion = CLASSIFIED[name]
    assert cell.representation == representation
    if representation == "joint":
        assert cell.operator == "concat with the id"  # the only thing left to fuse
    else:
        assert {"intermediate": "early"}.get(cell.fusion or "", cell.fusion) == fusion
    # No model of the six gives users content; all train ids of both sides.
    assert (cell.side, cell.ids) == ("item", "both")


def test_a_model_that_sees_no_content_says_so() -> None:
    for name in MODELS:
        model = model_class(name)
        if model.cell is not None:
            assert (model.cell.representation is None) == (not model.uses_features), name
        else:
            assert not model.trained or name == "schema", name


def test_the_commands_show_cells_and_combinations() -> None:
    listed = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["models"]).output
    assert re.search(r"^vbpr +joint +early +item +both +concat with the id; dot$", listed, re.M)
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["models", "schema"]).output
    rows = re.findall(
        r"^    (early|intermediate|late) +(item|user|both) +(both|users|none)", shown, re.M
    )
    assert len(rows) == len({(c.representation, c.fusion, c.side, c.ids) for c in CHOICES})
    document = json.loads(CliRunner().invoke(cli, ["models", "schema", "--json"]).output)
    assert len(document["combinations"]) == len(CHOICES)
    assert (
        json.loads(CliRunner().invoke(cli, ["models", "vbpr", "--json"]).output)["cell"]["side"]
        == "item"
    )


def test_a_refused_combination_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    line = ["train", "--model", "schema", "--data", str(tmp_path), "--out", str(tmp_path / "runs")]
    done = CliRunner().invoke(
        cli, [*line, "--set", "fusion=late", "--grid", "representation=coordinate,joint",
              "--set", "operator=sum"],
    )  # fmt: skip
    assert done.exit_code == 2
    assert "joint vector" in done.output
    assert list(tmp_path.iterdir()) == []


def test_whether_unseen_items_are_ranked_follows_from_the_settings(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "toy")
    for settings, scored in (
        ({"side": "both", "ids": "none"}, True),
        ({"operator": "product"}, False),
        ({"side": "user"}, False),
    ):
        recipe = Recipe(data=str(data), model="schema", settings=make_settings("schema", settings))
        recipe, inputs = load_inputs(recipe)
        assert inputs.setting_of(recipe).trained_only == (not scored)
        assert (
            inputs.setting_of(recipe)
            .describe()["unseen_items"]
            .startswith("scored" if scored else "never")
        )
    grid = Recipe(
        data=str(data), model="schema", settings=make_settings("schema", {"side": "user"}),
        grid={"side": ("user", "item")},
    )  # fmt: skip
    grid, inputs = load_inputs(grid)
    assert not inputs.setting_of(grid).trained_only
