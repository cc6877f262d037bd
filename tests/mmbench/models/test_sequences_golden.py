"""SASRec and GRU4Rec beside their plain float64 references, through the real trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.mmbench.models.golden import Adapter, Problem, deviation, double_precision
from tests.reference import cases, common, gru4rec, sasrec, sequences
from torch import Tensor

from mmbench.core.interactions import Histories
from mmbench.core.sequences import Sequences, Steps
from mmbench.models.sequential import Dropout

REFERENCES: dict[str, ModuleType] = {"sasrec": sasrec, "gru4rec": gru4rec}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


class SequenceProblem(Problem):
    """Batches of histories, and the reference's dropout masks in our model."""

    def __init__(
        self, name: str, preset: str, size: str, monkeypatch: pytest.MonkeyPatch, **settings: Any
    ) -> None:
        module = REFERENCES[name]
        configs = {key: {**value, **settings} for key, value in module.CONFIGS.items()}
        own = SimpleNamespace(**{**vars(module), "CONFIGS": configs})
        super().__init__(name, preset, size, Adapter(), 2, cast(ModuleType, own))
        self.epochs = sequences.epochs(self.case)
        items = sequences.histories(self.case)
        indptr = np.concatenate([[0], np.cumsum([len(own) for own in items])])
        in_order = Histories(indptr, np.concatenate(items), None)
        self.train = dataclasses.replace(self.train, in_order=in_order)
        self.batches = {(b["epoch"], b["step"]): b for epoch in self.epochs for b in epoch}

        def mask(dropout: Dropout, purpose: str, width: int, rate: float) -> Tensor:
            clock = dropout.stream.__self__.clock  # type: ignore[attr-defined]
            batch = self.batches[tuple(clock.tolist())]
            kept = torch.from_numpy(sequences.kept(self.case, batch, purpose, width, rate))
            return kept[dropout.steps.row, dropout.steps.step]

        monkeypatch.setattr(Dropout, "mask", mask)

    def batch(self, rows: Mapping[str, Any], epoch: int, step: int) -> Sequences:  # type: ignore[override]
        width = sequences.longest(self.case)

        def padded(lists: list[list[int]], width: int) -> Tensor:
            return torch.tensor([[*own, *[-1] * (width - len(own))] for own in lists])

        lengths = np.array([len(own) - 1 for own in rows["sequences"]])
        at = tuple(int((lengths > t).sum()) for t in range(lengths.max()))
        bce = sequences_loss(self) == "bce"
        neg = padded(rows["negatives"], width) if bce else None
        ends = step == 0, step == sequences.N_STEPS - 1
        clock = torch.tensor([epoch, step])
        return Sequences(0, clock, *ends, padded(rows["sequences"], width + 1), at, neg)


def sequences_loss(p: SequenceProblem) -> str:
    return REFERENCES[p.name].loss_of(p.case, p.preset)  # type: ignore[no-any-return]


CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("sasrec", "paper", "small", {"items": "both", "operator": "concat"}),
    ("sasrec", "recbole", "small", {"items": "both", "operator": "gate"}),
    ("gru4rec", "paper", "small", {}),
]
MORE: list[tuple[str, str, str, dict[str, Any]]] = [
    *(("sasrec", preset, size, {}) for preset in sasrec.PRESETS for size in cases.SIZES),
    ("sasrec", "paper", "small", {"loss": "softmax", "n_heads": 2, "dropout": 0.0}),
    ("sasrec", "recbole", "small", {"loss": "bce", "items": "content", "operator": "attention"}),
    ("sasrec", "paper", "small", {"items": "content", "operator": "weighted"}),
    ("gru4rec", "paper", "middle", {}),
    ("gru4rec", "paper", "small", {"loss": "bce", "items": "both"}),
]
every_case = pytest.mark.parametrize(
    ("name", "preset", "size", "settings"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
    ids=str,
)


@every_case
def test_scores_loss_and_steps(
    name: str, preset: str, size: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = SequenceProblem(name, preset, size, monkeypatch, **settings)
    reference = p.reference
    assert reference is not None
    assert deviation(p.scores(), reference.scores(p.start, p.case, preset)) <= 1e-10
    first = p.epochs[0][0]
    ours, theirs = p.first_terms(), reference.loss_terms(p.start, p.case, preset, first)
    assert ours.keys() == theirs.keys()
    for term, value in theirs.items():
        assert float(ours[term].detach()) == pytest.approx(float(value), rel=1e-12), term
    gradients = common.gradients(
        p.start,
        reference.trainable(p.case, preset),
        lambda now: reference.loss_terms(now, p.case, preset, first),
    )
    found = p.gradients()
    assert found.keys() == gradients.keys()
    for key, value in gradients.items():
        assert value is not None, key
        assert deviation(cast(Tensor, found[key]), value) <= 1e-9, key
        assert value.abs().max() > 1e-12, key
    p.put(p.start)
    steps = reference.run(p.start, p.case, preset, p.epochs, cases.LEARNING_RATE)
    for step, weights in p.run().items():
        assert weights.keys() == steps[step].keys()
        for key, value in weights.items():
            assert deviation(value, steps[step][key]) <= 1e-9, (step, key)
    assert deviation(p.scores(), reference.scores(steps[30], p.case, preset)) <= 1e-9


def test_what_is_not_there_is_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """All places of a batch, as a GPU computes them, give what the existing ones give."""
    for name, preset in (("sasrec", "paper"), ("sasrec", "recbole"), ("gru4rec", "paper")):
        p = SequenceProblem(name, preset, "small", monkeypatch)
        batch = p.batch(p.epochs[0][0], 1, 0)
        full = (len(batch.items),) * sequences.longest(p.case)
        (expected,) = p.model.loss(batch).values()
        (found,) = p.model.loss(dataclasses.replace(batch, rows_at=full)).values()
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
        steps = Steps(batch.items, full, ahead=1)
        assert int(steps.there.sum()) == sum(batch.rows_at) < len(steps)
