"""What a step of training costs on a device, and item graphs and evaluation: `python -m
tests.benchmarks.gpu`.

Data, sizes and published settings are those of test_training.py and test_evaluation.py, batches
have 1,024 rows. Epochs run through `Trainer.run` with the clock stopped after the device has
finished; kernels, copies and synchronisations are counted by torch's profiler over one further
epoch, whose own time counts nowhere.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tests.benchmarks import test_evaluation, test_training
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from mmbench.config import make_settings
from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Init
from mmbench.evaluation.ranking import rank_each
from mmbench.evaluation.scoring import evaluate
from mmbench.metrics import resolve
from mmbench.models import model_class
from mmbench.models.base import Content, Recommender
from mmbench.ops.knn import cosine_knn
from mmbench.trainer import EpochRecord, Trainer

BATCH, TINY_BATCH = 1024, 64
EPOCHS, ENOUGH_S = 3, 8.0
"""Epochs timed after the first one, fewer once they have taken so many seconds."""
NEIGHBOURS = 20
TINY = {
    "office": test_training.Size(100, 60, 500, {"visual": 16, "textual": 8}),
    "clothing": test_training.Size(120, 80, 600, {"visual": 16, "textual": 8}),
}
WINDOW = "the profiled epoch"
WAITS = {
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy",
    "cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize",
}  # fmt: skip
"""Calls of CUDA that make the host wait."""
NO_WORK = (
    "Activity Buffer Request", "Command Buffer Full", "Instrumentation", "Lazy Function Loading",
    "Resource", "Runtime Triggered Module Loading", "Context Sync", "Event Sync", "Stream Sync",
    "Stream Wait Event",
)  # fmt: skip
"""What the profiler reports of the device beside kernels and copies: its own costs, and waits."""


def size_of(name: str, *, tiny: bool) -> test_training.Size:
    return TINY[name] if tiny else test_training.SIZES[name]


@functools.lru_cache(maxsize=1)
def data(name: str, tiny: bool) -> tuple[TrainSet, dict[str, Tensor]]:
    """Interactions and stand-in vectors of a size."""
    size = size_of(name, tiny=tiny)
    train = test_training.interactions(size, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(1)
    vectors = {m: torch.rand(train.n_items, d, generator=generator) for m, d in size.dims.items()}
    return train, vectors


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: str) -> float:
    """Wall seconds until the device has finished what one call asks of it."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def median_seconds(function: Callable[[], object], device: str, rounds: int = 5) -> float:
    """The median of `seconds` after one call that is not counted."""
    function()
    return statistics.median(seconds(function, device) for _ in range(rounds))


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Matrix products as a training has them: exact, or with `--approximate tf32`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class Running:
    """A training after its first epoch.

    Attributes:
        steps: Steps per epoch.
        built_s: Seconds for building the model and moving it to its device.
        first_s: Seconds of the first epoch, with what is compiled and captured in it.
        base: Bytes on the device before any of that.
        epochs: The trainer's epochs to come.
        ms_per_step: Once it has been timed.
    """

    steps: int
    built_s: float
    first_s: float
    base: int
    epochs: Iterator[EpochRecord]
    ms_per_step: float = math.nan


_kept: dict[tuple[str, str, str], Running] = {}
"""Trainings that have been timed and are still to be profiled."""


def begun(device: str, tiny: bool, model: str, size: str) -> Running:
    """Build a model and train it for one epoch."""
    train, vectors = data(size, tiny)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    given = {"epochs": 99, "batch_size": TINY_BATCH if tiny else BATCH}
    config = make_settings(model, {**given, **test_training.PUBLISHED.get((model, size), {})})
    base = _forget_peak(device)
    made: list[Recommender] = []

    def build() -> None:
        content = Content.complete(vectors, test_training.random_neighbours)
        one = model_class(model)(train, content, config, Init(1))  # type: ignore[call-arg]
        made.append(one.to(device))

    built_s = seconds(build, device)
    trainer = Trainer(
        made[0], train, config, lambda _: {"x": 0.0}, metric="x", every=100, patience=None, seed=1
    )
    epochs = trainer.run()
    first_s = seconds(lambda: next(epochs), device)
    return Running(len(trainer.sampler), built_s, first_s, base, epochs)


def training(device: str, tiny: bool, model: str, size: str, precision: str) -> dict[str, Any]:
    """Seconds per epoch and memory of one model at one size; `profiled_step` comes later.

    A process that has once been profiled may launch kernels more slowly from then on.
    """
    with products(precision):
        running = begun(device, tiny, model, size)
        losses: dict[str, float] = {}

        def epoch() -> None:
            losses.update(next(running.epochs).loss)

        found: list[float] = []
        while len(found) < EPOCHS and sum(found) < ENOUGH_S and not (tiny and found):
            found.append(seconds(epoch, device))
    epoch_s = statistics.median(found)
    running.ms_per_step = epoch_s / running.steps * 1e3
    _kept[model, size, precision] = running
    return {
        "steps": running.steps,
        "built_s": round(running.built_s, 3),
        "first_epoch_s": round(running.first_s, 3),
        "epochs_s": [round(one, 4) for one in found],
        "s_per_epoch": round(epoch_s, 4),
        "ms_per_step": round(running.ms_per_step, 4),
        "peak_mib": _peak_mib(device, running.base),
        "losses": losses,
    }


def profiled_step(device: str, tiny: bool, model: str, size: str, precision: str) -> dict[str, Any]:
    """What the device does in a step of a training that has been timed."""
    with products(precision):
        running = _kept.pop((model, size, precision), None)
        if running is None:  # the process that timed it has ended
            running = begun(device, tiny, model, size)
            one_s = seconds(lambda: next(running.epochs), device)
            running.ms_per_step = one_s / running.steps * 1e3
        row = profiled(lambda: next(running.epochs), device, running.steps)
    if row["device_ms"]:
        row["busy"] = round(row["device_ms"] / running.ms_per_step, 3)
    return row


def profiled(function: Callable[[], object], device: str, steps: int) -> dict[str, Any]:
    """What one call of `function`, `steps` steps long, asks of the device, per step.

    Returns:
        `kernels` and `kernel_ms`, the sum of their durations; `device_ms` in which at least one
        kernel or copy ran; `waits`, calls that make the host wait, by name too; copies by
        direction; `d2h`, those to the host; `items`, values read into Python, on the CPU too;
        `launches`; `top`, the eight kernels that take longest, with ms and number.
    """
    activities = [ProfilerActivity.CPU]
    if device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    synchronise(device)
    with warnings.catch_warnings():
        # There is one cycle only.
        warnings.filterwarnings("ignore", "Warning: Profiler clears events", UserWarning)
        with profile(activities=activities) as profiler:
            with record_function(WINDOW):
                function()
            synchronise(device)
    # The events as the profiler has them: making Python objects of all takes longer than the epoch.
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    on_host: list[tuple[str, int]] = []
    on_device: list[tuple[str, int, int]] = []
    start = end = 0
    for event in events:
        name, began, lasted = event.name(), event.start_ns(), event.duration_ns()
        if event.device_type() != DeviceType.CPU:
            if not event.is_user_annotation() and not name.startswith((WINDOW, *NO_WORK)):
                on_device.append((name, began, lasted))
        elif name == WINDOW:
            start, end = began, began + lasted
        else:
            on_host.append((name, began))
    # The profiler's own waits, before and after, are nobody's.
    calls = Counter(name for name, began in on_host if start <= began <= end)
    copies, kernels, ns = Counter[str](), Counter[str](), Counter[str]()
    for name, _, lasted in on_device:
        if name.startswith(("Memcpy", "Memset")):
            copies[" ".join(name.split()[:2])] += 1
        else:
            kernels[name] += 1
            ns[name] += lasted

    def each(counts: Mapping[str, int]) -> dict[str, float]:
        return {name: round(n / steps, 3) for name, n in sorted(counts.items())}

    covered = union_ns([(began, began + lasted) for _, began, lasted in on_device])
    return {
        "kernels": round(kernels.total() / steps, 2),
        "kernel_ms": round(ns.total() / 1e6 / steps, 4),
        "device_ms": round(covered / 1e6 / steps, 4),
        "waits": round(sum(calls[name] for name in WAITS) / steps, 3),
        "waits_by_name": each({name: calls[name] for name in WAITS & calls.keys()}),
        "d2h": round(copies["Memcpy DtoH"] / steps, 3),
        "copies": each(copies),
        "memcpy_calls": each({n: calls[n] for n in calls if n.startswith("cudaMemcpy")}),
        "items": round(calls["aten::_local_scalar_dense"] / steps, 3),
        "launches": each({n: calls[n] for n in calls if n.startswith("cu") and "Launch" in n}),
        "top": [
            {"kernel": n[:120], "ms": round(t / 1e6 / steps, 4), "number": kernels[n] / steps}
            for n, t in ns.most_common(8)
        ],
    }


def union_ns(intervals: list[tuple[int, int]]) -> int:
    """Length of what intervals (start, end) cover together; two streams overlap."""
    covered, until = 0, -1
    for start, end in sorted(intervals):
        covered += max(0, end - max(start, until))
        until = max(until, end)
    return covered


def knn(device: str, tiny: bool, modality: str) -> dict[str, Any]:
    """The neighbour lists of one modality at Clothing size, features on the device already."""
    size = size_of("clothing", tiny=tiny)
    shape = (size.n_items, size.dims[modality])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    there: list[Tensor] = []
    copy_s = seconds(lambda: there.append(x.to(device)), device)
    base = _forget_peak(device)
    found = median_seconds(lambda: cosine_knn(there[0], NEIGHBOURS), device, 3)
    return {
        "shape": list(shape),
        "k": NEIGHBOURS,
        "copy_s": round(copy_s, 4),
        "s": round(found, 4),
        "peak_mib": _peak_mib(device, base),
    }


def evaluation(device: str, tiny: bool) -> dict[str, Any]:
    """Rank all users at Clothing size from embeddings, and score the lists on both splits.

    `paper_s`: one ranking, which serves both splits; `strict_s`: two, for validation items are
    masked at test. Metrics are computed on the CPU.
    """
    size = (
        test_evaluation.Size(300, 200, 2000, 300, 300)
        if tiny
        else test_evaluation.SIZES["clothing"]
    )
    train, splits, users, _ = test_evaluation.problem(size)
    generator = torch.Generator().manual_seed(0)
    of_users = torch.randn(size.n_users, 64, generator=generator).to(device)
    columns = torch.randn(size.n_items, 64, generator=generator).T.contiguous().to(device)
    lists: list[Any] = []

    def ranking(*masks: Any) -> None:
        lists[:] = rank_each(
            lambda block: of_users[block] @ columns,
            train,
            users,
            k=NEIGHBOURS,
            masks=masks,
            device=device,
        )

    def scoring() -> None:
        for split, ranked in zip(splits, (lists[0], lists[-1]), strict=True):
            evaluate(ranked, train, split, metrics=resolve(["paper"]), cutoffs=(10, 20))

    base = _forget_peak(device)
    row = {
        "users": size.n_users,
        "items": size.n_items,
        "paper_s": round(median_seconds(lambda: ranking(None), device, 3), 4),
        "strict_s": round(median_seconds(lambda: ranking(None, splits[0]), device, 3), 4),
        "peak_mib": _peak_mib(device, base),
    }
    row["metrics_s"] = round(median_seconds(scoring, "cpu", 3), 4)
    row |= {
        "products_s": round(
            median_seconds(
                lambda: [of_users[k : k + 2048] @ columns for k in range(0, size.n_users, 2048)],
                device,
                3,
            ),
            4,
        )
    }
    return row


def _forget_peak(device: str) -> int:
    """Start a new peak; return the bytes that are taken already."""
    if not device.startswith("cuda"):
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_mib(device: str, base: int = 0) -> float | None:
    """Peak since `_forget_peak`, above what it returned."""
    if not device.startswith("cuda"):
        return None
    return round((torch.cuda.max_memory_allocated(device) - base) / 2**20, 1)
