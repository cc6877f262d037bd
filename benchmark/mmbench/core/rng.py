"""Randomness by purpose: every stream follows from (seed, purpose, counters), never from what ran before.

A batch of (seed, epoch, step) is therefore the same in a fresh run and in a resumed one.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 64-bit seed for one purpose.

    Args:
        seed: The recipe's seed, any integer.
        purpose: What the stream is for, e.g. `sampling` or `init`.
        counters: Epoch, step or whatever else tells one use of the stream from the next.

    Returns:
        An integer in [0, 2**63): BLAKE2b of the arguments, so that neighbouring seeds give
        unrelated streams.
    """
    text = "\0".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator (Philox) for one purpose; see `derive`."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *counters)))


def torch_rng(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A torch generator of the CPU for one purpose; see `derive`. What it draws is moved to where it is needed."""
    return torch.Generator().manual_seed(derive(seed, purpose, *counters))
