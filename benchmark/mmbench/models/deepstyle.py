"""DeepStyle: an item's style is its projected content without what its category looks like.

Paper: Liu, Wu, Wang: DeepStyle: Learning User Preferences for Visual Recommendation, SIGIR 2017,
https://doi.org/10.1145/3077136.3080658; here, as VBPR, for any modalities side by side.

    X       = [F_m1 | F_m2 | …]                         raw features, used as they are, not trained
    q_i     = W X_i - l_c(i) + item_factors_i            c(i): the item's category
    s(u, i) = <user_factors_u, q_i>
    L       = mean over the batch of -log sigmoid(s(u, i) - s(u, j))
              + reg_weight / (2 B) * sum over the batch of (|user_factors_u|² + |item_factors_i|²
                + |item_factors_j|² + |l_c(i)|² + |l_c(j)|²) + content_reg_weight / 2 * |W|²

The categories are a column of the items table (`--categories COLUMN`). An item with several counts
as the first in alphabetical order; those with none share a category of their own.

Differences from the paper: Adam instead of plain SGD; every training edge once per epoch; the
penalty has two weights instead of one. The defaults are those of VBPR.

Exact, and fast: content is projected once for each distinct item of a batch.

Trainable: user_factors (n_users, d), item_factors (n_items, d), style (n_categories, d),
projection.weight (d, k).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Init, Triples
from mmbench.models.base import (
    Content,
    ModelConfig,
    Recommender,
    TrainSet,
    bpr_loss,
    penalty,
    squared_norm,
)
from mmbench.models.cells import Cell
from mmbench.models.fixed_content import FixedContent
from mmbench.ops.dense import linear
from mmbench.ops.rows import distinct, grouped, pair_scores, take


class DeepStyleConfig(ModelConfig):
    """Settings of DeepStyle."""

    lr: float = Field(5e-3, gt=0, description="Adam's step size")
    reg_weight: float = Field(
        1e-2, ge=0, description="weight of the squared norms of a batch's rows"
    )
    content_reg_weight: float = Field(0.0, ge=0, description="weight of |W|²")


class DeepStyle(FixedContent):
    """Content minus category plus id, met by one vector of the user."""

    Config = DeepStyleConfig
    cell = Cell(
        modalities="any; pictures in 2017",
        representation="joint",
        fusion="early",
        operator="sum with the id, less the category",
        side="item",
        backbone="dot",
    )
    learns_absent = True
    uses_categories = True
    # Another dataset's categories are others, even where they are as many.
    id_weights = (*Recommender.id_weights, "style")

    features: Tensor
    category: Tensor

    def __init__(
        self, train: TrainSet, content: Content, config: DeepStyleConfig, init: Init
    ) -> None:
        super().__init__()
        self.config, d = config, config.embedding_dim
        self.widths = {m: one.vectors.shape[1] for m, one in content.items()}
        self.stand_ins = content.stand_ins()
        self.register_buffer("features", content.side_by_side(), persistent=False)  # (n_items, k)
        given = content.categories
        category = torch.zeros(train.n_items, dtype=torch.int64) if given is None else given
        self.register_buffer("category", category, persistent=False)  # (n_items,)
        self.user_factors = init.xavier_uniform("user_factors", train.n_users, d)
        self.item_factors = init.xavier_uniform("item_factors", train.n_items, d)
        n_categories = int(category.max()) + 1
        self.style = init.xavier_uniform("style", n_categories, d)
        self.projection = init.linear("projection", self.features.shape[1], d)
        self.projection.register_parameter("bias", None)  # it would cancel in every difference

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr` and `l2`."""
        users, pair = grouped(batch.users), grouped(torch.cat([batch.pos, batch.neg]))
        items, places = distinct(pair)
        user = take(self.user_factors, users)  # (B, d)
        own, style = take(self.item_factors, items), take(self.style, self.category[items])
        vectors = self._vectors(items)
        q = linear(vectors, self.projection.weight) - style + own  # of the n distinct items
        scores = pair_scores(user, q, places)
        # A row counts as often as the batch has it.
        rows = (user, take(own, places), take(style, places))
        l2 = penalty("squared", self.config.reg_weight, len(user), *rows)
        if self.config.content_reg_weight:
            l2 = l2 + squared_norm(self.projection.weight) * (self.config.content_reg_weight / 2)
        return {"bpr": bpr_loss(*scores), "l2": l2}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return user_factors and q."""
        vectors = self._vectors()
        projected = linear(vectors, self.projection.weight)
        return self.user_factors, projected - self.style[self.category] + self.item_factors
