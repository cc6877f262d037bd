"""SASRec: self-attention over a history, to predict the next item at each of its steps.

Paper: Kang, McAuley: Self-Attentive Sequential Recommendation, ICDM 2018,
https://arxiv.org/abs/1808.09781. What an item is (ids, content, or both), the losses and users
outside training are those of `mmbench.models.sequential`.

    x_t     = z of item t + position_embedding_p
    A(x)    = heads side by side of softmax(Q K^T / sqrt(d / n_heads) where s <= t, else 0) V,
              Q, K, V = x W_Q, x W_K, x W_V                   a step sees itself and those before it
    F(x)    = act(x W_1 + b_1) W_2 + b_2
    LN      layer normalisation with gain and bias;  D: dropout

Presets (`preset`)
    paper    of section III: x = D(x); blocks x = x + D(A(LN(x))), x = x + D(F(LN(x))); act is relu,
             W_1 is d x d, no biases in A, one head; a last LN, as in the authors' code; p counts
             from the end, so that the latest item always has the last position; loss `bce`.
    recbole  what the framework RecBole computes: x = D(LN(x)); blocks
             x = LN(x + D(A(x) W_O + b_O)), x = LN(x + D(F(x))); act is gelu, W_1 is d x 4 d, biases
             in Q and V, two heads; p counts from the start; loss `softmax`.

The weights of attention have a dropout of their own (`attention_dropout`), as in both codes.
Matrices and embeddings start from N(0, 0.02²), biases from 0, gains from 1.

Differences from the authors' code: there the block's input is normalised before it is added; item
embeddings are multiplied by sqrt(d), and gradients come from sampled users, with replacement.
From RecBole: there the place that fills rows up is a candidate of the softmax, too; keys have a
bias, which cancels in the softmax; each prefix of a history is a sequence of its own, so that a
batch of as many sequences has fewer users.

Exact, and fast: attention is computed for histories of similar length together; projections and
F for the steps that exist alone; see `mmbench.models.sequential` for the rest.

Trainable: item_embedding (n_items, d) and content's layers as in `mmbench.models.sequential`,
position_embedding (max_len, d), blocks.<k>.query, .key, .value (d, d), .output, .inner, .outer,
.norms.0, .norms.1, norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.sampling import Init
from mmbench.core.sequences import Steps
from mmbench.errors import UsageError
from mmbench.models.base import Content, TrainSet
from mmbench.models.cells import Cell
from mmbench.models.sequential import Dropout, Loss, SequenceConfig, Sequential
from mmbench.ops.dense import linear
from mmbench.ops.rows import take

_STD = 0.02


@dataclass(frozen=True)
class _Preset:
    """Settings that differ between the presets."""

    loss: Loss
    n_heads: int
    inner_dim: int  # in widths of the model
    normalise: Literal["before", "after"]
    activation: Callable[[Tensor], Tensor]
    positions: Literal["end", "start"]
    epsilon: float


_PRESETS = {
    "paper": _Preset("bce", 1, 1, "before", functional.relu, "end", 1e-8),
    "recbole": _Preset("softmax", 2, 4, "after", functional.gelu, "start", 1e-12),
}


class SASRecConfig(SequenceConfig):
    """Settings of SASRec; the defaults are the paper's for the Amazon collections."""

    preset: Literal["paper", "recbole"] = Field("paper", description="whose SASRec")
    loss: Loss | None = Field(
        None, description="bce: against one unseen item; softmax: against all. none: the preset's"
    )
    n_layers: int = Field(2, ge=1, description="blocks")
    n_heads: int | None = Field(None, ge=1, description="heads of attention; none: the preset's")
    dropout: float = Field(0.5, ge=0, lt=1, description="of embeddings and of what a block adds")
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="of the weights of attention; none: as dropout"
    )

    ALIASES: ClassVar[Mapping[str, str]] = {
        **SequenceConfig.ALIASES,
        "num_blocks": "n_layers",
        "num_heads": "n_heads",
        "loss_type": "loss",
        "hidden_dropout_prob": "dropout",
        "dropout_rate": "dropout",
        "attn_dropout_prob": "attention_dropout",
    }

    @property
    def chosen(self) -> _Preset:
        """The preset, with the loss and the heads that are given."""
        preset = _PRESETS[self.preset]
        given = self.loss or preset.loss, self.n_heads or preset.n_heads
        return replace(preset, loss=given[0], n_heads=given[1])

    @property
    def against_all(self) -> bool:
        """With `softmax`."""
        return self.chosen.loss == "softmax"

    @model_validator(mode="after")
    def _heads_divide(self) -> SASRecConfig:
        if self.embedding_dim % self.chosen.n_heads:
            raise UsageError(
                f"embedding_dim = {self.embedding_dim} is no multiple of n_heads = "
                f"{self.chosen.n_heads}; choose such a width"
            )
        return self


class SASRec(Sequential):
    """Self-attentive sequential recommendation, of ids, content or both."""

    Config = SASRecConfig
    cell = Cell(
        modalities="any or none; none in 2018",
        representation="coordinate",
        fusion="early",
        operator="any, see operator",
        side="item",
        backbone="attention over the history, dot",
    )

    def __init__(self, train: TrainSet, content: Content, config: SASRecConfig, init: Init) -> None:
        super().__init__()
        self.config: SASRecConfig = config
        self.preset = config.chosen
        self.loss_name = self.preset.loss
        d = config.embedding_dim

        def start(name: str, rows: int, columns: int) -> nn.Parameter:
            return init.normal(name, rows, columns, std=_STD)

        self._add_items(train, content, init, start)
        self.position_embedding = start("position_embedding", config.max_len, d)
        self.blocks = nn.ModuleList(
            _Block(d, self.preset, config, f"blocks.{k}", start) for k in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(d, eps=self.preset.epsilon)

    def encode(self, x: Tensor, steps: Steps, dropout: Dropout | None) -> Tensor:
        """H at each place."""
        before = self.preset.normalise == "before"
        position = steps.step
        if self.preset.positions == "end":
            # Of a row that is not there, any.
            last = (self.config.max_len - steps.counts).clamp(max=self.config.max_len - 1)
            position = (position + last[steps.row]).clamp(max=self.config.max_len - 1)
        x = x + take(self.position_embedding, position)
        if not before:
            x = self.norm(x)
        x = dropout(x, "dropout", self.config.dropout) if dropout else x
        for k, block in enumerate(self.blocks):
            x = block(x, steps, dropout, f"dropout {k}")
        return self.norm(x) if before else x


class _Block(nn.Module):
    """Attention, then the feed-forward layers; tensors as in the module's docstring."""

    def __init__(
        self,
        d: int,
        preset: _Preset,
        config: SASRecConfig,
        name: str,
        start: Callable[[str, int, int], nn.Parameter],
    ) -> None:
        super().__init__()
        self.heads, self.activation = preset.n_heads, preset.activation
        self.before = preset.normalise == "before"
        self.rate, own = config.dropout, config.attention_dropout
        self.attention_rate = config.dropout if own is None else own

        def layer(what: str, n_in: int, n_out: int, *, bias: bool) -> nn.Linear:
            made = nn.Linear(n_in, n_out, bias=bias, device="meta")
            made.weight = start(f"{name}.{what}", n_out, n_in)
            if bias:
                made.bias = nn.Parameter(torch.zeros(n_out))
            return made

        self.query, self.value = (
            layer(what, d, d, bias=not self.before) for what in ("query", "value")
        )
        self.key = layer("key", d, d, bias=False)  # it would cancel in the softmax
        self.output = layer("output", d, d, bias=True) if not self.before else None
        self.inner = layer("inner", d, preset.inner_dim * d, bias=True)
        self.outer = layer("outer", preset.inner_dim * d, d, bias=True)
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=preset.epsilon) for _ in range(2))

    def forward(self, x: Tensor, steps: Steps, dropout: Dropout | None, purpose: str) -> Tensor:
        """The block's output at each place, (n, d)."""
        for norm, attends in zip(self.norms, (True, False), strict=True):
            y = norm(x) if self.before else x
            y = self._attention(y, steps, dropout, purpose) if attends else self._feed_forward(y)
            if dropout:
                y = dropout(y, f"{purpose} {'attended' if attends else 'fed'}", self.rate)
            x = x + y if self.before else norm(x + y)
        return x

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(linear(x, self.inner.weight, self.inner.bias))
        return linear(hidden, self.outer.weight, self.outer.bias)

    def _attention(self, x: Tensor, steps: Steps, dropout: Dropout | None, purpose: str) -> Tensor:
        heads, rate = self.heads, self.attention_rate
        layers = self.query, self.key, self.value
        qkv = torch.cat([linear(x, one.weight, one.bias) for one in layers], 1)  # (n, 3 d)
        masks = None
        if dropout and rate:
            masks = dropout.mask(f"{purpose} weights", heads * steps.longest, rate)
        found = []
        for start, stop, width in steps.blocks:
            # A place that does not exist is after those that do: they never see it.
            at = steps.place[:width, start:stop].T  # (rows, width)
            own = take(qkv, at.reshape(-1)).view(stop - start, width, 3, heads, -1)
            q, k, v = own.permute(2, 0, 3, 1, 4)  # (rows, heads, width, d / heads) each
            logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
            later = torch.ones(width, width, dtype=torch.bool, device=x.device).triu(1)
            shares = torch.softmax(logits.masked_fill(later, -math.inf), 3)
            if masks is not None:
                mask = masks[at].view(stop - start, width, heads, -1)[..., :width]
                shares = shares * mask.transpose(1, 2) / (1 - rate)
            found.append((shares @ v).transpose(1, 2).reshape(-1, x.shape[1]))
        attended = take(torch.cat(found), steps.in_blocks)
        if self.output is None:
            return attended
        return linear(attended, self.output.weight, self.output.bias)
