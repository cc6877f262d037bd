"""Content and style: what a picture shows, its colours and its shapes, weighed by the user.

Paper: Deldjoo, Di Noia, Malitesta, Merra: Leveraging Content-Style Item Representation for Visual
Recommendation, ECIR 2022, https://doi.org/10.1007/978-3-030-99739-7_10 (CSV in the authors' code,
https://github.com/sisinflab/Content-Style-VRSs; where the paper leaves something open, this follows
the code).

    x_i^m   = encoder of the modality's role (F the stored vector, drop a dropout of `dropout`):
              colour   M(drop(F))            M a perceptron, `colour_layers` and then d wide
              shape    M(drop(avg(pool(relu(conv F)))))     F a square map, row by row; `channels`
                       kernels of 3 x 3, the maximum of 2 x 2 cells, the mean over the map
              class    F, or W F where F has another width than d
    a_uim   = w^T A relu(V (g_u * x_i^m) + c)        `attention`: * is the product, the sum, or [;]
    share   = softmax over m of a_uim / `temperature`
    q_ui    = g_i + sum_m share_uim x_i^m            `combination` product: g_i * sum
    s(u, i) = M(drop([g_u; q_ui]))                   M a perceptron, `score_layers` and then 1 wide
    L       = sum over the batch of -log sigmoid(s(u, i) - s(u, j))
              + reg_weight / 2 * (sum over the batch of |g_u|², |q_ui|², |q_uj|², |x_i^m|² and
                |x_j^m|², + the squares of all weights but the ids')

Perceptrons are ReLU layers with bias, the last layer is linear without. g_u and g_i are
`user_factors` and `item_factors`. A user is drawn uniformly, then one of its items.

Differences from the code: A w stands for its two linear layers, whose biases are left out: they
shift all a_uim of a pair alike, so they cancel in the softmax. Dropout is drawn once for each
distinct item of a batch, not for each of its rows (the same law). The loss is computed stably,
where the code cuts differences below -80. An item without interactions has g_i = 0, and can be
scored where `combination` is a sum. With one modality nothing is weighed, so nothing is trained for
it. Any number of modalities may have a role; one without is encoded as colours are.

Exact, and fast: items are encoded once for each distinct item of a batch. Ranking uses that the
first layer of the score is linear, with P = [P_u, P_i]:

    P [g_u; q_ui] = P_u g_u + P_i g_i + sum_m share_uim P_i x_i^m
                                        (`combination` product: sum_m share_uim P_i (g_i * x_i^m))

so that a pair costs h (K + h_2) multiply-adds for K modalities and the widths h and h_2 of
`score_layers`. V (g_u + x) splits alike, and costs K h of `attention_layers`. V (g_u * x) does not:
it is bilinear, d K h multiply-adds for each pair, done as one matrix product per block of items
with diag(x) V^T laid out. Memory is that of a block of pairs, whatever the numbers of users and
items.

Trainable: user_factors (n_users, d), item_factors (n_items, d); of colours and shapes
encoders.<m>.mlp.layers.<l>.weight and .bias, of shapes also encoders.<m>.kernels (channels, 9) and
.bias (channels,); of a class of another width encoders.<m>.weight (d, k_m); of several modalities
attention.inner.weight V (h, d) (`attention` concat: 2 d), .inner.bias c (h,), .middle A (h_2, h)
and .outer w (1, h_2); score.layers.<l>.weight and .bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.sampling import Init, Triples, UniformUsers
from mmbench.models.base import (
    Content,
    Known,
    ModelConfig,
    Recommender,
    Score,
    TrainSet,
    bpr_loss,
    squared_norm,
)
from mmbench.models.cells import Cell
from mmbench.models.encoding import Class, Colour, Encoder, Perceptron, Role, Shape, roles_of
from mmbench.ops import memory
from mmbench.ops.dense import linear, product
from mmbench.ops.draws import kept
from mmbench.ops.rows import distinct, take

_BLOCK_BYTES = 4 << 20


class ContentStyleConfig(ModelConfig):
    """Settings of content-style; the defaults are the published ones of Amazon Men.

    `lr` and `reg_weight` are searched there: [0.0001, 0.001, 0.01] and [0.00001, 0.001].
    """

    batch_size: int = Field(256, ge=1, description="triples per optimiser step")
    embedding_dim: int = Field(128, ge=1, description="d, width of ids and encoded content")
    roles: dict[str, Role] | None = Field(
        None,
        description="modality to colour, shape or class; default: what its own name says, colour "
        "where it says nothing",
    )
    colour_layers: tuple[int, ...] = Field((64, 32), description="widths of the colours' layers")
    shape_layers: tuple[int, ...] = Field((64,), description="widths of the shapes' layers")
    channels: int = Field(32, ge=1, description="kernels of the shapes' convolution")
    attention_layers: tuple[int, int] = Field((64, 32), description="widths of the attention")
    score_layers: tuple[int, ...] = Field(
        (64, 32), min_length=1, description="widths of the score's layers"
    )
    attention: Literal["product", "sum", "concat"] = Field(
        "product", description="how the user meets an item's vector to weigh it"
    )
    combination: Literal["sum", "product"] = Field(
        "sum", description="how the item's id meets its content"
    )
    temperature: float = Field(10.0, gt=0, description="T of the softmax over the modalities")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of inputs made zero")
    reg_weight: float = Field(1e-5, ge=0, description="weight of the batch's rows and all weights")

    ALIASES: ClassVar[Mapping[str, str]] = {**ModelConfig.ALIASES, "cnn_channels": "channels"}


class ContentStyle(Recommender):
    """A perceptron over the user and an item whose content the user weighs."""

    Config = ContentStyleConfig
    cell = Cell(
        modalities="any; colours, shape and class of a picture in 2022",
        representation="coordinate",
        fusion="early",
        operator="attention, asked by the user",
        side="item",
        backbone="mlp",
    )
    make_sampler = UniformUsers
    learns_absent = True

    def __init__(
        self, train: TrainSet, content: Content, config: ContentStyleConfig, init: Init
    ) -> None:
        super().__init__()
        self.config = config
        self.scores_unseen = self.represents_unseen(config)
        d, vectors = config.embedding_dim, content.vectors
        self.stand_ins = content.stand_ins()
        self.user_factors = init.normal("user_factors", train.n_users, d, std=0.01)
        self.item_factors = init.normal("item_factors", train.n_items, d, std=0.01)
        roles = roles_of(config.roles, list(vectors))
        self.encoders = nn.ModuleDict()
        for m, x in vectors.items():
            self.register_buffer(_stored(m), x, persistent=False)  # (n_items, k_m)
            self.encoders[m] = _encoder(roles[m], f"encoders.{m}", x.shape[1], config, init)
        self.attention = _Attention(config, init) if len(vectors) > 1 else None
        self.score = Perceptron((2 * d, *config.score_layers, 1), "score", init)

    @classmethod
    def represents_unseen(cls, settings: ModelConfig) -> bool:
        """Whether g_i = 0 leaves an item its content."""
        return cast(ContentStyleConfig, settings).combination == "sum"

    # ---------------------------------------------------------------------------------------- loss

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr` and `l2`."""
        size = len(batch.users)
        items, places = distinct(torch.cat([batch.pos, batch.neg]))
        content = [take(x, places) for x in self._encoded(items, batch)]  # (2B, d) each
        user = take(self.user_factors, batch.users)  # (B, d)
        twice = user.repeat(2, 1)
        q = take(take(self.item_factors, items), places)  # (2B, d), g_i
        attended = self._attended(twice, content)
        q = q + attended if self.config.combination == "sum" else q * attended
        pair = self._dropped("score", batch, torch.cat([twice, q], 1))
        scores = self.score(pair).flatten()  # (2B,)
        ids = {"user_factors", "item_factors"}
        weights = [
            x
            for name, x in self.named_parameters()
            if name not in ids and not name.startswith("stand_ins.")
        ]
        l2 = squared_norm(user, q, *content, *weights) * (self.config.reg_weight / 2)
        # The published loss sums over the batch, hence the factor on the mean.
        return {"bpr": bpr_loss(scores[:size], scores[size:]) * size, "l2": l2}

    def _attended(self, user: Tensor, content: Sequence[Tensor]) -> Tensor:
        """The sum over m of share_uim x_i^m for rows of users and of their items, (n, d)."""
        if self.attention is None:
            return content[0]
        shares = self.attention(user, content)
        weighed = [x * shares[:, k : k + 1] for k, x in enumerate(content)]
        return torch.stack(weighed).sum(0)

    def _encoded(self, items: Tensor, batch: Triples) -> list[Tensor]:
        """x_i^m of some items (distinct), (n, d) each, with the batch's dropout."""
        return [
            self._encoder(m)(self._vectors(m, items), partial(self._dropped, m, batch))
            for m in self.encoders
        ]

    def _encoder(self, m: str) -> Encoder:
        return cast(Encoder, self.encoders[m])

    def _vectors(self, m: str, items: Tensor | None = None) -> Tensor:
        """What is stored of some items or of all, stand-ins for what is absent, (n, k_m)."""
        stored = self.get_buffer(_stored(m))
        rows = stored if items is None else stored[items]
        return self.stand_ins.put_in(m, rows, lambda token: token, items)

    def _dropped(self, name: str, batch: Triples, x: Tensor) -> Tensor:
        """Some entries zero, the others divided by 1 - dropout."""
        return x * self._kept(name, tuple(x.shape), batch) / (1 - self.config.dropout)

    def _kept(self, name: str, shape: tuple[int, ...], batch: Triples) -> Tensor:
        """Which entries stay, of a modality's rows or of the pairs (`score`)."""
        return kept(batch.stream(f"dropout:{name}"), shape, self.config.dropout)

    # ------------------------------------------------------------------------------------- ranking

    def scorer(self, known: Known) -> Score:
        """Unseen items by their content, where `combination` is a sum."""
        ids: Tensor = self.item_factors
        content = self._all_encoded(known)  # (n, K, d)
        n_trained, n = len(ids), known.n_items
        if self.scores_unseen:
            ids = functional.pad(ids, (0, 0, 0, len(content) - n_trained))  # zeros for unseen ones
        pairs = _Pairs(self, ids, content)
        n_unscored = n - len(content)

        def score(rows: Tensor) -> Tensor:
            scores = pairs.scores(self.user_factors[rows])
            return (
                functional.pad(scores, (0, n_unscored), value=-math.inf) if n_unscored else scores
            )

        return score

    def _all_encoded(self, known: Known) -> Tensor:
        """x_i^m of all items that have a score, (n, K, d)."""
        n_trained = len(self.item_factors)
        unseen = slice(n_trained, known.n_items if self.scores_unseen else n_trained)
        parts = []
        for m in self.encoders:
            rows = self._encoder(m).in_blocks(self._vectors(m))
            if unseen.stop > unseen.start:
                others = self.stand_ins.of_others(m, known.content[m], unseen).to(rows)
                rows = torch.cat([rows, self._encoder(m).in_blocks(others)])
            parts.append(rows)
        return torch.stack(parts, 1)


class _Pairs:
    """Scores of all pairs of some users and all items, a block of pairs at a time.

    Users are columns, so that every step is a matrix product along contiguous memory.
    """

    def __init__(self, model: ContentStyle, ids: Tensor, content: Tensor) -> None:
        self.config, self.attention = model.config, model.attention
        self.content = content  # (n, K, d)
        d = ids.shape[1]
        first, *self.rest = model.score.layers
        # P = [P_u, P_i] and its bias; the last layer has none.
        self.of_user, of_item = first.weight[:, :d], first.weight[:, d:]
        self.bias = first.bias
        summed = model.config.combination == "sum"
        each = content if summed else ids[:, None] * content
        # P_i x_i^m, or P_i (g_i * x_i^m): h x K of each item, for its shares.
        self.parts = (each @ of_item.T).transpose(1, 2).contiguous()  # (n, h, K)
        self.base = ids @ of_item.T if summed else None  # (n, h)

    def scores(self, users: Tensor) -> Tensor:
        """Scores (B, n) of users (B, d)."""
        n, k, d = self.content.shape
        out = users.new_empty(len(users), n)
        h = max(self.config.attention_layers[0], self.config.score_layers[0])
        size = users.element_size()
        budget = memory.block_bytes(users.device, _BLOCK_BYTES)
        # diag(x) V^T of a block of items takes an eighth; the rest is for hidden layers of pairs.
        n_items = max(1, budget // (8 * size * k * h * d))
        n_users = max(1, budget // (size * k * h * n_items))
        for first in range(0, len(users), n_users):
            block = slice(first, first + n_users)
            columns = users[block].T.contiguous()  # (d, B)
            of_user = product(self.of_user, columns)  # (h, B)
            if self.bias is not None:
                of_user += self.bias[:, None]
            asking = self.attention.asking(columns) if self.attention is not None else None
            for start in range(0, n, n_items):
                items = slice(start, start + n_items)
                out[block, items] = self._block(columns, of_user, asking, items).T
        return out

    def _block(self, users: Tensor, of_user: Tensor, asking: Tensor | None, items: slice) -> Tensor:
        """Scores (n items, B) of users as columns (d, B)."""
        parts = self.parts[items]  # (n, h, K)
        if self.attention is None:
            x = parts + of_user  # K = 1
        else:
            shares = self.attention.shares(users, asking, self.content[items])  # (n, K, B)
            x = torch.bmm(parts, shares).add_(of_user)  # (n, h, B)
        if self.base is not None:
            x = x.add_(self.base[items, :, None])
        for layer in self.rest:
            x = torch.matmul(layer.weight, x.relu_())
            if layer.bias is not None:
                x = x.add_(layer.bias[:, None])
        return x[:, 0]


class _Attention(nn.Module):
    """Shares of an item's vectors, by what the user asks for."""

    def __init__(self, config: ContentStyleConfig, init: Init) -> None:
        super().__init__()
        self.how, self.temperature = config.attention, config.temperature
        d, (h, h_2) = config.embedding_dim, config.attention_layers
        width = 2 * d if self.how == "concat" else d
        self.inner = init.linear("attention.inner", width, h, weight="xavier_uniform")
        # The authors' start of a bias: Glorot's bound for h inputs and h outputs.
        self.inner.bias = init.uniform("attention.inner.bias", h, bound=math.sqrt(6 / (2 * h)))
        self.middle = init.xavier_uniform("attention.middle", h_2, h)
        self.outer = init.xavier_uniform("attention.outer", 1, h_2)

    def forward(self, user: Tensor, content: Sequence[Tensor]) -> Tensor:
        """The shares (n, K) of rows of users (n, d) and of their items, (n, d) each."""
        weight = self.outer @ self.middle  # (1, h): nothing between the two layers is nonlinear
        hidden = [
            linear(self._met(user, x), self.inner.weight, self.inner.bias).relu() for x in content
        ]
        logits = torch.cat([linear(x, weight) for x in hidden], 1)  # (n, K)
        return torch.softmax(logits / self.temperature, 1)

    def _met(self, user: Tensor, x: Tensor) -> Tensor:
        """What goes into the hidden layer, (n, d) or (n, 2 d)."""
        if self.how == "concat":
            return torch.cat([user, x], 1)
        return user * x if self.how == "product" else user + x

    def asking(self, users: Tensor) -> Tensor | None:
        """What users, columns (d, B), add to V (g_u * x) + c, (h, B); None for the product."""
        if self.how == "product":
            return None
        d = len(users)
        return product(self.inner.weight[:, :d], users) + self.inner.bias[:, None]

    def shares(self, users: Tensor, asking: Tensor | None, content: Tensor) -> Tensor:
        """The shares (n, K, B) of items (n, K, d) for users, columns (d, B)."""
        n, k, d = content.shape
        weight, h = self.inner.weight, len(self.inner.weight)
        if asking is None:
            # V (g_u * x) = (V diag(x)) g_u: one product of (n K h, d) and (d, B).
            laid_out = (content[:, :, None] * weight).view(n * k * h, d)
            hidden = torch.mm(laid_out, users).view(n * k, h, -1)
            hidden = hidden.add_(self.inner.bias[:, None])
        else:
            of_items = content.reshape(n * k, d) @ weight[:, -d:].T  # (n K, h)
            hidden = of_items[:, :, None] + asking
        outer = (self.outer @ self.middle / self.temperature).expand(n * k, 1, h)
        logits = torch.bmm(outer, hidden.relu_()).view(n, k, -1)
        return torch.softmax(logits, 1)


def _encoder(role: Role, name: str, width: int, config: ContentStyleConfig, init: Init) -> Encoder:
    d = config.embedding_dim
    if role == "colour":
        return Colour(name, (width, *config.colour_layers, d), init)
    if role == "shape":
        return Shape(name, (width, config.channels, *config.shape_layers, d), init)
    return Class(name, (width, d), init)


def _stored(modality: str) -> str:
    return f"features_{modality}"
