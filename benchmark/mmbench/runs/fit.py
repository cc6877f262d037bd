"""Train one configuration: all that happens before test data matters.

Nothing here knows the type of test data: a `Setting` holds training and validation rows, content
and the choices of the evaluation. Energy comes from the meters that the machine lets us read. What
of the machine decides the last bits, on the CPU the kernel of dense products and the number of
torch's threads, is recorded when a run begins; a run that goes on elsewhere, or in workers of its
own, keeps both.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch

from mmbase import gemm
from mmbase.process import (
    cpu_seconds,
    forget_peak_memory,
    gpu_uuid,
    held_interrupts,
    peak_gpu_memory_bytes,
    peak_memory_bytes,
)
from mmbase.progress import Progress
from mmbench.config import Recipe
from mmbench.data.caches import neighbour_cache
from mmbench.data.missing.learned import Learned
from mmbench.errors import DataError, Diverged, TrainingError, UsageError
from mmbench.evaluation.protocol import Setting, rank_all, score, with_selected
from mmbench.models.base import Content, Recommender
from mmbench.ops import sparse
from mmbench.runs.assembly import assemble
from mmbench.runs.devices import choose_device, share_device
from mmbench.runs.folder import RunFolder
from mmbench.runs.start import read_source
from mmbench.runs.trackers import follow
from mmbench.trainer import EpochRecord, Trainer

POWERCAP = Path("/sys/class/powercap")
_PERIOD_S = 1.0  # between two readings of a GPU's power


class EnergyMeter:
    """Energy of the processors, and of the GPU that does the work, while the block runs.

    Processors: the package counters of Linux powercap (Intel and AMD RAPL), in microjoules. An
    NVIDIA GPU: its power, read once a second and integrated. Other programs' share is included.

    Args:
        gpu: UUID of the GPU that does the work; without its reading there is no energy at all.
        powercap: Where the processors' counters are.

    Attributes:
        joules: Energy by meter, after the block; empty if unknown.
        reason: Why it is unknown; else empty.
    """

    def __init__(self, *, gpu: str | None = None, powercap: Path = POWERCAP) -> None:
        self._gpu, self._powercap = gpu, powercap
        self.joules: dict[str, float] = {}
        self.reason = ""
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._before = counters(self._powercap)
        if self._gpu and shutil.which("nvidia-smi"):
            self._watcher = threading.Thread(target=self._watch, args=(self._gpu,), daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        used = difference(self._before, counters(self._powercap))
        if used:
            self.joules["cpu"] = sum(used.values())
        if self._watcher is not None:
            self._stop.set()
            self._watcher.join()
        if self._gpu and "gpu" not in self.joules:
            self.joules.clear()
            self.reason = "the GPU's power could not be read"
        elif not self.joules:
            locked = any(self._powercap.glob("*-rapl:*"))
            self.reason = (
                f"no permission to read {self._powercap}" if locked else "no meter on this machine"
            )

    def describe(self) -> dict[str, float] | str:
        """Joules by meter, or the reason why they are unknown: for the run's record."""
        return dict(self.joules) or self.reason

    def _watch(self, gpu: str) -> None:
        last, joules, stopped = time.monotonic(), 0.0, False
        while not stopped:
            stopped = self._stop.wait(_PERIOD_S)  # the last, shorter period counts, too
            watts, now = _watts(gpu), time.monotonic()
            if watts is None:
                return
            joules += watts * (now - last)
            last = now
        self.joules["gpu"] = joules


def counters(powercap: Path = POWERCAP) -> dict[str, tuple[int, int]]:
    """Return each readable processor package's microjoules so far, and where they wrap around."""
    found = {}
    for zone in sorted(powercap.glob("*-rapl:*")):
        if zone.name.count(":") == 1:  # a package, and not a part of one
            try:
                now = int((zone / "energy_uj").read_text())
                found[zone.name] = (now, int((zone / "max_energy_range_uj").read_text()))
            except (OSError, ValueError):
                continue
    return found


def difference(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Return the joules between two readings; a counter may have wrapped around once."""
    out = {}
    for zone, (start, most) in before.items():
        if zone in after:
            end = after[zone][0]
            out[zone] = (end - start + (most if end < start else 0)) / 1e6
    return out


def _watts(gpu: str) -> float | None:
    query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            ["nvidia-smi", "-i", gpu, *query],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def save_every_s() -> float:
    """Return the least seconds between two saves of a training: `$MMBENCH_SAVE_EVERY_S`, else 10.

    Raises:
        UsageError: The variable is no number of seconds.
    """
    given = os.environ.get("MMBENCH_SAVE_EVERY_S", "10")
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UsageError(
            f"MMBENCH_SAVE_EVERY_S={given}: expected seconds, 0 or more; e.g. 10, or unset it"
        )
    return seconds


def begin(run: RunFolder) -> dict[str, Any]:
    """Return the `gemm` kernel and `threads` a run began with; record them if it begins now.

    The kernel is in use from now on.

    Raises:
        TrainingError: This build of torch lacks the kernel.
        DataError: The record is damaged.
    """
    name = run.begun_path.name
    if not run.begun_path.is_file():
        gemm.use(None)
        now = {"gemm": gemm.chosen(), "threads": torch.get_num_threads()}
        run.write_json_once(name, now)  # the trials of a grid may begin side by side
    begun = run.read_json(name)
    kernel, threads = begun.get("gemm"), begun.get("threads")
    if kernel not in get_args(gemm.Kernel) or type(threads) is not int or threads < 1:
        raise DataError(
            f"{run.begun_path}: gemm = {kernel!r}, threads = {threads!r} (expected torch or "
            "onednn, and 1 or more); train anew with --restart"
        )
    try:
        gemm.use(kernel)
    except RuntimeError as error:
        raise TrainingError(
            f"{run.path}: began with oneDNN's products, which this build of torch lacks; go on "
            "where it began, or train anew with --restart"
        ) from error
    return begun


@contextmanager
def as_begun(run: RunFolder) -> Iterator[None]:
    """Inside the block, train as the run began; errors as in `begin`."""
    before = torch.get_num_threads()
    torch.set_num_threads(begin(run)["threads"])
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(recipe: Recipe, setting: Setting, *, finished: bool = False) -> Recommender:
    """Build the recipe's model with initial values, on its device, with its approximations.

    Args:
        recipe: Says which model, with what settings.
        setting: The data and content it is built for.
        finished: It will not be trained, and where its device is not here, another will do.

    Raises:
        UsageError: The device or the sparse back end is not available here.
    """
    try:
        device = choose_device(recipe, setting).device
    except UsageError:
        if not finished:
            raise
        device = choose_device(recipe.model_copy(update={"device": "auto"}), setting).device
    sparse.use(recipe.sparse_backend)
    # Reset the process-wide precision: cached neighbours must be exact.
    torch.set_float32_matmul_precision("highest")
    # On the CPU some gradients are else added up in the order in which threads get to them.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    train = setting.training.train
    trained = {m: one.first(train.n_items) for m, one in setting.content_of("item").items()}
    pairs = setting.content_of("interaction")
    edges = {m: torch.from_numpy(one.vectors) for m, one in pairs.items()}
    # Neighbours are searched where the vectors will live.
    policy = recipe.treatment.policy
    dropout = policy.dropout if isinstance(policy, Learned) else None
    topics = setting.training.topics
    categories = None if topics is None else torch.from_numpy(topics.first(train.n_items))
    find = neighbour_cache(device, approximate="ann" in recipe.approximate)
    content = Content(trained, find, dropout, edges, categories)
    model = assemble(recipe.model, train, content, recipe.settings, recipe.seed, recipe.approximate)
    model.recalls = content.recalls
    if "tf32" in recipe.approximate and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return model.to(device)


def in_words(value: object, digits: int = 4) -> str:
    """A setting's value as text, floating-point numbers in few digits."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def fit_one(
    recipe: Recipe,
    setting: Setting,
    folder: RunFolder,
    progress: Progress,
    *,
    label: str = "",
    jobs: int = 1,
    hopeless: Callable[[float], bool] | None = None,
) -> float:
    """Train one configuration, keep the best epoch's model; return its validation value.

    Args:
        recipe: What to train.
        setting: Training and validation data, and the evaluation.
        folder: Where to keep it, and what is there of it already.
        progress: Progress reporter.
        label: Names the training in the progress.
        jobs: Trainings that run on this machine at once, for the record.
        hopeless: Gets the best value so far after each validation before the last epoch; true ends
            the training, which is recorded as pruned. It sees the validations before a resume too.

    Raises:
        Diverged: Now, or when it was trained before: the folder records it.
    """
    if folder.trained or folder.failure:
        folder.drop_state()
    if folder.trained:
        value = folder.read_json("trained.json")["value"]
        return -math.inf if value is None else float(value)
    if reason := folder.failure:
        raise Diverged(reason)
    training = setting.training
    evaluation, key = with_selected(setting.evaluation)
    setting = replace(setting, evaluation=evaluation)
    users = np.unique(training.of_trained_users(training.valid).users)

    def validate(model: Recommender) -> dict[str, float | None]:
        (lists,) = rank_all(model, setting, users=users)
        return score(lists, setting, setting.rows(training.valid)).overall

    pause_s, choice = save_every_s(), choose_device(recipe, setting)
    device = choice.device
    share_device(device, jobs)
    forget_peak_memory()
    model, started = build(recipe, setting), {}
    if recipe.start_from is not None:
        started = {"start_from": read_source(recipe.start_from).carry(model, recipe)}
    trainer = Trainer(
        model,
        training.train,
        recipe.settings,
        validate,
        metric=key,
        every=evaluation.every,
        patience=evaluation.patience,
        decimals=evaluation.select_decimals,
        seed=recipe.seed,
    )
    state = folder.load_state()
    if state is not None:
        trainer.restore(*state)
        progress.note(f"{folder.path}: going on after epoch {trainer.progress.epoch}")
    folder.truncate_history(trainer.progress.epoch if state is not None else -1)
    pruned = False
    for epoch, best in best_values(folder, key) if hopeless else ():
        if hopeless and epoch < trainer.epochs:
            pruned = hopeless(best)  # yes: the kill came between the answer and its record
    saved, start_cpu = time.monotonic(), cpu_seconds() - trainer.progress.cpu_s
    label = label or f"{recipe.model} seed {recipe.seed}"
    with (
        held_interrupts() as trainer.between_steps,
        progress.task(label, trainer.epochs or 1, trainer.progress.epoch) as task,
        EnergyMeter(gpu=gpu_uuid(device)) as meter,
    ):
        epochs = follow(_recorded(trainer, folder), recipe, folder.path, progress)
        for record in () if pruned else epochs:
            folder.append_history(record)
            if record.improved:
                folder.save_checkpoint(model.weights(), record.epoch)
            trainer.progress.cpu_s = cpu_seconds() - start_cpu
            if time.monotonic() - saved >= pause_s and trainer.epochs:
                folder.save_state(trainer.tensors(), trainer.progress)
                saved = time.monotonic()
            task.advance(1, _describe(record, key, trainer.progress.best_value))
            if hopeless and record.valid is not None and record.epoch < trainer.epochs:
                pruned = hopeless(trainer.progress.best_value)
            if pruned:
                progress.note(f"{label}: ended early, after epoch {record.epoch}")
                break
    stand = trainer.progress
    assert stand.best_epoch is not None
    folder.keep_checkpoint(stand.best_epoch)
    folder.write_json(
        "trained.json",
        {
            "best_epoch": stand.best_epoch,
            "epochs": stand.epoch,
            "metric": key,
            "value": stand.best_value if math.isfinite(stand.best_value) else None,
            "cpu_s": cpu_seconds() - start_cpu,
            "energy_j": _energy(meter, jobs=jobs, whole=state is None),
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": peak_gpu_memory_bytes(device),
            "gemm": gemm.chosen(),
            "threads": torch.get_num_threads(),
            "jobs": jobs,
            "device": choice.facts,
            **({"pruned": True} if pruned else {}),
            **started,
        },
    )
    folder.drop_state()
    return stand.best_value


def best_values(folder: RunFolder, metric: str) -> list[tuple[int, float]]:
    """Return each validated epoch of a training and the best validation value until then."""
    valid = [(line["epoch"], line["valid"]) for line in folder.history() if line["valid"]]
    values = [(epoch, one[metric]) for epoch, one in valid if one.get(metric) is not None]
    best = itertools.accumulate((value for _, value in values), max)
    return [(epoch, one) for (epoch, _), one in zip(values, best, strict=True)]


def _recorded(trainer: Trainer, folder: RunFolder) -> Iterator[EpochRecord]:
    """The trainer's epochs; a divergence is recorded, so that it is not trained again."""
    try:
        yield from trainer.run()
    except Diverged as error:
        folder.fail(str(error))
        raise


def _energy(meter: EnergyMeter, *, jobs: int, whole: bool) -> dict[str, float] | str:
    """What the meter read, or why that is not what this training took."""
    if jobs > 1:
        return f"not known: {jobs} trainings at once"
    return meter.describe() if whole else "not known: the training was interrupted"


def _describe(record: EpochRecord, key: str, best: float) -> str:
    loss = sum(record.loss.values())
    return f"loss {loss:.4f}  best {key} {best:.4f}" if best > float("-inf") else f"loss {loss:.4f}"
