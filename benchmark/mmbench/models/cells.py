"""The vocabulary in which models are described, and which of its combinations make sense.

Source: the formal schema of Malitesta et al., Formalizing multimedia recommendation through
multimodal deep learning (arXiv 2309.05273), with three additions: fusion `intermediate` (the paper
counts it as early, which is everything before the score), the side that carries content, and ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from mmbench.models.operators import Operator

Representation = Literal["joint", "coordinate"]
FusionStage = Literal["early", "intermediate", "late"]
Side = Literal["item", "user", "both"]
Ids = Literal["both", "users", "none"]
Backbone = Literal["dot", "mlp", "lightgcn"]
Query = Literal["shared", "user"]


@dataclass(frozen=True)
class Cell:
    """Where a model stands in the schema; None: it has nothing of the kind.

    Attributes:
        modalities: Which content it takes, here and where it was published.
        representation: One vector of all modalities, or one of each.
        fusion: Where the modalities meet: before the backbone, after it, or as scores.
        operator: How they meet, in words where no operator of the schema says it.
        side: Who has content.
        ids: Whose ids have trained vectors.
        backbone: What makes scores of representations, in words.
    """

    modalities: str = "none"
    representation: Representation | None = None
    fusion: FusionStage | None = None
    operator: str | None = None
    side: Side | None = None
    ids: Ids = "both"
    backbone: str = "dot"


@dataclass(frozen=True)
class Choice:
    """One combination of the schema's settings; see `mmbench.models.schema`."""

    representation: Representation = "coordinate"
    fusion: FusionStage = "early"
    operator: Operator = "concat"
    query: Query = "shared"
    side: Side = "item"
    ids: Ids = "both"
    backbone: Backbone = "dot"

    def __str__(self) -> str:
        return ", ".join(f"{one.name}={getattr(self, one.name)}" for one in fields(self))

    @property
    def by_part(self) -> bool:
        """Whether the parts of a user meet those of an item one by one, not as one vector."""
        return self.fusion != "early" or self.operator == "concat"

    def has_content(self, side: Literal["user", "item"]) -> bool:
        """Whether users, or items, are represented by content."""
        return self.side in (side, "both")

    def has_ids(self, side: Literal["user", "item"]) -> bool:
        """Whether users, or items, have a trained vector of their own."""
        return self.ids == "both" or (self.ids == "users" and side == "user")

    @property
    def scores_unseen(self) -> bool:
        """Whether an item without interactions has a representation: its content alone.

        Its id is a vector of zeros, which adds nothing to a sum, but decides a product or maximum.
        """
        without_id = not self.has_ids("item") or self.operator not in ("product", "max")
        return self.has_content("item") and without_id

    def refusal(self) -> str | None:
        """Why the combination makes no sense; None if it does."""
        if self.side == "user" and self.ids != "both":
            return "with side=user items have no content, so they need ids: ids=both"
        if self.side == "item" and self.ids == "none":
            return "with side=item users have no content, so they need ids: ids=both or users"
        if self.representation == "joint" and self.fusion != "early":
            return "a joint vector holds all modalities, so nothing is left to fuse later"
        if self.fusion == "intermediate" and self.backbone == "dot":
            return (
                "backbone=dot changes nothing between early and intermediate: that is fusion=early"
            )
        if self.fusion == "late" and self.operator in ("concat", "gate"):
            return f"late fuses scores, which are numbers: operator={self.operator} fuses vectors"
        if self.ids == "users" and self.side == "both" and self.by_part:
            return (
                f"the user's id has no counterpart that fusion={self.fusion} with "
                f"operator={self.operator} could compare it with"
            )
        one_vector = self.representation == "joint" and self.ids != "both"
        if one_vector and self.operator != "concat" and (self.side, self.ids) != ("both", "users"):
            return (
                f"there is one vector of each item and user: operator={self.operator} fuses nothing"
            )
        if self.query == "user":
            if self.operator != "attention":
                return f"operator={self.operator} asks nobody, so query=user means nothing"
            if self.fusion == "early" and self.backbone != "dot":
                return (
                    f"backbone={self.backbone} needs items that are the same for every user, and "
                    "attention asked by the user makes them differ before it"
                )
            if self.fusion != "late" and not self.has_content("item"):
                return "with side=user an item has no content that a user could ask for"
            if one_vector:
                return "an item is one vector, so a user has nothing to choose from"
        return None

    def neighbours(self) -> dict[str, list[str]]:
        """For each setting the values that would make sense with the others as they are."""
        found: dict[str, list[str]] = {}
        for name, values in FACTORS.items():
            others = [_choice({**vars(self), name: value}) for value in values]
            good = [getattr(one, name) for one in others if one.refusal() is None]
            if good:
                found[name] = good
        return found

    def ways_out(self) -> str:
        """The same in words that follow an error; nothing if no one setting helps."""
        near = self.neighbours().items()
        ways = "; or ".join(f"{name}={'|'.join(values)}" for name, values in near)
        return f"; with the rest as it is: {ways}" if ways else ""


FACTORS: dict[str, tuple[str, ...]] = {
    name: get_args(kind) for name, kind in get_type_hints(Choice).items()
}
"""Each setting of the schema with its values."""


def admissible() -> Iterator[Choice]:
    """Every combination that makes sense."""
    for values in itertools.product(*FACTORS.values()):
        choice = _choice(dict(zip(FACTORS, values, strict=True)))
        if choice.refusal() is None:
            yield choice


Row = tuple[str, str, str, str, str, str]
"""Fusion, side, ids; backbones, those of `query=user`, and operators, in words."""


def combinations() -> dict[Representation, list[Row]]:
    """What makes sense, by representation: a row for each fusion, side and ids."""
    groups: dict[tuple[Representation, FusionStage, Side, Ids], list[Choice]] = {}
    for one in admissible():
        groups.setdefault((one.representation, one.fusion, one.side, one.ids), []).append(one)
    table: dict[Representation, list[Row]] = {}
    for (representation, *where), choices in groups.items():
        asked = [one for one in choices if one.query == "user"]
        backbones = (_in_words("backbone", some) for some in (choices, asked))
        operators = _in_words("operator", choices)
        row = (*where, *backbones, operators)
        table.setdefault(representation, []).append(row)  # type: ignore[arg-type]
    return table


def _in_words(name: str, choices: Sequence[Choice]) -> str:
    """The values that occur; all, or all but some, in these words."""
    found = {getattr(one, name) for one in choices}
    absent = [value for value in FACTORS[name] if value not in found]
    if not found or not absent:
        return "all" if found else "-"
    if len(absent) < len(found) and name == "operator":
        return f"all but {', '.join(absent)}"
    return ", ".join(value for value in FACTORS[name] if value in found)


def _choice(values: Mapping[str, Any]) -> Choice:
    return Choice(**values)
