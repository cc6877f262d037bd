"""EGCF against its plain reference, and the edges that a batch depends on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.reference import cases, common
from tests.reference import egcf as reference
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Edges, Init
from mmbench.models import egcf
from mmbench.models.base import Content
from mmbench.ops.edges import EdgeGraph, edge_weights, near

PROBLEMS = [
    (preset, size, n)
    for preset in reference.PRESETS
    for size, n in (("small", 2), ("middle", 1), ("middle", 2), ("middle", 3))
    if preset == "paper" or n == 2
]
every_problem = pytest.mark.parametrize(("preset", "size", "n_modalities"), PROBLEMS)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


@pytest.fixture(params=[0.0, 1.0], ids=["all edges", "edges of the batch"])
def share(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Up to which share of the edges those near the batch are picked: never, or always."""
    monkeypatch.setattr(egcf, "_WORTHWHILE", request.param)
    return float(request.param)


def problem(preset: str, size: str, n_modalities: int = 2) -> Problem:
    return Problem("egcf", preset, size, Adapter(), n_modalities, reference=reference)


@every_problem
def test_scores_terms_and_gradients(
    preset: str, size: str, n_modalities: int, share: float
) -> None:
    p = problem(preset, size, n_modalities)
    assert deviation(p.scores(), reference.scores(p.start, p.case, preset)) <= 1e-12
    batch = p.epochs[0][0]
    theirs = reference.loss_terms(p.start, p.case, preset, batch)
    for term, value in p.first_terms().items():
        assert float(value.detach()) == pytest.approx(float(theirs.pop(term)), rel=1e-12), term
    assert not theirs
    names = reference.trainable(p.case, preset)
    expected = common.gradients(
        p.start, names, lambda now: reference.loss_terms(now, p.case, preset, batch)
    )
    found = p.gradients()
    assert found.keys() == reference.GRADIENTS[preset]
    for name, gradient in expected.items():
        ours = found[name]
        assert ours is not None and gradient is not None
        assert ours.abs().max() > 1e-9, name
        assert deviation(ours, gradient) <= 1e-9, name


@every_problem
def test_parameters_after_1_2_and_30_steps(preset: str, size: str, n_modalities: int) -> None:
    p = problem(preset, size, n_modalities)
    theirs = reference.run(p.start, p.case, preset, p.epochs, cases.LEARNING_RATE)
    ours = p.run()
    for step in (1, 2, 30):
        assert ours[step].keys() == theirs[step].keys()
        for name, value in ours[step].items():
            assert deviation(value, theirs[step][name]) <= 1e-9, (step, name)
    assert deviation(p.scores(), reference.scores(theirs[30], p.case, preset)) <= 1e-9


def test_the_presets_differ() -> None:
    scores = [problem(preset, "middle").scores() for preset in reference.PRESETS]
    assert deviation(scores[0], scores[1]) > 1e-4


# ---------------------------------------------------------------------- edges


def sparse_graph(n_users: int = 300, n_items: int = 200, n_edges: int = 500) -> TrainSet:
    """Of few steps between few nodes, so that a batch depends on few edges."""
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, n_users, n_edges), rng.integers(0, n_items, n_edges)
    return TrainSet.from_pairs(users, items, n_users, n_items)


def dense_reach(train: TrainSet, nodes: Tensor, n_layers: int) -> set[int]:
    """The edges that end less than `n_layers` steps from the nodes, by powers of A."""
    n, ends = train.n_users + train.n_items, (train.users, train.n_users + train.items)
    a = torch.eye(n)
    a[ends], a[ends[::-1]] = 1.0, 1.0
    reached = torch.zeros(n)
    reached[nodes] = 1.0
    for _ in range(n_layers - 1):
        reached = (a @ reached).clamp(max=1)
    return {e for e in range(train.n_edges) if reached[ends[0][e]] or reached[ends[1][e]]}


def graph_of(train: TrainSet) -> EdgeGraph:
    users, items = torch.from_numpy(train.users), torch.from_numpy(train.items)
    degree = np.concatenate([train.user_degree, train.popularity]).clip(1)
    return EdgeGraph.of(users, items, torch.tensor(1 / degree), train.n_users, aligned=True)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_edges_near_a_batch_are_those_it_depends_on(n_layers: int) -> None:
    train = sparse_graph()
    nodes = torch.tensor([4, 4, 17, 310, 499])
    found = near(graph_of(train), nodes, n_layers)
    assert set(found.tolist()) == dense_reach(train, nodes, n_layers)
    assert found.tolist() == sorted(found.tolist())
    assert 0 < len(found) < train.n_edges / 2


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_batch_has_the_gradients_of_the_whole_graph(
    n_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = sparse_graph()
    draw = torch.Generator().manual_seed(1)
    reviews = {"textual": torch.randn(train.n_edges, 12, generator=draw)}
    config = egcf.EGCFConfig(embedding_dim=4, n_layers=n_layers)
    batch = next(iter(Edges(train, 8, 0, "cpu").epoch(1)))
    projected, found = [], []
    linear = egcf.linear
    monkeypatch.setattr(
        egcf, "linear", lambda x, *more: (projected.append(len(x)), linear(x, *more))[1]
    )
    for share in (0.0, 1.0):
        monkeypatch.setattr(egcf, "_WORTHWHILE", share)
        model = egcf.EGCF(train, Content({}, edges=reviews), config, Init(5))
        torch.stack(list(model.loss(batch).values())).sum().backward()  # type: ignore[no-untyped-call]
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert projected[0] == train.n_edges > projected[1]
    for name, gradient in found[0].items():
        assert gradient is not None
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-12, atol=1e-12)


def plain_weights(x: Tensor, p: Tensor, graph: EdgeGraph) -> Tensor:
    a, b = x[graph.users] * p, x[graph.items + graph.n_users] * p
    return torch.sigmoid(torch.nn.functional.cosine_similarity(a, b, dim=1, eps=1e-8))


@pytest.mark.parametrize("threads", [1, 2])
def test_weights_and_their_gradients_are_torch_s(threads: int) -> None:
    torch.set_num_threads(threads)
    graph = graph_of(sparse_graph(40, 30, 400))
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(70, 7, generator=draw)
    p = torch.randn(graph.n_edges, 7, generator=draw)
    p[3], x[int(graph.users[5])] = 0.0, 0.0  # norms at their bound
    outer = torch.randn(graph.n_edges, generator=draw)
    results = []
    for compute in (edge_weights, plain_weights):
        leaves = x.clone().requires_grad_(), p.clone().requires_grad_()
        weights = compute(*leaves, graph)
        gradients = torch.autograd.grad((weights * outer).sum(), leaves)
        results.append((weights.detach(), *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-10)
