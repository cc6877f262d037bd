"""A report's pages in a browser, of runs of a dataset and a feature set with hostile names."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mmbase.pages import has_extra
from mmbench.commands.report import report
from mmbench.commands.train import train
from tests.browser.conftest import Opened, no_overflow, no_violations
from tests.mmbench.conftest import write_dataset

if not has_extra():
    pytest.skip("needs the extra report", allow_module_level=True)

HOSTILE = "<script>alert(1)<b>"  # a folder's name has no slash
SCRIPT = "<script>alert(1)</script>"


def called(command: Any, *arguments: object) -> str:
    done = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def trained(place: Path, name: str, *more: str, seed: int = 0) -> None:
    if not (place / name).exists():
        write_dataset(place / name, seed=seed, encoder={"model_id": SCRIPT, "weights": SCRIPT})
    options = ["--set", "epochs=4", "--every", "2", "--metrics", "Recall,nDCG,ARP,Gini", "-q"]
    options += ["--cutoffs", "5,20", "--data", place / name, "--out", place / "runs"]
    called(train, *options, *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over two datasets, with a grid, a control, a knock-out and masks."""
    place = tmp_path_factory.mktemp("report")
    for seed, name in enumerate((HOSTILE, "other")):
        trained(place, name, "--model", "most-popular,bpr-mf,vbpr", "--seed", "1,2", seed=seed)
    trained(place, HOSTILE, "--model", "lightgcn", "--seed", "1", "--grid", "lr=0.01,0.02")
    content = ("--model", "vbpr", "--seed", "1,2", "--features", "visual=toy")
    trained(place, HOSTILE, *content)
    trained(place, HOSTILE, *content, "--control", "visual=shuffled")
    trained(place, HOSTILE, *content, "--mask", "visual=0.5")
    told = called(report, place / "runs", "--out", place / "report")
    assert told.strip() == (place / "report/index.html").as_posix()
    return place / "report"


@pytest.fixture(scope="module")
def page_path(made: Path) -> Path:
    (found,) = (path for path in made.glob("*.html") if "alert" in path.name)
    return found


def column(page: Any, number: int) -> list[str]:
    table = page.locator("table").first
    cells = table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()
    return [one.split("\n")[0].strip() for one in cells]


def test_every_section_is_there(opened: Opened, page_path: Path) -> None:
    with opened(page_path) as page:
        assert page.locator("h2").all_inner_texts() == [
            "Leaderboard",
            "Differences that matter",
            "Accuracy against diversity, novelty and popularity bias",
            "Training",
            "Slices: popular, cold and content-less items",
            "Cost",
            "What content is worth",
            "What was compared",
            "Reproducibility checklist",
            "Where every number is from",
        ]
        assert page.locator("figure.chart[data-drawn=done] svg").count() >= 8
        assert page.locator("figure.chart:not([data-drawn=done])").count() == 0
        warnings = " ".join(page.locator(".warning").all_inner_texts())
        assert "Untuned: " in warnings and "One seed: lightgcn" in warnings


def test_the_leaderboard_sorts_by_any_metric(opened: Opened, page_path: Path) -> None:
    with opened(page_path) as page:
        names = page.locator("table").first.locator("thead th").all_inner_texts()
        recall, arp = (names.index(name) + 1 for name in ("Recall", "ARP"))
        shown = [float(text) for text in column(page, recall)]
        assert shown == sorted(shown, reverse=True)  # as it comes
        page.locator("table").first.locator("thead button", has_text="ARP").click()
        assert [float(text) for text in column(page, arp)] == sorted(map(float, column(page, arp)))
        page.locator("table").first.locator("thead button", has_text="ARP").click()
        assert [float(text) for text in column(page, arp)] == sorted(
            map(float, column(page, arp)), reverse=True
        )


def test_best_and_second_are_those_of_the_values(opened: Opened, page_path: Path) -> None:
    rows = list(csv.DictReader(page_path.with_suffix(".csv").read_text().splitlines()))
    means: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        of_model = means.setdefault(row["metric"], {}).setdefault(row["model"], [])
        of_model.append(float(row["ours"]))
    order = {
        metric: sorted(own, key=lambda name: -sum(own[name]) / len(own[name]))
        for metric, own in means.items()
    }
    with opened(page_path) as page:
        best = page.locator("table").first.locator("td.best").first
        row = best.locator("xpath=..").locator("th").inner_text().split("\n")[0].strip()
        assert row == order["Recall@20"][0]
        second = page.locator("table").first.locator("tr", has=page.locator("td.second")).first
        assert second.locator("th").inner_text().split("\n")[0].strip() in order["Recall@20"][:2]


def test_hovering_names_the_run(opened: Opened, page_path: Path) -> None:
    with opened(page_path) as page:
        point = page.locator("figure.chart").first.locator(".mark-symbol path").first
        point.hover()
        page.wait_for_selector("#vg-tooltip-element.visible")
        assert column(page, 1)[0] in page.locator("#vg-tooltip-element").inner_text()


def test_folds_open(opened: Opened, page_path: Path) -> None:
    with opened(page_path) as page:
        fold = page.locator("details", has_text="Runs and their commands")
        assert not fold.locator("table").is_visible()
        fold.locator("summary").click()
        commands = fold.locator("code").all_inner_texts()
        assert len(commands) == 12
        assert all(re.match(r"mmbench run \S.*/recipe.yaml.* --out ", one) for one in commands)


def test_a_button_takes_a_system_out_of_every_chart(opened: Opened, page_path: Path) -> None:
    marks = "[...document.querySelectorAll('figure.chart')].map("
    marks += "one => one.querySelectorAll('.mark-symbol path').length)"
    with opened(page_path) as page:
        before = page.evaluate(marks)
        page.locator("button[data-series=bpr-mf]").click()
        page.wait_for_function(f"{marks}[0] === {before[0] - 1}")
        after = page.evaluate(marks)
        assert sum(after) < sum(before) and all(a <= b for a, b in zip(after, before, strict=True))


def test_names_are_texts(opened: Opened, page_path: Path, made: Path) -> None:
    with opened(page_path) as page:
        assert page.locator("h1").inner_text() == HOSTILE
        assert SCRIPT in page.locator("#setup ~ div", has_text="encoder").first.inner_text()
    with opened(made / "index.html") as page:
        assert HOSTILE in page.locator("main").inner_text()
        page.get_by_role("link", name=HOSTILE).click()
        page.wait_for_load_state()
        assert page.locator("h1").inner_text() == HOSTILE
        page.evaluate("window.pageReady")
    for path in made.glob("*.html"):
        assert "<script>alert" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1440])
def test_pages_fit_and_are_accessible(
    opened: Opened, made: Path, page_path: Path, width: int, dark: bool
) -> None:
    for path in (page_path, made / "index.html"):
        with opened(path, width, dark=dark) as page:
            no_overflow(page)
            no_violations(page)


def test_the_overview_ranks_over_datasets(opened: Opened, made: Path) -> None:
    with opened(made / "index.html") as page:
        assert page.locator("h2").all_inner_texts()[0] == "Over datasets"
        assert "Friedman" in page.locator("figcaption").inner_text()


def test_the_same_runs_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    runs = made.parent / "runs"
    again = tmp_path / "report"
    called(report, runs, "--out", again)
    first = {path.name: path.read_bytes() for path in made.iterdir()}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == first
    shutil.rmtree(again)
