"""How much of a model's gain over one without content is content.

    gain     = real - best model without content
    content  = real - control  = gain of the real vectors - gain of the control's

The control has the same model, settings and treatment, and vectors that say nothing about their
items (`mmbench.data.controls`). What it gains over a model without content comes from more
parameters, another loss or another graph. Where it is not significantly worse than the real one the
gain is no evidence of content, however large.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmbench.analysis.compare import Comparison, compare
from mmbench.analysis.statistics import CORRECTIONS
from mmbench.metrics import sign
from mmbench.models import model_class
from mmbench.runs.finished_runs import System
from mmbench.runs.kinds import in_short, treatment_of

HEADER = ("model", "control", "metric", "without", "control's", "real", "content", "p")
"""Columns of `ContentGain.cells`; `without`: content."""


@dataclass(frozen=True)
class ContentGain:
    """A system, its control, and the best system without content.

    Attributes:
        label: The system's.
        control: What replaced its vectors, in words.
        metric: Name with cut-off.
        without: Label of the best system without content, by validation; None: there is none.
        values: Means over seeds: of that system (None: there is none), the control, the real one.
        content: Real minus control, in the direction of the metric: positive is better.
        interval: Bootstrap interval over users of that difference.
        p: Of the paired test over users, corrected for all controls of the call.
        p_seeds: As in `Comparison`.
        worse: Whether the control is significantly worse than the real one.
    """

    label: str
    control: str
    metric: str
    without: str | None
    values: tuple[float | None, float, float]
    content: float
    interval: tuple[float, float]
    p: float
    p_seeds: float | None
    worse: bool

    @property
    def gain(self) -> float | None:
        """Real minus the best without content, in the direction of the metric."""
        start = self.values[0]
        return None if start is None else (sign(self.metric) or 1) * (self.values[2] - start)

    @property
    def flag(self) -> str:
        """What stands beside the number if the control is not significantly worse; else empty."""
        return "" if self.worse else "! "

    @property
    def cells(self) -> list[str]:
        """The cells of a row under `HEADER`."""
        without, control, real = ("-" if x is None else f"{x:.4f}" for x in self.values)
        low, high = self.interval
        content = f"{self.flag}{self.content:.4f} [{low:.4f}, {high:.4f}]"
        p = "<0.001" if self.p < 0.001 else f"{self.p:.3f}"
        return [self.label, self.control, self.metric, without, control, real, content, p]

    @property
    def sentence(self) -> str:
        """The row in words."""
        told = f"{self.metric}: content is {self.content:.4f} of {self.label}"
        if (gain := self.gain) is not None:
            told = (
                f"{self.metric}: {self.label} gains {gain:.4f} over {self.without}, "
                f"{gain - self.content:.4f} of it with {self.control} content, too: content is "
                f"{self.content:.4f}"
            )
        return f"{self.flag}{told}; the control is not significantly worse" if self.flag else told


def content_gains(
    systems: Sequence[System],
    metrics: Sequence[str],
    *,
    split: str = "test",
    test: str = "randomisation",
    correction: str = "holm",
    alpha: float = 0.05,
) -> list[ContentGain]:
    """Return a gain for each control whose real counterpart is there, and each metric.

    Tests are those of `compare`, corrected for all controls and metrics of the call.

    Errors as in `compare`.
    """
    found = [
        (real, control, compare([real, control], [metric], split=split, test=test)[0])
        for real, control in pairs_of(systems)
        for metric in metrics
    ]
    # Each p is of a family of one until here; now all controls and metrics are one.
    corrected, gains = CORRECTIONS[correction]([one.p for *_, one in found]), []
    for (real, control, one), p in zip(found, corrected, strict=True):
        one = replace(one, p=p, better=p < alpha and (one.p_seeds is None or one.p_seeds < alpha))
        gains.append(_gain(real, control, one, _without(systems, one.metric), split))
    return gains


def _gain(
    real: System, control: System, one: Comparison, without: System | None, split: str
) -> ContentGain:
    towards = sign(one.metric) or 1
    real_first = one.first == real.label
    high_low = one.interval if real_first else (-one.interval[1], -one.interval[0])
    low, high = sorted(towards * bound for bound in high_low)
    means = [
        None if one_of is None else statistics.fmean(one_of.values(split, one.metric))
        for one_of in (without, control, real)
    ]
    start, of_control, of_real = means
    assert of_control is not None and of_real is not None
    return ContentGain(
        label=real.label,
        control=in_short(treatment_of(control.runs[0].recipe)["control"]),
        metric=one.metric,
        without=None if without is None else without.label,
        values=(start, of_control, of_real),
        content=towards * (one.difference if real_first else -one.difference),
        interval=(low, high),
        p=one.p,
        p_seeds=one.p_seeds,
        worse=one.better and real_first,
    )


def pairs_of(systems: Sequence[System]) -> list[tuple[System, System]]:
    """Return each real system with a control of it: equal but for `control` and its seed.

    Searched settings may differ, if there is only one such system.
    """
    real = [one for one in systems if not one.runs[0].recipe.control]
    pairs = []
    for control in systems:
        if not control.runs[0].recipe.control:
            continue
        same = [one for one in real if _key(one, chosen=True) == _key(control, chosen=True)]
        alike = [one for one in real if _key(one, chosen=False) == _key(control, chosen=False)]
        if len(same or alike) == 1:
            pairs.append(((same or alike)[0], control))
    return pairs


def _key(system: System, *, chosen: bool) -> str:
    """All that a system and its control share; the chosen settings, or what was asked for."""
    run = system.runs[0]
    plain = (run.recipe if chosen else run.asked).dump()
    for name in ("control", "data", "device", "columns", "seed"):
        plain.pop(name, None)
    if not (run.recipe.mask or run.recipe.treatment.policy.DRAWS):
        plain.pop("mask_seed", None)  # it is the control's
    if not chosen:
        plain["settings"] = {
            name: value
            for name, value in plain["settings"].items()
            if name not in run.asked.searched
        }
    return json.dumps([run.record["dataset"]["digest"], plain], sort_keys=True, default=str)


def _without(systems: Sequence[System], metric: str) -> System | None:
    """The trained system without content that is best on validation."""
    kinds = [(one, model_class(one.runs[0].recipe.model)) for one in systems]
    alone = [one for one, kind in kinds if kind.trained and not kind.uses_features]
    towards = sign(metric) or 1
    return max(
        alone, key=lambda one: towards * statistics.fmean(one.values("valid", metric)), default=None
    )
