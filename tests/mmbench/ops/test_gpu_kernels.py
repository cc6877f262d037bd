"""The kernels of NVIDIA GPUs against the formulas, by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from tests.mmbench.interpreted import interpreted
from tests.mmbench.ops.test_fused import EXAMPLES, NOT_DIFFERENTIATED, TOLERANCE, Example, results

from mmbench.core.philox import Stream
from mmbench.ops.dense import column_sums
from mmbench.ops.draws import dropped, kept
from mmbench.ops.references import FUSED
from mmbench.ops.row_table import RowTable
from mmbench.ops.rows import add_rows, distinct
from mmbench.ops.sparse import SparseMatrix, SparsePattern

SEEDS = {"row_table": (1, 2), "routing": (1, 2)}
"""Fewer ones of operations that take the interpreter many seconds."""
STEPS = 8
"""Of a table: rows that are missed for one to six of them, some of them twice."""


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "name",
    [
        "take",
        "cosines",
        "pair_scores",
        "normalise_rows",
        "norm",
        "squared_norm",
        "sparse product",
        "sparse rows",
        "weighted_product",
        "propagate",
        "gathered_cosines",
        "routing",
        "row_table",
    ],
)
def test_values_and_gradients_are_those_of_the_formula(name: str, dtype: torch.dtype) -> None:
    differentiate = name not in NOT_DIFFERENTIATED
    for seed in SEEDS.get(name, range(4)):
        arguments = EXAMPLES[name](Example(seed, dtype, STEPS))
        expected = results(FUSED[name].plain, arguments, layout=False, differentiate=differentiate)
        with interpreted():
            found = results(
                FUSED[name].fused, arguments, layout=bool(seed % 2), differentiate=differentiate
            )
        for ours, plain in zip(found, expected, strict=True):
            assert ours.dtype == plain.dtype
            torch.testing.assert_close(ours, plain, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("size", [1, 7, 129, 300])
def test_distinct_rows_are_those_of_torch(size: int) -> None:
    rows = torch.randint(0, size, (size,), generator=torch.Generator().manual_seed(size))
    with interpreted():
        found, places = distinct(rows)
    assert torch.equal(found[places.rows], rows)
    expected, where = torch.unique(rows, return_inverse=True)
    assert torch.equal(places.rows, where)
    assert torch.equal(found[: len(expected)], expected)
    assert found[len(expected) :].tolist() == [int(rows.max())] * (size - len(expected))


def test_long_rows_are_summed_in_parts() -> None:
    generator = torch.Generator().manual_seed(2)
    degree = torch.tensor([0, 64, 65, 3, 200, 0, 128, 129])
    rows = torch.repeat_interleave(torch.arange(8), degree)
    columns = torch.cat([torch.randperm(210, generator=generator)[:n] for n in degree.tolist()])
    pattern, _ = SparsePattern.from_edges(rows, columns, (8, 210))
    matrix = SparseMatrix(pattern, torch.randn(pattern.nnz, generator=generator))
    x, some = torch.randn(210, 5, generator=generator), torch.tensor([4, 0, 7, 4])
    with interpreted():
        whole, part = matrix @ x, matrix.rows(some) @ x
    torch.testing.assert_close(whole, matrix.to_dense() @ x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part, (matrix.to_dense() @ x)[some], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (256, 3), (257, 33), (256 * 256 + 1, 2), (0, 4), (3, 0)])
def test_columns_are_summed(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with interpreted():
        found = column_sums(x)
    torch.testing.assert_close(found, x.sum(0), rtol=1e-12, atol=1e-10)


def test_equal_rows_are_added_in_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 9, (300,), generator=generator)
    x = torch.randn(300, 70, generator=generator) * 10 ** torch.rand(300, 1, generator=generator)
    with interpreted():
        out = add_rows(torch.ones(12, 70), index, x)
    torch.testing.assert_close(out, torch.ones(12, 70).index_add(0, index, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (40, 64)])
def test_masks_are_those_of_the_cpu(shape: tuple[int, int]) -> None:
    stream = Stream(2**62 + 12345, torch.tensor([3, 2**31 + 7]))
    here = kept(stream, shape, 0.3)
    with interpreted():
        assert torch.equal(kept(stream, shape, 0.3), here)
    words = torch.stack(stream.words(-(-here.numel() // 4)), 1).flatten()[: here.numel()]
    assert torch.equal(here, (words >= round(0.3 * 2**32)).view(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_dropped_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    stream = Stream(2**62 + 12345, torch.tensor([3, 2**31 + 7]))
    x = torch.randn(40, 13, generator=torch.Generator().manual_seed(0), dtype=dtype)
    here = dropped(x, stream, 0.3)
    assert torch.equal(here != 0, kept(stream, (40, 13), 0.3))
    with interpreted():
        there = dropped(x, stream, 0.3)
    torch.testing.assert_close(there, here, rtol=1e-6 if dtype == torch.float32 else 1e-15, atol=0)


@pytest.mark.parametrize("n", [1, 300])
def test_words_are_those_of_the_cpu(n: int) -> None:
    stream = Stream(2**62 + 12345, torch.tensor([3, 2**31 + 7]))
    with interpreted():
        from mmbench.ops.gpu import draws

        words = draws.words(n, stream.key, stream.clock)
    assert all(torch.equal(a, b) for a, b in zip(words, stream.words(n), strict=True))


@pytest.mark.parametrize("update", ["exact", "lazy"])
@pytest.mark.parametrize("steps_known", [False, True])
def test_a_table_has_the_bits_of_the_cpu(update: str, steps_known: bool) -> None:
    """Repeated rows at the end of an index, as `distinct` gives them on a GPU, change nothing."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(12, 33, generator=generator)
    rows = [torch.randint(0, 12, (6,), generator=generator).unique() for _ in range(12)]
    gradients = [torch.randn(len(index), 33, generator=generator) for index in rows]

    def train(repeated: int) -> dict[str, torch.Tensor]:
        table = RowTable(start.clone())
        table.update = update  # type: ignore[assignment]
        for step, (index, gradient) in enumerate(zip(rows, gradients, strict=True)):
            if steps_known and step % 6 == 0:
                table.schedule(0.01, 6)
            filled = torch.cat([index, index[-1:].repeat(repeated)])
            nothing = gradient.new_zeros(repeated, 33)
            taken = table.rows(filled)
            assert taken.shape == (len(filled), 33)
            (taken * torch.cat([gradient, nothing])).sum().backward()
            table.step(0.01)
            if step == 8:
                table.read(torch.tensor([4, 1]))
        return {name: value.clone() for name, value in table.state_dict().items()}

    here = train(0)
    with interpreted():
        there = train(3)
    for name, value in here.items():
        assert torch.equal(there[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_adam_is_torch_s(dtype: torch.dtype) -> None:
    """A parameter that skips steps keeps a count of its own."""
    from mmbench.ops.gpu.adam import DenseAdam

    generator = torch.Generator().manual_seed(4)
    starts = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((70, 33), (5,))]
    mine = [start.clone() for start in starts]
    theirs = [torch.nn.Parameter(start.clone()) for start in starts]
    lr = torch.ones((), dtype=torch.float32)
    with interpreted():
        ours = DenseAdam(mine, lr)
    plain = torch.optim.Adam(theirs, lr=1.0)
    for step in range(12):
        lr.fill_(0.01 * (1 + step % 3))
        plain.param_groups[0]["lr"] = float(lr)
        for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=generator, dtype=dtype) * 10.0 ** (-step)
            a.grad = b.grad = None if k and step % 4 == 1 else gradient
        with interpreted():
            if step == 6:  # a resume
                state, ours = ours.state, DenseAdam(mine, lr)
                for p in mine:
                    for key, value in state[p].items():
                        ours.state[p][key] = value.clone()
            ours.step()
        plain.step()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9  # lr itself is a float32
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=tolerance, atol=tolerance)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                ours.state[a][key],
                plain.state[b][key],
                rtol=tolerance,
                atol=tolerance / 100,
                check_dtype=False,
            )
