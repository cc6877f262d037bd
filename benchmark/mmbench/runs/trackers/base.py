"""What a tracker is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Tracked:
    """A training, or a finished run, as trackers know it.

    Attributes:
        name: The run folder's name; of a trial with its number, `demo-vbpr-0123456789/003`.
        group: The run folder's name.
        parameters: The recipe by dotted names: `settings.lr`, `evaluation.protocol`.
    """

    name: str
    group: str
    parameters: Mapping[str, Any]


class Sink(ABC):
    """A tracker of one training; a training that goes on is opened again under its name.

    Methods may raise whatever their library does: the caller warns once, and goes on without.

    Args:
        run: What is tracked.
        place: What stood behind the colon of `--track NAME:PLACE`; empty: the default.
    """

    library: ClassVar[str]
    """The module that has to be importable."""

    @abstractmethod
    def __init__(self, run: Tracked, place: str) -> None: ...

    @classmethod
    @abstractmethod
    def where(cls, place: str) -> str:
        """Return the name of the tracker and where its records go, for a note."""

    @abstractmethod
    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Record the losses, `loss/bpr`, and validation metrics, `valid/Recall@20`, of an epoch."""

    @abstractmethod
    def final(self, values: Mapping[str, float], epoch: int) -> None:
        """Record validation and test metrics of the finished run, whose best epoch this is."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""
