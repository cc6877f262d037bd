"""What a feature set cost: a small file beside it, for the set's own bytes know no seconds.

`<modality>/<name>.cost.json` names the digest of the set that it is about; beside another set it
counts for nothing. Sets that were imported, or made before there were such files, have none.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

SUFFIX = ".cost.json"


@dataclass(frozen=True)
class ExtractionCost:
    """The cost of one extraction, on the machine where it ran.

    Attributes:
        content_digest: Of the set.
        items: Rows of the set.
        measured: Rows that the run dealt with which finished the set: fewer where it went on.
        seconds: Wall-clock seconds of that run, from planning to the finished file.
        sets: Sets that the run made in one pass over the contents; the seconds are of all.
        device: Where the encoder ran: `cpu`, `cuda` and so on.
    """

    content_digest: str
    items: int
    measured: int
    seconds: float
    sets: int
    device: str

    @property
    def of_set(self) -> float | None:
        """Seconds of this set: its part of the run, for all items; None if none was measured."""
        if not self.measured:
            return None
        return self.seconds / self.sets * self.items / self.measured


def cost_path(features: Path) -> Path:
    """Return where the cost of a feature set is kept."""
    return features.with_name(features.stem + SUFFIX)


def write_cost(features: Path, cost: ExtractionCost) -> None:
    """Write the cost of a feature set beside it, in one step."""
    path = cost_path(features)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(asdict(cost), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read_cost(features: Path, content_digest: str) -> ExtractionCost | None:
    """Return the recorded cost of the set with that digest; None where none is recorded."""
    with suppress(OSError, ValueError, TypeError):
        cost = ExtractionCost(**json.loads(cost_path(features).read_text(encoding="utf-8")))
        if cost.content_digest == content_digest and cost.sets > 0:
            return cost
    return None
