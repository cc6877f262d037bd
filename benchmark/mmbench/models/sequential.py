"""What sequence models share: items of ids and content, next-item losses, users of their history.

    z_i     = item_embedding_i                                         `items: ids`
            = gamma(W_m x_i^m + b_m over modalities m)                 `items: content`
            = gamma(item_embedding_i, W_m x_i^m + b_m over m)          `items: both`
    h_t     = encoder(z of a history's items 0 … t)                    the model's own
    s(u, i) = <h_last, z_i>
    L       = mean over the steps t of a batch, which have a next item i, of
    softmax   -log (exp <h_t, z_i> / sum over all items k of exp <h_t, z_k>)
    bce       -log sigmoid(<h_t, z_i>) - log(1 - sigmoid(<h_t, z_j>)), j an unseen item

gamma is `operator` of `mmbench.models.operators`; concat is followed by a layer back to width d.
Content alone with frozen encoders is what Yuan et al. (Where to Go Next for Recommender Systems?
ID- vs. Modality-based Recommender Models Revisited, SIGIR 2023, arXiv 2303.13835) call MoRec.

A user is their history and nothing else. Items that training has not seen are scored, and count in
histories, where content represents them; an id that they lack is zero (product and max would be
decided by it, so there they are never listed). Otherwise histories go without them.

Exact, and fast: only steps that exist are computed (`mmbench.core.sequences`); the logits exist for
some steps at a time (`mmbench.ops.softmax`); with `bce` items are represented for the distinct ones
of a batch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.interactions import Histories
from mmbench.core.philox import Stream
from mmbench.core.sampling import Init, Sampler
from mmbench.core.sequences import Latest, NextItems, Sequences, Steps
from mmbench.errors import UsageError
from mmbench.models.base import Content, Known, ModelConfig, Recommender, Score, TrainSet
from mmbench.models.operators import Fusion, Operator
from mmbench.ops.dense import linear
from mmbench.ops.draws import kept
from mmbench.ops.rows import distinct, take
from mmbench.ops.softmax import cross_entropy

Items = Literal["ids", "content", "both"]
Loss = Literal["softmax", "bce"]

_USERS_AT_ONCE = 1024  # whose histories are encoded together when scoring


class SequenceConfig(ModelConfig):
    """Settings that every sequence model has."""

    batch_size: int = Field(128, ge=1, description="users per optimiser step")
    max_len: int = Field(50, ge=1, description="latest items of a history that count as input")
    items: Items = Field("ids", description="what an item is: ids, content or both")
    operator: Operator = Field(
        "sum",
        description="how an item's parts become one: sum, mean, concat, weighted, attention, gate, "
        "product or max",
    )

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        "hidden_size": "embedding_dim",
        "max_seq_length": "max_len",
        "maxlen": "max_len",
        "MAX_ITEM_LIST_LENGTH": "max_len",
    }

    @property
    def against_all(self) -> bool:
        """Whether the loss compares each next item with all items."""
        return True

    @property
    def represents_unseen(self) -> bool:
        """Whether items without a trained id have a representation."""
        fair = self.operator not in ("product", "max")
        return self.items == "content" or (self.items == "both" and fair)

    @model_validator(mode="after")
    def _has_an_operator(self) -> SequenceConfig:
        if self.items == "ids" and self.operator != type(self).model_fields["operator"].default:
            raise UsageError(
                f"operator = {self.operator}: an item of ids has one part and nothing to join; "
                "choose items=content or items=both"
            )
        return self


@dataclass(frozen=True, eq=False)
class Dropout:
    """Dropout masks of one training step, by the numbers of existing places.

    Attributes:
        steps: The places.
        stream: Random numbers of this step by purpose.
    """

    steps: Steps
    stream: Callable[[str], Stream]

    def mask(self, purpose: str, width: int, rate: float) -> Tensor:
        """Which of `width` numbers at each place are kept, (n, width), bool."""
        mask = kept(self.stream(purpose), (len(self.steps), width), rate)
        return mask if self.steps.numbers is None else mask[self.steps.numbers]

    def __call__(self, x: Tensor, purpose: str, rate: float) -> Tensor:
        """X with a share `rate` of its numbers lost and the others scaled up, (n, d)."""
        return x * self.mask(purpose, x.shape[1], rate) / (1 - rate) if rate else x


class Sequential(Recommender):
    """A model that encodes histories; a subclass has `encode` and calls `_add_items`."""

    uses_features = True
    by_history = True
    in_order = True
    config: SequenceConfig
    loss_name: Loss = "softmax"

    @classmethod
    def needs_content(cls, settings: ModelConfig) -> bool:
        """Unless items are ids."""
        return cast(SequenceConfig, settings).items != "ids"

    @classmethod
    def learns_absent_with(cls, settings: ModelConfig) -> bool:
        """Where items have content."""
        return cls.needs_content(settings)

    @classmethod
    def represents_unseen(cls, settings: ModelConfig) -> bool:
        """Where items have content, and an id decides nothing alone."""
        return cast(SequenceConfig, settings).represents_unseen

    def encode(self, x: Tensor, steps: Steps, dropout: Dropout | None) -> Tensor:
        """H at each place from the items up to there.

        Args:
            x: Z of the item at each place, (n, d).
            steps: The places.
            dropout: Of a training step; None when scoring.

        Returns:
            Shape (n, d).
        """
        raise NotImplementedError

    def _add_items(
        self,
        train: TrainSet,
        content: Content,
        init: Init,
        table: Callable[[str, int, int], Tensor],
    ) -> None:
        """`item_embedding` by the initialiser `table`, `projection.<m>`, `fusion.*`, `joined`."""
        config, d = self.config, self.config.embedding_dim
        self.n_items, self.histories = train.n_items, train.histories
        self.scores_unseen = config.represents_unseen
        vectors = content.vectors if config.items != "ids" else {}
        if config.items != "ids" and not vectors:
            raise UsageError(f"items={config.items}: there is no content; name it with --features")
        self.item_embedding = (
            None if config.items == "content" else table("item_embedding", self.n_items, d)
        )
        self.modalities = tuple(vectors)
        self.stand_ins = content.stand_ins(*self.modalities) if vectors else Content({}).stand_ins()
        self.projection = nn.ModuleDict()
        for place, (m, x) in enumerate(vectors.items()):
            self.projection[m] = init.linear(f"projection.{m}", x.shape[1], d)
            self.register_buffer(f"item_content_{place}", x, persistent=False)
        n_parts = len(vectors) + (self.item_embedding is not None)
        self.fusion = Fusion(config.operator, n_parts, d, "fusion", init)
        joins = config.operator == "concat" and n_parts > 1
        self.joined = init.linear("joined", n_parts * d, d) if joins else None

    # ------------------------------------------------------------------------------------- items

    def _fused(self, parts: list[Tensor]) -> Tensor:
        """One vector of an item's parts, (n, d)."""
        z = cast(Tensor, self.fusion(parts))
        return z if self.joined is None else linear(z, self.joined.weight, self.joined.bias)

    def _projected(self, m: str, x: Tensor) -> Tensor:
        layer = cast(nn.Linear, self.projection[m])
        return linear(x, layer.weight, layer.bias)

    def _items(self, rows: Tensor | None = None) -> Tensor:
        """Z of some items (distinct) or of all of training, (n, d)."""
        parts = []
        if self.item_embedding is not None:
            ids = self.item_embedding
            parts.append(ids if rows is None else take(ids, rows))
        for place, m in enumerate(self.modalities):
            x = self.get_buffer(f"item_content_{place}")
            own = self._projected(m, x if rows is None else x[rows])
            parts.append(self.stand_ins.put_in(m, own, partial(self._projected, m), rows))
        return self._fused(parts)

    def _unseen(self, known: Known) -> Tensor:
        """Z of items that training has not seen, with zeros for an id."""
        rows, parts = slice(self.n_items, known.n_items), []
        for place, m in enumerate(self.modalities):
            like = self.get_buffer(f"item_content_{place}")
            own = self.stand_ins.of_others(m, known.content[m], rows).to(like)
            parts.append(self._projected(m, own))
        if self.item_embedding is not None:
            parts.insert(0, torch.zeros_like(parts[0]))
        return self._fused(parts)

    # ------------------------------------------------------------------------------------ training

    def make_sampler(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str
    ) -> Sampler:
        """Histories in order, with negatives for `bce`."""
        negatives = self.loss_name == "bce"
        return NextItems(
            train, batch_size, seed, device, max_len=self.config.max_len, negatives=negatives
        )

    def loss(self, batch: Sequences) -> dict[str, Tensor]:
        """`softmax` or `bce`."""
        steps = Steps(batch.items, batch.rows_at, ahead=1)
        dropout = Dropout(steps, batch.stream)
        now, following = steps.of(batch.items), steps.of(batch.items, 1)
        there = steps.there.to(self.dtype)
        weight = there / there.sum()
        if batch.neg is None:
            z = self._items()
            h = self.encode(take(z, now), steps, dropout)
            return {"softmax": cross_entropy(h, z, following, weight)}
        # What is met in the batch alone: n inputs, n next items, n negatives.
        rows, places = distinct(torch.cat([now, following, steps.of(batch.neg)]))
        x, pos, neg = take(self._items(rows), places).chunk(3)
        h = self.encode(x, steps, dropout)
        # -log sigmoid(x) = softplus(-x), and -log(1 - sigmoid(x)) = softplus(x).
        each = functional.softplus(-(h * pos).sum(1)) + functional.softplus((h * neg).sum(1))
        return {"bce": (each * weight).sum()}

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    # ------------------------------------------------------------------------------------- scoring

    def _users(self, histories: Histories, z: Tensor) -> Callable[[Tensor], Tensor]:
        """A function from user rows (B,) to h after their whole history, (B, d).

        Zeros where a history is empty.
        """
        latest = Latest(histories, self.config.max_len, z.device)

        def last(rows: Tensor) -> Tensor:
            order = latest.longest_first(rows)
            items = latest(rows[order])
            steps = Steps(items, latest.rows_at(rows[order]))
            found = z.new_zeros(len(rows), z.shape[1])
            if not len(steps):
                return found
            h = self.encode(take(z, steps.of(items)), steps, None)
            n = steps.counts[: steps.n_rows]
            at = steps.place[(n - 1).clamp(min=0), torch.arange(len(n), device=n.device)]
            return found.index_copy_(0, order[: len(n)], h[at] * (n > 0)[:, None])

        return lambda rows: torch.cat([last(some) for some in torch.split(rows, _USERS_AT_ONCE)])

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """H after each training history, and z."""
        z = self._items()
        users = torch.arange(len(self.histories.indptr) - 1, device=z.device)
        return self._users(self.histories, z)(users), z

    def scorer(self, known: Known) -> Score:
        """Users by the history that is known, unseen items by their content."""
        z, n_unseen = self._items(), known.n_items - self.n_items
        if n_unseen and self.scores_unseen:
            z, n_unseen = torch.cat([z, self._unseen(known)]), 0
        users = self._users(known.histories.among(len(z)), z)
        columns = z.T.contiguous()

        def score(rows: Tensor) -> Tensor:
            scores = users(rows) @ columns
            return functional.pad(scores, (0, n_unseen), value=-math.inf) if n_unseen else scores

        return score
