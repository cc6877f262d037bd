"""BM3: no negatives; two views of each user and item, one of them dropped out, are drawn together.

Paper: Zhou, Zhou, Liu, Zeng, Miao, Wang, You, Jiang: Bootstrap Latent Representations for
Multi-modal Recommendation, WWW 2023, https://doi.org/10.1145/3543507.3583251 (arXiv 2207.05969).

    x       = [user_embedding; item_embedding]
    Â       = D^-1/2 A D^-1/2, 1e-7 added to each degree, no self loops
    z       = mean of x, Â x, …, Â^L x                                          L = `n_layers`
    h_u     = z_u ;  h_i = z_i + item_embedding_i
    g_m,i   = W_m features_m,i + b_m                        features_m starts from the raw vectors
    p(y)    = Q y + q                         one predictor for users, items and modalities
    t_u, t_i, t_m,i = h_u, h_i, g_m,i as constants, each entry zero with probability `dropout`,
              else divided by 1 - dropout
    c(a, b) = mean over the batch of the cosine of a and b
    L       = [1 - c(p(h_u), t_i)] + [1 - c(p(h_i), t_u)]
              + cl_weight * sum_m {[1 - c(p(g_m,i), t_i)] + [1 - c(p(g_m,i), t_m,i)]}
              + reg_weight * (|h_users| + |h_items|) / n_items
                                                        Frobenius norms of all rows, not squared
    s(u, i) = <p(h_u), p(h_i)>

So content reaches a score through Q and q alone: the losses on modalities leave the embeddings as
they are, and features are not needed to rank.

There are no presets: the code behind the tables of arXiv 2309.05273 does what the authors' does.
(The authors train with batch_size 2048.)

Differences from both codes: the batches of an epoch do not depend on what was trained before;
dropout is drawn for the rows of a batch only (the same law: one draw for each row, however often
the row occurs and whatever it is compared with).

Exact, and fast: projection and predictor are computed for the distinct users and items of a batch
only; the vectors are a `RowTable`, whose rows catch up with dense Adam when they are next used.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d), predictor.weight Q (d, d),
predictor.bias q (d,), for each modality features.<m> (n_items, k_m), projection.<m>.weight (d, k_m)
and projection.<m>.bias (d,).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import EdgesOnly, Init, Pairs
from mmbench.models.base import Content, ModelConfig, TrainsContent, TrainSet
from mmbench.models.cells import Cell
from mmbench.ops.dense import cosines, linear
from mmbench.ops.draws import dropped
from mmbench.ops.graph import DEGREE_EPSILON, bipartite, propagate, symmetric_normalised
from mmbench.ops.norms import norm
from mmbench.ops.rows import distinct, occurrences, take


class BM3Config(ModelConfig):
    """Settings of BM3; the defaults are the published best values of Amazon Office."""

    lr: float = Field(5e-3, gt=0, description="Adam's step size")
    n_layers: int = Field(1, ge=0, description="L, propagations on the user-item graph")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the targets' entries made zero")
    cl_weight: float = Field(2.0, ge=0, description="weight of each modality's two losses")
    reg_weight: float = Field(1e-2, ge=0, description="weight of the norms of all users and items")

    RETIRED: ClassVar[frozenset[str]] = frozenset({"preset"})


class BM3(TrainsContent):
    """Bootstrapped views of users, items and modalities, without negatives."""

    Config = BM3Config
    cell = Cell(
        modalities="any; pictures and texts in 2023",
        representation="coordinate",
        operator="none: content is in losses alone",
        side="item",
        backbone="lightgcn, then a linear layer",
    )
    make_sampler = EdgesOnly

    def __init__(self, train: TrainSet, content: Content, config: BM3Config, init: Init) -> None:
        super().__init__()
        self.config, self.sizes = config, [train.n_users, train.n_items]
        d = config.embedding_dim
        self.user_embedding = init.xavier_uniform("user_embedding", train.n_users, d)
        self.item_embedding = init.xavier_uniform("item_embedding", train.n_items, d)
        self._add_content(content, d, init, weight="xavier_normal")
        self.predictor = init.linear("predictor", d, d, weight="xavier_normal")
        self.graph = symmetric_normalised(
            bipartite(train), epsilon=DEGREE_EPSILON, dtype=self.item_embedding.dtype
        )

    def loss(self, batch: Pairs) -> dict[str, Tensor]:
        """`user_alignment`, `item_alignment`, `norm`, `<m>_inter` and `<m>_intra`."""
        # Each row of the batch once: n distinct users and k distinct items.
        users, user_of = distinct(batch.users)
        items, item_of = distinct(batch.pos)
        # Every row, not the batch's alone: the norm term runs over all users and items.
        h_users, h_items = self._propagated()
        user = take(h_users, users)  # (n, d)
        item = take(h_items, items)  # (k, d)
        user_target = self._target("user", user, batch)
        # One draw of t_i: the alignment and every inter term compare with the same view.
        item_target = self._target("item", item, batch)
        # The alignment of a user's online view with the target view of its item, and the reverse.
        user_view, item_view = self._predicted(user), self._predicted(item)
        user_cosine = cosines(take(user_view, user_of), take(item_target, item_of))  # (B,)
        item_cosine = cosines(take(item_view, item_of), take(user_target, user_of))  # (B,)
        aligned = torch.stack([user_cosine, item_cosine]).mean(1)  # (2,)
        names, pairs = [], []
        for m in self.features:
            content = self._project(m, items)  # (k, d)
            target = self._target(f"features.{m}", content, batch)
            # inter: p(g_m,i) against t_i; intra: p(g_m,i) against t_m,i.
            view = self._predicted(content)
            names += [f"{m}_inter", f"{m}_intra"]
            pairs += [cosines(view, item_target), cosines(view, target)]
        # Both sides are rows of the item, which counts as often as the batch holds it.
        share = occurrences(item_of, item) / len(batch.pos)  # (k,), sums to 1
        alike = (torch.stack(pairs) * share).sum(1)  # a mean over the batch for each pair
        norms = norm(h_users) + norm(h_items)
        return {
            **dict(zip(["user_alignment", "item_alignment"], 1 - aligned, strict=True)),
            **dict(zip(names, self.config.cl_weight * (1 - alike), strict=True)),
            "norm": norms * (self.config.reg_weight / self.sizes[1]),
        }

    def _propagated(self) -> tuple[Tensor, Tensor]:
        """All h_u (n_users, d) and h_i (n_items, d)."""
        x = torch.cat([self.user_embedding, self.item_embedding])
        users, items = torch.split(propagate(self.graph, x, self.config.n_layers), self.sizes)
        # h_i: the residual is added after the mean over the layers.
        return users, items + self.item_embedding

    def _predicted(self, x: Tensor) -> Tensor:
        return linear(x, self.predictor.weight, self.predictor.bias)

    def _target(self, name: str, view: Tensor, batch: Pairs) -> Tensor:
        """The view of `user`, `item` or `features.<m>`, dropped out, as a constant."""
        # No gradient flows into targets, which keeps all views from becoming equal; the factor
        # 1 / (1 - dropout) keeps the expectation.
        return dropped(view, batch.stream(f"dropout:{name}"), self.config.dropout)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """p(h_u) and p(h_i)."""
        users, items = self._propagated()
        return self._predicted(users), self._predicted(items)
