"""The run that a training starts from, as recipes name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StartFrom(BaseModel):
    """A finished run, of whose weights a training takes those that belong to no user or item.

    A recipe may have the folder alone in its place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(description="The run's folder.")
    digest: str = Field("", description="Of its checkpoint; filled in before training.")

    @model_validator(mode="before")
    @classmethod
    def _folder(cls, given: Any) -> Any:
        return {"run": str(given)} if isinstance(given, str | Path) else given
