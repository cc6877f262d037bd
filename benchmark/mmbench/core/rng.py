"""Random streams by purpose, and initial values: all follow from (seed, purpose, counters) alone.

A batch of (seed, epoch, step) is therefore the same in a fresh run and in a resumed one.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A seed in [0, 2**63) for one purpose, e.g. `sampling`; counters are epoch, step and the like.

    It is BLAKE2b of the arguments, so that neighbouring seeds give unrelated streams.
    """
    text = "\0".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator (Philox) for one purpose; see `derive`."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *counters)))


def torch_rng(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A torch generator of the CPU, for every device, for one purpose; see `derive`."""
    return torch.Generator().manual_seed(derive(seed, purpose, *counters))


class Init:
    """Draws initial values; the stream of a parameter follows from (seed, name)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, name: str, *shape: int, bound: float) -> nn.Parameter:
        """U(-bound, bound)."""
        rng = torch_rng(self.seed, f"init:{name}")
        return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=rng))

    def normal(self, name: str, *shape: int, std: float = 1.0) -> nn.Parameter:
        """N(0, std²)."""
        rng = torch_rng(self.seed, f"init:{name}")
        return nn.Parameter(torch.empty(shape).normal_(0.0, std, generator=rng))

    def xavier_uniform(self, name: str, rows: int, columns: int) -> nn.Parameter:
        """U(-a, a), a = sqrt(6 / (rows + columns)). Glorot & Bengio, AISTATS 2010, equation 16."""
        return self.uniform(name, rows, columns, bound=math.sqrt(6 / (rows + columns)))

    def xavier_normal(self, name: str, rows: int, columns: int) -> nn.Parameter:
        """N(0, 2 / (rows + columns)). Glorot & Bengio, AISTATS 2010, equation 12."""
        return self.normal(name, rows, columns, std=math.sqrt(2 / (rows + columns)))

    def linear(self, name: str, inputs: int, outputs: int, *, weight: str = "default") -> nn.Linear:
        """Y = x Wᵀ + b with W (outputs, inputs).

        `weight` is `default`, U(±1/sqrt(inputs)), or `xavier_uniform` or `xavier_normal`; the bias
        is U(±1/sqrt(inputs)).
        """
        bound = 1 / math.sqrt(inputs)
        layer = nn.Linear(inputs, outputs, device="meta")
        if weight == "default":
            layer.weight = self.uniform(f"{name}.weight", outputs, inputs, bound=bound)
        else:
            layer.weight = getattr(self, weight)(f"{name}.weight", outputs, inputs)
        layer.bias = self.uniform(f"{name}.bias", outputs, bound=bound)
        return layer


def zeros(*shape: int) -> Tensor:
    """A trainable tensor of zeros."""
    return nn.Parameter(torch.zeros(shape))
