"""Deferred Adam against the dense update, bit for bit, and both against torch's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbench.errors import ShapeError, TrainingError
from mmbench.ops.row_table import RowTable
from mmbench.trainer import Adam

N_ROWS, DIM = 40, 70

Step = tuple[Tensor | None, Tensor | None, float]  # rows, gradient, lr


def random_steps(seed: int, n_steps: int, dtype: torch.dtype, *, schedule: str) -> list[Step]:
    """Rows 0 … 19 are touched often, 20 … 38 rarely, 39 once; gradients of 1e-12 … 1."""
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    for t in range(n_steps):
        chance = np.where(np.arange(N_ROWS) < 20, 0.3, 0.01)
        chance[39] = 0
        rows = np.arange(N_ROWS) if t == 0 else np.flatnonzero(rng.random(N_ROWS) < chance)
        gradient = rng.normal(size=(rows.size, DIM)) * 10.0 ** rng.uniform(-12, 0, (rows.size, 1))
        gradient[rng.random(gradient.shape) < 0.1] = 0
        lr = {"constant": 1e-2, "falling": 1e-2 * 0.96 ** (t / 50), "zigzag": 1e-2 * (1 + t % 3)}[
            schedule
        ]
        if rows.size:
            steps.append((torch.from_numpy(rows), torch.from_numpy(gradient).to(dtype), lr))
        else:
            steps.append((None, None, lr))
    return steps


def start(dtype: torch.dtype) -> Tensor:
    values = torch.randn(
        N_ROWS, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    values[:, ::7] = 0  # zeros never come to rest by rounding
    values[:, 1::7] *= 1e-25
    return values.to(dtype)


def touch(table: RowTable, step: Step) -> None:
    rows, gradient, lr = step
    if rows is not None and gradient is not None:
        (table.rows(rows) * gradient).sum().backward()
    table.step(lr)


def dense(table: RowTable, step: Step) -> None:
    """The same step with a gradient for every row, zero where none was given."""
    rows, gradient, lr = step
    full = torch.zeros_like(table.values)
    if rows is not None and gradient is not None:
        full[rows] = gradient
    (table.rows() * full).sum().backward()
    table.step(lr)


class PlainAdam:
    """Algorithm 1 on whole arrays: NumPy rounds each operation once, which gives the dense bits."""

    def __init__(self, values: Tensor) -> None:
        self.p = values.numpy().copy()
        self.m, self.v, self.t = np.zeros_like(self.p), np.zeros_like(self.p), 0

    def step(self, step: Step) -> None:
        rows, gradient, lr = step
        self.t += 1
        kind = self.p.dtype.type
        scale, correction = kind(lr / (1 - 0.9**self.t)), kind(1 / np.sqrt(1 - 0.999**self.t))
        g = np.zeros_like(self.p)
        if rows is not None and gradient is not None:
            g[rows.numpy()] = gradient.numpy()
        self.m = kind(0.9) * self.m + kind(1 - 0.9) * g
        self.v = kind(0.999) * self.v + kind(1 - 0.999) * (g * g)
        self.p = self.p - scale * self.m / (np.sqrt(self.v) * correction + kind(1e-8))

    def assert_equals(self, table: RowTable) -> None:
        assert int(table.steps) == self.t
        for name, array in (("values", self.p), ("exp_avg", self.m), ("exp_avg_sq", self.v)):
            np.testing.assert_array_equal(table.state_dict()[name].numpy(), array, name)


def assert_same_bits(a: RowTable, b: RowTable) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys() == {"values", "exp_avg", "exp_avg_sq", "steps"}
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", ["constant", "falling", "zigzag"])
def test_deferred_is_dense_bit_for_bit(dtype: torch.dtype, schedule: str) -> None:
    steps = random_steps(1, 320, dtype, schedule=schedule)
    deferred, whole, plain = RowTable(start(dtype)), RowTable(start(dtype)), PlainAdam(start(dtype))
    eager = RowTable(start(dtype), deferred=False)  # the path of other devices
    for t, step in enumerate(steps):
        touch(deferred, step)
        dense(whole, step)
        touch(eager, step)
        plain.step(step)
        if t % 60 == 17:
            some = torch.tensor([3, 1, 3, 39])
            np.testing.assert_array_equal(deferred.read(some).numpy(), plain.p[some.numpy()])
        if t == 200:
            np.testing.assert_array_equal(deferred.read().numpy(), plain.p)
    plain.assert_equals(deferred)
    plain.assert_equals(whole)
    # torch's square root is not rounded correctly on every CPU.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(eager.values, whole.values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_dense_update_is_torchs(dtype: torch.dtype, tolerance: float) -> None:
    steps = random_steps(2, 60, dtype, schedule="falling")
    table, parameter = RowTable(start(dtype)), nn.Parameter(start(dtype))
    optimiser = torch.optim.Adam([parameter], fused=False, foreach=False)
    for step in steps:
        touch(table, step)
        parameter.grad = torch.zeros_like(parameter)
        if step[0] is not None:
            parameter.grad[step[0]] = step[1]
        optimiser.param_groups[0]["lr"] = step[2]
        optimiser.step()
    torch.testing.assert_close(table.read(), parameter.detach(), rtol=tolerance, atol=tolerance)
    moved = (parameter.detach() - start(dtype)).abs().max()
    assert moved > 0.05  # the comparison is about something


def test_long_rest_equals_the_plain_recurrence() -> None:
    """The early end of a replay loses no bit: 3,000 missed steps, moments down to subnormal."""
    table, plain = RowTable(start(torch.float32)), PlainAdam(start(torch.float32))
    gradient = torch.randn(N_ROWS, DIM) * torch.logspace(-30, 0, N_ROWS)[:, None]
    first = (torch.arange(N_ROWS), gradient, 1e-2)
    touch(table, first)
    plain.step(first)
    for _ in range(3000):
        table.step(1e-2)
        plain.step((None, None, 1e-2))
    np.testing.assert_array_equal(table.read(torch.arange(N_ROWS)).numpy(), plain.p)
    plain.assert_equals(table)


def test_resume_in_the_middle() -> None:
    steps = random_steps(3, 80, torch.float32, schedule="falling")
    whole, first = RowTable(start(torch.float32)), RowTable(start(torch.float32))
    for step in steps:
        touch(whole, step)
    for step in steps[:33]:
        touch(first, step)
    saved = {name: value.clone() for name, value in first.state_dict().items()}
    second = RowTable(torch.zeros(N_ROWS, DIM))
    second.step(1.0)
    second.load_state_dict(saved)
    for step in steps[33:]:
        touch(second, step)
    assert_same_bits(whole, second)


def test_threads_do_not_change_a_bit() -> None:
    steps = random_steps(4, 40, torch.float32, schedule="constant")
    before, tables = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            table = RowTable(start(torch.float32).repeat(1, 100))
            for rows, gradient, lr in steps:
                touch(table, (rows, None if gradient is None else gradient.repeat(1, 100), lr))
            tables.append(table)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(*tables)


def test_reading_changes_nothing_and_keeps_no_gradient() -> None:
    table = RowTable(start(torch.float32))
    for step in random_steps(5, 10, torch.float32, schedule="constant"):
        touch(table, step)
    twin = copy.deepcopy(table)
    with torch.inference_mode():
        once, again = table.rows(torch.tensor([2, 20])), table.read(torch.tensor([20, 2]))
    assert not once.requires_grad
    assert torch.equal(once, again.flip(0))
    table.step(0.1)
    twin.step(0.1)
    assert_same_bits(table, twin)


@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_projection_equals_linear_layer_on_rows(deferred: bool, whole: bool) -> None:
    """60 steps in double precision: table, weight and bias, by rows() and by project()."""
    generator = torch.Generator().manual_seed(4)
    tables = [RowTable(start(torch.float64), deferred=deferred) for _ in range(2)]
    layers = [nn.Linear(DIM, 3, dtype=torch.float64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimisers = [Adam(nn.ModuleList(pair)) for pair in zip(tables, layers, strict=True)]
    for _ in range(60):
        rows = None if whole else torch.randint(0, N_ROWS, (12,), generator=generator).unique()
        probe = torch.randn(
            N_ROWS if rows is None else len(rows), 3, generator=generator, dtype=torch.float64
        )
        projected = tables[0].project(rows, layers[0].weight, layers[0].bias)
        plain = layers[1](tables[1].rows(rows))
        torch.testing.assert_close(projected, plain, rtol=1e-11, atol=1e-12)
        for optimiser, y in zip(optimisers, (projected, plain), strict=True):
            optimiser.zero_grad()
            (y.sin() * probe).sum().backward()
            optimiser.schedule(1e-2, 1)
            optimiser.step()
    torch.testing.assert_close(tables[0].read(), tables[1].read(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(layers[0].bias, layers[1].bias, rtol=1e-9, atol=1e-10)


def test_projection_by_a_constant_still_trains_the_rows() -> None:
    table, weight = RowTable(start(torch.float32)), torch.ones(2, DIM)
    table.project(torch.tensor([1, 5]), weight).sum().backward()
    before = table.read(torch.arange(N_ROWS))
    table.step(0.1)
    moved = (table.read(torch.arange(N_ROWS)) != before).any(1)
    assert moved.nonzero().flatten().tolist() == [1, 5]
    with torch.no_grad():
        assert torch.equal(table.project(None, weight), table.read() @ weight.T)
    with pytest.raises(ShapeError, match="cannot project"):
        table.project(None, torch.ones(2, DIM + 1))


def test_second_backward_through_a_projection_is_refused() -> None:
    table = RowTable(start(torch.float32))
    y = table.project(torch.tensor([1]), torch.ones(2, DIM)).sum()
    y.backward(retain_graph=True)
    with pytest.raises(TrainingError, match="second backward"):
        y.backward()


def test_cleared_gradients_are_not_applied() -> None:
    model = TwoPart()
    optimiser = Adam(model)
    before = model.table.read().clone()
    model.loss(0).backward()
    optimiser.zero_grad()
    optimiser.schedule(0.1, 1)
    optimiser.step()
    assert torch.equal(model.table.read(), before)
    assert int(model.table.steps) == 0


def test_rows_misused() -> None:
    table = RowTable(start(torch.float32))
    with pytest.raises(ShapeError, match="ascending"):
        table.rows(torch.tensor([1, 1]))
    table.rows(torch.tensor([1]))  # never used in a backward: not an error
    for row in (2, 3):
        table.rows(torch.tensor([row])).sum().backward()
    with pytest.raises(TrainingError, match="union"):
        table.step(0.1)
    with pytest.raises(ShapeError, match="contiguous"):
        RowTable(torch.zeros(3, 4).T)
    with pytest.raises(ShapeError, match="int64"):
        RowTable(torch.zeros(3, 4, dtype=torch.int64))


class TwoPart(nn.Module):
    """A parameter and a table that only every third step uses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3))
        self.table = RowTable(torch.linspace(1, 2, 30).view(10, 3))

    def loss(self, step: int) -> Tensor:
        if step % 3:
            return (self.weight * 0.1).sum() if step % 2 else torch.zeros((), requires_grad=True)
        x = self.table.rows(torch.tensor([step % 10]))
        return (x @ self.weight.T).square().sum()


@pytest.mark.parametrize("clear_first", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_optimiser_of_a_model(legacy: bool, clear_first: bool) -> None:
    """Against torch's Adam with gradients of None (skipped) or zero (moved on by momentum)."""
    model, plain = TwoPart(), TwoPart()
    optimiser = Adam(model, legacy_zero_grad=legacy)
    weight, table = (
        nn.Parameter(plain.weight.detach().clone()),
        nn.Parameter(plain.table.values.clone()),
    )
    reference = torch.optim.Adam([weight, table], foreach=False)
    seen = False
    for step in range(60):
        if clear_first:
            optimiser.zero_grad()
        loss = model.loss(step)
        if not clear_first:
            optimiser.zero_grad()
        loss.backward()
        optimiser.schedule(1e-2 / (1 + step), 1)
        optimiser.step()
        weight.grad, table.grad = (
            torch.zeros_like(p) if legacy and seen else None for p in (weight, table)
        )
        if step % 3 == 0:
            (table[step % 10][None] @ weight.T).square().sum().backward()
        elif step % 2:
            (weight * 0.1).sum().backward()
        seen = True
        reference.param_groups[0]["lr"] = 1e-2 / (1 + step)
        reference.step()
        if step == 30:  # a resume changes nothing
            resumed = TwoPart()
            resumed.load_state_dict(
                {name: value.clone() for name, value in model.state_dict().items()}
            )
            restored = Adam(resumed, legacy_zero_grad=legacy)
            restored.load_state_dict(optimiser.state_dict())
            model, optimiser = resumed, restored
    torch.testing.assert_close(model.weight.detach(), weight.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.table.read(), table.detach(), rtol=1e-6, atol=1e-6)


def test_saved_state_of_another_model_is_refused() -> None:
    optimiser = Adam(TwoPart())
    with pytest.raises(TrainingError, match="no parameter"):
        optimiser.load_state_dict({"bias.exp_avg": torch.zeros(3)})
    with pytest.raises(TrainingError, match=r"\(3,\)"):
        optimiser.load_state_dict({"weight.exp_avg": torch.zeros(3)})
    assert Adam(nn.Sequential()).state_dict() == {}


@pytest.mark.parametrize("deferred", [True, False])
def test_lazy_moves_rows_with_a_gradient_only(deferred: bool) -> None:
    table, exact = (RowTable(start(torch.float64), deferred=deferred) for _ in range(2))
    table.update = "lazy"
    p = start(torch.float64).numpy().copy()
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, step in enumerate(random_steps(2, 60, torch.float64, schedule="falling"), start=1):
        rows, gradient, lr = step
        touch(table, step)
        touch(exact, step)
        if rows is not None and gradient is not None:
            r, g = rows.numpy(), gradient.numpy()
            m[r], v[r] = 0.9 * m[r] + 0.1 * g, 0.999 * v[r] + 0.001 * g**2
            p[r] -= lr / (1 - 0.9**t) * m[r] / (np.sqrt(v[r] / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(table.read().numpy(), p, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(table.read(), exact.read(), rtol=1e-3)


@pytest.mark.parametrize("deferred", [True, False])
def test_frozen_stays_and_lets_the_projection_learn(deferred: bool) -> None:
    table, weight = (
        RowTable(start(torch.float64), deferred=deferred),
        nn.Parameter(torch.ones(3, DIM, dtype=torch.float64)),
    )
    table.update = "frozen"
    model = nn.ModuleDict({"table": table})
    for legacy in (False, True):
        optimiser = Adam(model, legacy_zero_grad=legacy)
        for _ in range(3):
            optimiser.zero_grad()
            index = torch.tensor([1, 4])
            (table.project(index, weight).sum() + (table.rows(index) * weight[0]).sum()).backward()
            optimiser.schedule(0.1, 1)
            optimiser.step()
    assert torch.equal(table.read(), start(torch.float64))
    assert weight.grad is not None
    assert bool((weight.grad != 0).any())
