"""What a report says of its runs: places, order of differences, ranks over datasets, checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from tests.mmbench.conftest import write_dataset

from mmbench.analysis import statistics
from mmbench.analysis.compare import Comparison
from mmbench.analysis.report import board, checks, figures, overall, setup
from mmbench.analysis.report.results import Reproduction
from mmbench.analysis.report.variants import Variants, share_of
from mmbench.commands.train import train
from mmbench.interface import reporting
from mmbench.runs.finished_runs import find_runs


def comparison(first: str, second: str, *, better: bool) -> Comparison:
    return Comparison(
        "Recall@20",
        first,
        second,
        0.1,
        (0.0, 0.2),
        0.01,
        0.01,
        0.1,
        0.5,
        4,
        4,
        10,
        0,
        False,
        better,
    )


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    """A page over two models, one of them with one modality, with both, and with a mask."""
    place = tmp_path_factory.mktemp("board")
    write_dataset(place / "toy")
    options = ["--data", place / "toy", "--out", place / "runs", "-q"]
    options += ["--metrics", "Recall,ARP", "--cutoffs", "20"]
    vbpr = ["--model", "vbpr", "--seed", "1,2", "--features", "visual=toy"]
    vbpr += ["--set", "epochs=2"]
    for own in (
        ["--model", "most-popular,bpr-mf", "--seed", "1", "--set", "bpr-mf.epochs=2"],
        vbpr,
        [*vbpr, "--features", "textual=words"],
        [*vbpr, "--mask", "visual=0.5"],
    ):
        done = CliRunner().invoke(train, [str(one) for one in [*own, *options]])
        assert done.exit_code == 0, done.output
    pages = reporting._parts([find_runs([place / "runs"])], "Recall@20", "mmbench report")
    return pages[0].complete()


def test_places_are_as_wide_as_what_is_not_resolved() -> None:
    outcome = [
        comparison("a", "b", better=False),
        comparison("a", "c", better=True),
        comparison("b", "c", better=False),
    ]
    assert board.ranks(["a", "b", "c"], outcome) == {"a": "1–2", "b": "1–3", "c": "2–3"}
    resolved = [replace(one, better=True) for one in outcome]
    assert board.ranks(["a", "b", "c"], resolved) == {"a": "1", "b": "2", "c": "3"}
    # Compared with the best only, the order of the others is open.
    assert board.ranks(["a", "b", "c"], resolved[:2]) == {"a": "1", "b": "2–3", "c": "2–3"}
    assert board.ranks(["a"], []) == {}


def test_differences_with_the_best_come_first_then_those_of_neighbours(part: Reproduction) -> None:
    labels = [one.label for one in board.ordered(part.systems, part.metric)]
    a, b, c, d, e = labels
    pairs = [(b, e), (d, e), (a, d), (b, c), (a, b)]
    shown = board.differences(part, [comparison(*pair, better=True) for pair in pairs])
    assert len(shown) == 1
    assert [tuple(row[:2]) for row in shown[0].rows] == [(a, b), (a, d), (b, c), (d, e), (b, e)]
    many = [comparison(a, b, better=True)] * 13
    assert [len(one.rows) for one in board.differences(part, many)] == [10, 3]


def test_intervals_are_over_seeds_or_over_users_of_the_only_run(part: Reproduction) -> None:
    found = {one.label: one for one in board.ordered(part.systems, "Recall@20")}
    over = {label: one.over for label, one in found.items()}
    assert over["most-popular"] == over["bpr-mf"] == "users"
    assert {own for label, own in over.items() if label.startswith("vbpr")} == {"seeds"}
    one = next(one for one in found.values() if one.over == "seeds")
    assert one.interval is not None
    half = 12.7062047 * abs(one.seeds[0] - one.seeds[1]) / 2  # t of one degree of freedom
    assert one.interval[1] - one.mean == pytest.approx(half)


def test_nemenyi_and_friedman_are_those_of_demsar() -> None:
    # Table 5a of Demšar (2006), and his example: 4 classifiers, 14 datasets, F = 3.69.
    for k, q in ((2, 1.960), (4, 2.569), (10, 3.164)):
        assert statistics.nemenyi_difference(k, 14) == pytest.approx(
            q * (k * (k + 1) / (6 * 14)) ** 0.5, rel=2e-4
        )
    ranks = [[mean] * 14 for mean in (3.143, 2.000, 2.893, 1.964)]
    assert statistics.friedman(ranks) == pytest.approx(0.0199, abs=3e-4)
    assert statistics.friedman([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]) == 0
    assert statistics.ranks([0.2, 0.5, 0.2]) == [2.5, 1, 2.5]
    assert statistics.ranks([3.0, 1.0], -1) == [2, 1]


def test_splits_of_one_dataset_count_once(part: Reproduction) -> None:
    assert overall.mean_ranks([part]) is None
    assert overall.mean_ranks([part, part]) is None
    found = overall.mean_ranks([part, replace(part, dataset="b"), replace(part, dataset="b")])
    assert found is not None and found.datasets == ["toy", "b"]
    assert list(found.ranks.values()) == [1, 2, 3, 4, 5]
    assert found.joined(next(iter(found.ranks)))  # two datasets tell nothing apart
    assert "0 of 10 pairs" in overall.in_words(found)


def test_warnings_and_checklist_are_about_these_runs(part: Reproduction) -> None:
    told = checks.warnings_of(part)
    assert [one.partition(":")[0] for one in told] == ["Untuned", "One seed"]
    assert told[1].startswith("One seed: bpr-mf.")
    gain = SimpleNamespace(worse=False, control="shuffled", label="vbpr", metric="Recall@20")
    doubtful: Any = replace(part, gains=[gain])
    assert any("“shuffled” of vbpr is not" in one for one in checks.warnings_of(doubtful))
    found = {one.question: one for one in checks.checklist(part)}
    assert not found["At least three seeds where there is randomness?"].holds
    assert found["Every trained system tuned on validation?"].facts == "0 of 4"
    assert found["Simple baselines without training?"].facts == "most-popular"
    assert found["A trained baseline without content?"].facts == "bpr-mf"
    assert not found["A control with shuffled or random content?"].holds


def test_knock_outs_and_shares_of_missing_vectors(part: Reproduction) -> None:
    table = Variants(part).knock_outs()
    assert table is not None
    assert [row[1] for row in table.rows] == ["visual+textual", "visual"]
    assert table.rows[1][2] == "textual"
    rows = Variants(part).by_share()
    assert [(row["x"], row["n"]) for row in rows] == [(0.0, 2), (0.5, 2)]
    assert share_of({"visual": 0.5}, {"visual": "a", "textual": "b"}) is None
    assert share_of({}, {}) is None


def test_the_front_is_what_nothing_beats(part: Reproduction) -> None:
    labels = [one.label for one in board.ordered(part.systems, part.metric)]
    # The better the accuracy, the cheaper, but for one that is cheapest of all.
    cost: dict[str, float | None] = dict(zip(labels, (2.0, 3.0, 1.0, 4.0, None), strict=True))
    points = figures._points(part, cost, -1)
    assert [one["front"] for one in points] == [True, False, True, False]
    assert not any(one["front"] for one in figures._points(part, cost, None))


def test_charts_are_valid_vega_lite(part: Reproduction) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    found = figures.figures_of(part, board.ordered(part.systems, part.metric))
    look = figures.look_of(part.lines, board.ordered(part.systems, part.metric))
    assert {"ranking", "trade-offs", "slices", "cost", "missing"} <= set(found)
    for own in found.values():
        for one in own:
            one.draw(look).to_dict()  # type: ignore[attr-defined]  # validates
        figures.picture(own, look).to_dict()  # type: ignore[attr-defined]


def test_a_report_of_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no finished run here"):
        reporting.report([tmp_path], tmp_path / "report")


@pytest.mark.parametrize(
    ("tool", "expected"),
    [({"name": "mmx", "version": "1"}, "mmx 1"), ("mine", "mine"), ([1], "[1]"), (None, "")],
)
def test_the_maker_of_a_set_may_have_written_anything(
    part: Reproduction, tool: object, expected: str
) -> None:
    run = next(run for run in setup.runs_of(part) if run.record["features"])
    one = next(iter(run.record["features"].values()))
    kept = one.get("provenance", {})
    one["provenance"] = {"extractor": "e", "tool": tool}
    try:
        table = setup.features_table(part)
    finally:
        one["provenance"] = kept
    assert table is not None
    assert expected in {cell.note for row in table.cells for cell in row}
