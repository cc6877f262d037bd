"""`mmbench ask` as a user runs it: the page, the same bytes after a kill, mistakes."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.test_mmbench import ENVIRONMENT, SCRIPT
from tests.mmbench.conftest import write_dataset
from tests.processes import ended

from mmbase.pages import has_extra

QUESTION: dict[str, Any] = {
    "title": "How wide?",
    "question": "Does a wider embedding help?",
    "designs": {
        "content": {
            "model": "vbpr",
            "factors": {"embedding_dim": [4, 16]},
            "features": [{"visual": "toy"}, {"textual": "words"}],
            "seed": [1, 2],
            "settings": {"epochs": 4},
            "grid": {"lr": [0.01, 0.05]},
            "evaluation": {"every": 2},
        },
        "ids only": {"model": "bpr-mf", "seed": [1, 2], "settings": {"epochs": 4}},
    },
    "ask": [
        {"factor": "embedding_dim", "reference": 4},
        {"factor": "features", "reference": {"visual": "toy"}, "by": "embedding_dim"},
    ],
    "metrics": ["Recall@20"],
    "also": ["Gini@20"],
    "curve": "embedding_dim",
}
PLOTS = has_extra()
ASK = ("ask", "q.yaml", "--data", "toy", "--out", "page.md", "-q")


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask")
    write_dataset(folder / "toy")
    (folder / "q.yaml").write_text(yaml.safe_dump(QUESTION))
    ended("mmbench", *ASK, cwd=folder)
    return folder


def test_the_page_has_answer_design_results_effects_and_what_ran(answered: Path) -> None:
    page = (answered / "page.md").read_text()
    for heading in ("## Answer", "## Design", "## Results: toy", "## Effects", "### embedding_dim",
                    "### features", "## What the vectors cost", "## What ran"):  # fmt: skip
        assert f"\n{heading}" in page
    assert "mmbench ask q.yaml --data toy --out page.md\n" in page
    assert "not recorded" in page  # what the vectors cost: they were not extracted
    # Without the extra `report` there are no curves.
    assert ("![How wide?: " in page) == (answered / "page.svg").is_file() == PLOTS
    assert str(answered) not in page


def test_every_value_has_its_run_folder(answered: Path) -> None:
    with (answered / "page.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 + 2
    for row in rows:
        metrics = json.loads((answered / "runs" / row["run"] / "metrics.json").read_text())
        assert float(row["Recall@20"]) == metrics["test"]["Recall@20"]
    # The first seed searched, the second one took what it chose.
    mine = [row for row in rows if row["design"] == "content" and row["embedding_dim"] == "4"]
    assert len({row["chosen"] for row in mine if row["features"] == "visual toy"}) == 1


def test_the_effect_is_the_mean_difference_of_the_runs(answered: Path) -> None:
    document = json.loads(ended("mmbench", *ASK, "--json", cwd=answered).stdout)
    assert document["schema"] == "mmbench.question 1.0"
    with (answered / "page.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["design"] == "content"]
    value = {(r["features"], r["seed"], r["embedding_dim"]): float(r["Recall@20"]) for r in rows}
    places = {key[:2] for key in value}
    expected = sum(value[(*p, "16")] - value[(*p, "4")] for p in places) / len(places)
    found = next(one for one in document["effects"] if one["factor"] == "embedding_dim")
    assert (found["difference"], found["pairs"]) == (pytest.approx(expected), 4)


def test_the_same_runs_give_the_same_bytes(answered: Path) -> None:
    names = ("page.md", "page.csv", "page.svg")[: 2 + PLOTS]
    before = [(answered / name).read_bytes() for name in names]
    ended("mmbench", *ASK, "--jobs", "2", cwd=answered)
    assert [(answered / name).read_bytes() for name in names] == before


def test_a_killed_command_goes_on_and_ends_with_the_same_page(
    answered: Path, tmp_path: Path
) -> None:
    shutil.copytree(answered / "toy", tmp_path / "toy")
    shutil.copy(answered / "q.yaml", tmp_path)
    process = subprocess.Popen([str(SCRIPT), *ASK], cwd=tmp_path, env=ENVIRONMENT)
    give_up = time.monotonic() + 120
    while len(list(tmp_path.glob("runs/*/metrics.json"))) < 3 and time.monotonic() < give_up:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/metrics.json")}
    assert finished and not (tmp_path / "page.md").exists()
    ended("mmbench", *ASK, cwd=tmp_path)
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    for name in ("page.md", "page.csv"):
        assert (tmp_path / name).read_bytes() == (answered / name).read_bytes()


def test_a_mistake_is_one_line_and_leaves_nothing(answered: Path, tmp_path: Path) -> None:
    ask = [{"factor": "lr", "reference": 1}]
    (tmp_path / "q.yaml").write_text(yaml.safe_dump({**QUESTION, "ask": ask}))
    (tmp_path / "toy").symlink_to(answered / "toy")
    done = ended("mmbench", *ASK, cwd=tmp_path, expect=2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ask: lr does not vary in any design")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.yaml", "toy"]


def test_a_question_is_no_recipe(answered: Path) -> None:
    done = ended("mmbench", "run", "q.yaml", cwd=answered, expect=2)
    assert "answer it with `mmbench ask q.yaml`" in done.stderr
