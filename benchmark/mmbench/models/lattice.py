"""LATTICE: an item-item graph learned from content anew each epoch, beside user-item propagation.

Paper: Zhang, Zhu, Liu, Wu, Wang, Wang: Mining Latent Structures for Multimedia Recommendation, ACM
MM 2021, https://doi.org/10.1145/3474085.3475259 (arXiv 2104.09036).

    kNN(X)  = the k = `neighbours` largest cosines of each row of X, itself included, as weights;
              else 0
    lap(W)  = W_ij / sqrt(s_i s_j), s the row sums of W, its diagonal set to 1 before if
              `unit_diagonal`
    a       = softmax(modality_weights)
    S       = (1 - λ) lap(sum_m a_m kNN(W_m features_m + b_m))                  λ = `raw_weight`
              + λ sum_m a_m lap(kNN(raw vectors of m))      features_m starts from the raw vectors
    h       = S^`n_item_layers` item_embedding
    x       = [user_embedding; item_embedding]
    x'      = rn(D^-1 (A + I) D^-1 x), D the degrees of A + I, `n_ui_layers` times; without
              `layer_norm` no rn, rows divided by max(norm, 1e-12); without `both_sides` no second
              D^-1
    z       = mean of x, x', x'', …
    q_i     = z_i + rn(h)_i ;  s(u, i) = <z_u, q_i>
    L       = mean over the batch of -log sigmoid(s(u, i) - s(u, j))
              + reg_weight / (2 B) * sum over the batch of (|z_u|² + |q_i|² + |q_j|²)
                                                                        the rows as propagated

S is built in the first batch of each epoch, with gradient (not through the choice of neighbours),
and is a constant in the others; ranking builds it afresh, which training does not see. The learning
rate is lr 0.96^((epoch - 1) / 50).

Presets (`preset`), see PRESETS
    paper      what produced the tables of arXiv 2309.05273. Under torch before 2, where a cleared
               gradient was zero and not absent, features, projections and modality weights go on by
               their momentum in the batches that give them no gradient (`legacy_zero_grad`). With
               rn, the D^-1 on the left cancels: a neighbour counts 1 / (degree + 1).
    original   the authors' code, with the LightGCN backbone, under the torch of its time.
    corrected  `original` under today's torch: what has no gradient stays.

Differences from both codes: the last batch of an epoch is what is left of the edges, in `original`
too; a row sum that is not positive counts as none, instead of turning S into NaN; so does a zero
vector: it is similar to itself alone.

Exact, and fast: no items x items array (neighbours in blocks, then the chosen cosines with
gradient); S and the last user-item layer only for the rows of a batch; the vectors are a
`RowTable`, which catches up with the steps of dense Adam when S is built next.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d), modality_weights
(n_modalities,), for each modality features.<m> (n_items, k_m), projection.<m>.weight
(`content_dim`, k_m) and projection.<m>.bias (`content_dim`,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmbench.core.sampling import DistinctUsers, Init, Triples
from mmbench.models.base import (
    Content,
    ModelConfig,
    TrainsContent,
    TrainSet,
    bpr_loss,
    squared_norm,
)
from mmbench.models.cells import Cell
from mmbench.ops.ann import approximate_knn, recall
from mmbench.ops.dense import normalise_rows
from mmbench.ops.graph import (
    NeighbourUnion,
    bipartite,
    laplacian,
    row_normalised,
    symmetric_normalised,
    with_self_loops,
)
from mmbench.ops.knn import cosine_knn, gathered_cosines
from mmbench.ops.memory import block_bytes
from mmbench.ops.rows import distinct, take
from mmbench.ops.sparse import SparseMatrix, SparsePattern, weighted_product

_BLOCK_BYTES = 32 * 2**20  # of cosines at once: this comes on top of the vectors and their moments


@dataclass(frozen=True)
class Variant:
    """What the presets differ in; see the fields of the same names in `LATTICEConfig`."""

    neighbours: int
    raw_weight: float
    both_sides: bool
    layer_norm: bool
    unit_diagonal: bool
    legacy_zero_grad: bool


PRESETS = {
    "paper": Variant(20, 0.7, True, True, True, True),
    "original": Variant(10, 0.9, False, False, False, True),
    "corrected": Variant(10, 0.9, False, False, False, False),
}


class LATTICEConfig(ModelConfig):
    """Settings of LATTICE; the defaults are the published best values of Amazon Office.

    None: what the preset says.
    """

    preset: Literal["paper", "original", "corrected"] = Field("paper", description="whose LATTICE")
    reg_weight: float = Field(
        1e-5, ge=0, description="weight of the propagated rows' squared norms"
    )
    n_ui_layers: int = Field(2, ge=0, description="propagations on the user-item graph")
    n_item_layers: int = Field(1, ge=0, description="propagations on the item-item graph")
    content_dim: int = Field(64, ge=1, description="width of the projected content")
    neighbours: int | None = Field(None, ge=1, description="k, neighbours in a modality's graph")
    raw_weight: float | None = Field(None, ge=0, le=1, description="λ, share of the raw graph")
    both_sides: bool | None = Field(None, description="divide edges by both degrees, not by one")
    layer_norm: bool | None = Field(None, description="normalise rows after each user-item layer")
    unit_diagonal: bool | None = Field(None, description="set the item graphs' diagonals to 1")
    legacy_zero_grad: bool | None = Field(None, description="momentum goes on without a gradient")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        **dict.fromkeys(["top_k", "knn_k"], "neighbours"),
        **dict.fromkeys(["l_m", "lambda_coeff"], "raw_weight"),
        **dict.fromkeys(["factors_multimod", "feat_embed_dim"], "content_dim"),
        "n_layers": "n_item_layers",
    }

    @property
    def variant(self) -> Variant:
        """The preset's values; where a field is given, that."""
        return self.over(PRESETS[self.preset])


class LATTICE(TrainsContent):
    """Latent item-item structure learned from content, over LightGCN."""

    Config = LATTICEConfig
    cell = Cell(
        modalities="any; pictures and texts in 2021",
        representation="coordinate",
        fusion="early",
        operator="weighted, of item graphs",
        side="item",
        backbone="lightgcn + learned item graph",
    )
    make_sampler = DistinctUsers

    raw_values: Tensor  # of each modality's raw graph on the pattern of all, (n_modalities, nnz)

    def __init__(
        self, train: TrainSet, content: Content, config: LATTICEConfig, init: Init
    ) -> None:
        super().__init__()
        self.config, self.variant, self.n_users = config, config.variant, train.n_users
        self.legacy_zero_grad = self.variant.legacy_zero_grad
        d = config.embedding_dim
        self.user_embedding = init.xavier_uniform("user_embedding", train.n_users, d)
        self.item_embedding = init.xavier_uniform("item_embedding", train.n_items, d)
        # Equal weights: a starts at 1 / n_modalities.
        self.modality_weights = nn.Parameter(torch.full((len(content),), 1 / len(content)))
        if len(content) == 1:  # the softmax of one is 1 whatever its weight
            self.untrained = frozenset({"modality_weights"})
        self._add_content(content, config.content_dim, init)
        adjacency, dtype = with_self_loops(bipartite(train)), self.item_embedding.dtype
        if self.variant.both_sides:
            self.graph = symmetric_normalised(adjacency, power=1, dtype=dtype)
        else:
            self.graph = row_normalised(adjacency, dtype=dtype)
        self.k = min(self.variant.neighbours, train.n_items)
        self.recalls = content.recalls
        # The raw graphs are built once and stay constant although features_m is trained.
        near, cosines = zip(*(content.neighbours(m, self.k) for m in content), strict=True)
        raw = NeighbourUnion.of(*near)
        values = [
            # One list at a time: each graph is normalised by its own row sums.
            self._laplacian(raw, [c if n == m else None for n, c in enumerate(cosines)])
            for m in range(len(near))
        ]
        self.raw_pattern = raw.pattern
        self.register_buffer("raw_values", torch.stack(values), persistent=False)
        # The learned and the raw part of S, as the first batch of an epoch built them.
        self.item_graphs: tuple[SparseMatrix, SparseMatrix] | None = None
        self._block = 0  # bytes of cosines at once

    def lr_factor(self, epoch: int) -> float:
        """0.96^((epoch - 1) / 50)."""
        # A real exponent: the rate falls a little each epoch, by the factor 0.96 in 50.
        return float(0.96 ** ((epoch - 1) / 50))

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr` and `l2`."""
        size = len(batch.users)
        # z and h of the batch's distinct items; equal items share a row.
        items, inverse = distinct(torch.cat([batch.pos, batch.neg]))
        z = self._user_item(torch.cat([batch.users, items + self.n_users]))
        if batch.first or self.item_graphs is None:
            # The one batch whose gradient reaches features, projections and modality weights.
            h = self._built_item_rows(items)
        else:
            h = self._item_rows(items, *self.item_graphs)
        user = z[:size]  # (B, d)
        # q_i = z_i + rn(h)_i; rn works row by row, so the batch's rows suffice.
        item = take(z[size:] + normalise_rows(h), inverse)  # (2 B, d)
        bpr = bpr_loss((user * item[:size]).sum(1), (user * item[size:]).sum(1))
        return {"bpr": bpr, "l2": squared_norm(user, item) * (self.config.reg_weight / (2 * size))}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Z_u and q_i, with S built from the parameters as they are."""
        pattern, learned, raw = self._build()
        z, h = self._user_item(), self.item_embedding.detach()
        for _ in range(self.config.n_item_layers):
            # S h as two products: the learned and the raw graph have different patterns.
            h = pattern.multiply(learned, h) + self.raw_pattern.multiply(raw, h)
        return z[: self.n_users], z[self.n_users :] + normalise_rows(h)

    def _user_item(self, nodes: Tensor | None = None) -> Tensor:
        """Z of some nodes (users, then items) or of all, the last layer for these alone."""
        x = torch.cat([self.user_embedding, self.item_embedding])
        total = x if nodes is None else take(x, nodes)
        for left in reversed(range(self.config.n_ui_layers)):
            # Every layer but the last needs all nodes, as the next one reads their neighbours.
            x = self.graph @ x if left or nodes is None else self.graph.rows(nodes) @ x
            x = normalise_rows(x) if self.variant.layer_norm else x
            total = total + (take(x, nodes) if left and nodes is not None else x)
        return total / (self.config.n_ui_layers + 1)

    def _build(self, *, finite: bool = False) -> tuple[SparsePattern, Tensor, Tensor]:
        """The learned graph's pattern, its values times 1 - λ, and the raw graph's times λ.

        `finite`: as in `cosine_knn`.
        """
        content, lists = [], []
        for m in self.features:
            x = self._project(m, None)  # (n_items, content_dim)
            # A block that was once free is free when the step is captured and replayed, too.
            self._block = self._block or block_bytes(x.device, _BLOCK_BYTES)
            content.append(x)
            if self.recalls is None:
                near = cosine_knn(x, self.k, block_bytes=self._block, finite=finite)[0]
            else:
                near = approximate_knn(x, self.k)[0]
                if not self.training:
                    self.recalls[f"{m}, learned"] = recall(x, near)
            lists.append(near)
        union, weights = NeighbourUnion.of(*lists), torch.softmax(self.modality_weights, 0)
        # The choice of neighbours has no gradient; the cosines with the chosen ones have.
        # a_m weighs the cosines before lap and so enters the row sums.
        parts = zip(weights, content, lists, strict=True)
        cosines = [w * gathered_cosines(x, near) for w, x, near in parts]
        share = self.variant.raw_weight
        learned = self._laplacian(union, cosines) * (1 - share)
        # λ sum_m a_m lap(kNN(raw)): constant graphs, of which only a_m has a gradient.
        return union.pattern, learned, (weights * share) @ self.raw_values

    def _laplacian(self, union: NeighbourUnion, cosines: list[Tensor | None]) -> Tensor:
        values = union.combine(cosines, unit_diagonal=self.variant.unit_diagonal)
        return laplacian(union.pattern, values)

    def _built_item_rows(self, items: Tensor) -> Tensor:
        """Rows of h while S is built, with its gradient; keeps S for the epoch's other batches."""
        # Content that is not finite shows in the loss.
        pattern, learned, raw = self._build(finite=True)
        # Detached: the other batches must not run a second backward through this one's S.
        graphs = (
            SparseMatrix(pattern, learned.detach()).ready(),
            SparseMatrix(self.raw_pattern, raw.detach()).ready(),
        )
        before = self.item_graphs or (None, None)
        self.item_graphs = graphs[0].placed_in(before[0]), graphs[1].placed_in(before[1])
        h: Tensor = self.item_embedding
        for _ in range(self.config.n_item_layers):
            h = weighted_product(pattern, learned, h) + weighted_product(self.raw_pattern, raw, h)
        return take(h, items)

    def _item_rows(self, items: Tensor, learned: SparseMatrix, raw: SparseMatrix) -> Tensor:
        """Rows of h under a constant S."""
        h: Tensor = self.item_embedding
        for left in reversed(range(self.config.n_item_layers)):
            h = learned @ h + raw @ h if left else learned.rows(items) @ h + raw.rows(items) @ h
        return h if self.config.n_item_layers else take(h, items)
