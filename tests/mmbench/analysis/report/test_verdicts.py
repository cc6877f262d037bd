"""Sentences of effects: they say what the numbers say, with their interval and their basis."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmbench.analysis.effects import Contrast, Effect
from mmbench.analysis.question import KIND, Asked
from mmbench.analysis.report.verdicts import sentence, signed, verdicts

EFFECT = Effect(
    contrast=Contrast("fusion", "late", "early", {KIND: "toy, given"}),
    metric="Recall@20",
    base=0.1,
    difference=0.004,
    interval=(0.001, 0.007),
    interval_users=(0.002, 0.006),
    p=0.002,
    p_seeds=0.01,
    ahead=14,
    pairs=15,
    n_cells=3,
    left_out=0,
    n_seeds=5,
    n_users=100,
    outcome="better",
)


def at(place: float, **changes: object) -> Effect:
    where = {KIND: "toy, given", "mask": {"visual": place}}
    return replace(EFFECT, contrast=Contrast("fusion", "late", "early", where), **changes)


def test_a_resolved_effect() -> None:
    assert sentence(EFFECT, 0.02) == (
        "fusion late is **better** than early by 0.0040 [0.0010, 0.0070] in Recall@20 "
        "(+4.0%; 5 seeds x 3 combinations; ahead in 14 of 15 pairs of runs)"
    )


def test_a_loss_is_told_as_a_size_with_its_interval_turned_round() -> None:
    loss = replace(
        EFFECT, difference=-0.004, interval=(-0.007, -0.001), outcome="worse", ahead=1
    )  # fmt: skip
    assert "is **worse** than early by 0.0040 [0.0010, 0.0070] in Recall@20 (-4.0%" in sentence(
        loss, 0.02
    )


@pytest.mark.parametrize(
    ("outcome", "start"),
    [
        ("none", "**no effect**: fusion late and early differ by less than 2%"),
        ("unresolved", "**no resolved difference** between fusion late and early"),
        ("incomparable", "**not comparable**: fusion late is scored on other rows"),
    ],
)
def test_what_is_not_resolved_is_not_called_better(outcome: str, start: str) -> None:
    text = sentence(replace(EFFECT, outcome=outcome), 0.02)
    assert text.startswith(start)
    assert "+0.0040 [0.0010, 0.0070]" in text
    assert "better" not in text


def test_without_randomness_the_interval_is_over_users() -> None:
    text = sentence(replace(EFFECT, interval=None, n_seeds=1), 0.02)
    assert "[0.0020, 0.0060] over users" in text
    assert "seed" not in text


def test_one_seed_says_nothing_of_trainings() -> None:
    text = sentence(
        replace(EFFECT, interval=None, n_seeds=1, pairs=1, ahead=1, one_seed=True), 0.02
    )
    assert "one seed: how much trainings vary is unknown; ahead in 1 of 1 pair of runs" in text


def test_places_with_the_same_outcome_are_told_together() -> None:
    asked = Asked(factor="fusion", reference="early", by="mask")
    worse = at(0.9, outcome="worse", difference=-0.002, interval=(-0.003, -0.001))
    (line,) = verdicts(asked, [at(0.3), at(0.5), worse], "Recall@20", 0.02)
    assert line == (
        "fusion late against early in Recall@20: **better** at mask visual 0.3 (+0.0040 [0.0010, "
        "0.0070]), mask visual 0.5 (+0.0040 [0.0010, 0.0070]); **worse** at mask visual 0.9 "
        "(-0.0020 [-0.0030, -0.0010]) (5 seeds x 3 combinations)."
    )


def control(level: str, difference: float, outcome: str) -> Effect:
    contrast = Contrast("control", level, "real", {KIND: "toy, given"})
    return replace(EFFECT, contrast=contrast, difference=difference, outcome=outcome)


def test_how_much_of_a_gain_is_kept_and_what_does_as_well_is_flagged() -> None:
    asked = Asked(factor="control", reference="real", gain_over="absent")
    found = [control("shuffled", -0.03, "worse"), control("absent", -0.04, "worse")]
    lines = verdicts(asked, found, "Recall@20", 0.02)
    assert lines[-1] == (
        "control shuffled keeps 25% of the gain of real over absent in Recall@20; the other 75% "
        "is what it takes away."
    )
    assert not any("Flag" in line for line in lines)
    found = [control("shuffled", 0.0, "none"), control("absent", -0.01, "unresolved")]
    lines = verdicts(asked, found, "Recall@20", 0.02)
    assert "**Flag:**" in lines[0]
    assert (
        lines[-1]
        == "the gain of real over absent in Recall@20 is not resolved, so it has no shares."
    )


def test_a_small_difference_is_not_rounded_to_zero() -> None:
    assert [signed(value) for value in (0.0, 0.00001, -0.5, 12.3)] == [
        "+0.0000",
        "+1.0e-05",
        "-0.5000",
        "+12.30",
    ]
