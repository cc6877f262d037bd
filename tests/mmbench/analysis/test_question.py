"""Questions: what a file asks for, what differs by dataset, levels, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import REPOSITORY

from mmbench.analysis.answering import with_instead
from mmbench.analysis.effects import Observation
from mmbench.analysis.question import KIND, Planning, in_words, number_of, plan, read_question
from mmbench.errors import UsageError

DESIGN: dict[str, Any] = {
    "model": ["vbpr", "bpr-mf"],
    "scaling": ["none", "l2"],
    "factors": {"embedding_dim": [8, 16]},
    "seed": [1, 2],
}
QUESTION: dict[str, Any] = {
    "title": "Widths",
    "question": "How wide?",
    "designs": {"main": DESIGN},
    "ask": [{"factor": "embedding_dim", "reference": 8}],
}


def planned(tmp_path: Path, dataset: str = "toy", **other: Any) -> Planning:
    path = tmp_path / "q.yaml"
    path.write_text(yaml.safe_dump({**QUESTION, **other}))
    return plan(read_question(path, dataset), Path(dataset))


def test_every_combination_is_a_cell_with_its_levels(tmp_path: Path) -> None:
    planning = planned(tmp_path)
    assert len(planning.cells) == 2 * 2 * 2 * 2
    assert planning.factors == {
        "model": ["vbpr", "bpr-mf"],
        "scaling": ["none", "l2"],
        "embedding_dim": [8, 16],
    }
    first = planning.cells[0]
    assert (first.recipe.data, first.recipe.settings.embedding_dim, first.seed) == ("toy", 8, 1)
    (contrast,) = planning.contrasts(planning.question.ask[0], ["toy, given"])
    assert (contrast.level, contrast.reference, contrast.where) == (16, 8, {KIND: "toy, given"})


def test_models_without_content_run_once_whatever_the_content(tmp_path: Path) -> None:
    features = [{"visual": "a"}, {"visual": "b"}]
    design = {"model": ["vbpr", "bpr-mf"], "features": features, "seed": 1}
    ask = [{"factor": "features", "reference": {"visual": "a"}}]
    planning = planned(tmp_path, designs={"main": design}, ask=ask)
    assert [cell.recipe.model for cell in planning.cells] == ["vbpr", "bpr-mf", "vbpr"]
    assert "features" not in planning.cells[1].levels


def test_what_differs_by_dataset(tmp_path: Path) -> None:
    own = {
        "title": "Widths of songs",
        "designs": {"every": {"seed": 7}, "main": {"scaling": None}, "other": None},
    }
    designs = {"main": DESIGN, "other": {"model": "random"}}
    planning = planned(tmp_path, "songs", designs=designs, datasets={"songs": own})
    assert planning.question.title == "Widths of songs"
    assert {cell.recipe.seed for cell in planning.cells} == {7}
    assert (len(planning.cells), planning.cells[0].recipe.scaling) == (4, "none")
    assert len(planned(tmp_path, designs=designs, datasets={"songs": own}).cells) == 17


def test_seeds_and_epochs_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "q.yaml"
    path.write_text(yaml.safe_dump(QUESTION))
    planning = plan(read_question(path, "toy"), Path("toy"), seeds=(5,), epochs=3)
    assert {(cell.seed, cell.recipe.settings.epochs) for cell in planning.cells} == {(5, 3)}


@pytest.mark.parametrize(
    ("key", "levels", "written", "contrast"),
    [
        ("mask", [{}, {"visual": 0.5}], {"visual": 0}, ({"visual": 0.5}, {})),
        ("missing", ["zeros", "pagerank"], "zero", ("pagerank", "zeros")),
        ("missing", ["zero", "pagerank"], "pagerank:alpha=0.1", ("zero", "pagerank")),
    ],
)
def test_a_reference_may_be_written_in_other_words(
    key: str, levels: list[Any], written: Any, contrast: tuple[Any, Any], tmp_path: Path
) -> None:
    design = {"model": "vbpr", key: levels, "seed": [1, 2]}
    ask = [{"factor": key, "reference": written}]
    planning = planned(tmp_path, designs={"main": design}, ask=ask)
    (found,) = planning.contrasts(planning.question.ask[0], ["toy"])
    assert (found.level, found.reference) == contrast


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, "q.yaml: titel: Extra inputs"),
        ({"title": None}, "title"),
        ({"designs": {}}, "designs"),
        ({"designs": {"main": ["vbpr"]}}, "designs.main"),
        ({"designs": {"main": {**DESIGN, "modle": 1}}}, "designs.main: unknown key 'modle'"),
        ({"designs": {"main": {**DESIGN, "factors": {"wide": [1]}}}}, "unknown setting"),
        ({"designs": {"main": {**DESIGN, "factors": [1]}}}, "factors: expected settings"),
        ({"designs": {"main": {**DESIGN, "grid": {"embedding_dim": [8]}}}}, "also in grid"),
        ({"ask": []}, "ask"),
        ({"ask": [{"factor": "lr", "reference": 1}]}, "lr does not vary in any design"),
        ({"ask": [{"factor": "embedding_dim", "reference": 9}]}, "has no level 9; it has 8, 16"),
        ({"ask": [{"factor": "seed", "reference": 1}]}, "seed is no factor"),
        ({"ask": [{"factor": "model", "reference": "vbpr", "by": "model"}]}, "the factor itself"),
        ({"metrics": ["Recal@20"]}, "Recal"),
        ({"metrics": ["Recall@7"]}, "Recall@7 is not among those of design main"),
        ({"curve": "scaling"}, "curve: scaling is no factor with two numbers"),
        ({"datasets": [1]}, "datasets: expected names"),
        ({"designs": {"main": {**DESIGN, "start_from": "@other"}}}, "@other: that is no other"),
        (
            {"ask": [{"factor": "scaling", "reference": "l2", "instead": {"x": {"vbpr": "bm3"}}}]},
            "no design has a run of bm3",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        planned(tmp_path, **change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_may_stand_for_a_level_of_another(tmp_path: Path) -> None:
    ask = [{"factor": "scaling", "reference": "none", "instead": {"ids": {"vbpr": "bpr-mf"}}}]
    asked = planned(tmp_path, ask=ask).question.ask
    real = [
        Observation({"model": "vbpr", "scaling": s, KIND: "toy"}, seed, {"Recall@20": 0.5})
        for s in ("none", "l2")
        for seed in (1, 2)
    ]
    ids = [
        Observation({"model": "bpr-mf", KIND: "toy"}, seed, {"Recall@20": 0.1}) for seed in (1, 2)
    ]
    made = with_instead([*real, *ids], asked)[6:]
    assert [(one.levels["model"], one.levels["scaling"], one.seed) for one in made] == [
        ("vbpr", "ids", 1),
        ("vbpr", "ids", 2),
    ]
    assert made[0].values == {"Recall@20": 0.1}


def test_levels_in_words_and_numbers() -> None:
    assert [in_words(level) for level in (None, {}, {"visual": "a"}, {"a": 0.5, "b": 0.5})] == [
        "none",
        "none",
        "visual a",
        "a+b 0.5",
    ]
    levels: list[Any] = [{}, {"a": 0.3, "b": 0.5}, 2, "x", {"a": "x"}, True]
    assert [number_of(level) for level in levels] == [0.0, 0.5, 2.0, None, None, None]


@pytest.mark.parametrize("dataset", ["demo", "lastfm", "tiktok"])
def test_the_questions_of_the_tree_are_questions(dataset: str) -> None:
    for path in sorted((REPOSITORY / "recipes/questions").glob("*.yaml")):
        planning = plan(read_question(path, dataset), Path("data") / dataset)
        seeds = {cell.seed for cell in planning.cells} - {None}
        assert len(seeds) >= 3, path
