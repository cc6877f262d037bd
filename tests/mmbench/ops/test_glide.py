"""Many missed steps of Adam as one sum: the course of dense Adam, wherever a row is in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.ops import glide
from mmbench.ops.id_table import IdTable
from mmbench.ops.row_table import RowTable

ROWS, DIM, LR, EPOCHS, STEPS = 600, 5, 5e-3, 4, 700


def trained(
    kind: type[RowTable], dtype: torch.dtype, size: float, *, interrupted: bool = False
) -> RowTable:
    """A table after some epochs; in all of them some rows are used often, most of them rarely."""
    rng = np.random.default_rng(7)
    table = kind(torch.from_numpy(rng.uniform(-5e-3, 5e-3, (ROWS, DIM))).to(dtype))
    for _ in range(EPOCHS):
        table.schedule(LR, STEPS)
        for _ in range(STEPS):
            chosen = np.concatenate([rng.integers(0, 20, 3), rng.integers(0, ROWS, 2)])
            index = torch.from_numpy(np.unique(chosen))
            gradient = torch.from_numpy(rng.standard_normal((len(index), DIM)) * size)
            rows = table.rows(index)
            rows.grad = gradient.to(dtype)
            table.step(LR)
        if interrupted:
            state, table = table.state_dict(), kind(torch.zeros(ROWS, DIM, dtype=dtype))
            table.load_state_dict(state)
    table.flush()
    return table


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest number."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


# Gradients for which epsilon counts for nothing, for something, and for more than the moments.
@pytest.mark.parametrize("size", [1e-2, 1e-6, 1e-9])
def test_a_glide_ends_where_the_steps_end(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(RowTable, torch.float64, size)
    ours = trained(IdTable, torch.float64, size)
    assert error(ours.values, whole.values) < 2e-8
    assert error(ours.exp_avg, whole.exp_avg) < 1e-12
    assert error(ours.exp_avg_sq, whole.exp_avg_sq) < 1e-12
    assert not torch.equal(ours.values, whole.values)  # it has glided
    # In single precision the sum is nearer to the truth than the steps, each of them rounded.
    steps, sums = (trained(kind, torch.float32, size) for kind in (RowTable, IdTable))
    assert error(sums.values, whole.values) < 1.1 * error(steps.values, whole.values)
    assert error(sums.exp_avg_sq, whole.exp_avg_sq) < 1.1 * error(
        steps.exp_avg_sq, whole.exp_avg_sq
    )


def test_a_resumed_training_is_the_uninterrupted_one() -> None:
    whole, parts = (trained(IdTable, torch.float32, 1e-3, interrupted=on) for on in (False, True))
    for ours, theirs in zip(parts.buffers(), whole.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_early_steps_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glide, "BEGIN", EPOCHS * STEPS)
    for dtype in (torch.float32, torch.float64):
        ours, whole = (trained(kind, dtype, 1e-3) for kind in (IdTable, RowTable))
        assert torch.equal(ours.values, whole.values)


def test_another_rate_than_the_scheduled_one_is_followed_step_by_step() -> None:
    tables = []
    for kind in (IdTable, RowTable):
        rng = np.random.default_rng(7)
        table = kind(torch.from_numpy(rng.uniform(-5e-3, 5e-3, (40, DIM))))
        for lr in (LR, LR / 2):
            table.schedule(LR, 1_100)
            for _ in range(1_200):  # and more steps than scheduled
                index = torch.from_numpy(np.unique(rng.integers(0, 40, 1)))
                rows = table.rows(index)
                rows.grad = torch.from_numpy(rng.standard_normal((1, DIM)))
                table.step(lr)
        tables.append(table)
    for table in tables:
        table.flush()
    assert error(tables[0].values, tables[1].values) < 1e-7


def test_looking_at_rows_changes_no_bit_of_what_follows() -> None:
    rng = np.random.default_rng(1)
    found = []
    for looks in (False, True):
        rng = np.random.default_rng(1)
        table = IdTable(torch.from_numpy(rng.uniform(-5e-3, 5e-3, (80, DIM))).float())
        table.schedule(LR, 1_500)
        for step in range(1_500):
            index = torch.from_numpy(np.unique(rng.integers(0, 80, 2)))
            if looks and step % 50 == 0:
                table.read(torch.arange(80))
            rows = table.rows(index)
            rows.grad = torch.from_numpy(rng.standard_normal((len(index), DIM))).float()
            table.step(LR)
        table.flush()
        found.append(table.values)
    assert torch.equal(*found)
