"""Our values beside published ones: the equivalence test, its page, and the common recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from scipy import stats
from tests.conftest import REPOSITORY
from tests.mmbench.conftest import write_dataset

from mmbench.analysis.published import verdict
from mmbench.analysis.report.reproduction import page
from mmbench.analysis.report.results import COSTS, Line, Reproduction
from mmbench.analysis.study import read_study, with_grid
from mmbench.cli import cli
from mmbench.config import Evaluation, make_recipe
from mmbench.errors import UsageError

COMMON = sorted((REPOSITORY / "recipes/common").glob("*.yaml"))


def test_within_is_what_two_one_sided_t_tests_say() -> None:
    rng = np.random.default_rng(0)
    told = set()
    for _ in range(300):
        n, published, margin = int(rng.integers(2, 6)), 0.08, 0.05
        values = published * (1 + rng.normal(0, 0.04) + 0.02 * rng.standard_normal(n))
        found = verdict(list(values), published, margin)
        width = margin * published
        p = [
            stats.ttest_1samp(values, published - width, alternative="greater").pvalue,
            stats.ttest_1samp(values, published + width, alternative="less").pvalue,
        ]
        beyond = [
            stats.ttest_1samp(values, published + width, alternative="greater").pvalue,
            stats.ttest_1samp(values, published - width, alternative="less").pvalue,
        ]
        expected = "within" if max(p) < 0.05 else "not resolved"
        expected = "above" if beyond[0] < 0.05 else "below" if beyond[1] < 0.05 else expected
        assert found.outcome == expected
        told.add(expected)
    assert told == {"within", "above", "below", "not resolved"}


@pytest.mark.parametrize(
    ("values", "kwargs", "outcome", "reason"),
    [
        ([0.075], {}, "not resolved", "one seed has no interval"),
        ([0.075], {"exact": True}, "within", ""),
        ([0.09], {"exact": True}, "above", ""),
        ([0.075] * 3, {}, "within", ""),
        ([0.075, 0.0751], {"incomparable": "other vectors"}, "not comparable", "other vectors"),
        ([0.07, 0.08], {}, "not resolved", "the interval reaches across a margin"),
    ],
)  # fmt: skip
def test_verdicts_on_few_seeds(
    values: list[float], kwargs: dict[str, Any], outcome: str, reason: str
) -> None:
    found = verdict(values, 0.0754, 0.05, **kwargs)
    assert (found.outcome, found.reason) == (outcome, reason)
    assert found.margin == pytest.approx(0.05 * 0.0754)


def line(values: list[float], incomparable: str = "") -> Line:
    runs = [f"runs/{k}" for k in range(len(values))]
    tests = [{"Recall@20": value, "nDCG@20": value / 2} for value in values]
    cost = dict.fromkeys(COSTS)
    seeds = list(range(len(values)))
    published = {"Recall@20": 0.0754}
    return Line(
        "lightgcn", runs, seeds, tests, published, "", [1] * len(values), cost, "", incomparable
    )


def test_a_page_has_a_verdict_for_each_published_value() -> None:
    lines = [line([0.0751, 0.0752, 0.0750])]
    part = Reproduction("baby", "best", "mmbench reproduce …", [], [], lines, margin=0.03)
    text = page(part).markdown()
    assert "## Beside the published values" in text
    assert "less than 3.0% of the published value" in text
    (row,) = (one for one in text.splitlines() if one.startswith("| lightgcn | Recall@20 | 3 "))
    assert row.endswith("| within |")
    assert "## Claims of the paper" not in text  # which are another study's
    without = page(Reproduction("baby", "best", "", [], [], lines)).markdown()
    assert "## Beside the published values" not in without


@pytest.mark.parametrize("path", COMMON, ids=lambda path: path.stem)
def test_the_common_setting_is_that_of_mmrec(path: Path) -> None:
    study = read_study(path)
    assert study.dataset == path.stem
    assert list(study.models)[:4] == ["bpr-mf", "lightgcn", "layergcn", "simgcl"]
    for model in study.models:
        recipe = study.recipe(model, "grid", data=Path("data"), seed=1)
        evaluation = recipe.evaluation
        assert (evaluation.every, evaluation.patience, evaluation.select_decimals) == (1, 21, 4)
        assert (evaluation.protocol, evaluation.select_by) == ("paper", "Recall@20")
        assert (recipe.settings.epochs, recipe.settings.batch_size) == (1000, 2048)
        assert recipe.settings.embedding_dim == 64
        assert recipe.grid
        assert set(study.models[model].values) >= {"Recall@20", "nDCG@20"}
    # No number of epochs is published: the rule stops the best settings, too.
    best = study.recipe("lightgcn", "best", data=Path("data"), seed=1)
    assert (best.evaluation.patience, best.settings.epochs, best.grid) == (21, 1000, {})


def test_another_grid_replaces_the_values_of_a_setting() -> None:
    study = read_study(COMMON[0])
    changed = with_grid(study, {"lightgcn.n_layers": (2,), "reg_weight": (0.1,)}, ["lightgcn"])
    assert changed.models["lightgcn"].grid == {"n_layers": (2,), "reg_weight": (0.1,)}
    assert changed.models["bpr-mf"] == study.models["bpr-mf"]
    assert with_grid(study, {}, None) is study
    with pytest.raises(UsageError, match="noise"):
        with_grid(study, {"noise": (0.1,)}, ["lightgcn"])


def test_settings_that_came_later_leave_the_names_of_runs_as_they_are() -> None:
    plain = make_recipe(model="lightgcn", settings={}).dump()
    assert "penalty" not in plain["settings"]
    assert "select_decimals" not in plain["evaluation"]
    changed = make_recipe(
        model="bpr-mf",
        settings={"penalty": "norm", "biases": False},
        evaluation=Evaluation(select_decimals=4),
    ).dump()
    assert (changed["settings"]["penalty"], changed["settings"]["biases"]) == ("norm", False)
    assert changed["evaluation"]["select_decimals"] == 4


def test_a_study_prints_and_writes_its_verdicts(tmp_path: Path) -> None:
    write_dataset(tmp_path / "toy")
    plan = {
        "fixed": {"embedding_dim": 4}, "grid": {"lr": [0.01, 0.02]}, "best": {"lr": 0.01},
        "epochs": 2, "published": {"@20": {"Recall": 0.5}},
    }  # fmt: skip
    study = {
        "dataset": "toy", "split": "s", "split_rule": "random:0.2,0.2,42", "every": 1,
        "patience": 2, "metrics": ["Recall"], "margin": 0.9, "models": {"bpr-mf": plan},
    }  # fmt: skip
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(study))
    common = ["reproduce", str(tmp_path / "toy.yaml"), "--data", str(tmp_path / "toy"), "-q"]
    common += ["--out", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]

    def call(*options: str) -> Any:
        done = CliRunner().invoke(cli, [*common, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    document = json.loads(call("--seed", "1,2", "--json"))["studies"][0]
    found = document["verdicts"]["bpr-mf"]["Recall@20"]
    values = [run["test"]["Recall@20"] for run in document["models"]["bpr-mf"]]
    assert len(values) == 2
    assert found["outcome"] == verdict(values, 0.5, 0.9).outcome
    assert f"bpr-mf Recall@20: {found['outcome']}" in call("--seed", "1,2")
    assert "| bpr-mf | Recall@20 | 2 |" in (tmp_path / "report/toy.md").read_text()
    short = json.loads(call("--seed", "1", "--epochs", "1", "--json"))["studies"][0]
    assert short["verdicts"]["bpr-mf"]["Recall@20"]["outcome"] == "not comparable"
    grid = ("--seed", "1", "--protocol", "grid", "--grid", "bpr-mf.lr=0.03", "--margin", "0.5")
    (run,) = json.loads(call(*grid, "--json"))["studies"][0]["models"]["bpr-mf"]
    recipe = yaml.safe_load((Path(run["run"]) / "recipe.yaml").read_text())
    assert recipe["grid"] == {"lr": [0.03]}
    refused = CliRunner().invoke(cli, [*common, "--grid", "lr=0.1"])
    assert refused.exit_code == 2
