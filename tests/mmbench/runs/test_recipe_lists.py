"""Recipes from files: how they expand, that a run's own recipe repeats it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.conftest import REPOSITORY
from tests.mmbench.conftest import write_dataset

from mmbench.commands.run import run
from mmbench.commands.train import train
from mmbench.errors import DataError, UsageError
from mmbench.runs import recipe_lists
from mmbench.runs.recipe_lists import read_plan


def plan(tmp_path: Path, **values: object) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_every_combination_is_a_run(tmp_path: Path) -> None:
    path = plan(
        tmp_path,
        data=["a", "b"],
        missing=["mean", "zero"],
        model=["vbpr", "item-knn"],
        seed=[1, 2],
        settings={"epochs": 3, "vbpr.lr": 0.5, "l_w": 0.25},
        grid={"vbpr.embedding_dim": [8, 16]},
        features={"visual": "mine"},
    )
    recipes = read_plan(path)
    assert [(r.data, r.missing, r.model, r.seed) for r in recipes[:3]] == [
        ("a", "mean", "vbpr", 1),
        ("a", "mean", "vbpr", 2),
        ("a", "mean", "item-knn", 1),  # has no randomness: one seed
    ]
    assert len(recipes) == 2 * 2 * 3
    assert (recipes[0].settings.lr, recipes[0].settings.model_dump()["reg_weight"]) == (0.5, 0.25)
    assert recipes[0].grid == {"embedding_dim": (8, 16)}
    assert (recipes[0].features, recipes[2].features, recipes[2].grid) == (
        {"visual": "mine"},
        {},
        {},
    )
    assert {r.seed for r in read_plan(path, seed=[7])} == {7}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "vbpr"}, "plan.yaml: unknown key 'modle'. Did you mean 'model'"),
        ({"seed": 1}, "model is missing"),
        ({"model": "vbpr2"}, "unknown model 'vbpr2'. Did you mean 'vbpr'"),
        ({"model": []}, "model is missing"),
        ({"model": "vbpr", "seed": []}, "seed: an empty list"),
        ({"model": "vbpr", "seed": "x"}, "plan.yaml: seed: "),
        ({"model": "vbpr", "settings": {"lrr": 1}}, "Did you mean 'lr'"),
        ({"model": "vbpr", "settings": {"lr": -1}}, "lr = -1"),
        ({"model": "vbpr", "settings": [1]}, "settings: expected names and values"),
        ({"model": "vbpr", "grid": {"lr": [0.1, -1]}}, "lr = -1"),
        ({"model": "vbpr", "evaluation": {"cutoffs": [0]}}, "plan.yaml: evaluation"),
        ({"model": "vbpr", "evaluation": {"metrics": ["Recal"]}}, "Recal"),
        ({"dataset": "x", "models": {"vbpr": {}}}, "mmbench reproduce"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_plan(plan(tmp_path, **values))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"model: [", DataError),
        (b"\xff\xfe", DataError),
        (b"- vbpr", UsageError),
        (b"!!python/object:os.x {}", DataError),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    with pytest.raises(error, match="plan.yaml"):
        read_plan(path)


def test_a_runs_own_recipe_does_it_again(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "toy")
    common = ["--out", str(tmp_path / "runs"), "-q"]
    options = [
        "--set",
        "epochs=4",
        "--set",
        "embedding_dim=8",
        "--every",
        "2",
        "--grid",
        "lr=0.01,0.02",
    ]
    first = CliRunner().invoke(
        train,
        ["--model", "vbpr", "--data", str(data), *options, *common, "--json"],
        catch_exceptions=False,
    )
    before = json.loads(first.stdout)
    recipe = str(Path(before["run"]) / "recipe.yaml")
    again = CliRunner().invoke(run, [recipe, *common, "--json"], catch_exceptions=False)
    assert json.loads(again.stdout) == before  # found, not repeated
    anew = CliRunner().invoke(
        run, [recipe, "--out", str(tmp_path / "anew"), "-q", "--json"], catch_exceptions=False
    )
    after = json.loads(anew.stdout)
    assert (after["test"], Path(after["run"]).name) == (before["test"], Path(before["run"]).name)


def test_tables_keep_apart_what_differs(tmp_path: Path) -> None:
    folders = [
        str(write_dataset(tmp_path / name, seed=number))
        for number, name in enumerate(["one", "two"])
    ]
    settings = {"epochs": 2, "embedding_dim": 8}
    path = plan(
        tmp_path, data=folders, model=["bpr-mf", "most-popular"], seed=[1, 2], settings=settings
    )
    other = tmp_path / "other.yaml"
    other.write_text(
        yaml.safe_dump({"data": folders[0], "model": "bpr-mf", "settings": {**settings, "lr": 0.5}})
    )
    done = CliRunner().invoke(
        run, [str(path), str(other), "--out", str(tmp_path / "runs"), "-q"], catch_exceptions=False
    )
    assert done.exit_code == 0
    for text in ("one, test @10", "two, test @10", "bpr-mf(lr=0.5)", "bpr-mf(lr=0.001)", "±"):
        assert text in done.stdout, done.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 2 * 3 + 1


def test_a_model_in_any_case_is_one_run(tmp_path: Path) -> None:
    write_dataset(tmp_path / "toy", users=20)
    options = ["--data", str(tmp_path / "toy"), "--out", str(tmp_path / "runs"), "-q"]
    for names in ("most-popular", "Most_Popular,MOST-POPULAR"):
        done = CliRunner().invoke(train, ["--model", names, *options], catch_exceptions=False)
        assert done.exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("toy-most-popular-")


def test_keys_with_mappings_and_settings_may_be_factors(tmp_path: Path) -> None:
    sets = [{"visual": "a"}, {"visual": "b"}, {"visual": "a"}]  # one of them twice
    path = plan(
        tmp_path,
        model=["vbpr", "bpr-mf"],
        features=sets,
        factors={"embedding_dim": [8, 16], "vbpr.reg_weight": [0.1]},
        settings={"reg_weight": 0.5},
        grid={"lr": [0.1, 0.2]},
        seed=[1, 2],
    )
    recipes = read_plan(path)
    found = [(r.model, r.features.get("visual"), r.settings.embedding_dim) for r in recipes[::2]]
    assert found == [
        ("vbpr", "a", 8),
        ("vbpr", "a", 16),
        ("bpr-mf", None, 8),  # sees no content: once for all sets
        ("bpr-mf", None, 16),
        ("vbpr", "b", 8),
        ("vbpr", "b", 16),
    ]
    assert [r.settings.model_dump()["reg_weight"] for r in recipes[:6:2]] == [0.1, 0.1, 0.5]
    assert all(r.grid == {"lr": (0.1, 0.2)} for r in recipes)


def refuse(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """Let every recipe be refused whose settings have these values."""
    make = recipe_lists.make_recipe

    def make_or_refuse(**given: Any) -> Any:
        if values.items() <= given["settings"].items():
            raise UsageError("these make no sense together (got …); try others")
        return make(**given)

    monkeypatch.setattr(recipe_lists, "make_recipe", make_or_refuse)


def test_combinations_that_a_model_refuses_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, embedding_dim=8, batch_size=2)
    factors = {"embedding_dim": [8, 16], "batch_size": [2, 4]}
    path = plan(tmp_path, model=["vbpr", "bpr-mf"], factors=factors, seed=[1, 2])
    notes: list[str] = []
    recipes = read_plan(path, notes.append)
    assert len(recipes) == 2 * 3 * 2
    (note,) = notes
    assert "2 of 8 combinations are left out" in note  # seeds are not counted
    assert "batch_size 2, embedding_dim 8 (these make no sense together)" in note


def test_a_value_that_is_refused_in_every_combination_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, embedding_dim=8)
    path = plan(tmp_path, model="vbpr", factors={"embedding_dim": [8, 16]}, scaling=["none", "l2"])
    with pytest.raises(UsageError, match="these make no sense together"):
        read_plan(path)


def test_the_study_of_convolutional_networks_is_a_recipe() -> None:
    recipes = read_plan(REPOSITORY / "recipes/cnn-study.yaml")
    # content-knn has no randomness, and nothing to search.
    assert len(recipes) == 3 * (1 + 2 * 3)
    assert {one.features["visual"] for one in recipes} == {
        one["name"] for one in _extracted() if one.get("pooling") != "all" and "name" in one
    }
    style = next(one for one in recipes if one.model == "content-style")
    assert style.settings.model_dump()["roles"] == {"visual": "class"}
    assert "VisDiv" in style.evaluation.metrics


def _extracted() -> list[dict[str, str]]:
    path = REPOSITORY / "recipes/extract/cnn-study.yaml"
    sets: list[dict[str, str]] = yaml.safe_load(path.read_text())["sets"]
    return sets
