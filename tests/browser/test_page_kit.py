"""The page kit: theme, tables, charts and folds, in a browser and as files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair")
pytest.importorskip("jinja2")
pytest.importorskip("vl_convert")

import altair as alt

from mmbase import pages
from tests.browser.conftest import Opened, no_overflow, no_violations

HOSTILE = "<script>alert(1)</script></script>"

TEMPLATE = """{% extends "base.html" %}{% import "parts.html" as parts %}
{% block content %}<h1>{{ title }}</h1>
{{ parts.series(names) }}{{ figure }}{{ parts.table(table) }}
{% call parts.fold("More", "2 lines") %}<p id="folded">{{ text }}</p>{% endcall %}
{{ parts.warning(text) }}{% endblock %}"""


def chart() -> alt.LayerChart:
    rows = [{"system": name, "x": n, "y": n * n} for name in ("a", HOSTILE) for n in range(5)]
    hidden = alt.param("hidden", value=[])
    base = alt.Chart(alt.Data(values=rows)).encode(x="x:Q", y="y:Q")
    points = base.mark_point(filled=True, size=90).encode(
        color=alt.Color("system:N", legend=None), tooltip=["system:N", "y:Q"]
    )
    return (
        alt.layer(base.mark_line(), points)
        .add_params(hidden)
        .transform_filter("indexof(hidden, datum.system) < 0")
        .properties(width="container", height=200)
    )


@pytest.fixture
def page_path(tmp_path: Path) -> Path:
    (tmp_path / "one.html").write_text(TEMPLATE)
    rows = [
        [HOSTILE, pages.Cell("0.9", 0.9)],
        ["a", pages.Cell("-", None)],
        ["b10", pages.Cell("10.0", 10.0, "best")],
        ["b9", pages.Cell("0.10", 0.1)],
    ]
    columns = [pages.Column("name", numeric=False), pages.Column("value")]
    table = pages.Table("What is there", columns, rows)
    text = pages.render(
        pages.environment(tmp_path),
        "one.html",
        title=HOSTILE,
        names=["a", HOSTILE],
        figure=pages.chart_figure(chart(), f"y by x of {HOSTILE}", HOSTILE),
        table=table,
        text=HOSTILE,
    )
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    return path


def column(page: Any, number: int) -> list[str]:
    return [
        one.strip() for one in page.locator(f"tbody tr > :nth-child({number})").all_inner_texts()
    ]


def test_a_click_on_a_heading_sorts_by_values_and_another_one_the_other_way(
    opened: Opened, page_path: Path
) -> None:
    with opened(page_path) as page:
        head = page.locator("th", has_text="value")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert column(page, 2) == ["10.0", "0.9", "0.10", "-"]
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert column(page, 2) == ["0.10", "0.9", "10.0", "-"]
        page.locator("th button", has_text="name").click()
        assert head.get_attribute("aria-sort") == "none"
        assert column(page, 1)[1:] == ["a", "b9", "b10"]


def test_hostile_texts_are_text(opened: Opened, page_path: Path) -> None:
    with opened(page_path) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        assert page.title() == HOSTILE
        assert page.locator("h1").inner_text() == HOSTILE
        page.locator(".mark-symbol path").last.hover()
        page.wait_for_selector("#vg-tooltip-element.visible")
        assert HOSTILE in page.locator("#vg-tooltip-element").inner_text()
    assert re.findall(r"<script[^>]*>alert", page_path.read_text()) == []


def test_a_fold_opens_and_closes(opened: Opened, page_path: Path) -> None:
    with opened(page_path) as page:
        assert not page.locator("#folded").is_visible()
        page.locator("summary").click()
        assert page.locator("#folded").is_visible()


def test_buttons_switch_series_in_charts(opened: Opened, page_path: Path) -> None:
    with opened(page_path) as page:
        marks = page.locator(".mark-symbol path")
        assert marks.count() == 10
        page.locator("button[data-series=a]").click()
        page.wait_for_function("document.querySelectorAll('.mark-symbol path').length === 5")
        page.locator("button[data-series=a]").click()
        page.wait_for_function("document.querySelectorAll('.mark-symbol path').length === 10")


def test_the_theme_is_the_systems_until_the_button_changes_it(
    opened: Opened, page_path: Path
) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    mark = "getComputedStyle(document.querySelector('.mark-symbol path')).fill"
    with opened(page_path, dark=True) as page:
        dark = page.evaluate(paper), page.evaluate(mark)
        page.locator("#theme").click()
        light = page.evaluate(paper), page.evaluate(mark)
        assert light == ("rgb(255, 255, 255)", "rgb(213, 94, 0)")
        assert dark[0] != light[0] and dark[1] != light[1]
        page.locator("#theme").click()
        page.emulate_media(media="print")
        assert (page.evaluate(paper), page.evaluate(mark)) == light


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_fits_and_is_accessible(opened: Opened, page_path: Path, width: int, dark: bool) -> None:
    with opened(page_path, width, dark=dark) as page:
        no_overflow(page)
        no_violations(page)


def test_pages_and_pictures_of_the_same_values_are_the_same_bytes() -> None:
    figures = {str(pages.chart_figure(chart(), "n")) for _ in range(2)}
    pictures = {
        (pages.static_picture(chart(), "svg"), pages.static_picture(chart(), "png"))
        for _ in range(2)
    }
    assert (len(figures), len(pictures)) == (1, 1)
    svg, png = pictures.pop()
    assert svg.startswith(b"<svg") and png.startswith(b"\x89PNG")
    assert b"var(--" not in svg  # programs that show pictures know no variables


def test_a_chart_is_json_that_cannot_leave_its_script() -> None:
    figure = str(pages.chart_figure(chart(), "n"))
    inside = figure.partition('application/json">')[2].partition("</script>")[0]
    assert "<" not in inside
    assert HOSTILE in json.dumps(json.loads(inside))


def test_a_page_without_charts_has_no_chart_library(tmp_path: Path) -> None:
    (tmp_path / "bare.html").write_text('{% extends "base.html" %}')
    text = pages.render(pages.environment(tmp_path), "bare.html", title="t")
    assert len(text) < 30_000
