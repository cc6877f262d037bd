"""Settings of older versions that changed nothing: refused when given, passed over when read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmbase.progress import Silent
from mmbench.config import Recipe, for_model, make_settings, read_recipe, write_recipe
from mmbench.errors import UsageError
from mmbench.models import MODELS, model_class
from mmbench.runs.finished_runs import find_runs, group
from mmbench.runs.inputs import load_inputs
from mmbench.runs.run import run, run_folder

RETIRED = [(name, key) for name in MODELS for key in sorted(model_class(name).Config.RETIRED)]


def as_an_older_version_wrote_it(path: Path, **changes: Any) -> None:
    values = yaml.safe_load(path.read_text())
    values["settings"] = {"preset": "original", **values["settings"]}
    path.write_text(yaml.safe_dump({**values, **changes}))


def test_presets_of_bm3_and_freedom_are_retired() -> None:
    assert RETIRED == [("bm3", "preset"), ("freedom", "preset")]


@pytest.mark.parametrize(("name", "key"), RETIRED)
def test_a_retired_setting_is_refused_with_the_list_of_settings(name: str, key: str) -> None:
    assert key not in model_class(name).Config.model_fields
    for attempt in (
        lambda: make_settings(name, {key: "original"}),
        lambda: for_model(name, {key: "original"}, [name]),
        lambda: for_model(name, {f"{name}.{key}": "original"}, [name]),
    ):
        with pytest.raises(UsageError, match=rf"setting of {name}.*batch_size"):
            attempt()  # type: ignore[no-untyped-call]


def test_among_several_models_a_preset_is_for_those_that_have_it() -> None:
    given = {"preset": "original", "lr": 0.1}
    assert for_model("lattice", given, ["bm3", "lattice"]) == given
    assert for_model("bm3", given, ["bm3", "lattice"]) == {"lr": 0.1}


@pytest.mark.parametrize("name", ["bm3", "freedom"])
def test_recipes_that_have_it_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    plain = Recipe(model=name, settings={"lr": 0.1})
    presets, lr = ["paper", "original"], {"low": 0.1, "high": 0.2}
    for changes, asked in (
        ({}, {}),
        ({"grid": {"preset": presets, "lr": [0.1, 0.2]}}, {"grid": {"lr": (0.1, 0.2)}}),
        ({"search": {"budget": 2, "space": {"preset": presets}}}, {}),
        (
            {"search": {"budget": 2, "space": {"preset": presets, "lr": lr}}},
            {"search": {"budget": 2, "space": {"lr": lr}}},
        ),
    ):
        write_recipe(path, plain)
        as_an_older_version_wrote_it(path, **changes)
        assert read_recipe(path) == Recipe(model=name, settings={"lr": 0.1}, **asked)


def test_a_finished_run_of_an_older_version_is_the_same_system(
    dataset: Path, tmp_path: Path
) -> None:
    settings = {"epochs": 1, "embedding_dim": 4}
    recipe, inputs = load_inputs(
        Recipe(data=str(dataset), model="freedom", settings=settings, grid={"lr": (0.1,)})
    )
    folder = run_folder(tmp_path, recipe, inputs)
    run(recipe, inputs, folder, progress=Silent())
    old = tmp_path / "old"
    shutil.copytree(folder.path, old)
    as_an_older_version_wrote_it(old / "recipe.yaml")
    record = json.loads((old / "run.json").read_text())
    record["settings"]["preset"] = "original"
    (old / "run.json").write_text(json.dumps(record))
    (system,) = group(find_runs([folder.path, old]))
    assert system.label == "freedom"
    assert system.runs[0].recipe.settings.lr == 0.1
