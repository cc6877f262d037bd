"""A change of the code changes no number: a fixed set of runs, against the list made before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY
from tests.e2e.unchanged import fixed_runs

EXPECTED = REPOSITORY / "tests/data/unchanged/runs.json"


def test_names_and_metrics_of_the_fixed_runs_are_those_of_the_list(tmp_path: Path) -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    found = fixed_runs(tmp_path / "runs")
    assert list(found) == list(expected)  # a name holds the digest of recipe, split and features
    for name, run in found.items():
        # Bytes are equal on processors of one kind; elsewhere rounding may swap two close items.
        same_bytes = run["sha256"] == expected[name]["sha256"]
        assert same_bytes or run["test"] == pytest.approx(expected[name]["test"], abs=0.01), name
