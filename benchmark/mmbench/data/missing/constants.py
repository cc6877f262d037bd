"""Policies that look at no other item: the mean, zeros, random vectors."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mmbench.data.draws import gaussian
from mmbench.data.missing.base import Gaps, Policy, Vectors


class Mean(Policy):
    """The mean of the training items' present vectors."""

    NAME: ClassVar[str] = "mean"
    OF_ITEMS: ClassVar[bool] = False

    def fill(self, gaps: Gaps) -> Vectors:
        """Fill with the mean."""
        gaps.vectors[~gaps.present] = gaps.mean()
        return gaps.vectors


class Zeros(Policy):
    """Zeros: content that is similar to nothing."""

    NAME: ClassVar[str] = "zeros"
    OF_ITEMS: ClassVar[bool] = False

    def fill(self, gaps: Gaps) -> Vectors:
        """Fill with zeros."""
        gaps.vectors[~gaps.present] = 0
        return gaps.vectors


class Drop(Policy):
    """Items that lack a vector in any of the modalities used leave the data altogether.

    See `mmbench.data.restriction`; what is filled here is never read.
    """

    NAME: ClassVar[str] = "drop"
    DROPS: ClassVar[bool] = True

    def fill(self, gaps: Gaps) -> Vectors:
        """Fill with zeros."""
        gaps.vectors[~gaps.present] = 0
        return gaps.vectors


class Random(Policy):
    """Gaussian vectors with mean and variance of the training items' present ones, by dimension.

    An item's vector depends on its id, the modality, the seed and these moments alone. (The code
    behind arXiv 2408.11767 draws from [0, 1), whatever the vectors are.)
    """

    NAME: ClassVar[str] = "random"
    OF_ITEMS: ClassVar[bool] = False
    DRAWS: ClassVar[bool] = True

    def fill(self, gaps: Gaps) -> Vectors:
        """Fill with draws."""
        absent = np.flatnonzero(~gaps.present)
        if absent.size:
            ids = [gaps.item_ids[item] for item in absent.tolist()]
            gaps.vectors[absent] = gaussian(gaps.fitted, ids, gaps.seed, f"missing {gaps.modality}")
        return gaps.vectors
