"""`paper` and `strict` side by side, against a brute-force ranking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.elsewhere import elsewhere
from tests.mmbench.conftest import write_dataset
from tests.mmbench.synchronising import Synchronising

from mmbase.progress import Silent
from mmbench.config import Evaluation, Recipe, make_evaluation, make_settings
from mmbench.core.interactions import Index
from mmbench.data.files import read_categories, read_item_ids
from mmbench.errors import DataError, UsageError
from mmbench.evaluation.protocol import evaluate_lists, lists_for_both
from mmbench.metrics.item_data import Topics
from mmbench.models import MODELS, model_class
from mmbench.runs import run as experiment
from mmbench.runs.fit import build
from mmbench.runs.inputs import Inputs, load_inputs


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A dataset with an items table, unseen items, and a user who has held-out rows only."""
    data = write_dataset(tmp_path / "cold")
    items = [f"B{item:03d}X" for item in range(30)]
    lines = [
        f"{item}\tA \xe9 title\t{'red|blue' if place % 3 else 'green'}"
        for place, item in enumerate(items)
    ]
    (data / "items.tsv").write_bytes(
        "\n".join(["item_id\ttitle\tcategory", *lines, "NEW\tfresh\t"]).encode("latin-1")
    )
    rows = pd.read_csv(data / "interactions.tsv", sep="\t")
    (data / "interactions.tsv").unlink()
    rng = np.random.default_rng(0)
    part = rng.choice(["train", "valid", "test"], len(rows), p=[0.6, 0.2, 0.2])
    part[(rows.item_id == "B001X") & (part == "train")] = "test"
    part[(rows.user_id == "u7") & (part == "train")] = "valid"
    for name in ("train", "valid", "test"):
        rows[part == name].to_csv(data / f"{name}.tsv", sep="\t", index=False)
    return data


def recipe_of(data: Path, model: str = "content-knn", **evaluation: Any) -> tuple[Recipe, Inputs]:
    evaluation = {"cutoffs": (3, 10), "select_by": "Recall@10", **evaluation}
    return load_inputs(
        Recipe(
            data=str(data),
            model=model,
            settings=make_settings(model, {}),
            evaluation=make_evaluation(**evaluation),
        )
    )


def run(data: Path, out: Path, model: str = "content-knn", **evaluation: Any) -> experiment.Result:
    recipe, inputs = recipe_of(data, model, **evaluation)
    return experiment.run(
        recipe, inputs, experiment.run_folder(out, recipe, inputs), progress=Silent()
    )


def ranked(scores: np.ndarray[Any, Any], masked: set[int], k: int) -> list[int]:
    order = sorted(
        (item for item in range(scores.size) if item not in masked),
        key=lambda item: (-scores[item], item),
    )
    return order[:k]


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_lists_equal_a_brute_force_ranking(cold: Path, protocol: str) -> None:
    recipe, inputs = recipe_of(cold, protocol=protocol)
    training = inputs.split.training
    setting = inputs.setting(recipe.evaluation)
    model = build(recipe, setting)
    with torch.inference_mode():
        scores = model.scorer(setting.known)(torch.arange(training.train.n_users)).numpy()
    assert scores.shape[1] == (31 if protocol == "strict" else training.train.n_items)
    for_valid, for_test = lists_for_both(model, setting)

    def items_of(rows: Any, user: int) -> set[int]:
        return set(rows.items[rows.users == user].tolist())

    for user in range(training.train.n_users):
        trained, validated = items_of(training.train, user), items_of(training.valid, user)
        assert for_valid.items[user].tolist() == ranked(scores[user], trained, 10)
        masked = trained | validated if protocol == "strict" else trained
        assert for_test.items[user].tolist() == ranked(scores[user], masked, 10)


@pytest.mark.parametrize(
    "model",
    [
        name
        for name in MODELS
        if model_class(name).trained and not model_class(name).uses_categories
    ],
)
def test_what_waits_for_the_device_does_not_depend_on_the_number_of_blocks(
    model: str, cold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the evaluator and of the models' own scoring, with items that training has not seen."""
    recipe, inputs = recipe_of(cold, model, protocol="strict")
    setting = inputs.setting(recipe.evaluation)
    here = lists_for_both(build(recipe, setting), setting)
    monkeypatch.setattr("mmbench.runs.devices.resolve_device", lambda name, automatic: name)
    waited = []
    with elsewhere() as device:
        moved = build(recipe.model_copy(update={"device": str(device)}), setting)
        for users_per_block in (1_000, 3, 7, 1_000):
            size = 4 * setting.candidates.n_items * users_per_block
            monkeypatch.setattr("mmbench.evaluation.ranking.BLOCK_BYTES", size)
            with Synchronising() as calls:
                there = lists_for_both(moved, setting)
            waited.append(calls.names)
            for ours, theirs in zip(there, here, strict=True):
                assert (ours.items == theirs.items).mean() > 0.9  # sums are added up otherwise
    # The first one makes what graphs keep for the next.
    assert waited[1] == waited[2] == waited[3]


def test_the_catalogue_has_rows_behind_the_candidates(cold: Path) -> None:
    assert read_item_ids(cold)[-1] == "NEW"
    by_paper, paper = recipe_of(cold, protocol="paper")
    by_strict, strict = recipe_of(cold, protocol="strict")
    ids = [one.split.training.item_ids.tolist() for one in (paper, strict)]
    assert "NEW" not in ids[0]
    assert ids[1] == [*ids[0], "NEW"]
    n_trained = strict.split.training.n_trained
    assert n_trained == paper.split.training.n_trained < len(ids[0])
    assert strict.split.training.digest == paper.split.training.digest
    # a model knows, and slices divide, the candidates: trained items in paper, all in strict
    for inputs, recipe, n in ((paper, by_paper, n_trained), (strict, by_strict, 31)):
        setting = inputs.setting(recipe.evaluation)
        assert setting.candidates.n_items == setting.known.n_items == n
        assert setting.present["visual"].size == len(setting.known.content["visual"].vectors) == n
    one = strict.features["visual"]
    assert len(one.vectors) == len(one.present) == 31
    assert not one.present[-1]  # NEW has no vector: the mean of the training items stands in
    trained = one.vectors[:n_trained][one.present[:n_trained]]
    np.testing.assert_allclose(one.vectors[-1], trained.mean(0), rtol=1e-5)
    assert {"catalogue"} == set(strict.evaluation) and not paper.evaluation


def test_a_user_outside_training_scores_zero_in_strict_and_is_left_out_in_paper(
    cold: Path, tmp_path: Path
) -> None:
    paper, strict = (
        run(cold, tmp_path / "runs", protocol=protocol) for protocol in ("paper", "strict")
    )
    records = {
        one.path: json.loads((one.path / "run.json").read_text())["protocol"]
        for one in (paper, strict)
    }
    evaluated = {one.path: records[one.path]["users_evaluated"]["test"] for one in (paper, strict)}
    assert evaluated[strict.path] == evaluated[paper.path] + 1
    values = pd.read_parquet(strict.path / "per_user.parquet").set_index(["split", "user_id"])[
        "Recall@10"
    ]
    assert values["test", "u7"] == values["valid", "u7"] == 0.0
    assert "u7" not in set(pd.read_parquet(paper.path / "per_user.parquet")["user_id"])
    assert strict.test["Recall@10"] == pytest.approx(values["test"].mean(), rel=1e-12)


def test_every_choice_is_recorded(cold: Path, tmp_path: Path) -> None:
    found = {}
    for protocol, model in (
        ("paper", "content-knn"),
        ("strict", "content-knn"),
        ("strict", "item-knn"),
    ):
        result = run(cold, tmp_path / "runs", model, protocol=protocol, patience=3)
        found[protocol, model] = json.loads((result.path / "run.json").read_text())["protocol"]
    paper, strict, transductive = found.values()
    assert paper["masked"]["test"] == "the user's training items"
    assert strict["masked"]["test"] == "the user's training and validation items"
    assert (paper["users_without_list"], strict["users_without_list"]) == ("left out", "score 0")
    assert (
        strict["n_candidates"]
        == 31
        == strict["n_candidates_unseen_in_training"] + paper["n_candidates"]
    )
    assert strict["unseen_items"] == "scored"
    assert transductive["unseen_items"].startswith("never listed")
    assert strict["early_stopping"] == "after 3 validations without improvement"


def test_content_finds_items_that_training_has_not_seen(cold: Path, tmp_path: Path) -> None:
    def coverage(model: str, protocol: str) -> tuple[float | None, float]:
        result = run(
            cold, tmp_path / "runs", model, protocol=protocol, metrics=("Recall", "ItemCoverage")
        )
        (cold_items,) = (one for one in result.slices["test"] if one["slice"] == "cold")
        return cold_items["metrics"]["Recall@10"], result.test["ItemCoverage@10"] or 0.0

    assert (coverage("content-knn", "strict")[0] or 0.0) > 0
    # Neither lists cold items: a zero would look measured.
    assert coverage("content-knn", "paper")[0] is None
    assert coverage("item-knn", "strict")[0] is None
    assert coverage("content-knn", "strict")[1] > coverage("content-knn", "paper")[1]


def test_a_run_can_be_scored_by_the_other_protocol(cold: Path, tmp_path: Path) -> None:
    paper, strict = (
        run(cold, tmp_path / "runs", protocol=protocol) for protocol in ("paper", "strict")
    )
    again = experiment.evaluate_run(paper.path, strict.recipe.evaluation, slices=True)
    assert again.scores["test"].overall == strict.test
    assert again.protocol["name"] == "strict"
    assert [one.as_json() for one in again.slices["test"]] == strict.slices["test"]
    assert (
        experiment.evaluate_run(strict.path, paper.recipe.evaluation).scores["valid"].overall
        == paper.valid
    )


def test_another_catalogue_is_another_run(cold: Path) -> None:
    def name(protocol: str) -> str:
        recipe, inputs = recipe_of(cold, protocol=protocol)
        return experiment.run_folder(Path("runs"), recipe, inputs).path.name

    before = name("paper"), name("strict")
    with (cold / "items.tsv").open("a") as table:
        table.write("\nNEWER\tfresh\t")
    assert name("paper") == before[0]
    assert name("strict") != before[1]


# -- side data of metrics
# ---------------------------------------------------------------------------------------------


def test_side_data_reach_the_metrics(cold: Path, tmp_path: Path) -> None:
    names = ("ILD", "Unexpectedness", "Miscalibration", "SRecall", "Recall")
    wanted = {"metrics": names, "diversity_features": "visual", "categories": "category"}
    result = run(cold, tmp_path / "runs", **wanted)
    assert all(result.test[f"{name}@10"] is not None for name in names)
    assert result.recipe.evaluation.diversity_features == "visual=toy"
    digests = json.loads((result.path / "run.json").read_text())["protocol"]["digests"]
    assert set(digests) == {"catalogue", "categories", "diversity_features"}
    again = experiment.evaluate_run(result.path, result.recipe.evaluation)
    assert again.scores["test"].overall == result.test


def test_categories_are_read_by_id(cold: Path) -> None:
    topics, digest = read_categories(cold, "category", ["B001X", "elsewhere", "B000X"])
    assert topics.items.tolist() == [0, 0, 2]  # blue, red; green
    assert topics.topics.tolist() == [0, 2, 1]
    assert read_categories(cold, "category", ["B000X", "B001X"])[1] != digest
    as_lists = pd.DataFrame(
        {"asin": ["B001X", "B000X"], "category": [["red", "blue"], ["green"]], "n": [None, 3]}
    )
    (cold / "items.tsv").unlink()
    as_lists.to_parquet(cold / "items.parquet")
    from_parquet, same = read_categories(cold, "category", ["B001X", "elsewhere", "B000X"])
    assert same == digest and from_parquet.topics.tolist() == topics.topics.tolist()
    assert read_categories(cold, "n", ["B000X"])[0].items.tolist() == [0]


@pytest.mark.parametrize(
    ("table", "column", "error", "message"),
    [
        (
            "item_id\tcategory\nB001X\tx\n",
            "categori",
            UsageError,
            "unknown column of items.tsv 'categori'.*'category'",
        ),
        (
            "item_id\tcategory\nB001X\t\n",
            "category",
            DataError,
            "none of the items has a value in column 'category'",
        ),
        (
            "name\tcategory\nB001X\tx\n",
            "category",
            DataError,
            r"no column of item ids \(expected item_id; got name",
        ),
        ("item_id\tcategory\n\tx\n", "category", DataError, r"items\.tsv, line 2: empty item_id"),
        ("", "category", DataError, r"items\.tsv: the file is empty"),
    ],
)
def test_items_tables_that_do_not_serve(
    tmp_path: Path, table: str, column: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "items.tsv").write_text(table)
    with pytest.raises(error, match=message):
        read_categories(tmp_path, column, ["B001X"])


def test_no_items_table(tmp_path: Path) -> None:
    assert read_item_ids(tmp_path) == []
    with pytest.raises(DataError, match="no items.tsv, so there is no column 'category'"):
        read_categories(tmp_path, "category", ["B001X"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metrics": ("ILD",)}, "ILD: needs vectors of the items .--diversity-features"),
        ({"metrics": ("Miscalibration",)}, "Miscalibration: needs the items' topics .--categories"),
        ({"select_by": "ILD@10", "diversity_features": "visual"}, "must be among the metrics"),
        ({"select_by": "ARP@10"}, "higher is not better"),
        ({"protocol": "lenient"}, "protocol"),
    ],
)
def test_evaluations_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_evaluation(**values)


def test_all_means_all_that_the_side_data_allow() -> None:
    assert not {"ILD", "SRecall"} & set(Evaluation(metrics=("all",)).metrics)
    everything = Evaluation(
        metrics=("all",), diversity_features="visual", categories="category"
    ).metrics
    assert {"ILD", "Unexpectedness", "SRecall", "Miscalibration"} <= set(everything)


def test_an_unknown_modality_for_distances(cold: Path) -> None:
    with pytest.raises(
        UsageError, match=r"unknown modality of the feature store 'visuel'\. Did you mean 'visual'"
    ):
        recipe_of(cold, metrics=("ILD",), diversity_features="visuel")


def test_lists_from_elsewhere_that_hold_validation_positives(cold: Path, tmp_path: Path) -> None:
    _, inputs = recipe_of(cold)
    training = inputs.split.training
    user, item = (
        training.user_ids[training.valid.users[0]],
        training.item_ids[training.valid.items[0]],
    )
    (tmp_path / "lists.tsv").write_text(f"{user}\t{item}\n{user}\tNEW\n")
    scored = evaluate_lists(tmp_path / "lists.tsv", cold, None, Evaluation(), slices=True)
    assert (
        "1 listed items are validation positives of their user; at test they count as misses"
        in scored.notes
    )
    assert not any(
        "do not occur in the data" in note for note in scored.notes
    )  # NEW is in the catalogue
    assert {one.slice.family for one in scored.slices["test"]} >= {
        "popularity",
        "visual",
        "textual",
    }


def test_types_of_the_side_data() -> None:
    empty: Index = np.zeros(0, np.int64)
    assert Topics.from_pairs(empty, empty).items.size == 0


@pytest.mark.parametrize(
    "header",
    [
        "id,item_id",
        "asin,item_id",
        "parent_asin,asin",
        "id,itemID",
        "title,movieId",
        "item,id",
        "title,track_id,price",
    ],
)
def test_both_tools_take_the_same_column_of_ids(tmp_path: Path, header: str) -> None:
    from mmbase.catalogue.items import load_items

    names = header.split(",")
    pd.DataFrame({name: [f"{name}-{n}" for n in range(3)] for name in names}).to_csv(
        tmp_path / "items.csv", index=False
    )
    assert read_item_ids(tmp_path) == load_items(tmp_path).ids.to_pylist()


@pytest.mark.parametrize("name", ["items.jsonl", "items.parquet", "items.csv"])
def test_the_items_table_may_have_any_format(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame(
        {"item_id": ["007", "7", "x"], "date": ["2020", "2021", ""], "kind": ["a|b", "b", ""]}
    )
    if name.endswith("jsonl"):
        frame.to_json(tmp_path / name, orient="records", lines=True)
    elif name.endswith("parquet"):
        frame.to_parquet(tmp_path / name)
    else:
        frame.to_csv(tmp_path / name, index=False)
    assert read_item_ids(tmp_path) == ["007", "7", "x"]
    topics, _ = read_categories(tmp_path, "kind", ["7", "007"])
    assert list(zip(topics.items.tolist(), topics.topics.tolist(), strict=True)) == [
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert read_categories(tmp_path, "date", ["7", "007"])[0].topics.tolist() == [1, 0]
