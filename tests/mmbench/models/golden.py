"""Our models beside the plain float64 reference, through the real trainer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tests.mmbench.conftest import known
from tests.reference import cases
from tests.reference.common import Case, Parameters
from torch import Tensor

from mmbench.config import make_settings
from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Init, Pairs, Triples
from mmbench.models import model_class
from mmbench.models.base import Content, Recommender
from mmbench.ops.row_table import RowTable
from mmbench.trainer import Trainer


@dataclass(frozen=True)
class Adapter:
    """How one of our models meets its reference.

    Attributes:
        settings: Hyper-parameters of a case in our names (aliases will do).
        extra: The explicit randomness that the reference's `run` takes, for a case and its epochs.
        first: The part of it that `loss_terms` takes for the first batch.
        inject: Makes our model use that randomness.
        absent: Reference parameters that ours leaves out.
        modalities: Numbers of modalities to try.
    """

    settings: Callable[[Case, str], dict[str, Any]] = lambda case, preset: dict(case.config)
    extra: Callable[[Case, str, Sequence[Sequence[Any]]], dict[str, Any]] = (
        lambda case, preset, epochs: {}
    )
    first: Callable[[dict[str, Any]], dict[str, Any]] = lambda extra: {}
    inject: Callable[[Recommender, dict[str, Any]], None] = lambda model, extra: None
    absent: Callable[[str], bool] = lambda name: False
    modalities: tuple[int, ...] = (1, 2, 3)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Models that are built inside compute in float64."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_num_threads(threads)


def with_modalities(case: Case, n: int) -> Case:
    """The case with one, two or three modalities."""
    rng = np.random.default_rng(41)
    features = {**case.features, "acoustic": rng.normal(size=(case.n_items, 4))}
    return dataclasses.replace(case, features={m: features[m] for m in list(features)[:n]})


@dataclass
class Problem:
    """One model, preset and case, in both implementations.

    `reference` is that of the name, or a module that has `CONFIGS`, size to configuration, besides
    what `tests.reference.common` lists; then the case is VBPR's with that configuration.
    """

    name: str
    preset: str
    size: str
    adapter: Adapter
    modalities: int = 2
    reference: ModuleType | None = None
    case: Case = field(init=False)
    start: Parameters = field(init=False)
    model: Recommender = field(init=False)

    def __post_init__(self) -> None:
        own, self.reference = self.reference, self.reference or cases.MODELS[self.name]
        case = cases.case(self.size, self.name if own is None else "vbpr")
        if own is not None:
            case = dataclasses.replace(case, config=dict(own.CONFIGS[self.size]))
        self.case = with_modalities(case, self.modalities)
        self.start = (
            cases.parameters(self.size, self.name, self.preset)
            if own is None and self.modalities == 2
            else self.reference.parameters(self.case, self.preset, np.random.default_rng(19))
        )
        self.epochs = cases.epochs(self.size)
        self.extra = self.adapter.extra(self.case, self.preset, self.epochs)
        case = self.case
        train = TrainSet.from_pairs(case.train_users, case.train_items, case.n_users, case.n_items)
        self.config = make_settings(
            self.name,
            {
                **({"preset": self.preset} if self.has_presets else {}),
                "lr": cases.LEARNING_RATE,
                "epochs": 99,
                **self.adapter.settings(case, self.preset),
            },
        )
        # Of items; a reference whose model has vectors of the training pairs makes these.
        reviews = getattr(self.reference, "reviews", lambda case: {})
        features = Content.complete(
            {m: case.feature(m) for m in case.modalities}, edges=reviews(case)
        )
        self.model = model_class(self.name)(train, features, self.config, Init(1))  # type: ignore[call-arg]
        self.adapter.inject(self.model, self.extra)
        self.train = train
        self.put(self.start)

    @property
    def has_presets(self) -> bool:
        """Whether our model has the setting `preset`."""
        return "preset" in model_class(self.name).Config.model_fields

    def put(self, params: Mapping[str, Tensor]) -> None:
        """Give our model the reference's parameters."""
        names = self.model.weights()
        ours = {
            name: value.clone() for name, value in params.items() if not self.adapter.absent(name)
        }
        self.model.load_weights(
            {f"{n}.values" if f"{n}.values" in names else n: v for n, v in ours.items()}
        )

    def get(self) -> Parameters:
        """Our model's parameters by the reference's names."""
        return {
            name.removesuffix(".values"): value.clone()
            for name, value in self.model.weights().items()
        }

    def batch(self, rows: Mapping[str, Any], epoch: int, step: int) -> Pairs:
        """The reference's batch as ours; without negatives where our sampler has none."""
        users, pos, neg = (torch.from_numpy(rows[key]) for key in ("users", "pos", "neg"))
        clock = torch.tensor([epoch, step])
        ends = step == 0, step == len(self.epochs[epoch - 1]) - 1
        if not getattr(self.model.make_sampler(self.train, 8, 0, "cpu"), "negatives", True):
            return Pairs(0, clock, *ends, users, pos)
        return Triples(0, clock, *ends, users, pos, neg)

    def run(
        self, after: Sequence[int] = (1, 2, 30), visit: Callable[[int], None] = lambda step: None
    ) -> dict[int, Any]:
        """Our parameters after so many steps of the real trainer on the reference's batches."""
        kept: dict[int, Parameters] = {}
        step = 0

        def batches(epoch: int) -> Iterator[Pairs]:
            nonlocal step
            for index, rows in enumerate(self.epochs[epoch - 1]):
                yield self.batch(rows, epoch, index)
                step += 1  # the trainer comes back for more: the step is done
                visit(step)
                if step in after:
                    kept[step] = self.get()
                if step == max(after):
                    return

        trainer = Trainer(
            self.model,
            self.train,
            self.config,
            lambda _: {"x": 0.0},
            metric="x",
            every=10**6,
            patience=None,
            seed=0,
        )
        trainer.sampler = _Batches(batches)  # type: ignore[assignment]
        for _ in trainer.run():
            if step >= max(after):
                break
        return kept

    def first_terms(self) -> dict[str, Tensor]:
        """Our loss terms of the first batch."""
        self.model.start_epoch(1, 0)
        return self.model.loss(self.batch(self.epochs[0][0], 1, 0))

    def scores(self) -> Tensor:
        """Our scores of all users and items."""
        with torch.inference_mode():
            score = self.model.train(False).scorer(known(self.train))
            return score(torch.arange(self.case.n_users)).clone()

    def gradients(self) -> dict[str, Tensor | None]:
        """Gradients of our loss on the first batch, whole tables, by the reference's names."""
        self.model.zero_grad()
        torch.stack(list(self.first_terms().values())).sum().backward()  # type: ignore[no-untyped-call]
        found = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        for name, table in self.model.named_modules():
            if isinstance(table, RowTable):
                found[name] = None
                for borrowed in table._borrowed:
                    if borrowed.has_gradient:
                        assert found[name] is None, "two sets of rows"
                        whole = torch.zeros_like(table.values)
                        rows = (
                            torch.arange(len(whole)) if borrowed.index is None else borrowed.index
                        )
                        for part, gradient in borrowed.parts():
                            whole[rows[part]] = gradient
                        found[name] = whole
                table._borrowed = []
        return found


class _Batches:
    def __init__(self, epoch: Callable[[int], Iterator[Pairs]]) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 30


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the reference's largest entry."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300))
