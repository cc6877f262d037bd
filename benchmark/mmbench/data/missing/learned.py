"""The policy `learned`: the model trains what stands for absent content."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from mmbench.data.missing.base import Gaps, Policy, Vectors


class Learned(Policy):
    """One trained vector per modality, see `mmbench.models.stand_ins`.

    Until the model puts it in, absent vectors are zeros, so that graphs of similar items have no
    edges between items without content. Where only items outside training lack a vector there is
    nothing to train, and they get the mean.
    """

    NAME: ClassVar[str] = "learned"
    TRAINS: ClassVar[bool] = True

    dropout: float = Field(
        0.1, ge=0, lt=1, description="share of the vectors that each epoch goes without"
    )

    def fill(self, gaps: Gaps) -> Vectors:
        """Fill with zeros, or the mean."""
        trains = not bool(np.all(gaps.present[: gaps.n_trained]))
        gaps.vectors[~gaps.present] = 0 if trains else gaps.mean()
        return gaps.vectors
