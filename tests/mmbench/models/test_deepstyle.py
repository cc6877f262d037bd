"""DeepStyle: against the plain float64 reference, and where its categories come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.mmbench.conftest import write_dataset
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.reference import cases, common, deepstyle

from mmbench.cli import cli
from mmbench.metrics.item_data import Topics
from mmbench.models.base import Recommender


def _inject(model: Recommender, extra: dict[str, torch.Tensor]) -> None:
    """The style table and the categories of the case; built without, all items share one."""
    model.category = extra["category"]
    model.style = torch.nn.Parameter(torch.zeros(extra["n"], model.config.embedding_dim))  # type: ignore[call-overload, union-attr]


ADAPTER = Adapter(
    settings=lambda case, preset: {
        "embedding_dim": case.config["factors"],
        "reg_weight": case.config["l_w"],
        "content_reg_weight": case.config["l_e"],
    },
    extra=lambda case, preset, epochs: {
        "category": deepstyle.categories(case),
        "n": case.config["n_categories"],
    },
    inject=_inject,
)


def problem(size: str, n_modalities: int) -> Problem:
    with double_precision():
        return Problem("deepstyle", "paper", size, ADAPTER, n_modalities, deepstyle)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


@pytest.mark.parametrize(("size", "n"), [("small", 2), ("middle", 1), ("middle", 2), ("middle", 3)])
def test_scores_terms_gradients_and_steps_are_the_reference_s(size: str, n: int) -> None:
    p = problem(size, n)
    assert deviation(p.scores(), deepstyle.scores(p.start, p.case, "paper")) <= 1e-12
    batch = p.epochs[0][0]
    ours, theirs = p.first_terms(), deepstyle.loss_terms(p.start, p.case, "paper", batch)
    assert ours.keys() == theirs.keys()
    for term in theirs:
        assert ours[term].item() == pytest.approx(theirs[term].item(), rel=1e-12)
    found = p.gradients()
    names = deepstyle.trainable(p.case, "paper")
    assert found.keys() == deepstyle.GRADIENTS["paper"]
    expected = common.gradients(
        p.start, names, lambda now: deepstyle.loss_terms(now, p.case, "paper", batch)
    )
    for key, value in expected.items():
        assert deviation(found[key], value) <= 1e-9, key  # type: ignore[arg-type]
    after = deepstyle.run(p.start, p.case, "paper", p.epochs, cases.LEARNING_RATE)
    for step, parameters in p.run().items():
        for key, value in parameters.items():
            assert deviation(value, after[step][key]) <= 1e-9, (step, key)


def test_an_item_has_its_first_category_or_that_of_those_with_none() -> None:
    topics = Topics.from_pairs(np.array([0, 0, 2, 3, 9]), np.array([7, 4, 7, 5, 1]))
    # Of the first five items: 4, none, 7, 5, none; numbered 4, 5, 7, none.
    assert topics.first(5).tolist() == [0, 3, 2, 1, 3]


def test_it_trains_on_a_column_of_the_items_table_and_asks_for_one(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "toy")
    rows = [f"B{item:03d}X\t{'shoe' if item % 3 else 'hat'}" for item in range(30)]
    (data / "items.tsv").write_text("item_id\tkind\n" + "\n".join(rows) + "\n")
    line = ["train", "--model", "deepstyle", "--data", str(data), "--set", "epochs=2", "-q"]
    line += ["--set", "embedding_dim=4", "--out", str(tmp_path / "runs"), "--features"]
    line += ["visual=toy", "--every", "1"]
    torch.set_default_dtype(torch.float32)
    without = CliRunner().invoke(cli, line)
    assert without.exit_code == 2
    assert "needs the items' categories" in str(without.exception) + without.output
    assert not (tmp_path / "runs").exists()
    done = CliRunner().invoke(cli, [*line, "--categories", "kind"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (run,) = (tmp_path / "runs").iterdir()
    again = CliRunner().invoke(cli, ["evaluate", str(run)], catch_exceptions=False)
    assert again.exit_code == 0, again.output
    other = CliRunner().invoke(cli, ["evaluate", str(run), "--categories", "item_id"])
    assert other.exit_code != 0
    assert "was trained with --categories kind" in str(other.exception) + other.output
