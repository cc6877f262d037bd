"""Templates: names, spelled-out ones, and what is refused."""

from __future__ import annotations

import pytest

from mmx.catalogue.templates import parse_template
from mmx.errors import UsageError

ITEM = {
    "title": "Pen",
    "brand": "Pilot",
    "categories": "Office Pens",
    "description": "A fine point",
}


def test_lattice_has_the_title_in_the_place_of_the_brand() -> None:
    template = parse_template("lattice")
    # As their code has it: a blank after each category, and none between title, title and
    # description.
    assert template.fill(ITEM) == "Office Pens PenPenA fine point"
    assert template.fill({**ITEM, "brand": ""}) == "Office Pens PenA fine point"
    assert template.fill({**ITEM, "categories": "", "description": ""}) == "PenPen"
    assert template.fill(dict.fromkeys(ITEM, "")) is None


def test_columns_in_braces() -> None:
    template = parse_template("{title}  by {brand}: {title}")
    assert template.columns == ("title", "brand")
    assert template.fill({"title": "Pen", "brand": "Pilot"}) == "Pen by Pilot: Pen"
    assert template.fill({"title": "", "brand": ""}) is None
    assert parse_template("{{x}} {title}").fill({"title": "Pen"}) == "{x} Pen"
    assert parse_template("catalogue").fill(ITEM) == "Pen. Pilot. Office Pens. A fine point"


@pytest.mark.parametrize(
    "text",
    ["latice", "{title", "{}", "{0.__class__}", "{title!r}", "{title:>9}", "{a[0]}", "{{x}}"],
)
def test_what_is_no_template(text: str) -> None:
    with pytest.raises(UsageError):
        parse_template(text)
