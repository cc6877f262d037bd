"""Spaces that a search takes a model's settings from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class Range(BaseModel):
    """Numbers between two bounds, both included; `log`: uniform in the logarithm."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"{self.low:g}..{self.high:g}: the first must be less than the second, with log "
                "more than 0"
            )
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"{self.low:g}..{self.high:g}: whole numbers are needed with int")
        return self

    def probes(self) -> list[float]:
        """Return values that are allowed if the whole range is: its bounds and a fraction."""
        bounds = [self.low, self.high]
        return bounds if self.integer else [*bounds, self.low + (self.high - self.low) * 0.381966]


class Search(BaseModel):
    """A search: trials that a sampler proposes from a space of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="Proposals: where earlier trials did well, or at random."
    )
    pruner: Literal["none", "median", "halving", "hyperband"] = Field(
        "none", description="End early, by this rule, trials that do worse than others did."
    )
    budget: int = Field(ge=1, le=100_000, description="Trials of each model.")
    space: dict[str, Range | tuple[Any, ...]] = Field(
        min_length=1, description="setting: range, or values to choose from"
    )

    @model_serializer(mode="wrap")
    def _plain(self, as_usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = as_usual(self)
        if self.pruner == "none":
            plain.pop("pruner", None)  # a run is named after its recipe: without one as ever
        return plain
