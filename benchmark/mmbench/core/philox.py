"""Philox: random numbers as a function of a key and a place, the same on every device.

What is drawn at a place (an edge, an entry of a mask) of a step does not depend on what was drawn
before it, on the order of the draws, or on the device: a GPU draws the batches that a CPU draws,
and a resumed run those of an uninterrupted one.

Source: Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011), section
3.2, Philox4x32 with ten rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # what a round adds to the two words of the key
ROUNDS = 10
MASK = 0xFFFFFFFF

_PIECE = 1 << 14  # counters at once on the CPU: ten words of each stay in the second-level cache


Words = tuple[Tensor, Tensor, Tensor, Tensor]

COMPILED: dict[str, Callable[[int, int, Tensor], Words]] = {}
"""By kind of device a kernel that computes `words` from n, key and clock; see `ops/draws.py`."""


@dataclass(frozen=True, eq=False)
class Stream:
    """The random numbers of one purpose in one step.

    Attributes:
        key: In [0, 2**63), see `mmbench.core.sampling.derive`.
        clock: Epoch and step, shape (2,), int64, on the device that draws.
    """

    key: int
    clock: Tensor

    def words(self, n: int) -> Words:
        """Four independent uniform integers in [0, 2**32) for each place 0 … n-1, (n,) int64 each.

        Only on the device of `clock`, without a synchronisation. The counter of place i is
        (i mod 2**32, i // 2**32, step, epoch).
        """
        compiled = COMPILED.get(self.clock.device.type)
        if compiled is not None and n:
            return compiled(n, self.key, self.clock)
        place = torch.arange(n, device=self.clock.device)
        if place.device.type != "cpu" or n <= _PIECE:
            return self._philox(place)
        pieces = [self._philox(part) for part in torch.split(place, _PIECE)]
        first, second, third, fourth = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return first, second, third, fourth

    def _philox(self, place: Tensor) -> Words:
        epoch, step = self.clock.unbind()
        x0, x1 = place & MASK, place >> 32 & MASK
        x2, x3 = step.expand_as(place), epoch.expand_as(place)
        key0, key1 = self.key & MASK, self.key >> 32
        for _ in range(ROUNDS):
            # The product of two 32-bit words fits 64 bits; what int64 takes for a sign is masked.
            left, right = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
            x0, x1 = (right >> 32 & MASK) ^ x1 ^ key0, right & MASK
            x2, x3 = (left >> 32 & MASK) ^ x3 ^ key1, left & MASK
            key0, key1 = key0 + WEYL[0] & MASK, key1 + WEYL[1] & MASK
        return x0, x1, x2, x3


def home(device: torch.device | str) -> torch.device:
    """Where numbers for a device are drawn: there, but on the CPU if it lacks double precision."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def unit(high: Tensor, low: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2**-53, from two words each; float64."""
    return ((high >> 5 << 26) + (low >> 6)).double() * 2.0**-53


def below(n: Tensor | int, high: Tensor, low: Tensor) -> Tensor:
    """Uniform integers in [0, n) from two words each, int64; n >= 1, a number or one per place.

    Each value's probability is 1 / n up to 2**-53.
    """
    return (unit(high, low) * n).long()


def order(high: Tensor, low: Tensor) -> Tensor:
    """A random permutation of 0 … len-1 from two words each: places in the order of their words."""
    return torch.argsort(high << 31 | low >> 1, stable=True)
