"""GRU4Rec: a recurrent network over a history; the plain control among sequence models.

Papers: Hidasi, Karatzoglou, Baltrunas, Tikk: Session-based Recommendations with Recurrent Neural
Networks, ICLR 2016, https://arxiv.org/abs/1511.06939, in the form of Tan, Xu, Liu: Improved
Recurrent Neural Networks for Session-based Recommendations, DLRS 2016,
https://arxiv.org/abs/1606.08117, that RecBole computes: one embedding for what goes in and what
comes out, dropout on what goes in, cross-entropy over all items.

    x_t     = D(z of item t)                                              D: dropout
    r, u    = sigmoid of the first and the second third of x_t W_x + h_{t-1} W_h
    n       = tanh(x_t W_x + r * (h_{t-1} W_h)), of the last third
    h_t     = (1 - u) * n + u * h_{t-1},  h_0 = 0                        width `hidden_dim`
    h       = h_t W_o + b_o                                              width d

What an item is, the losses and users outside training: `mmbench.models.sequential`. With `loss=bce`
one unseen item stands against each next one. The losses over samples of the batch of the first
paper, and BPR-max of Hidasi & Karatzoglou (CIKM 2018, arXiv 1706.03847), approximate what
`softmax` computes in full.

Differences from the first paper: the reset gate acts after the product, as in cuDNN; several
layers (`n_layers`) follow each other without dropout; a batch has whole histories in place of
parallel sessions whose states are carried from batch to batch. From RecBole: see
`mmbench.models.sasrec`.

Start: item_embedding from N(0, 2 / (n_items + d)); W_x and W_h Xavier-uniformly, those of further
layers and W_o from U(±1/sqrt(n)) with n their inputs (of the layers: `hidden_dim`).

Trainable: item_embedding (n_items, d) and content's layers, layers.<k>.input (3 h, d or h) and
layers.<k>.state (3 h, h), output (d, h) and its bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmbench.core.sampling import Init
from mmbench.core.sequences import Steps
from mmbench.models.base import Content, TrainSet
from mmbench.models.cells import Cell
from mmbench.models.sequential import Dropout, SequenceConfig, Sequential
from mmbench.ops.dense import linear


class GRU4RecConfig(SequenceConfig):
    """Settings of GRU4Rec; the defaults are RecBole's."""

    loss: Literal["softmax", "bce"] = Field(
        "softmax", description="softmax: against all items; bce: against one unseen item"
    )
    hidden_dim: int | None = Field(
        None, ge=1, description="width of the recurrent state; none: twice embedding_dim"
    )
    n_layers: int = Field(1, ge=1, description="recurrent layers")
    dropout: float = Field(0.3, ge=0, lt=1, description="of the items that go in")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **{k: v for k, v in SequenceConfig.ALIASES.items() if k != "hidden_size"},
        "hidden_size": "hidden_dim",
        "num_layers": "n_layers",
        "loss_type": "loss",
        "dropout_prob": "dropout",
    }

    @property
    def against_all(self) -> bool:
        """With `softmax`."""
        return self.loss == "softmax"


class GRU4Rec(Sequential):
    """Gated recurrent units over a history, of ids, content or both."""

    Config = GRU4RecConfig
    cell = Cell(
        modalities="any or none; none in 2016",
        representation="coordinate",
        fusion="early",
        operator="any, see operator",
        side="item",
        backbone="gated recurrent units over the history, dot",
    )

    def __init__(
        self, train: TrainSet, content: Content, config: GRU4RecConfig, init: Init
    ) -> None:
        super().__init__()
        self.config: GRU4RecConfig = config
        self.loss_name = config.loss
        self._add_items(train, content, init, init.xavier_normal)
        d = config.embedding_dim
        h = config.hidden_dim or 2 * d
        self.layers = nn.ModuleList(
            _Layer(d if k == 0 else h, h, f"layers.{k}", init, first=k == 0)
            for k in range(config.n_layers)
        )
        self.output = init.linear("output", h, d)

    def encode(self, x: Tensor, steps: Steps, dropout: Dropout | None) -> Tensor:
        """H at each place."""
        x = dropout(x, "dropout", self.config.dropout) if dropout else x
        for layer in self.layers:
            x = layer(x, steps.rows_at)
        return linear(x, self.output.weight, self.output.bias)


class _Layer(nn.Module):
    """One layer of gated recurrent units without biases."""

    def __init__(self, n_in: int, h: int, name: str, init: Init, *, first: bool) -> None:
        super().__init__()

        def start(what: str, n: int) -> nn.Parameter:
            if first:
                return init.xavier_uniform(f"{name}.{what}", 3 * h, n)
            return init.uniform(f"{name}.{what}", 3 * h, n, bound=1 / math.sqrt(h))

        self.input, self.state = start("input", n_in), start("state", h)

    def forward(self, x: Tensor, rows_at: tuple[int, ...]) -> Tensor:
        """States at each place, (n, h), from what goes in there, (n, d)."""
        # What does not wait for a state before is computed at once.
        inputs = torch.split_with_sizes(linear(x, self.input), list(rows_at))
        state, found = x.new_zeros(rows_at[0], self.state.shape[1]), []
        for own in inputs:
            # Longer rows come first: the others have ended.
            state = state[: len(own)]
            ir, iu, new = own.chunk(3, 1)
            hr, hu, old = linear(state, self.state).chunk(3, 1)
            reset, keep = torch.sigmoid(ir + hr), torch.sigmoid(iu + hu)
            candidate = torch.tanh(new + reset * old)
            state = candidate + keep * (state - candidate)
            found.append(state)
        return torch.cat(found)
