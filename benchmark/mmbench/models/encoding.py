"""Encoders of a picture's stored vectors by what they hold: its colours, its shapes, or its class.

    colour   M(drop(F))                        shape   M(drop(avg(pool(relu(conv F + b)))))
    class    F, or W F where F has another width than d

F (k,) is the stored vector; of shape it is a square map, row by row, with zeros around it. conv has
kernels of 3 x 3, pool takes the maximum of 2 x 2 cells (fewer at the end of an odd side), avg the
mean over the map, drop is a dropout, M a perceptron. Source: see `mmbench.models.content_style`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mmbench.core.sampling import Init, zeros
from mmbench.errors import UsageError
from mmbench.ops.dense import linear
from mmbench.ops.maps import pooled_maps

Role = Literal["colour", "shape", "class"]
Drop = Callable[[Tensor], Tensor]


class Perceptron(nn.Module):
    """ReLU layers with bias, and a linear one without."""

    def __init__(self, widths: Sequence[int], name: str, init: Init) -> None:
        super().__init__()
        made = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            layer = init.linear(f"{name}.{number}", inputs, outputs, weight="xavier_uniform")
            layer.bias = cast(nn.Parameter, zeros(outputs))
            made.append(layer)
        made[-1].register_parameter("bias", None)
        self.layers = cast("list[nn.Linear]", nn.ModuleList(made))

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, first width) to (n, last width)."""
        for layer in self.layers[:-1]:
            x = linear(x, layer.weight, layer.bias).relu()
        return linear(x, self.layers[-1].weight)


class Encoder(nn.Module):
    """One role's encoder, from stored vectors (n, k) to (n, d)."""

    def forward(self, x: Tensor, drop: Drop | None = None) -> Tensor:
        """Encode rows; `drop` makes some inputs of the perceptron zero."""
        raise NotImplementedError

    def in_blocks(self, x: Tensor, at_once: int = 512) -> Tensor:
        """Encode many rows without gradient, some at a time."""
        return torch.cat([self(x[k : k + at_once]) for k in range(0, max(len(x), 1), at_once)])


class Colour(Encoder):
    """A perceptron.

    Args:
        name: Prefix of the purposes of the initial values.
        widths: k, those of the hidden layers, d.
        init: Draws them.
    """

    def __init__(self, name: str, widths: Sequence[int], init: Init) -> None:
        super().__init__()
        self.mlp = Perceptron(widths, f"{name}.mlp", init)

    def forward(self, x: Tensor, drop: Drop | None = None) -> Tensor:
        """Through the dropout and the perceptron."""
        return self.mlp(x if drop is None else drop(x))  # type: ignore[no-any-return]


class Shape(Encoder):
    """A convolution over a square map, and a perceptron.

    Args:
        name: Prefix of the purposes of the initial values.
        widths: k, the channels of the convolution, the widths of the hidden layers, d.
        init: Draws them.

    Raises:
        UsageError: k is no square.
    """

    def __init__(self, name: str, widths: Sequence[int], init: Init) -> None:
        super().__init__()
        k, channels = widths[:2]
        self.side = math.isqrt(k)
        if self.side**2 != k:
            raise UsageError(
                f"roles: a shape is a square map, and {name.rpartition('.')[2]} has vectors of {k} "
                "numbers; give it the role colour or class, or take a set of `mmx extract "
                "--modality visual --model edge-map`"
            )
        # Glorot's bound of a convolution: 9 inputs, 9 outputs for each channel.
        bound = math.sqrt(6 / (9 + 9 * channels))
        self.kernels = init.uniform(f"{name}.kernels", channels, 9, bound=bound)
        self.bias = zeros(channels)
        self.mlp = Perceptron(widths[1:], f"{name}.mlp", init)

    def forward(self, x: Tensor, drop: Drop | None = None) -> Tensor:
        """Through convolution, pooling, dropout and the perceptron."""
        y = pooled_maps(x, self.side, self.kernels, self.bias)  # (n, channels)
        return self.mlp(y if drop is None else drop(y))  # type: ignore[no-any-return]


class Class(Encoder):
    """The vector itself, or its projection where its width is not d.

    Args:
        name: Prefix of the purpose of the initial values.
        widths: k and d.
        init: Draws them.
    """

    def __init__(self, name: str, widths: Sequence[int], init: Init) -> None:
        super().__init__()
        k, d = widths
        self.weight = None if k == d else init.xavier_uniform(f"{name}.weight", d, k)

    def forward(self, x: Tensor, drop: Drop | None = None) -> Tensor:
        """As it is, or projected."""
        return x if self.weight is None else linear(x, self.weight)


def roles_of(given: Mapping[str, Role] | None, modalities: Sequence[str]) -> dict[str, Role]:
    """The role of each modality: as given, or what its name says, or colour.

    Raises:
        UsageError: `given` names a modality that is not there.
    """
    given = given or {}
    if strange := sorted(set(given) - set(modalities)):
        raise UsageError(
            f"roles: no modality {', '.join(strange)}; there are {', '.join(modalities)}"
        )
    named: dict[str, Role] = {"shape": "shape", "class": "class"}
    return {m: given.get(m, named.get(m, "colour")) for m in modalities}
