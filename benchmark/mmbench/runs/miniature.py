"""What a training costs, from the shapes of its data alone: nothing of its size is built.

A miniature is trained for a few steps instead: the model itself, with its settings and the widths
of its content, on a few hundred users and items, while a `Meter` counts weights, multiply-adds and
the bytes of the tensors that are alive. All of these grow in proportion to users, items, training
pairs and batch, beside what is constant, so that miniatures that differ in one of them tell how
much each adds. What a model does is thus written in one place, the model.

Not in proportion are products of all items, or of a batch, with each other (further miniatures
tell) and the search for neighbours (items x items, counted where it is asked for). Element-wise
work, Adam's among it, is no multiply-add here. Estimated weights are exact; bytes of tensors were
within a factor of 1.5, multiply-adds of 2, of what was counted at other sizes for every model of
the registry (`tests/mmbench/runs/test_miniature.py`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mmbase import gemm
from mmbench.config import Recipe
from mmbench.core.content import ItemContent
from mmbench.core.interactions import TrainSet
from mmbench.data.missing.learned import Learned
from mmbench.evaluation.protocol import Setting
from mmbench.evaluation.ranking import BLOCK_BYTES as RANKING_BYTES
from mmbench.models import ModelConfig, model_class
from mmbench.models.base import Content, Recommender
from mmbench.ops import kernels
from mmbench.ops.knn import BLOCK_BYTES as SEARCH_BYTES
from mmbench.runs.assembly import assemble
from mmbench.runs.costs import Shapes, work
from mmbench.trainer import Trainer


@dataclass(frozen=True)
class Cost:
    """What a training costs, estimated.

    Attributes:
        parameters: Trained numbers of `ids`, and of no user or item (`others`); exact.
        multiply_adds: Of products in one step, forward and backward; 0 where nothing is trained.
        steps: Steps of an epoch.
        searches: Multiply-adds of the searches for neighbours, before the first step.
        tensor_bytes: Peak of all tensors that are alive at once, the content's among them.
        peak_bytes: The same with the blocks of searches and of ranking.
        kept_bytes: What the model keeps of the content as it was loaded, no copy of it.
    """

    parameters: Mapping[str, int]
    multiply_adds: int
    steps: int
    searches: int
    tensor_bytes: int
    peak_bytes: int
    kept_bytes: int


@dataclass(frozen=True)
class _Counted:
    """What a miniature came to; bytes at the peak of each stage, and alive in the end."""

    ids: int
    others: int
    multiply_adds: float
    built: int
    trained: int
    left: int
    kept: int
    searched: tuple[int, ...]


class _Sizes(NamedTuple):
    """How large a miniature is."""

    users: int
    items: int
    edges: int
    batch: int


_SMALL = _Sizes(400, 300, 2_000, 64)
_STEPS = 3  # by the second, the optimiser has its moments
_TEMPORARIES = 7  # as large as a block of scores, `ops.memory.SHARE`
_LONGEST = 50  # history of a miniature's user where the model knows no bound


def cost_of(recipe: Recipe, setting: Setting) -> Cost:
    """Estimate what the training of a recipe costs; see the module."""
    model = model_class(recipe.model)
    policy = recipe.treatment.policy
    dropout = policy.dropout if isinstance(policy, Learned) else None
    shapes = Shapes.of(setting, model.content_of)
    return estimate(recipe.model, recipe.settings, shapes, recipe.approximate, dropout)


def estimate(
    name: str,
    settings: ModelConfig,
    shapes: Shapes,
    approximate: tuple[str, ...] = (),
    dropout: float | None = None,
) -> Cost:
    """Estimate what a training costs.

    Args:
        name: The model's.
        settings: Its settings.
        shapes: Of the data.
        approximate: The recipe's approximations.
        dropout: Of stand-ins for absent content; None: there are none.
    """
    model = model_class(name)
    widths = tuple(shapes.widths.items()) if model.uses_features else ()
    plain = settings.model_copy(update={"epochs": min(1, settings.epochs), "lr": 1e-3})
    n_users, n_items, n_edges = shapes.n_users, shapes.n_items, shapes.n_edges
    small, axes, of_batch = _SMALL, list(_Sizes._fields), n_edges
    if model.in_order:  # histories keep their length, and a batch is of users
        longest = getattr(settings, "max_len", None) or _LONGEST
        length = min(max(2, round(n_edges / max(1, n_users))), int(longest) + 1)
        small, of_batch = small._replace(edges=small.users * length), n_users
        axes.remove("edges")
    target = _Sizes(n_users, n_items, n_edges, min(settings.batch_size, of_batch))

    def counted(**times: int) -> _Counted:
        if model.in_order and "users" in times:
            times["edges"] = times["users"]
        size = small._replace(**{axis: n * getattr(small, axis) for axis, n in times.items()})
        return _miniature(name, plain, size, widths, approximate, dropout)

    first, twice = counted(), {axis: counted(**{axis: 2}) for axis in axes}
    beyond: dict[str, float] = {
        axis: getattr(target, axis) / getattr(small, axis) - 1 for axis in axes
    }

    def at_target(what: Callable[[_Counted], float]) -> float:
        base = what(first)
        more = [(what(twice[axis]) - base) * beyond[axis] for axis in axes]
        return max(0.0, base + sum(more))

    def products(one: _Counted) -> float:
        return one.multiply_adds

    multiply_adds = at_target(products)
    for axis in ("items", "batch"):  # all items, or a batch, among themselves: squares
        square = products(counted(**{axis: 3})) - 2 * products(twice[axis]) + products(first)
        # Less than in proportion is what batches of so few items have in common: no square.
        multiply_adds += max(0.0, square) * beyond[axis] * (beyond[axis] - 1) / 2
    if getattr(settings, "against_all", False):  # a batch with all items: more than either tells
        both = products(counted(items=2, batch=2)) + products(first)
        both -= products(twice["items"]) + products(twice["batch"])
        multiply_adds += both * beyond["items"] * beyond["batch"]
    searched = first.searched if model.trained else tuple(width for _, width in widths)
    tensors = at_target(lambda one: one.trained)
    stages = (
        tensors,
        at_target(lambda one: one.built) + (min(SEARCH_BYTES, 4 * n_items**2) if searched else 0),
        at_target(lambda one: one.left) + _TEMPORARIES * min(RANKING_BYTES, 4 * n_users * n_items),
    )
    parameters = {
        "ids": round(at_target(lambda one: one.ids)),
        "others": round(at_target(lambda one: one.others)),
    }
    steps = work(name, settings, shapes).steps
    searches = sum(searched) * n_items**2
    kept = at_target(lambda one: one.kept)
    numbers = round(tensors), round(max(stages)), round(kept)
    return Cost(parameters, round(multiply_adds), steps, searches, *numbers)


class _Stop(Exception):
    """Ends a miniature's epoch."""


@lru_cache(maxsize=512)
def _miniature(
    name: str,
    settings: ModelConfig,
    size: _Sizes,
    widths: tuple[tuple[str, int], ...],
    approximate: tuple[str, ...],
    dropout: float | None,
) -> _Counted:
    """Build and train the model on random data of this size; count."""
    kind, rng = model_class(name), np.random.default_rng(0)
    users, items, edges, batch = size
    # Every user and item occurs, if there are pairs enough.
    pairs = [
        np.append(np.arange(min(n, edges)), rng.integers(0, n, max(0, edges - n)))
        for n in (users, items)
    ]
    train = TrainSet.from_pairs(pairs[0], rng.permutation(pairs[1]), users, items)
    settings = settings.model_copy(update={"batch_size": batch})
    searched: list[int] = []

    def find(modality: str, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        searched.append(x.shape[1])
        near = (torch.arange(len(x))[:, None] + torch.arange(k)) % len(x)
        return near, torch.ones(near.shape)

    chosen = gemm.chosen()
    gemm.use("torch")  # whose products the meter knows
    try:
        with Meter() as meter:
            content = _content(kind, train, dict(widths), dropout, find)
            whole = [*(one.vectors for one in content.values()), *content.edges.values()]
            loaded = [
                (weakref.ref(x.untyped_storage()), x.untyped_storage().nbytes()) for x in whole
            ]
            model = assemble(name, train, content, settings, 0, approximate)
            del content, whole
            built = meter.peak_bytes
            meter.peak_bytes, meter.multiply_adds = meter.alive_bytes, 0.0
            steps = _train(model, train, settings) if kind.trained and settings.epochs else 0
            counts = model.parameter_counts()
            trained, left, madds = meter.peak_bytes, meter.alive_bytes, meter.multiply_adds
            kept = sum(size for storage, size in loaded if storage() is not None)
    finally:
        gemm.use(chosen)
    counted = counts["ids"], counts["others"], madds / max(1, steps), built, trained, left, kept
    return _Counted(*counted, tuple(searched))


def _content(
    kind: type[Recommender],
    train: TrainSet,
    widths: Mapping[str, int],
    dropout: float | None,
    find: Callable[[str, Tensor, int], tuple[Tensor, Tensor]],
) -> Content:
    """Random vectors of items or training pairs, one item without if there are stand-ins."""
    draw = torch.Generator().manual_seed(0)
    per_edge = kind.content_of == "interaction"
    rows = train.n_edges if per_edge else train.n_items
    vectors = {m: torch.randn(rows, width, generator=draw) for m, width in widths.items()}
    present = torch.ones(rows, dtype=torch.bool)
    present[0] = dropout is None
    of_items = {} if per_edge else {m: ItemContent(x, present) for m, x in vectors.items()}
    categories = torch.arange(train.n_items) % 20 if kind.uses_categories else None
    return Content(of_items, find, dropout, vectors if per_edge else {}, categories)


def _train(model: Recommender, train: TrainSet, settings: ModelConfig) -> int:
    """Take the first steps of an epoch; return how many."""
    taken = 0

    def count() -> None:
        nonlocal taken
        taken += 1
        if taken == _STEPS:
            raise _Stop

    trainer = Trainer(
        model, train, settings, lambda _: {"x": 0.0}, metric="x", every=1, patience=None, seed=0
    )  # fmt: skip
    trainer.between_steps = count
    with suppress(_Stop):
        next(trainer.run())
    return taken


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the `with` block, counts the tensors that operations make, and multiply-adds.

    Attributes:
        alive_bytes: Bytes of the tensors that are alive now; views count once.
        peak_bytes: The largest value so far.
        multiply_adds: Of products of matrices, and of the compiled kernels (`kernels.split`).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive_bytes = self.peak_bytes = 0
        self.multiply_adds = 0.0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __enter__(self) -> Meter:
        kernels.observe(self._add)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        kernels.observe(None)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        flops = flop_registry.get(func._overloadpacket)
        if flops is not None:
            self._add(flops(*args, **(kwargs or {}), out_val=out) / 2)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._see(leaf.untyped_storage())
        return out

    def _add(self, multiply_adds: float) -> None:
        self.multiply_adds += multiply_adds

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: object) -> None:
            del self._alive[key]
            self.alive_bytes -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
