"""Reports: the same tables as Markdown, HTML and LaTeX, and every number with where it is from."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.mmbench.conftest import write_dataset

from mmbase.errors import install_extra
from mmbase.pages import has_extra, require_extra
from mmbench.analysis.report.html import inline
from mmbench.analysis.report.pages import Table
from mmbench.commands.report import report
from mmbench.commands.train import train
from mmbench.errors import DataError, ToolError, UsageError
from mmbench.interface.reporting import report as reported

PLOTS = has_extra()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    write_dataset(place / "toy")
    options = [
        "--data",
        str(place / "toy"),
        "--out",
        str(place / "runs"),
        "-q",
        "--set",
        "epochs=4",
        "--every",
        "2",
    ]
    options += ["--metrics", "Recall,nDCG,ARP,Gini", "--cutoffs", "5,20"]
    done = CliRunner().invoke(
        train,
        ["--model", "most-popular,bpr-mf", "--seed", "1,2", "--grid", "lr=0.01,0.02", *options],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    return place / "runs"


def test_a_report_of_any_runs(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = CliRunner().invoke(report, [str(runs), "--out", str(out)], catch_exceptions=False)
    kinds = ("md", "html") if PLOTS else ("md",)
    assert done.output.strip() == (out / f"index.{kinds[-1]}").as_posix()
    pictures = ("toy", "toy-curves", "toy-ranking", "toy-slices", "toy-cost") if PLOTS else ()
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.{kind}" for name in ("index", "toy") for kind in kinds),
        "toy.csv",
        "toy.tex",
        *(f"{name}.{kind}" for name in pictures for kind in ("svg", "png")),
    }
    page = (out / "toy.md").read_text()
    rows = list(csv.DictReader((out / "toy.csv").read_text().splitlines()))
    for folder in runs.iterdir():
        assert str(folder) in page
        assert any(row["run"] == str(folder) for row in rows)
    assert "## Which differences are resolved" in page
    tables = (out / "toy.tex").read_text().split("\\end{tabular}\n")
    assert [table.strip().splitlines()[0] for table in tables[:-1]] == [
        "% toy, split random:0.2,0.2,42, protocol strict, test @5",
        "% toy, split random:0.2,0.2,42, protocol strict, test @20",
    ]
    assert "lr=0.0" in page
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    CliRunner().invoke(report, [str(runs), "--out", str(out)], catch_exceptions=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # Bold is the larger one, but not of a metric of which more is not better.
    table = page.partition("## Test @20")[2].partition("##")[0].splitlines()
    names = [cell.strip() for cell in table[2].split("|")[1:-1]]
    assert sorted(names) == ["", "ARP", "Gini", "Recall", "nDCG"]
    bold = [
        [cell.strip().startswith("**") for cell in line.split("|")[1:-1]] for line in table[4:6]
    ]
    assert sum(row[names.index("Recall")] for row in bold) >= 1
    assert not any(row[names.index("ARP")] for row in bold)


def test_a_page_per_dataset_split_and_protocol(runs: Path, tmp_path: Path) -> None:
    for path in runs.iterdir():
        shutil.copytree(path, tmp_path / "runs" / path.name)
    options = ["--data", str(runs.parent / "toy"), "--out", str(tmp_path / "runs"), "-q"]
    options += ["--model", "most-popular,vbpr", "--set", "epochs=1", "--metrics", "Recall"]
    for own in (
        ["--protocol", "paper", "--scaling", "l2"],
        ["--split", "random:0.3,0.1"],
        ["--split", "random:0.3,0.1", "--missing", "zero"],
    ):
        assert CliRunner().invoke(train, [*options, *own], catch_exceptions=False).exit_code == 0
    out, whole = tmp_path / "report", tmp_path / "whole"
    CliRunner().invoke(report, [str(tmp_path / "runs"), "--out", str(out)], catch_exceptions=False)
    pages = {path.stem: path.read_text() for path in out.glob("*.md")}
    assert set(pages) == {
        "index",
        "toy-random-0.2-0.2-42-paper",
        "toy-random-0.2-0.2-42-strict",
        "toy-random-0.3-0.1-42-strict",
    }
    page = pages["toy-random-0.2-0.2-42-paper"]
    assert page.startswith("# toy, split random:0.2,0.2,42, protocol paper\n")
    visual = "visual: `toy`, encoder test; 6 numbers per item, scaling l2; 1 of 30 items without"
    assert visual in page
    assert "| vbpr | 123 | visual=toy, textual=words | epochs=1 |" in page
    for stem, text in pages.items():
        assert text.count("- protocol `") == (stem != "index")
        assert stem == "index" or f"]({stem}.md)" in pages["index"]
    assert "vbpr(missing=zeros)" in pages["toy-random-0.3-0.1-42-strict"]
    one = ["--only", "protocol=paper", "--out", str(tmp_path / "one")]
    CliRunner().invoke(report, [str(tmp_path / "runs"), *one], catch_exceptions=False)
    assert {path.stem for path in (tmp_path / "one").glob("*.md")} == {"index", "toy"}
    mixed = ["--allow-mixed", "--out", str(whole)]
    CliRunner().invoke(report, [str(tmp_path / "runs"), *mixed], catch_exceptions=False)
    page = (whole / "toy.md").read_text()
    assert "of several kinds" in page
    assert page.count("- protocol `paper`") == 1
    assert page.count("- protocol `strict`") >= 1
    assert ", split=random:0.2,0.2,42, protocol=paper) | 123 |" in page


def test_verdicts_of_questions_stand_on_the_page_of_their_runs(runs: Path, tmp_path: Path) -> None:
    own = next(iter(runs.iterdir())).name
    for name, run in (("mine", own), ("others", "toy-vbpr-0123456789")):
        answer = f"- lr 0.01 is **better** on {name}."
        text = f"# About {name}\n\n> Why?\n\n## Answer\n\n{answer}\n\n## Design\n\n- no verdict\n"
        (tmp_path / f"{name}.md").write_text(text)
        (tmp_path / f"{name}.csv").write_text(f"seed,run\n1,{run}\n")
    asked = [word for n in ("mine", "others") for word in ("--question", str(tmp_path / f"{n}.md"))]
    out = tmp_path / "report"
    called = [str(runs), "--out", str(out), *asked]
    assert CliRunner().invoke(report, called, catch_exceptions=False).exit_code == 0
    page = (out / "toy.md").read_text()
    assert "## About mine\n\n- lr 0.01 is **better** on mine.\n" in page
    assert "others" not in page and "no verdict" not in page
    if PLOTS:
        assert "lr 0.01 is <strong>better</strong> on mine." in (out / "toy.html").read_text()
    (tmp_path / "mine.csv").unlink()
    done = CliRunner().invoke(report, called)
    assert isinstance(done.exception, DataError) and "mine.csv" in str(done.exception)


def test_a_misspelled_metric_is_no_report(runs: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        report, [str(runs), "--out", str(tmp_path / "report"), "--metric", "Recal@20"]
    )
    assert isinstance(done.exception, UsageError)
    assert "Recall" in str(done.exception)
    assert not (tmp_path / "report").exists()


@pytest.mark.skipif(not PLOTS, reason="needs the extra report")
def test_html_is_well_formed(runs: Path, tmp_path: Path) -> None:
    CliRunner().invoke(report, [str(runs), "--out", str(tmp_path)], catch_exceptions=False)

    class Balance(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.stack: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "img", "br", "link", "circle", "path"):
                self.stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("circle", "path"):
                assert self.stack.pop() == tag

    for path in tmp_path.glob("*.html"):
        parser = Balance()
        parser.feed(path.read_text())
        assert parser.stack == []
    assert '<a href="toy.html">' in (tmp_path / "index.html").read_text()


def test_without_the_extra_there_is_everything_but_html_and_pictures(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbench.analysis.report.reproduction.has_extra", lambda: False)
    done = CliRunner().invoke(report, [str(runs), "--out", str(tmp_path)], catch_exceptions=False)
    assert done.output.strip() == (tmp_path / "index.md").as_posix()
    assert {path.name for path in tmp_path.iterdir()} == {
        "index.md",
        "toy.md",
        "toy.csv",
        "toy.tex",
    }
    told = f"{install_extra('report')}`, then the same command"
    assert told in (tmp_path / "index.md").read_text()


def test_what_needs_the_extra_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbase.pages.rendering.find_spec", lambda name: None)
    assert not has_extra()
    with pytest.raises(ToolError) as raised:
        require_extra("a gallery")
    told = "a gallery needs the extra report (altair, jinja2, vl_convert missing): "
    assert str(raised.value) == told + install_extra("report")


def test_nothing_is_markup_by_accident() -> None:
    table = Table(["", "a_b"], [["<x> & `c`", "**1 ± 2 %**"]])
    assert r"a\_b" in table.latex()
    assert r"\textbf{1 $\pm$ 2 \%}" in table.latex()
    pytest.importorskip("markupsafe")
    assert inline("<x> & `c` **1 ± 2 %** *y*") == (
        "&lt;x&gt; &amp; <code>c</code> <strong>1 ± 2 %</strong> <em>y</em>"
    )


def test_a_bar_in_a_cell_is_no_column() -> None:
    assert Table(["a|b"], [["runs/x|y"]]).markdown().splitlines()[2] == r"| runs/x\|y |"


def renamed(runs: Path, place: Path, name: str) -> Path:
    """Copies of the runs whose dataset has another name."""
    for run in runs.iterdir():
        shutil.copytree(run, place / run.name)
        path = place / run.name / "run.json"
        record = json.loads(path.read_text())
        record["dataset"]["name"] = name
        path.write_text(json.dumps(record))
    return place


@pytest.mark.parametrize(
    "name", ["../../elsewhere", "/a/b", "..", "index", "datasets", "long" * 99]
)
def test_the_name_of_a_dataset_is_no_path(
    runs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbench.analysis.report.reproduction.has_extra", lambda: False)
    place = renamed(runs, tmp_path / "runs", name)
    out = tmp_path / "in" / "report"
    CliRunner().invoke(report, [str(place), "--out", str(out)], catch_exceptions=False)
    (page,) = (path.stem for path in out.glob("*.csv"))
    assert {path.name for path in out.iterdir()} == {
        *("index.md", f"{page}.md", f"{page}.tex", f"{page}.csv")
    }
    assert f"]({page}.md)" in (out / "index.md").read_text()
    assert {path.name for path in tmp_path.rglob("*.csv")} == {f"{page}.csv"}


def test_two_datasets_of_one_file_name_have_a_page_each(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbench.analysis.report.reproduction.has_extra", lambda: False)
    places = [renamed(runs, tmp_path / str(n), name) for n, name in enumerate(("a b", "A/b"))]
    out = tmp_path / "report"
    CliRunner().invoke(report, [*map(str, places), "--out", str(out)], catch_exceptions=False)
    assert {path.name for path in out.glob("*.csv")} == {"A-b.csv", "a-b-2.csv"}


def test_names_are_no_markup_in_markdown(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbench.analysis.report.reproduction.has_extra", lambda: False)
    place = renamed(runs, tmp_path / "runs", "<script>alert(1)</script>")
    out = tmp_path / "report"
    CliRunner().invoke(report, [str(place), "--out", str(out)], catch_exceptions=False)
    for path in out.glob("*.md"):
        text = path.read_text()
        assert "&lt;script>" in text
        assert "<script" not in text


def test_a_report_that_fails_writes_nothing(runs: Path, tmp_path: Path) -> None:
    place = renamed(runs, tmp_path / "runs", "toy")
    for path in place.glob("*/metrics.json"):
        path.write_text(path.read_text().replace("Recall@", "Unheard@"))
    out = tmp_path / "report"
    with pytest.raises(UsageError, match="unknown metric 'Unheard'"):
        reported(place, out)
    assert not list(out.glob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_folders_may_have_names_that_are_no_utf_8(runs: Path, tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"runs\xff")
    first = min(runs.iterdir())
    shutil.copytree(first, place / first.name)
    done = CliRunner().invoke(report, [str(place), "--out", str(tmp_path / "report")])
    assert done.exit_code == 0, done.exception
    for path in (tmp_path / "report").glob("toy.[hmc]*"):
        assert r"runs\udcff" in path.read_text(encoding="utf-8")
