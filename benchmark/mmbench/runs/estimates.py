"""What a trial needs before it is started: memory of the machine and of a GPU, a device, time."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmbench.config import Range, Recipe, read_recipe
from mmbench.errors import ToolError
from mmbench.evaluation.protocol import Setting
from mmbench.models import model_class
from mmbench.runs.costs import Shapes, Work, work, work_of
from mmbench.runs.devices import Choice, choose_device
from mmbench.runs.folder import RunFolder
from mmbench.runs.miniature import Cost, cost_of
from mmbench.runs.run import chosen_recipe
from mmbench.runs.search import values_in_words

PROCESS_BYTES = 680 << 20
"""Of a process that has loaded the libraries: `mmbench train` of most-popular on 300 interactions,
with torch's build for CUDA."""

TRAINS_BYTES = 180 << 20
"""What a process takes beside for its first step: the same with bpr-mf."""

INTERACTION_BYTES = 400
"""Of each interaction, in tables while it is read and in lists while it is scored."""

CONTEXT_BYTES = 600 << 20
"""What every process keeps on a CUDA device beside tensors."""


@dataclass(frozen=True)
class Estimate:
    """What one trial needs.

    Attributes:
        cost: Weights, multiply-adds, tensors.
        choice: The device that trains, and why.
        host_bytes: Peak memory of its process; of a training on a GPU, an upper bound.
        gpu_bytes: Peak memory on a GPU, if it trains on one.
        epoch_s: Seconds per epoch; None: not known.
        by: What this rests on, or why it is not known.
    """

    cost: Cost
    choice: Choice
    host_bytes: int
    gpu_bytes: int
    epoch_s: float | None
    by: str


def trials_to_estimate(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """Return the trials of a recipe, or of a search the largest one, and what each tries."""
    if recipe.search is not None:
        largest = {name: _largest(domain) for name, domain in recipe.search.space.items()}
        trial = recipe.trial(largest)
        return [(f"at most {values_in_words(recipe, trial)}", trial)]
    return [(values_in_words(recipe, trial), trial) for trial in recipe.trials()]


def _largest(domain: Range | tuple[Any, ...]) -> Any:
    """The largest value of a domain; of values that are no numbers the last."""
    if isinstance(domain, Range):
        return int(domain.high) if domain.integer else domain.high
    return max(domain) if all(isinstance(one, int | float) for one in domain) else domain[-1]


def estimate_trial(recipe: Recipe, setting: Setting, past: Iterable[Path] = ()) -> Estimate:
    """Estimate what the training of a recipe without a grid or search needs.

    Args:
        recipe: The trial's.
        setting: The data that it is trained on; nothing of their size is built.
        past: Run folders; finished runs of the same model tell the seconds of an epoch.

    Raises:
        UsageError: The device that is asked for is not here.
    """
    cost, choice = cost_of(recipe, setting), choose_device(recipe, setting)
    seconds, by = _epoch_s(recipe, work_of(recipe, setting), choice.device, past)
    return Estimate(cost, choice, host_bytes(cost, setting), gpu_bytes(cost), seconds, by)


def host_bytes(cost: Cost, setting: Setting) -> int:
    """Return the estimated peak memory of a process that trains, and ranks for everyone."""
    training = setting.training
    rows = training.interactions[0].size + training.valid.users.size
    content = sum(one.vectors.nbytes for one in setting.features.values())
    held = PROCESS_BYTES + INTERACTION_BYTES * rows + content + (TRAINS_BYTES if cost.steps else 0)
    return int(held + cost.peak_bytes - cost.kept_bytes)


def gpu_bytes(cost: Cost) -> int:
    """Return the estimated peak memory of a training on a CUDA device."""
    return CONTEXT_BYTES + cost.peak_bytes


def _epoch_s(
    recipe: Recipe, wanted: Work, device: torch.device, past: Iterable[Path]
) -> tuple[float | None, str]:
    """Seconds of an epoch by the finished run whose epoch is closest in size, and which it is."""
    if not wanted.per_epoch:
        return None, "nothing is trained"
    best: tuple[float, float, Path] | None = None
    for path, size, seconds in _epochs(recipe.model, device, past):
        ratio = wanted.per_epoch / size
        if best is None or abs(math.log(ratio)) < abs(math.log(best[0])):
            best = ratio, seconds * ratio, path
    if best is None:
        kind = _device_facts(device)["name"]
        return None, f"no finished run of {recipe.model} on this kind of device ({kind})"
    return best[1], f"{best[2].name}, whose epoch is {1 / best[0]:.3g} times as large"


def _epochs(
    model: str, device: torch.device, past: Iterable[Path]
) -> Iterator[tuple[Path, int, float]]:
    """The finished runs of a model on such a device: numbers and seconds of an epoch."""
    here = _device_facts(device)
    for path in past:
        folder = RunFolder(path)
        if not (folder.complete and folder.recipe_path.is_file()):
            continue
        try:
            recipe, record = read_recipe(folder.recipe_path), folder.read_json("run.json")
            if recipe.model != model:
                continue
            settings = chosen_recipe(recipe, record, path).settings
        except ToolError:  # damaged, or of a model that is no longer here: it tells nothing
            continue
        facts = {key: record["device"].get(key) for key in here}
        seconds = record["timings"]["train_s_per_epoch"]
        size = work(model, settings, _shapes(model, record)).per_epoch
        if facts == here and seconds and size:
            yield path, size, seconds


def _shapes(model: str, record: dict[str, Any]) -> Shapes:
    data, widths = record["dataset"], {m: one["dim"] for m, one in record["features"].items()}
    per_edge = model_class(model).content_of != "item"
    return Shapes(data["n_users"], data["n_items"], data["n_train"], widths, per_edge)


def _device_facts(device: torch.device) -> dict[str, Any]:
    """What two machines have in common if their times can be compared, as `run.json` has it."""
    if device.type == "cuda":
        return {"name": torch.cuda.get_device_name(device)}
    return {"name": platform.machine(), "threads": torch.get_num_threads()}
