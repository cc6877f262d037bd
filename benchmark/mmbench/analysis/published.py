"""Whether our values, one per seed, are those that were published: an equivalence test.

Two one-sided t-tests (TOST) ask whether the mean over seeds lies within a margin around the
published value; they reject at 5 % exactly if the 90 % interval of the mean lies between the
margins. An interval that lies beyond a margin as a whole is above or below; one that reaches across
a margin resolves nothing: more seeds would.

The published value counts as it is printed: nobody says how it varies over seeds.

Source: Schuirmann, A comparison of the two one-sided tests procedure (J. Pharmacokinetics and
Biopharmaceutics 1987); Lakens, Equivalence tests (SPPS 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmbench.analysis.statistics import t_interval

LEVEL = 0.05
"""Of either one-sided test."""

Outcome = Literal["within", "above", "below", "not resolved", "not comparable"]


@dataclass(frozen=True)
class Verdict:
    """Our values of one metric beside the published one.

    Attributes:
        outcome: See the module.
        mean: Over our seeds.
        interval: Of the mean, at 1 - 2 `LEVEL`; None for one seed of a model that has several.
        published: The published value.
        margin: Half the width of what counts as equal, in the metric's unit, >= 0.
        reason: Why the two are not comparable, or nothing is resolved; else empty.
    """

    outcome: Outcome
    mean: float
    interval: tuple[float, float] | None
    published: float
    margin: float
    reason: str = ""


def verdict(
    values: Sequence[float],
    published: float,
    margin: float,
    *,
    exact: bool = False,
    incomparable: str = "",
) -> Verdict:
    """Judge one metric of one model.

    Args:
        values: Ours, one per seed, at least one.
        published: Theirs.
        margin: As a share of the published value, > 0.
        exact: Whether one value is all that the model can have, since it has no randomness.
        incomparable: Why the two were measured on different things; empty if they were not.
    """
    ours, width = np.asarray(values, np.float64), margin * abs(published)
    interval = None
    if ours.size > 1:
        interval = t_interval(ours, level=1 - 2 * LEVEL)
    elif exact:
        interval = float(ours[0]), float(ours[0])
    found = float(ours.mean()), interval, published, width
    if incomparable:
        return Verdict("not comparable", *found, incomparable)
    if interval is None:
        return Verdict("not resolved", *found, "one seed has no interval")
    low, high = interval[0] - published, interval[1] - published
    if -width < low and high < width:
        return Verdict("within", *found)
    if low >= width or high <= -width:
        return Verdict("above" if low >= width else "below", *found)
    return Verdict("not resolved", *found, "the interval reaches across a margin")
