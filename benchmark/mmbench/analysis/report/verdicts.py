"""Effects in words: the sentences that answer a question, made from the numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmbase.layout import counted
from mmbench.analysis.effects import Effect, kept_of_gain, key_of
from mmbench.analysis.question import KIND, Asked, in_words
from mmbench.analysis.report.tables import number

SHORT = {
    "better": "better",
    "worse": "worse",
    "higher": "higher",
    "lower": "lower",
    "none": "no effect",
    "unresolved": "no resolved difference",
    "incomparable": "not comparable",
}
"""Outcomes in a table."""


def signed(value: float) -> str:
    """Return a difference with its sign, and as many decimals as tell it from zero."""
    text = f"{value:+.4f}" if abs(value) < 10 else f"{value:+.2f}"
    return text if value == 0 or float(text) else f"{value:+.1e}"


def interval_in_words(one: Effect, *, flipped: bool = False) -> str:
    """Return `[0.0010, 0.0070]`: over seeds, or over users where the seeds tell nothing."""
    known = one.interval or one.interval_users
    if known is None:
        return "(no interval)"
    low, high = (-known[1], -known[0]) if flipped else known
    over = "" if one.interval else " over users"
    return f"[{_plain(low)}, {_plain(high)}]{over}"


def sentence(one: Effect, margin: float) -> str:
    """Return what is known of an effect, as a sentence without its full stop."""
    factor, metric = one.contrast.factor, one.metric
    level, reference = in_words(one.contrast.level), in_words(one.contrast.reference)
    place = where_in_words(one.contrast.where)
    there = f" at {place}" if place else ""
    measured = f"{signed(one.difference)} {interval_in_words(one)}"
    basis = _basis(one)
    if one.outcome in ("better", "worse", "higher", "lower"):
        flipped = one.difference < 0
        size = f"{_plain(abs(one.difference))} {interval_in_words(one, flipped=flipped)}"
        share = f"{one.difference / abs(one.base):+.1%}; " if one.base else ""
        return (
            f"{factor} {level} is **{one.outcome}** than {reference} by {size} in {metric}{there} "
            f"({share}{basis}; {_ahead(one)})"
        )
    if one.outcome == "none":
        told = f"**no effect**: {factor} {level} and {reference} differ by less than {margin:.0%}"
        return f"{told} in {metric}{there}: {measured} ({basis})"
    if one.outcome == "incomparable":
        told = f"**not comparable**: {factor} {level} is scored on other rows or candidates"
        return f"{told} than {reference}{there}; its {metric} differs by {measured} ({basis})"
    told = f"**no resolved difference** between {factor} {level} and {reference} in {metric}{there}"
    return f"{told}: {measured} ({basis}; {_ahead(one)})"


def verdicts(asked: Asked, found: Sequence[Effect], metric: str, margin: float) -> list[str]:
    """Return the answer about one factor in a metric: a line for each kind of data and level.

    Args:
        asked: The factor.
        found: Its effects.
        metric: The metric that decides.
        margin: See `effects.effects`.
    """
    lines: dict[str, list[Effect]] = {}
    for one in found:
        if one.metric == metric:
            key = key_of([one.contrast.where[KIND], one.contrast.level])
            lines.setdefault(key, []).append(one)
    out = []
    for own in lines.values():
        text = sentence(own[0], margin) if len(own) == 1 else _several(own)
        out.append(f"{text}.{_flag(asked, own)}")
    return out + _gains(asked, found, metric)


def where_in_words(where: Mapping[str, Any]) -> str:
    """Return `mask 0.3, model vbpr`; the kind of data is left out."""
    return ", ".join(f"{name} {in_words(level)}" for name, level in where.items() if name != KIND)


def kept(one: Effect, found: Sequence[Effect], without: Any) -> float | None:
    """Return the share of the reference's gain over a level `without` it that a level keeps."""
    for other in found:
        same = one.metric == other.metric and one.contrast.where == other.contrast.where
        if same and key_of(other.contrast.level) == key_of(without):
            return kept_of_gain(one, other)
    return None


def _several(own: Sequence[Effect]) -> str:
    """Return one sentence on a level at several places: those with the same outcome together."""
    first = own[0].contrast
    by_outcome: dict[str, list[str]] = {}
    for one in own:
        place = f"{where_in_words(one.contrast.where)} ({signed(one.difference)} "
        by_outcome.setdefault(one.outcome, []).append(f"{place}{interval_in_words(one)})")
    told = "; ".join(
        f"**{SHORT[outcome]}** at {', '.join(places)}" for outcome, places in by_outcome.items()
    )
    level, reference = in_words(first.level), in_words(first.reference)
    return (
        f"{first.factor} {level} against {reference} in {own[0].metric}: {told} ({_basis(own[0])})"
    )


def _flag(asked: Asked, own: Sequence[Effect]) -> str:
    """Return a warning where a control does as well as what it controls."""
    if asked.gain_over is None or all(one.outcome in ("worse", "lower") for one in own):
        return ""
    return " **Flag:** not shown to be worse everywhere, so the gain there may not be content."


def _gains(asked: Asked, found: Sequence[Effect], metric: str) -> list[str]:
    """Return how much of the reference's gain each level keeps, and what that leaves to it."""
    if asked.gain_over is None:
        return []
    out = []
    for one in found:
        if one.metric != metric or key_of(one.contrast.level) == key_of(asked.gain_over):
            continue
        place = where_in_words(one.contrast.where)
        share = kept(one, found, asked.gain_over)
        gain = f"the gain of {in_words(one.contrast.reference)} over {in_words(asked.gain_over)}"
        there = f"{place}: " if place else ""
        told = (
            f"{there}{gain} in {metric} is not resolved, so it has no shares"
            if share is None
            else f"{there}{asked.factor} {in_words(one.contrast.level)} keeps {share:.0%} of "
            f"{gain} in {metric}; the other {1 - share:.0%} is what it takes away"
        )
        out.append(f"{told}.")
    return list(dict.fromkeys(out))


def _basis(one: Effect) -> str:
    seeds = counted(one.n_seeds, "seed")
    cells = counted(one.n_cells, "combination")
    if one.one_seed:
        return f"{cells}, one seed: how much trainings vary is unknown"
    return f"{seeds} x {cells}" if one.interval else cells


def _ahead(one: Effect) -> str:
    return f"ahead in {one.ahead} of {counted(one.pairs, 'pair')} of runs"


def _plain(value: float) -> str:
    return number(value) if value == 0 or float(number(value)) else f"{value:.1e}"
