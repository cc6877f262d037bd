from __future__ import annotations

from pathlib import Path

import pytest

from mmbase.catalogue.items import load_items
from mmx.catalogue.contents import text_contents
from mmx.config import Recipe, RunConfig, SetConfig, from_options, load_recipe
from mmx.demo import write_demo
from mmx.encoders import describe
from mmx.errors import UsageError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes" / "extract").glob("*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_minimal_recipe_has_every_default(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path / "r.yaml", "sets:\n  - {modality: visual, model: colour-hog}\n")
    )
    assert recipe.run() == RunConfig()
    assert recipe.sets == (SetConfig(modality="visual", model="colour-hog"),)
    assert recipe.run().store == Path("data/demo/features")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_that_come_with_mmx_are_valid(path: Path) -> None:
    for config in load_recipe(path).sets:
        assert config.model in {info.name for info in describe(config.modality)}


def test_there_are_recipes() -> None:
    assert RECIPES


def test_the_demo_recipe_names_every_key_once() -> None:
    text = next(path for path in RECIPES if path.name == "demo.yaml").read_text(encoding="utf-8")
    for key in (*RunConfig.model_fields, *SetConfig.model_fields):
        assert key in text, key


def test_the_demo_recipe_makes_the_sets_that_the_plain_commands_make(tmp_path: Path) -> None:
    """`make demo` goes on with the sets that `mmbench train` makes on first use."""
    write_demo(tmp_path / "demo", items=40, users=40, seed=3)
    items = load_items(tmp_path / "demo")
    sets = load_recipe(next(path for path in RECIPES if path.name == "demo.yaml")).sets
    (textual,) = (config for config in sets if config.modality == "textual")
    assert text_contents(items, textual.text_columns).columns == text_contents(items).columns
    plain = [SetConfig(modality=config.modality, model=config.model) for config in sets]
    assert [config.model_copy(update={"text_columns": None}) for config in sets] == plain


def test_a_mistake_in_a_set_is_not_said_to_be_too_few_sets(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("sets:\n  - modality: visual\n    modle: x\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert [line.partition(": ")[2][:12] for line in str(caught.value).splitlines()] == [
        "sets[0].mode",
        "sets[0].modl",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sets: [{modality: visual, model: x}]\nworker: 3\n",
            r"r\.yaml, line 2: worker: unknown key; did you mean 'workers'",
        ),
        (
            "sets:\n  - modality: visual\n    modle: x\n",
            r"line 3: sets\[0\]\.modle: unknown key; did you mean 'model'",
        ),
        ("sets:\n  - modality: visual\n", r"line 2: sets\[0\]\.model: this key is needed"),
        (
            "sets:\n  - modality: vidual\n    model: x\n",
            r"line 2: sets\[0\]\.modality: input should be .*got 'vidual'",
        ),
        (
            "workers: 0\nsets: [{modality: visual, model: x}]\n",
            r"line 1: workers: .*greater than or equal to 1 \(got 0\)",
        ),
        (
            f"seed: {2**32}\nsets: [{{modality: visual, model: x}}]\n",
            r"line 1: seed: .*less than 4294967296",
        ),
        ("sets: []\n", r"line 1: sets: .*at least 1"),
        ("data: a\n", r"sets: this key is needed"),
        (
            "zzzzz: 1\nsets: [{modality: visual, model: x}]\n",
            r"unknown key; known keys: address, allow_outside, data, device",
        ),
        (
            "max_failures: few\nsets: [{modality: visual, model: x}]\n",
            r"line 1: max_failures: .*got 'few'",
        ),
        ("sets: [{modality: visual, model: x, name: ../x}]\n", r"sets\[0\]\.name: "),
        ("data: a\ndata: b\nsets: []\n", r"line 2: data is given twice \(first in line 1\)"),
        ("sets: [1]\n", r"line 1: sets\[0\]: "),
        ("- a\n", "a recipe is a mapping of keys"),
        ("", "a recipe is a mapping of keys"),
        ("a: [\n", r"r\.yaml, line 2: not valid YAML"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_mistakes_are_named_by_file_line_key_rule_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(write(tmp_path / "r.yaml", text))


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "worker: 1\nseed: -1\nsets: [{modality: visual, model: x}]\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert len(str(caught.value).splitlines()) == 2


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path / "latin.yaml")


def test_options_are_named_as_they_are_typed() -> None:
    with pytest.raises(UsageError, match="--max-failures: string .*got '2 %'"):
        from_options(RunConfig, {"max_failures": "2 %", "workers": None})
    assert from_options(RunConfig, {"workers": "4", "limit": None}) == RunConfig(workers=4)


def test_a_recipe_cannot_be_changed() -> None:
    recipe = Recipe(sets=(SetConfig(modality="audio", model="mfcc"),))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]
