"""Types of command-line values, and the options that follow from the fields of pydantic models."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click


class NamedPath(click.Path):
    """A path; an empty text, as of a shell variable that is not set, is not this folder."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Refuse an empty text."""
        if value == "":
            self.fail("the path is empty; say . for this folder", param, ctx)
        return super().convert(value, param, ctx)


PATH = NamedPath(path_type=Path)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


class CommaList(click.ParamType):  # type: ignore[type-arg]  # not generic in older click
    """Values separated by commas, as a tuple without blanks around them.

    Args:
        of: The type of an element, str or int.
    """

    name = "list"

    def __init__(self, of: type = str) -> None:
        self.of = of

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what `--help` shows for a value."""
        return "N,…" if self.of is int else "NAME,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Parse the text of an option."""
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(map(self.of, split_list([value])))
        except ValueError:
            found = ()
        if not found:
            kind = "whole numbers" if self.of is int else "names"
            self.fail(f"expected {kind} separated by commas (got {value!r})", param, ctx)
        return found


def split_list(values: Sequence[str]) -> list[str]:
    """Return comma-separated and repeated values as one list."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def attributes_of(field: Any) -> dict[str, Any]:
    """Return the `click.option` attributes that follow from a pydantic field."""
    attributes: dict[str, Any] = {"help": field.description, "default": None}
    kind = _without_none(field.annotation)
    origin = typing.get_origin(kind)
    bounds = {
        bound: value
        for rule in field.metadata
        for bound in ("ge", "gt", "le", "lt")
        if (value := getattr(rule, bound, None)) is not None
    }
    if kind is bool:
        return {"help": field.description, "is_flag": True}
    if origin is Literal:
        attributes["type"] = click.Choice(typing.get_args(kind))
    elif origin is tuple:
        attributes["type"] = CommaList(int if typing.get_args(kind)[0] is int else str)
    elif origin is dict:
        attributes |= {"multiple": True, "default": (), "metavar": "NAME=VALUE"}
    elif kind is int and bounds:
        attributes["type"] = click.IntRange(
            bounds.get("ge", bounds.get("gt")),
            bounds.get("le", bounds.get("lt")),
            min_open="gt" in bounds,
            max_open="lt" in bounds,
        )
    elif kind in (int, float):
        attributes["type"] = kind
    elif kind is Path:
        attributes["type"] = PATH
    default = field.default
    if isinstance(default, tuple):
        attributes["shown"] = ",".join(map(str, default))
    elif isinstance(default, str | int | float | Path):
        attributes["shown"] = str(default)
    return attributes


def _without_none(kind: Any) -> Any:
    """Return X of `X | None`, without annotations."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
