"""The contract of missing-content policies with what loads features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mmbench.core.interactions import TrainSet

Vectors = NDArray[np.float32]
Present = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Gaps:
    """One modality's vectors, some of them absent, and what a policy may look at to fill them.

    Attributes:
        vectors: Shape (n_items, dim), float32, NaN in absent rows. A policy may fill it in place.
        present: Which items have a vector, shape (n_items,).
        n_trained: The first so many items are those of training, the only ones to fit on.
        item_ids: The items' ids, n_items strings.
        seed: Of policies that draw.
        modality: e.g. `visual`; part of what is drawn.
        train: The training pairs; None where no policy asks for them.
    """

    vectors: Vectors
    present: Present
    n_trained: int
    item_ids: Sequence[str]
    seed: int = 0
    modality: str = ""
    train: TrainSet | None = None

    @property
    def fitted(self) -> Vectors:
        """The vectors that a policy may be fitted on: present, of training items; a copy."""
        return self.vectors[: self.n_trained][self.present[: self.n_trained]]

    def mean(self) -> Vectors:
        """Mean of `fitted`, shape (dim,)."""
        return np.asarray(self.fitted.mean(0, dtype=np.float64), np.float32)


class Policy(BaseModel):
    """A missing-content policy; its fields are its settings.

    Present rows stay as they are, bit for bit. A policy is fitted on the items and pairs of
    training alone: neither vectors of other items nor held-out pairs change what it fills.

    Class attributes:
        NAME: Its name in `POLICIES`.
        DRAWS: Whether what it fills depends on `Gaps.seed`.
        DROPS: Whether items without content leave the data, instead of being filled.
        TRAINS: Whether the model trains what stands in.
        COSTLY: Whether what it fills is worth a file in the cache.
        OF_ITEMS: Whether it knows of items alone, and not of training pairs that carry vectors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    NAME: ClassVar[str]
    DRAWS: ClassVar[bool] = False
    DROPS: ClassVar[bool] = False
    TRAINS: ClassVar[bool] = False
    COSTLY: ClassVar[bool] = False
    OF_ITEMS: ClassVar[bool] = True

    def fill(self, gaps: Gaps) -> Vectors:
        """Return the vectors with every absent row filled, finite."""
        raise NotImplementedError

    @property
    def spelled(self) -> str:
        """Name and all settings, in the form that `policy_of` reads."""
        return self._with(self.model_dump(mode="json"))

    @property
    def short(self) -> str:
        """Name and the settings that are not at their defaults."""
        return self._with(self.model_dump(mode="json", exclude_defaults=True))

    def _with(self, settings: dict[str, object]) -> str:
        told = ",".join(f"{name}={value}" for name, value in settings.items())
        return f"{self.NAME}:{told}" if told else self.NAME
