"""Schemas of the JSON documents of a run folder, which may have been edited or cut short.

A schema has the keys that this program reads and their types; other keys pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from mmbase.gemm import Kernel

Count = Annotated[int, Field(ge=0, lt=2**63)]
Measure = Annotated[str, Field(pattern=r"^[^@]+@[1-9][0-9]{0,8}$")]
Values = dict[Measure, FiniteFloat | None]
CURE = "restore the file, or train anew with --restart"


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Dataset(_Part):
    name: str
    split: str
    digest: str
    test_digest: str
    n_users: Count
    n_items: Count
    n_train: Count
    n_valid: Count
    n_test: Count
    notes: list[str] = []


class _Mask(_Part):
    share: FiniteFloat
    pattern: str
    seed: int


class _Features(_Part):
    name: str
    digest: str
    dim: Count
    present: Count
    missing: Count
    missing_policy: str
    provenance: dict[str, Any] = {}  # of the set: whatever its maker wrote
    mask: _Mask | None = None


class _Seeds(_Part):
    run: int


class _Protocol(_Part):
    name: str
    selection: str
    digests: dict[str, str] = {}
    masked: dict[str, Any] = {}
    n_candidates: Count | None = None
    users_evaluated: dict[str, Count] = {}
    no_hit_possible: list[str] = []


class _Timings(_Part):
    evaluation_s: FiniteFloat
    evaluation_cpu_s: FiniteFloat | None = None
    train_s_per_epoch: FiniteFloat | None
    train_s: FiniteFloat | None = None
    train_cpu_s: FiniteFloat | None = None
    train_energy_j: dict[str, FiniteFloat] | str | None = None


class _Products(_Part):
    gemm: Kernel | None = None


class _Device(_Part):
    asked: str | None = None
    chosen: str | None = None
    reason: str | None = None
    products: _Products = _Products()


class _Trial(_Part):
    settings: dict[str, Any]
    value: FiniteFloat | None = None
    best_epoch: Count | None = None
    pruned: Count | None = None
    failed: str | None = None


class _Start(_Part):
    run: str
    digest: str
    system: str


class _Parameters(_Part):
    ids: Count
    others: Count


class _Tool(_Part):
    version: str


class RunRecord(_Part):
    """`run.json`."""

    tool: _Tool = _Tool(version="")
    libraries: dict[str, Any] = {}
    approximate: list[str] = []
    device: _Device = _Device()
    dataset: _Dataset
    features: dict[str, _Features]
    seeds: _Seeds
    settings: dict[str, Any]
    chosen_trial: Count | None = None
    trials: list[_Trial] = []
    start_from: _Start | None = None
    parameters: _Parameters | None = None
    protocol: _Protocol
    timings: _Timings
    peak_memory_bytes: Count | None
    peak_gpu_memory_bytes: Count | None


class _Selected(_Part):
    metric: str


class _Slice(_Part):
    family: str
    slice: str
    rule: str
    users_evaluated: Count = 0
    metrics: Values


class Metrics(_Part):
    """`metrics.json`."""

    best_epoch: Count
    selected_by: _Selected
    valid: Values
    test: Values
    slices: dict[str, list[_Slice]] = {}


class _TrainedOn(_Part):
    chosen: str
    reason: str
    name: str


class Trained(_Part):
    """`trained.json`."""

    best_epoch: Count
    epochs: Count
    metric: str
    value: FiniteFloat | None
    cpu_s: FiniteFloat
    energy_j: dict[str, FiniteFloat] | str | None = None
    peak_memory_bytes: Count | None = None
    peak_gpu_memory_bytes: Count | None = None
    threads: Count = 1
    jobs: Count = 1
    device: _TrainedOn | None = None
    pruned: bool = False
    start_from: _Start | None = None


class Failed(_Part):
    """`failed.json`."""

    reason: str


class HistoryLine(_Part):
    """A line of `history.jsonl`; a loss may have any value, it diverges."""

    epoch: Count
    loss: dict[str, float]
    seconds: FiniteFloat
    valid: Values | None


DOCUMENTS: Mapping[str, type[BaseModel]] = {
    "run.json": RunRecord,
    "metrics.json": Metrics,
    "trained.json": Trained,
    "failed.json": Failed,
    "begun.json": _Part,  # `fit.begin` checks it
}
