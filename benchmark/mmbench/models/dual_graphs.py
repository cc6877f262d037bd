"""What DualGNN and DRAGON share: a network of each modality, and users who learn from co-users."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.philox import home
from mmbench.core.sampling import Init, Triples, epoch_stream
from mmbench.models.base import Content, ModelConfig, Recommender, TrainSet, bpr_loss, mean_square
from mmbench.ops.co_users import Weighting, co_users, repeated, repetitions
from mmbench.ops.dense import linear, normalise_rows
from mmbench.ops.rows import distinct, grouped, pair_scores, take
from mmbench.ops.sides import normalised_sides, propagate_sides
from mmbench.ops.sparse import SparseMatrix, SparsePattern

HIDDEN = 4  # the hidden layer of a modality's perceptron is so many times as wide as its output


class DualGraphsConfig(ModelConfig):
    """The settings that both models have; None: what the preset says."""

    preset: Literal["paper", "original"] = Field("paper", description="whose model")
    batch_size: int = Field(2048, ge=1, description="triples per optimiser step")
    lr: float = Field(1e-4, gt=0, description="Adam's step size")
    reg_weight: float = Field(
        0.1, ge=0, description="weight of the mean squares of preferences and user weights"
    )
    n_layers: int = Field(2, ge=0, description="L, propagations on the user-item graph")
    n_co_users: int = Field(40, ge=1, description="k, users whom each user learns from")
    user_weighting: Weighting = Field(
        "softmax", description="co-users weigh by softmax of the common items, or all the same"
    )
    fill_up: bool | None = Field(
        None, description="fill lists of fewer than k co-users up by repeating them, each epoch"
    )

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        "sampling": "n_co_users",
        "user_aggr_mode": "user_weighting",
    }


class DualGraphs(Recommender):
    """Networks of the modalities on the user-item graph, then the graph of co-users.

    A subclass says how modalities are fused, in `_fused`.

    Args:
        fill_up: Whether lists of co-users are filled up.
    """

    learns_absent = True
    id_weights = (*Recommender.id_weights, "preference.*")

    def __init__(
        self, train: TrainSet, content: Content, config: DualGraphsConfig, init: Init, fill_up: bool
    ) -> None:
        super().__init__()
        self.config, self.fill_up, d = config, fill_up, config.embedding_dim
        self.stand_ins = content.stand_ins()
        self.preference, self.hidden, self.projection = (
            nn.ParameterDict(), nn.ModuleDict(), nn.ModuleDict(),
        )  # fmt: skip
        for m, vectors in content.vectors.items():
            self.register_buffer(f"features_{m}", vectors, persistent=False)
            self.preference[m] = init.xavier_normal(f"preference.{m}", train.n_users, d)
            self.hidden[m] = init.linear(f"hidden.{m}", vectors.shape[1], HIDDEN * d)
            self.projection[m] = init.linear(f"projection.{m}", HIDDEN * d, d)
        self.user_weights: nn.Parameter | None = None
        if len(content) > 1:  # one modality is not weighed against others
            start = init.xavier_normal("user_weights", train.n_users, len(content))
            self.user_weights = nn.Parameter(torch.softmax(start.data, 1))
        dtype = self.preference[next(iter(content))].dtype
        self.graph = normalised_sides(train, dtype)
        self.co_users = co_users(train, config.n_co_users, config.user_weighting, dtype=dtype)
        # Until the first epoch fills the lists up.
        self.epoch_co_users = self.co_users
        self._placed: SparseMatrix | None = None

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Fill the lists of co-users up, if they are."""
        if not self.fill_up:
            return
        device = self.co_users.values.device
        once = self.co_users.to(home(device))
        graph = repeated(once, self._repetitions(once.pattern, epoch, seed)).to(device).ready()
        self.epoch_co_users = self._placed = graph.placed_in(self._placed)

    def _repetitions(self, pattern: SparsePattern, epoch: int, seed: int) -> Tensor:
        """How often this epoch's lists hold each entry of the pattern of `co_users`."""
        stream = epoch_stream(seed, "co-users", epoch, pattern.indices.device)
        return repetitions(pattern, self.config.n_co_users, stream)

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr`, `preference_l2` and, of several modalities, `weight_l2`."""
        batch_users = grouped(batch.users)
        items, places = distinct(torch.cat([batch.pos, batch.neg]))
        users, item = self._fused(items)
        # Only the batch's users take from their co-users, who may be anybody.
        user = take(users, batch_users) + self.epoch_co_users.rows(batch.users) @ users
        # In bits: both codes take the logarithm to base 2.
        terms = {"bpr": bpr_loss(*pair_scores(user, item, places)) / math.log(2)}
        rows = [mean_square(take(table, batch_users)) for table in self.preference.values()]
        terms["preference_l2"] = torch.stack(rows).sum() * self.config.reg_weight
        if self.user_weights is not None:
            # The weights of all users, whatever the batch is.
            terms["weight_l2"] = mean_square(self.user_weights) * self.config.reg_weight
        return terms

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """The users with what they take from co-users, and the items."""
        users, items = self._fused(None)
        return users + self.co_users @ users, items

    def _fused(self, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """The users before they meet co-users, (n_users, w), and some items or all, (n, w)."""
        raise AssertionError("abstract")

    def _networks(self, items: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Return h of each modality: of the users (n_users, d), of some items or all (n, d)."""
        of_users, of_items = [], []
        for m, table in self.preference.items():
            users = normalise_rows(table)
            content = self._content(m, self.get_buffer(f"features_{m}"))
            h = propagate_sides(self.graph, users, content, self.config.n_layers, rows=items)
            of_users.append(h[0])
            of_items.append(h[1])
        return of_users, of_items

    def _content(self, m: str, vectors: Tensor, *, seen: bool = True) -> Tensor:
        """x_m of the training items, or of others, from their vectors (n, dim)."""
        rows = self._perceptron(m, vectors)
        if seen:  # others have the token in their vectors already
            rows = self.stand_ins.put_in(m, rows, lambda token: self._perceptron(m, token))
        return normalise_rows(rows)

    def _perceptron(self, m: str, vectors: Tensor) -> Tensor:
        first, second = (cast(nn.Linear, part[m]) for part in (self.hidden, self.projection))
        hidden = functional.leaky_relu(linear(vectors, first.weight, first.bias), inplace=True)
        return linear(hidden, second.weight, second.bias)
