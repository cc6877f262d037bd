"""Every fused operation against its formula in plain torch: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.ops.references import FUSED
from mmbench.ops.routing import RoutingGraph
from mmbench.ops.sparse import SparseMatrix, SparsePattern

Arguments = tuple[list[Any], dict[str, Any]]


class Example:
    """Random arguments of one dtype; every draw has a zero row where it has rows."""

    def __init__(self, seed: int, dtype: torch.dtype, steps: int = 25) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.seed, self.dtype, self.steps = seed, dtype, steps

    def whole(self, high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def size(self, high: int) -> int:
        return int(self.whole(high, 1, low=1))

    def normal(self, *shape: int, zero_row: bool = True) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)
        if zero_row and len(shape) == 2 and shape[0] > 1 and self.seed % 2:
            x[self.seed % shape[0]] = 0
        return x

    def unit(self, *shape: int) -> Tensor:
        return torch.nn.functional.normalize(self.normal(*shape, zero_row=False), dim=1)

    def matrix(self, rows: int, columns: int) -> SparseMatrix:
        """With empty rows and columns, and at seed 0 without any entry."""
        n = self.size(3 * max(rows, columns)) if self.seed else 0
        edges = self.whole(rows, n), self.whole(columns, n)
        pattern, _ = SparsePattern.from_edges(*edges, (rows, columns))
        return SparseMatrix(pattern, self.normal(pattern.nnz))


def of_linear(draw: Example) -> Arguments:
    n, k, d = draw.size(20) - 1, draw.size(20), draw.size(20)
    bias = [draw.normal(d)] if draw.seed % 3 else []
    return [draw.normal(n, k), draw.normal(d, k), *bias], {}


def of_leaky_mix(draw: Example) -> Arguments:
    n, k, h, d = (draw.size(20) for _ in range(4))
    wide = draw.normal(d, h + 2)  # the mix of a concatenation is a view
    mean = {"of": draw.matrix(draw.size(20), n)} if draw.seed % 2 else {}
    return [draw.normal(n, k), draw.normal(k, h), wide[:, 1:-1], draw.normal(d)], mean


def of_cosines(draw: Example) -> Arguments:
    n, d = draw.size(20) - 1, draw.size(9)
    x, y = draw.normal(n, d, zero_row=False), draw.normal(n, d)
    if draw.seed % 2:
        x[2:3] *= 1e-10  # below the smallest factor
    return [x], {"y": y}


def of_pair_scores(draw: Example) -> Arguments:
    n, size, d = draw.size(20), draw.size(30), draw.size(9)
    return [draw.normal(size, d), draw.normal(n, d), draw.whole(n, 2 * size)], {}


def of_take(draw: Example) -> Arguments:
    n = draw.size(20)
    return [draw.normal(n, draw.size(9)), draw.whole(n, draw.size(60) - 1)], {}


def of_normalise_rows(draw: Example) -> Arguments:
    x = draw.normal(draw.size(40) - 1, draw.size(9))
    if draw.seed % 2:
        x[2:3] *= 1e-14  # below the smallest norm
    return [x], {}


def of_squared_norm(draw: Example) -> Arguments:
    return [draw.normal(draw.size(400), 20), draw.normal(draw.size(9) - 1, 7)], {}


def of_norm(draw: Example) -> Arguments:
    return [draw.normal(draw.size(400), 20) * (draw.seed % 4 > 0)], {}  # all zero, too


def of_sparse_product(draw: Example) -> Arguments:
    matrix = draw.matrix(draw.size(30), draw.size(30))
    return [matrix, draw.normal(matrix.shape[1], draw.size(70))], {}


def of_sparse_rows(draw: Example) -> Arguments:
    matrix = draw.matrix(draw.size(30), draw.size(30))
    rows = draw.whole(matrix.shape[0], draw.size(40) - 1)  # repetitions included, or none at all
    return [matrix, rows, draw.normal(matrix.shape[1], 5)], {}


def of_weighted_product(draw: Example) -> Arguments:
    matrix = draw.matrix(draw.size(30), draw.size(30))
    return [matrix.pattern, matrix.values, draw.normal(matrix.shape[1], 4)], {}


def of_propagate(draw: Example) -> Arguments:
    n = draw.size(20)
    rows = {"rows": draw.whole(n, draw.size(30) - 1)} if draw.seed % 3 else {}
    return [draw.matrix(n, n), draw.normal(n, 3), draw.seed % 4], rows


def of_cosine_knn(draw: Example) -> Arguments:
    n = draw.size(60)
    return [draw.normal(n, 12, zero_row=False).detach(), min(n, 5)], {}


def of_gathered_cosines(draw: Example) -> Arguments:
    n = draw.size(30)
    near = draw.whole(n, n, 4)
    near[:, 0] = torch.arange(n)  # each row is in its own list
    return [draw.normal(n, 5), near], {}


def of_routing(draw: Example) -> Arguments:
    n_users, n_items, n = draw.size(25), draw.size(25), draw.size(80)
    users, items = draw.whole(n_users, n).numpy(), draw.whole(n_items, n).numpy()
    train = TrainSet.from_pairs(users, items, n_users, n_items)
    graph = RoutingGraph.of(train, edge_order="aligned" if draw.seed % 2 else "elliot")
    return [draw.unit(n_users, 16), draw.unit(n_items, 16), graph, draw.seed % 4], {}


def of_confident_weights(draw: Example) -> Arguments:
    alpha, confidence = draw.normal(1 + draw.seed % 3, 70).abs(), draw.normal(9, 1 + draw.seed % 3)
    alpha[:, 3] = 0  # relu at exactly zero
    return [alpha, confidence, draw.whole(9, 70)], {"pruning": draw.seed % 2 == 0}


def of_row_table(draw: Example) -> Arguments:
    steps = []
    for step in range(draw.steps):
        rows = draw.whole(30, draw.size(9)).unique()
        upper, weight = draw.normal(len(rows), 3), draw.normal(3, 11, zero_row=False)
        steps.append((rows, upper, weight, 0.01 * (1 + step % 3)))
    return [draw.normal(30, 11), steps], {}


EXAMPLES = {
    name.removeprefix("of_").replace("sparse_", "sparse "): function
    for name, function in list(globals().items())
    if name.startswith("of_")
}
NOT_DIFFERENTIATED = {"cosine_knn", "row_table"}
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}


def strided(x: Tensor) -> Tensor:
    """The same values in another layout."""
    return x.t().contiguous().t() if x.ndim == 2 else x


def results(
    function: Callable[..., Any], arguments: Arguments, *, layout: bool, differentiate: bool = True
) -> list[Tensor]:
    """The outputs, and the gradients of a weighted sum of them."""
    given, options = arguments
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        leaves.append(value.detach().clone().requires_grad_(differentiate))
        return strided(leaves[-1]) if layout else leaves[-1]

    out = function(*map(leaf, given), **options)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    if not differentiate:
        return outputs
    generator = torch.Generator().manual_seed(9)
    total = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum()
        for y in outputs
    )
    gradients = torch.autograd.grad(total, leaves)  # type: ignore[arg-type]
    return [*(y.detach() for y in outputs), *gradients]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FUSED)
def test_values_and_gradients_are_those_of_the_formula(name: str, dtype: torch.dtype) -> None:
    differentiate = name not in NOT_DIFFERENTIATED
    for seed in range(16):
        arguments = EXAMPLES[name](Example(seed, dtype))
        expected = results(FUSED[name].plain, arguments, layout=False, differentiate=differentiate)
        for layout in (False, True):
            found = results(
                FUSED[name].fused, arguments, layout=layout, differentiate=differentiate
            )
            for ours, plain in zip(found, expected, strict=True):
                assert ours.dtype == plain.dtype
                torch.testing.assert_close(
                    ours, plain, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
                )


@pytest.mark.parametrize("name", sorted(FUSED.keys() - NOT_DIFFERENTIATED))
def test_finite_differences_agree(name: str) -> None:
    """The formula's own gradient is one opinion; this is another."""
    given, options = EXAMPLES[name](Example(4, torch.float64))
    at = [k for k, x in enumerate(given) if isinstance(x, Tensor) and x.is_floating_point()]

    def function(*leaves: Tensor) -> Any:
        arguments = list(given)
        for k, leaf in zip(at, leaves, strict=True):
            arguments[k] = leaf
        return FUSED[name].fused(*arguments, **options)

    leaves = [given[k].detach().clone().requires_grad_() for k in at]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_every_derivative_written_by_hand_has_an_entry() -> None:
    # The first inside the steps of `row_table`, the others on a GPU: test_gpu_kernels.py.
    nodes = {"_ProjectionBackward", "_CosinesBackward", "_PairScoresBackward", "_TakeBackward"}
    nodes |= {"_NormBackward", "_SquaredNormBackward"}
    # Held against their formula beside the models that they were written for.
    nodes |= {
        "_LogPartitionBackward",  # test_partition.py
        "_PooledMapsBackward",  # test_maps.py
        "_SidesBackward",  # test_sides.py
        "_CrossEntropyBackward",  # ../models/test_sequential.py
        "_EdgeWeightsBackward",  # ../models/test_egcf.py
        "_RefinementBackward",  # ../models/test_id_graphs_golden.py
    }
    for name in FUSED.keys() - NOT_DIFFERENTIATED:
        for seed in range(4):
            given, options = EXAMPLES[name](Example(seed, torch.float64))
            leaves = [
                x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
                for x in given
            ]
            out = FUSED[name].fused(*leaves, **options)
            nodes |= {type(y.grad_fn).__name__ for y in (out if isinstance(out, tuple) else [out])}
    written = {
        f"{function.__name__}Backward"
        for function in torch.autograd.Function.__subclasses__()
        if function.__module__.startswith("mmbench.ops.")
    }
    assert written
    assert written <= nodes
