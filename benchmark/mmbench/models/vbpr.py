"""VBPR: matrix factorisation plus a second user table that scores projected item content.

Paper: He, McAuley: VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback, AAAI 2016,
https://arxiv.org/abs/1510.01784; extended here, as in arXiv 2309.05273, to any modalities by
concatenating their vectors.

    X       = [F_m1 | F_m2 | …]                         raw features, used as they are, not trained
    e_i     = W X_i + c ;   p_i = e_i / max(|e_i|, 1e-12)
    s(u, i) = <user_factors_u, item_factors_i> + <user_content_factors_u, p_i>
              (`original`: + b_i + <content_bias, X_i>, and p_i = e_i)
    L       = mean over the batch of -log sigmoid(s(u, i) - s(u, j))
              + reg_weight / (2 B) * sum over the batch of (|user_factors_u|² + |item_factors_i|²
                + |item_factors_j|² + |user_content_factors_u|² + |p_i|² + |p_j|²)

Presets (`preset`): where they differ, and from what the paper says
    paper      what produced the tables of arXiv 2309.05273: no biases; a projection with bias whose
               output is normalised; `user_content_factors` starts from N(0, 1), which its code
               meant to be Xavier-uniform; W and c are not regularised (|p| = 1, so its terms are
               constants); positives are drawn user-uniformly with replacement.
    original   the AAAI 2016 model: item bias and content bias, no normalisation, projection without
               bias, Xavier-uniform start (item bias zero), summed loss with `reg_weight` on the
               factors, `bias_reg_weight` on the item bias (a tenth of it for the negative item) and
               `content_reg_weight` on W and the content bias, each times a half of the square;
               every edge once per epoch.
    corrected  `paper` with `user_content_factors` starting Xavier-uniformly.

Always: the loss is computed stably, where the code behind `paper` cuts differences below -80, and
with them the gradient. The projection is computed once for each distinct item of a batch, which is
the same sum in another order.

Trainable: user_factors (n_users, d), item_factors (n_items, d), user_content_factors (n_users, d),
projection.weight (d, k), projection.bias (d,); `original` has item_bias (n_items,) and content_bias
(k,) and no projection.bias.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Edges, Init, Sampler, Triples, UniformUsers, zeros
from mmbench.models.base import (
    Content,
    Known,
    ModelConfig,
    Score,
    TrainSet,
    bpr_loss,
    squared_norm,
)
from mmbench.models.cells import Cell
from mmbench.models.fixed_content import FixedContent
from mmbench.ops.dense import linear, normalise_rows
from mmbench.ops.id_table import batch_rows, id_table, whole
from mmbench.ops.rows import distinct, grouped, take
from mmbench.ops.tiles import InnerProducts


class VBPRConfig(ModelConfig):
    """Settings of VBPR; the defaults are the published best values of Amazon Office."""

    preset: Literal["paper", "original", "corrected"] = Field("paper", description="whose VBPR")
    lr: float = Field(5e-3, gt=0, description="Adam's step size")
    reg_weight: float = Field(
        1e-2, ge=0, description="weight of the squared norms of a batch's rows"
    )
    bias_reg_weight: float = Field(1e-2, ge=0, description="preset original: weight on item biases")
    content_reg_weight: float = Field(
        0.0, ge=0, description="preset original: weight on W and bias"
    )


class VBPR(FixedContent):
    """Visual BPR over any modalities."""

    Config = VBPRConfig
    cell = Cell(
        modalities="any; pictures in 2016",
        representation="joint",
        fusion="early",
        operator="concat with the id",
        side="item",
        backbone="dot",
    )
    scores_unseen = True
    learns_absent = True

    features: Tensor

    def __init__(self, train: TrainSet, content: Content, config: VBPRConfig, init: Init) -> None:
        super().__init__()
        self.config = config
        self.original = config.preset == "original"
        self.widths = {m: one.vectors.shape[1] for m, one in content.items()}
        self.stand_ins = content.stand_ins()
        self.register_buffer("features", content.side_by_side(), persistent=False)  # (n_items, k)
        k, d = self.features.shape[1], config.embedding_dim
        self.user_factors = id_table(init.xavier_uniform("user_factors", train.n_users, d))
        self.item_factors = id_table(init.xavier_uniform("item_factors", train.n_items, d))
        # N(0, 1) against unit rows p_i: the content part dominates the first scores.
        start = init.normal if config.preset == "paper" else init.xavier_uniform
        self.user_content_factors = id_table(start("user_content_factors", train.n_users, d))
        self.projection = init.linear("projection", k, d)
        if self.original:
            self.projection.weight = init.xavier_uniform("projection.weight", d, k)
            self.projection.register_parameter("bias", None)
            self.item_bias = zeros(train.n_items)
            # Xavier-uniform for a matrix of k rows and one column.
            self.content_bias = init.uniform("content_bias", k, bound=math.sqrt(6 / (k + 1)))

    def _projected(self, content: Tensor) -> Tensor:
        """Projection of the given content, shape (n, k), to shape (n, d)."""
        projected = linear(content, self.projection.weight, self.projection.bias)
        return projected if self.original else normalise_rows(projected)

    def make_sampler(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str
    ) -> Sampler:
        """Users uniformly; `original`: every edge."""
        return (Edges if self.original else UniformUsers)(train, batch_size, seed, device)

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr` and `l2`."""
        size = len(batch.users)
        users, pair = grouped(batch.users), grouped(torch.cat([batch.pos, batch.neg]))
        items, inverse = distinct(pair)
        vectors = self._vectors(items)
        content = take(self._projected(vectors), inverse)  # (2B, d)
        item = batch_rows(self.item_factors, pair)  # (2B, d)
        user = batch_rows(self.user_factors, users)  # (B, d)
        user_content = batch_rows(self.user_content_factors, users)  # (B, d)
        # s(u, i) and s(u, j) at once: the ids' part, then the content's part.
        scores = (user.repeat(2, 1) * item).sum(1)  # (2B,)
        scores = scores + (user_content.repeat(2, 1) * content).sum(1)
        weight = self.config.reg_weight
        if not self.original:
            l2 = squared_norm(user, item, user_content, content) * (weight / (2 * size))
            return {"bpr": bpr_loss(scores[:size], scores[size:]), "l2": l2}
        # `original` adds b_i and <content_bias, X_i>.
        bias = take(self.item_bias[:, None], pair).flatten()  # (2B,)
        scores = scores + bias
        scores = scores + take(vectors @ self.content_bias[:, None], inverse).flatten()
        # The negative's bias counts a tenth.
        bias_norms = squared_norm(bias[:size]) + squared_norm(bias[size:]) / 10
        # W and content_bias count whole in every batch, not by the batch's rows.
        content_norms = squared_norm(self.projection.weight, self.content_bias)
        l2 = squared_norm(user, item, user_content) * weight
        l2 = l2 + bias_norms * self.config.bias_reg_weight
        l2 = l2 + content_norms * self.config.content_reg_weight
        # `original` sums over the batch, hence the factor on the mean.
        return {"bpr": bpr_loss(scores[:size], scores[size:]) * size, "l2": l2 / 2}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """[user_factors | user_content_factors | 1] and [item_factors | p | biases]."""
        users = [whole(self.user_factors), whole(self.user_content_factors)]
        if self.original:
            # The ones meet the items' biases: <[… | 1], [… | b]> adds b.
            users.append(torch.ones_like(users[0][:, :1]))
        vectors = self._vectors()
        return torch.cat(users, 1), self._items(vectors, whole(self.item_factors), trained=True)

    def scorer(self, known: Known) -> Score:
        """Unseen items have a content part; factors and bias that were never trained are zero."""
        users, items = self.embeddings()
        n_unseen = known.n_items - len(items)
        if n_unseen:
            unseen = slice(len(items), known.n_items)
            vectors = [self.stand_ins.of_others(m, known.content[m], unseen) for m in self.widths]
            content = torch.cat(vectors, 1).to(items.device)  # (n_unseen, k)
            factors = items.new_zeros(n_unseen, self.config.embedding_dim)
            items = torch.cat([items, self._items(content, factors, trained=False)])
        return InnerProducts(users, items.T.contiguous())

    def _items(self, content: Tensor, factors: Tensor, *, trained: bool) -> Tensor:
        """[factors | p | biases] of items with the given content; untrained rows have no bias."""
        projected = self._projected(content)
        if not self.original:
            return torch.cat([factors, projected], 1)
        bias = self.item_bias if trained else 0.0  # unseen items have no trained b_i
        return torch.cat([factors, projected, (content @ self.content_bias + bias)[:, None]], 1)
