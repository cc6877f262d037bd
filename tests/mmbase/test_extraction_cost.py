"""The file that says what a feature set cost: whose it is, parts of runs, what is not one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmbase.extraction_cost import ExtractionCost, cost_path, read_cost, write_cost

COST = ExtractionCost("d1", items=100, measured=100, seconds=30.0, sets=1, device="cpu")


def test_a_cost_is_read_back_for_its_own_set_alone(tmp_path: Path) -> None:
    features = tmp_path / "resnet.v2.h5"
    write_cost(features, COST)
    assert read_cost(features, "d1") == COST
    assert read_cost(features, "d2") is None  # the set was replaced
    assert [path.name for path in tmp_path.iterdir()] == ["resnet.v2.cost.json"]


def test_seconds_are_those_of_the_set_for_all_items() -> None:
    assert COST.of_set == 30
    assert replace(COST, sets=3).of_set == 10
    assert replace(COST, measured=50).of_set == 60  # the run went on with half of them
    assert replace(COST, measured=0).of_set is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seconds": 1}', "\x00"])
def test_what_is_no_cost_is_none(text: str, tmp_path: Path) -> None:
    features = tmp_path / "x.h5"
    cost_path(features).write_text(text)
    assert read_cost(features, "d1") is None
    assert read_cost(tmp_path / "y.h5", "d1") is None
