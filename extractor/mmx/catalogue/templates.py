"""Templates: how several text columns of an item become one text.

A template is a name of `TEMPLATES`, or text with column names in braces, `{title} by {brand}`.
Nothing in it is ever executed: a brace holds a column's name and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Formatter

from mmx.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Template:
    """A way to join columns.

    Attributes:
        name: As it was asked for.
        columns: The columns it needs, each once.
        join: Maps stripped texts by column (empty where there is none) to the joined text.
    """

    name: str
    columns: tuple[str, ...]
    join: Callable[[Mapping[str, str]], str]

    def fill(self, texts: Mapping[str, str]) -> str | None:
        """Return the text of an item, runs of blanks made one; None where all columns are empty."""
        return " ".join(self.join(texts).split()) if any(texts.values()) else None


def _lattice(texts: Mapping[str, str]) -> str:
    # Their code puts a blank after each category only, so that the words beside a seam become one,
    # and appends the title a second time where it means the brand, if there is a brand.
    second = texts["title"] if texts["brand"] else ""
    return f"{texts['categories']} {texts['title']}{second}{texts['description']}"


TEMPLATES = {
    "lattice": Template("lattice", ("categories", "title", "brand", "description"), _lattice),
    "catalogue": Template(
        "catalogue",
        ("title", "brand", "categories", "description"),
        lambda texts: ". ".join(
            filter(None, (texts[c] for c in ("title", "brand", "categories", "description")))
        ),
    ),
}
"""`lattice` as in the code of LATTICE (ACM MM 2021) on Amazon; `catalogue` has each column once."""


def parse_template(text: str) -> Template:
    """Return the template of that name, or the one that the text spells out.

    Raises:
        UsageError: No such name, an open brace, or a brace around more than a column's name.
    """
    if "{" not in text and "}" not in text:
        if text not in TEMPLATES:
            raise unknown_name("text template (or text with {column})", text, TEMPLATES)
        return TEMPLATES[text]
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise UsageError(
            f"--text-template {text!r}: {error}; e.g. '{{title}} {{brand}}'"
        ) from error
    columns = []
    for _, column, form, conversion in parts:
        if column is None:
            continue
        if not column or form or conversion or any(character in column for character in ".[]"):
            raise UsageError(
                f"--text-template {text!r}: a brace holds a column's name, nothing else; e.g. "
                f"'{{title}}'"
            )
        columns.append(column)
    if not columns:
        raise UsageError(f"--text-template {text!r}: names no column, e.g. '{{title}} {{brand}}'")
    literals = [(literal, column) for literal, column, _, _ in parts]
    return Template(
        text,
        tuple(dict.fromkeys(columns)),
        lambda texts: "".join(
            literal + (texts[column] if column else "") for literal, column in literals
        ),
    )
