"""Studies: the recipes hold what was published, and running one reports ours beside it."""

from __future__ import annotations

import ast
import csv
import json
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.conftest import REPOSITORY
from tests.mmbench.conftest import write_dataset

from mmbase.pages import has_extra
from mmbench.analysis.report.reproduction import claims, index, page
from mmbench.analysis.report.results import COSTS, Line, Reproduction
from mmbench.analysis.study import read_study
from mmbench.commands import reproduce as reproduce_module
from mmbench.commands.reproduce import reproduce
from mmbench.config import setting_name
from mmbench.data.dataset import load_split
from mmbench.errors import DataError, UsageError

RECIPES = sorted((REPOSITORY / "recipes/amazon").glob("*.yaml"))

# What the published files call a setting of one model; the rest are names that every model's
# aliases know.
OURS = {
    ("lattice", "n_layers"): "n_item_layers",
    ("lattice", "top_k"): "neighbours",
    ("lattice", "l_m"): "raw_weight",
    ("lattice", "factors_multimod"): "content_dim",
    ("freedom", "l_w"): "content_loss_weight",
    ("freedom", "n_layers"): "n_item_layers",
    ("freedom", "top_k"): "neighbours",
    ("freedom", "drop"): "edge_dropout",
    ("grcn", "num_layers"): "n_layers",
    ("grcn", "num_routings"): "n_routings",
    ("grcn", "factors_multimod"): "content_dim",
    ("mmgcn", "num_layers"): "n_layers",
}


def published(folder: Path, name: str) -> dict[tuple[str, str], dict[str, Any]]:
    values: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    with (folder / name).open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            text = row["value"]
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                value = text
            key = f"{row['metric']}@{row['cutoff']}" if "metric" in row else row["parameter"]
            values[row["dataset"], row["model"].lower()][key] = value
    return values


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_hold_the_published_numbers(path: Path, real_data: Path) -> None:
    tables = real_data.parent / "paper"
    best, grid, results = (
        published(tables, f"{name}.tsv")
        for name in ("hyperparameters_best", "hyperparameters_grid", "results")
    )
    study = read_study(path)
    assert list(study.models) == ["vbpr", "mmgcn", "grcn", "lattice", "bm3", "freedom"]
    for model, plan in study.models.items():
        key = path.stem, model
        assert plan.values == results[key]
        assert plan.best["epochs"] == best[key]["epochs"]
        assert plan.epochs == grid[key]["epochs"] == 200
        checked = 0
        for name, value in grid[key].items():
            ours = OURS.get((model, name), name)
            try:
                ours = setting_name(model, ours)
            except UsageError:
                continue
            if isinstance(value, list):
                assert list(plan.grid[ours]) == [float(one) for one in value], (model, name)
                assert plan.best[ours] == float(best[key][name]), (model, name)
                checked += 1
            elif ours in plan.fixed:
                assert plan.fixed[ours] == (list(value) if isinstance(value, tuple) else value), (
                    model,
                    name,
                )
        assert checked == len(plan.grid) == 2
        assert plan.best.keys() == {*plan.grid, "epochs"}
        assert len(study.recipe(model, "grid", data=path, seed=1).trials()) == 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_dataset(folder / "toy")
    study = {
        "dataset": "toy",
        "features": {"visual": "toy", "textual": "words"},
        "split": "paper",
        "split_rule": "random:0.2,0.2,42",
        "every": 2,
        "models": {
            "most-popular": {},
            **{
                model: {
                    "fixed": {"embedding_dim": 8},
                    "grid": {"lr": [0.01, 0.02]},
                    "epochs": 4,
                    "best": {"lr": 0.02, "epochs": 6},
                    "published": {"@10": {"Recall": 0.5 - number / 10, "Gini": number / 10}},
                }
                for number, model in enumerate(["lattice", "bm3", "freedom", "vbpr", "bpr-mf"])
            },
        },
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder


def call(place: Path, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(
        reproduce,
        [str(place / "toy.yaml"), "--data", str(place / "toy"), "--json", "-q", *options],
        catch_exceptions=False,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


Studies = Callable[[str], tuple[Path, tuple[str, ...], dict[str, Any]]]


@pytest.fixture(scope="module")
def studies(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Studies:
    """The study by either protocol, done once: its folder, command line and JSON document."""

    @cache
    def do(protocol: str) -> tuple[Path, tuple[str, ...], dict[str, Any]]:
        folder = tmp_path_factory.mktemp(protocol)
        options = ("--protocol", protocol, "--seed", "1,2", "--out", str(folder / "runs"))
        options += ("--report", str(folder / "report"))
        return folder, options, call(place, *options)

    return do


@pytest.mark.parametrize("protocol", ["best", "grid"])
def test_a_study_is_done_reported_and_not_repeated(
    place: Path, studies: Studies, protocol: str
) -> None:
    tmp_path, options, first = studies(protocol)
    models = first["studies"][0]["models"]
    assert [len(runs) for runs in models.values()] == [1, 2, 2, 2, 2, 2]
    record = json.loads((Path(models["vbpr"][0]["run"]) / "metrics.json").read_text())
    if protocol == "best":
        assert record["best_epoch"] == 6
    settings = [
        yaml.safe_load((Path(run["run"]) / "recipe.yaml").read_text()) for run in models["vbpr"]
    ]
    assert [bool(one["grid"]) for one in settings] == [protocol == "grid", False]
    page = (tmp_path / "report/toy.md").read_text()
    for text in (
        "| freedom |",
        "published",
        "## Order of the models",
        "## Cost",
        models["bm3"][1]["run"],
        "±",
    ):
        assert text in page
    if has_extra():
        assert "toy.svg" in (tmp_path / "report/index.md").read_text()
        assert (tmp_path / "report/toy.svg").read_text().startswith("<svg")
    rows = list(csv.DictReader((tmp_path / "report/toy.csv").read_text().splitlines()))
    for row in rows:
        runs = models[row["model"]]
        assert (
            float(row["ours"])
            == next(run for run in runs if run["run"] == row["run"])["test"][row["metric"]]
        )
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.json")}
    assert call(place, *options) == first
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.json")
    } == stamps


@pytest.mark.parametrize(("early_s", "n_lines"), [(-1.0, [1, 2, 2]), (60.0, [2])])
def test_a_report_is_written_in_between_where_that_takes_long(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early_s: float, n_lines: list[int]
) -> None:
    written: list[int] = []
    monkeypatch.setattr(reproduce_module, "_EARLY_S", early_s)
    monkeypatch.setattr(
        "mmbench.analysis.report.reproduction.write",
        lambda parts, out: written.append(len(parts[-1].lines)),
    )
    options = ("--models", "most-popular,bpr-mf", "--seed", "1", "--out", str(tmp_path / "runs"))
    call(place, *options, "--report", str(tmp_path / "report"))
    assert written == n_lines


@pytest.mark.usefixtures("forked_workers")
def test_several_trainings_at_once_give_the_same_study(
    place: Path, studies: Studies, tmp_path: Path
) -> None:
    options = ("--protocol", "grid", "--models", "vbpr,bpr-mf", "--seed", "1,2", "--jobs", "2")
    options += ("--report", str(tmp_path / "report"), "--out", str(tmp_path / "at-once"))
    alone = studies("grid")[2]["studies"][0]["models"]
    at_once = call(place, *options)["studies"][0]["models"]
    for model, runs in at_once.items():
        assert [run["test"] for run in runs] == [run["test"] for run in alone[model]]
    trained = [
        json.loads(path.read_text())["jobs"]
        for path in (tmp_path / "at-once").rglob("trained.json")
    ]
    # The seed that is left of each model is alone, with all threads.
    assert sorted(trained) == [1, 1, 2, 2, 2, 2]


def test_stand_ins_and_quick_looks_are_said(place: Path, tmp_path: Path) -> None:
    options = (
        "--out",
        str(tmp_path / "runs"),
        "--report",
        str(tmp_path / "report"),
        "--models",
        "freedom",
    )
    call(place, *options, "--stand-in", "--epochs", "1")
    page = (tmp_path / "report/toy.md").read_text()
    assert "made up" in page
    assert "1 epochs instead" in page
    assert "`stand-in`" in page
    # The vectors are there by now; the terminal has the notes of the page, beside the table.
    document = call(place, *options, "--stand-in", "--epochs", "1")
    (study,) = document["studies"]
    assert [text.split()[0] for text in study["warnings"]] == ["The", "Trained"]
    line = [str(place / "toy.yaml"), "--data", str(place / "toy"), "-q", *options]
    printed = CliRunner().invoke(reproduce, [*line, "--stand-in", "--epochs", "1"]).stdout
    told = " ".join(printed.partition("test @20")[2].split())
    assert "note: The content vectors are made up" in told
    assert "note: Trained for 1 epochs instead of the study's" in told


def test_what_would_be_lost_or_mistaken_in_a_report_is_said(place: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(reproduce, [str(place / "toy.yaml")] * 2)
    assert "not the only study of toy" in str(done.exception)
    study = yaml.safe_load((place / "toy.yaml").read_text())
    del study["split"], study["split_rule"]
    study["models"]["vbpr"] |= {
        "grid": {"learning_rate": [0.01], "preset": ["paper"]}
    }  # another framework's name, a word
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    arguments = [
        str(tmp_path / "toy.yaml"),
        "--data",
        str(place / "toy"),
        "--models",
        "vbpr",
        "--protocol",
        "grid",
        "-q",
    ]
    arguments += ["--out", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]
    done = CliRunner().invoke(reproduce, [*arguments, "--split-dir", str(tmp_path)])
    assert "--split-dir: the study of toy names no split" in str(done.exception)
    CliRunner().invoke(
        reproduce, [*arguments, "--split", "random:0.3,0.1,7"], catch_exceptions=False
    )
    text = (tmp_path / "report/toy.md").read_text()
    assert "Another split than the study's: random:0.3,0.1,7 instead of the only one." in text
    assert "| lr=0.01, preset=paper, epochs=4 |" in text


def test_given_split_files_are_taken_and_never_mixed(place: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    split = load_split(place / "toy", "random:0.3,0.3,7")
    from mmbench.data.files import read_split
    from mmbench.data.splits import write_split

    write_split(given, read_split(place / "toy", "random:0.3,0.3,7"))
    study = yaml.safe_load((place / "toy.yaml").read_text()) | {"split": "theirs"}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    options = [
        "--data",
        str(tmp_path / "toy"),
        "--models",
        "most-popular",
        "--out",
        str(tmp_path / "r"),
        "--json",
    ]
    options += ["--report", str(tmp_path / "report"), "-q"]
    done = CliRunner().invoke(
        reproduce, [str(tmp_path / "toy.yaml"), "--split-dir", str(given), *options]
    )
    run = Path(json.loads(done.stdout)["studies"][0]["models"]["most-popular"][0]["run"])
    assert json.loads((run / "run.json").read_text())["dataset"]["digest"] == split.training.digest
    other = tmp_path / "other"
    other.mkdir()
    write_split(other, read_split(place / "toy", "random:0.3,0.3,8"))
    done = CliRunner().invoke(
        reproduce, [str(tmp_path / "toy.yaml"), "--split-dir", str(other), *options]
    )
    assert isinstance(done.exception, DataError)
    assert "another split" in str(done.exception)


def line(model: str, values: list[dict[str, float | None]], published: dict[str, float]) -> Line:
    cost = dict.fromkeys(COSTS)
    return Line(
        model,
        [f"runs/{model}"] * len(values),
        list(range(len(values))),
        values,
        published,
        "",
        [1] * len(values),
        cost,
    )


def test_orders_differences_and_claims() -> None:
    names = ["lattice", "bm3", "freedom", "vbpr", "grcn"]
    accuracy = {
        name: {"Recall@20": 0.5 - k / 10, "Gini@20": k / 10} for k, name in enumerate(names)
    }
    swapped = {name: {"Recall@20": k / 10, "Gini@20": k / 10} for k, name in enumerate(names)}
    lines = [line(name, [dict(accuracy[name])], accuracy[name]) for name in names]
    same = Reproduction("x", "best", "cmd", [], [], lines)
    assert f"| {' > '.join(names)} |" in page(same).markdown()
    assert [text.count("**holds**") for text in claims(same)] == [1, 1]
    turned = Reproduction(
        "x", "best", "cmd", [], [], [line(n, [dict(swapped[n])], accuracy[n]) for n in names]
    )
    assert "does not hold" in claims(turned)[0]
    assert "on 1 of 1" in claims(turned)[0].partition("published table")[2]
    assert "-1.00" in page(turned).markdown()
    few = Reproduction("x", "best", "cmd", [], [], lines[:3])
    assert "not judged" in claims(few)[0]
    two = Reproduction(
        "x",
        "best",
        "c",
        [],
        [],
        [line("vbpr", [{"Recall@20": 0.2}, {"Recall@20": 0.4}], {"Recall@20": 0.25})],
    )
    assert "0.3000 ± 0.1414" in page(two).markdown()
    assert "+20.0%" in page(two).markdown()
    gap = Reproduction(
        "x", "best", "c", [], [], [line("vbpr", [{"Recall@20": None}], {"Recall@20": 0.25})]
    )
    assert "| - |" in page(gap).markdown()
    assert "pip install" in index([same], {}).markdown()


def test_equals_share_their_rank_and_less_may_be_better() -> None:
    """Published values have ties, which the order of the models must not break."""

    def reproduction(
        ours: list[float], theirs: list[float], metric: str = "Recall@20"
    ) -> Reproduction:
        names = ["lattice", "bm3", "freedom", "vbpr", "grcn"]
        values = zip(names, ours, theirs, strict=False)
        return Reproduction(
            "x",
            "best",
            "c",
            [],
            [],
            [line(name, [{metric: a}], {metric: b}) for name, a, b in values],
        )

    tied = page(reproduction([0.3, 0.3, 0.1], [0.1, 0.2, 0.3])).markdown()
    assert (
        "| Recall@20 | lattice = bm3 > freedom | freedom > bm3 > lattice | -0.82 |" in tied
    )  # tau-b: -2 / sqrt(2 * 3)
    assert "| vbpr" not in tied
    equal = page(reproduction([0.3, 0.3], [0.1, 0.2])).markdown()
    assert "| lattice = bm3 | bm3 > lattice | - |" in equal
    assert (
        "does not hold" in claims(reproduction([0.5] * 5, [0.5, 0.4, 0.3, 0.2, 0.1]))[0]
    )  # whoever is listed first
    less = reproduction([0.1, 0.2, 0.3], [0.1, 0.3, 0.2], "ARP@20")
    assert (
        "| ARP@20 | lattice > bm3 > freedom | lattice > freedom > bm3 | 0.33 |"
        in page(less).markdown()
    )


def test_metrics_of_any_run_have_a_column() -> None:
    part = Reproduction(
        "x",
        "",
        "c",
        [],
        [],
        [line("a", [{"Recall@5": 0.1}], {}), line("b", [{"nDCG@10": 0.2}], {})],
    )
    text = page(part).markdown()
    assert "## Test @5" in text
    assert "## Test @10" in text
    assert "| b | **0.2" not in text  # alone it is no best one
    assert "| b | 0.2000 |" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"vbprs": {}}}, "vbpr"),
        ({"models": {"vbpr": {"grid": {"lrr": [1]}}}}, "lr"),
        ({"seeds": [1]}, "seeds"),
        ({"models": {}}, "models"),
        ({"split_rule": "halves"}, "split_rule"),
    ],
)
def test_wrong_studies_are_refused(
    place: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((place / "toy.yaml").read_text()) | change))
    with pytest.raises(UsageError, match=message):
        read_study(path)


@pytest.mark.parametrize(
    ("published", "message"),
    [("{'20': {Recall: 0.5}}", "'20' must look like @20"), ("{'@20': {Recal: 1}}", "'Recall'")],
)
def test_published_values_that_would_stand_beside_nothing_are_refused(
    tmp_path: Path, published: str, message: str
) -> None:
    (tmp_path / "s.yaml").write_text(
        f"dataset: toy\nmodels:\n  vbpr:\n    published: {published}\n"
    )
    with pytest.raises(UsageError, match=message):
        read_study(tmp_path / "s.yaml")
