"""Tables and paragraphs at every width: nothing is cut, and nothing is wider than it must be."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbase.layout import Column, counted, fits, hanging, tables, width

MODELS = ["bpr-mf", "freedom(visual=colour-hog+textual=tfidf-lsa)", "most-popular"]
VALUES = ["0.0895±.0123", "12345.67", "-"]


def table(n_columns: int, names: list[str] = MODELS) -> tuple[list[Column], list[Column]]:
    columns = [Column(f"metric{number}", VALUES[: len(names)]) for number in range(n_columns)]
    return [Column("model", names, left=True)], columns


@pytest.mark.parametrize("limit", [60, 80, 100, 200])
@pytest.mark.parametrize("n_columns", [1, 3, 6, 20])
def test_no_number_and_no_name_is_cut(limit: int, n_columns: int) -> None:
    labels, columns = table(n_columns)
    out = tables(labels, columns, limit=limit)
    text = "\n".join(out)
    assert max(map(len, text.splitlines())) <= limit
    for name in MODELS:
        assert text.count(name) == len(out)  # each of the tables says what its rows are
    for column in columns:
        assert len(re.findall(rf"{column.name}(?!\d)", text)) == 1
    assert [text.count(value) for value in VALUES[:2]] == [n_columns] * 2
    assert (len(out) == 1) >= fits(labels, columns, limit=limit)


def test_what_fits_stands_side_by_side() -> None:
    assert tables(*table(1), limit=100) == [
        "\n".join([
            " model                                              metric0",
            " " + "─" * 58,
            " bpr-mf                                        0.0895±.0123",
            " freedom(visual=colour-hog+textual=tfidf-lsa)      12345.67",
            " most-popular                                             -",
        ])
    ]  # fmt: skip


def test_a_few_long_names_stand_above_their_rows() -> None:
    assert tables(*table(4), limit=80) == [
        "\n".join([
            " model              metric0       metric1       metric2       metric3",
            " " + "─" * 68,
            " bpr-mf        0.0895±.0123  0.0895±.0123  0.0895±.0123  0.0895±.0123",
            " freedom(visual=colour-hog+textual=tfidf-lsa)",
            "                   12345.67      12345.67      12345.67      12345.67",
            " most-popular             -             -             -             -",
        ])
    ]  # fmt: skip


def test_short_names_stand_in_front_of_each_part() -> None:
    first, second = tables(*table(6, ["a", "b"]), limit=80)
    assert first.splitlines()[0].split() == ["model", *(f"metric{n}" for n in range(5))]
    assert second.splitlines()[0].split() == ["model", "metric5"]
    assert second.splitlines()[2:] == [" a      0.0895±.0123", " b          12345.67"]


def test_cells_of_two_lines_and_wide_letters() -> None:
    labels = [Column("Name", ["名前", "x"], left=True)]
    assert tables(labels, [Column("v", ["1.0\n±.1", "2"])], limit=80) == [
        " Name    v\n ─────────\n 名前  1.0\n        ±.1\n x       2".replace("      ±", "     ±")
    ]


@given(
    st.lists(st.text("ab-_(),=+", min_size=1, max_size=70), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(20, 120),
)
def test_every_cell_is_there_whatever_the_width(names: list[str], n: int, limit: int) -> None:
    cells = [f"{place}.{number}" for number in range(len(names)) for place in range(n)]
    columns = [Column(f"c{place}", cells[place::n]) for place in range(n)]
    text = "\n".join(tables([Column("", names, left=True)], columns, limit=limit))
    assert sorted(re.findall(r"\d\.\d", text)) == sorted(cells)
    widest = max(map(len, names)) + 2
    assert max(map(len, text.splitlines())) <= max(limit, widest)


def test_paragraphs_hang_and_keep_words() -> None:
    text = hanging("most-popular is ahead of a-very-long-name", "note: ", limit=20)
    assert text.splitlines() == [
        "note: most-popular",
        "      is ahead of",
        "      a-very-long-name",
    ]
    assert hanging("", "label ") == "label"


@pytest.mark.parametrize(("columns", "expected"), [("60", 60), ("200", 200), ("0", 80)])
def test_width(monkeypatch: pytest.MonkeyPatch, columns: str, expected: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    if columns == "0":  # unknown: as for a pipe
        monkeypatch.setattr("sys.__stdout__", None)
    assert width() == expected


def test_a_number_agrees_with_its_noun() -> None:
    assert [counted(n, "item") for n in (0, 1, 2, 1234)] == [
        "0 items",
        "1 item",
        "2 items",
        "1,234 items",
    ]
    assert [counted(n, "pair is", "pairs are") for n in (1, 2)] == ["1 pair is", "2 pairs are"]
