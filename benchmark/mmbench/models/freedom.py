"""FREEDOM: a frozen item-item graph from content, and a user-item graph pruned anew each epoch.

Paper: Zhou, Shen: A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal
Recommendation, ACM MM 2023, https://doi.org/10.1145/3581783.3611943 (arXiv 2211.06924).

    S_m     = 1 / (k + 1e-7) on the k = `neighbours` nearest items of each row by cosine of the raw
              vectors, itself included; else 0
    S       = sum_m a_m S_m                                     frozen; a_m: `modality_weights`
    n       = floor(n_edges (1 - edge_dropout)) edges per epoch, drawn without replacement,
              P(u, i) ~ (d_u d_i)^-1/2
    Â'      = those edges, D'^-1/2 A' D'^-1/2 with their own degrees, 1e-7 added to each
    x       = [user_embedding; item_embedding]
    z       = mean of x, Â' x, …, Â'^L x                                       L = `n_ui_layers`
    q_i     = z_i + (S^`n_item_layers` item_embedding)_i
    g_m,i   = W_m features_m,i                              features_m starts from the raw vectors
    L       = mean of -log sigmoid <z_u, q_i - q_j>
              + content_loss_weight * sum_m mean of -log sigmoid <z_u, g_m,i - g_m,j>
    s(u, i) = <z_u, q_i> with the full graph in the place of Â'

There are no presets: the code behind the tables of arXiv 2309.05273 does what the authors' does.
(The authors train with batch_size 2048.)

Differences from both codes: the bias of the projections, which cancels in g_i - g_j, is left out;
the batches of an epoch do not depend on what was trained before; full ranking uses the sparse
graph, and edge_dropout 0 works; modalities other than visual and textual have weights too, see
`modality_weights`.

Exact, and fast: content is projected, and the item graph multiplied, for the distinct items of a
batch only; the vectors are a `RowTable`, whose rows catch up with dense Adam when they are next
used.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d), for each modality features.<m>
(n_items, k_m) and projection.<m>.weight (d, k_m). Without weight on the content loss the last two
stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Init, Triples
from mmbench.errors import UsageError
from mmbench.models.base import Content, ModelConfig, TrainsContent, TrainSet, bpr_loss
from mmbench.models.cells import Cell
from mmbench.models.pruning import PrunesEdges
from mmbench.ops.graph import NeighbourUnion, propagate
from mmbench.ops.rows import distinct, pair_scores, take
from mmbench.ops.sparse import SparseMatrix


class FREEDOMConfig(ModelConfig):
    """Settings of FREEDOM; the defaults are the published best values of Amazon Office."""

    content_loss_weight: float = Field(
        1e-5, ge=0, description="weight of a modality's ranking loss"
    )
    n_ui_layers: int = Field(2, ge=0, description="L, propagations on the user-item graph")
    n_item_layers: int = Field(1, ge=0, description="propagations on the item-item graph")
    neighbours: int = Field(10, ge=1, description="k, entries of each row of the item-item graph")
    modality_weights: dict[str, float] | None = Field(
        None,
        description="a_m by modality; none: visual 0.1 and the others 0.9 together, without visual "
        "equal shares",
    )
    edge_dropout: float = Field(0.8, ge=0, lt=1, description="share of edges an epoch leaves out")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        **dict.fromkeys(["l_w", "reg", "reg_weight"], "content_loss_weight"),
        **dict.fromkeys(["top_k", "knn_k"], "neighbours"),
        **dict.fromkeys(["n_layers", "n_mm_layers"], "n_item_layers"),
        **dict.fromkeys(["drop", "dropout"], "edge_dropout"),
    }
    RETIRED: ClassVar[frozenset[str]] = frozenset({"preset"})


class FREEDOM(PrunesEdges, TrainsContent):
    """Frozen item-item graph, degree-sensitive pruning of the user-item graph."""

    Config = FREEDOMConfig
    config: FREEDOMConfig
    cell = Cell(
        modalities="any; pictures and texts in 2023",
        representation="coordinate",
        fusion="early",
        operator="sum of item graphs, fixed weights",
        side="item",
        backbone="lightgcn, pruned, + frozen item graph",
    )

    def __init__(
        self, train: TrainSet, content: Content, config: FREEDOMConfig, init: Init
    ) -> None:
        super().__init__()
        self.config = config
        d = config.embedding_dim
        self.user_embedding = init.xavier_uniform("user_embedding", train.n_users, d)
        self.item_embedding = init.xavier_uniform("item_embedding", train.n_items, d)
        self._add_content(content, d, init)
        for projection in self.projection.values():
            # b_m cancels in g_i - g_j, so it would never get a gradient.
            projection.register_parameter("bias", None)
        self._add_graphs(train, self.item_embedding.dtype)
        weights = modality_weights(config.modality_weights, list(content))
        self.item_graph = frozen_item_graph(
            content, config.neighbours, weights, self.item_embedding.dtype
        )

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr`, and `bpr_<modality>` for each."""
        size = len(batch.users)
        # The n distinct items of the batch: everything but the users is computed for these alone.
        items, places = distinct(torch.cat([batch.pos, batch.neg]))
        nodes = torch.cat([batch.users, items + self.train_set.n_users])
        x = torch.cat([self.user_embedding, self.item_embedding])
        z = propagate(self.epoch_graph, x, self.config.n_ui_layers, rows=nodes)  # (B + n, d)
        # q_i = z_i + (S^n item_embedding)_i, at the batch's items.
        h = self._item_propagation(items)
        user, q = z[:size], z[size:] + h  # (B, d), (n, d)

        def ranking(item: Tensor) -> Tensor:
            # <z_u, q_i - q_j> as the difference of two scores.
            return bpr_loss(*pair_scores(user, item, places))

        terms = {"bpr": ranking(q)}
        for m in self.features:
            # g_m,i meets z_u, not q_i: the gradient reaches item_embedding through z_u alone.
            terms[f"bpr_{m}"] = ranking(self._project(m, items)) * self.config.content_loss_weight
        return terms

    def _item_propagation(self, items: Tensor | None = None) -> Tensor:
        return item_propagation(
            self.item_graph, self.item_embedding, self.config.n_item_layers, items
        )

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Z_u and q_i on the full graph."""
        x = torch.cat([self.user_embedding, self.item_embedding])
        # Ranking keeps every edge and reads no feature: S is frozen, and g_m enters the loss alone.
        z = propagate(self.full_graph, x, self.config.n_ui_layers)
        n_users = self.train_set.n_users
        return z[:n_users], z[n_users:] + self._item_propagation()


def frozen_item_graph(
    content: Content, neighbours: int, weights: Mapping[str, float], dtype: torch.dtype
) -> SparseMatrix:
    """S, on the union of the modalities' neighbours."""
    k = min(neighbours, len(next(iter(content.vectors.values()))))
    lists = {m: content.neighbours(m, k)[0] for m in content}  # (n_items, k) each
    union = NeighbourUnion.of(*lists.values())
    # S_m has one value; an edge of several modalities gets the sum of a_m S_m.
    entries = [
        torch.full_like(near, weights[m] / (k + 1e-7), dtype=dtype) for m, near in lists.items()
    ]
    return SparseMatrix(union.pattern, union.combine(entries))


def item_propagation(
    graph: SparseMatrix, x: Tensor, n_layers: int, items: Tensor | None = None
) -> Tensor:
    """Rows of S^n x, all or some."""
    h = x
    # Only the last product can be limited to rows: those before it need the rows' neighbours.
    for _ in range(n_layers if items is None else n_layers - 1):
        h = graph @ h
    if items is None:
        return h
    return graph.rows(items) @ h if n_layers else take(h, items)


def modality_weights(given: Mapping[str, float] | None, modalities: list[str]) -> dict[str, float]:
    """The weight of each modality's item graph.

    Raises:
        UsageError: `given` does not name exactly the modalities.
    """
    if given is not None:
        if set(given) != set(modalities):
            raise UsageError(
                f"modality_weights: the modalities are {', '.join(modalities)} (got "
                f"{', '.join(given)}); weigh each"
            )
        return dict(given)
    others = len(modalities) - 1
    # The authors' 0.1 for pictures and 0.9 for texts; all other modalities share the 0.9.
    if "visual" in modalities and others:
        return {m: 0.1 if m == "visual" else 0.9 / others for m in modalities}
    return {m: 1 / len(modalities) for m in modalities}
