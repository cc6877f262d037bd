"""Which device trains: the one that is asked for, or for `auto` the one that is done first.

A GPU does large steps faster and small ones no faster than a processor, and it takes some time to
start. What counts is how many numbers a step goes over: the content's vectors, the embeddings, and
the graph's edges times width and layers, there and back. From measured times (README: one thread of
a CPU; an H200 while steps still waited for their launches):

| training | numbers per step | in all | CPU | GPU |
|---|---|---|---|---|
| the demo's size, FREEDOM, 60 epochs | 2.1 million | 0.8 billion | command 15.5 s | 17.7-20.1 s |
| Office size, VBPR, 200 epochs | 12.8 million | 79 billion | 0.40 s per epoch | 0.10 s |
| Office size, FREEDOM, 200 epochs | 20.8 million | 129 billion | 1.06 s | 0.34 s |
| Clothing size, VBPR, 200 epochs | 121.8 million | 4,700 billion | 4.3 s | 0.67 s |
| Clothing size, FREEDOM, 200 epochs | 172.4 million | 6,650 billion | 14.8 s | 2.01 s |

A thread takes 0.2 to 1.6 ns per number (MMGCN 19 to 48, GRCN 3 to 4, DualGNN and DRAGON 5 to 8:
theirs count as 20, 3 and 5, see `runs.costs`), so that 10 billion numbers, between the demo, where
the GPU loses, and Office, where it wins, are a matter of seconds either way. A step of less than a
million numbers takes a thread about a millisecond, and the fastest step of all models with content
on that GPU took 0.97: there the GPU has nothing to gain however long the training.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mmbase.process import resolve_device
from mmbench.config import Recipe
from mmbench.evaluation.protocol import Setting
from mmbench.runs.costs import Work, work_of

SMALLEST_STEP = 1_000_000
"""Numbers that a step goes over, from which on a GPU is faster."""

SMALLEST_TRAINING = 10_000_000_000
"""Numbers that all steps go over, from which on a GPU's start is made up for."""

FOR_TENSORS = 0.9
"""Part of a shared card's memory for tensors; every process keeps some more there besides."""


@dataclass(frozen=True)
class Choice:
    """The device that was chosen.

    Attributes:
        device: Which.
        reason: Why, in words.
    """

    device: torch.device
    reason: str

    @property
    def facts(self) -> dict[str, str]:
        """The same for a record, with the name of the card or the kind of processor."""
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else platform.machine()
        return {"chosen": name_of(self.device), "reason": self.reason, "name": name}


def name_of(device: torch.device) -> str:
    """Return a device's one name, however it was spelled: `cuda` is `cuda:0`."""
    return f"cuda:{device.index or 0}" if device.type == "cuda" else device.type


def choose_device(recipe: Recipe, setting: Setting) -> Choice:
    """Return the device of a recipe's training, or of its model's evaluation; see `choose`."""
    return choose(recipe.device, lambda: work_of(recipe, setting))


def gpu_pays(work: Work) -> tuple[bool, str]:
    """Return whether a GPU is faster, and the reason. A function of its argument alone."""
    if not work.per_step:
        told = f"nothing to train, and {_in_words(work.in_all)} numbers' worth of comparisons"
        return work.in_all >= SMALLEST_TRAINING, _beside(told, work.in_all, SMALLEST_TRAINING)
    if work.per_step < SMALLEST_STEP:
        told = f"a step goes over {_in_words(work.per_step)} numbers"
        return False, _beside(told, work.per_step, SMALLEST_STEP)
    told = f"the training goes over {_in_words(work.in_all)} numbers"
    return work.in_all >= SMALLEST_TRAINING, _beside(told, work.in_all, SMALLEST_TRAINING)


def choose(asked: str, work: Callable[[], Work]) -> Choice:
    """Return the device of a training.

    Args:
        asked: auto, cpu, cuda, cuda:N or mps. `auto` never takes mps, which has no sparse products.
        work: How large the training is; called where it decides.

    Raises:
        UsageError: The device is not here.
    """
    if asked != "auto":
        return Choice(torch.device(resolve_device(asked, automatic=("cuda",))), "asked for")
    why = "no CUDA device here"
    if torch.cuda.is_available():
        pays, why = gpu_pays(work())
        if not pays:  # without a look at the GPU: its start is what is to be saved
            return Choice(torch.device("cpu"), why)
    device = torch.device(resolve_device("auto", automatic=("cuda",)))
    if device.type == "cpu" and torch.cuda.is_available():
        why = "torch has no code for the CUDA device here"
    return Choice(device, why)


def share_device(device: torch.device, processes: int) -> None:
    """Bound this process's memory on a CUDA device that several processes train on at once.

    Each gets an equal part of nine tenths; the rest is for what every process keeps on the card
    beside tensors. A training that needs more fails as it would on a smaller card: always this one,
    not whichever asks last.
    """
    if device.type == "cuda" and processes > 1:  # the index, for torch refuses a bare `cuda` here
        torch.cuda.set_per_process_memory_fraction(FOR_TENSORS / processes, device.index)


def _beside(told: str, number: int, least: int) -> str:
    side = "at least" if number >= least else "less than"
    return f"{told}, {side} the {_in_words(least)} from which on a GPU is faster"


def _in_words(number: int) -> str:
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:,.3g} {name}"
    return f"{number:,}"
