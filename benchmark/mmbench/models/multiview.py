"""What MGCN and SMORE share: ids that content filters, on item graphs, beside the behaviour.

    h_v,i   = (S_v^`n_item_layers` (item_embedding * filter_v))_i          of each view v
    h_v,u   = (R h_v)_u
    e       = z + side(z, h)          S, R, z and the loss as in the two models' docstrings

A model says what filters the ids (`_filters`) and how the views become one vector (`_side`).

Exact, and fast: the views of items are multiplied as a whole, for the items of a batch's users and
their neighbours are nearly all items. Everything behind them, and the last user-item layer, is
computed for the distinct users and items of the batch alone; contrasts run over these with their
counts, in blocks. The vectors are a `RowTable`, whose update multiplies their gradient out a few
rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from mmbench.core.sampling import Init, Triples
from mmbench.errors import UsageError
from mmbench.models.base import Content, ModelConfig, TrainsContent, TrainSet, bpr_loss
from mmbench.ops.contrast import info_nce
from mmbench.ops.dense import linear
from mmbench.ops.graph import bipartite, laplacian, propagate, symmetric_normalised
from mmbench.ops.rows import distinct, occurrences, take
from mmbench.ops.sparse import SparseMatrix, SparsePattern


def _at_least_one(given: int | dict[str, int]) -> int | dict[str, int]:
    if min(given.values() if isinstance(given, dict) else [given], default=1) < 1:
        raise ValueError("each number must be at least 1")
    return given


Neighbours = Annotated[int | dict[str, int], AfterValidator(_at_least_one)]
"""k of all item graphs, or by modality."""


Rows = tuple[Tensor, Tensor]
"""Users and items."""


class MultiViewConfig(ModelConfig):
    """Settings that both have; the defaults are the published values of Amazon Baby."""

    batch_size: int = Field(2048, ge=1, description="triples per optimiser step")
    reg_weight: float = Field(1e-4, ge=0, description="weight of the batch's squared norms")
    cl_weight: float = Field(0.01, ge=0, description="weight of the contrastive losses")
    temperature: float = Field(0.2, gt=0, description="divides the cosines that are contrasted")
    n_ui_layers: int = Field(2, ge=0, description="L, propagations on the user-item graph")
    n_item_layers: int = Field(1, ge=0, description="propagations on each item-item graph")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        **dict.fromkeys(["top_k", "knn_k"], "neighbours"),
        **dict.fromkeys(["n_layers", "n_mm_layers"], "n_item_layers"),
        **dict.fromkeys(["cl_loss", "ssl_weight"], "cl_weight"),
        "tau": "temperature",
    }


class MultiView(TrainsContent):
    """Filtered ids on frozen item graphs, fused and contrasted with what LightGCN makes of ids."""

    def __init__(
        self,
        train: TrainSet,
        content: Content,
        config: MultiViewConfig,
        init: Init,
        neighbours: Neighbours,
    ) -> None:
        super().__init__()
        self.config, self.n_users = config, train.n_users
        d = config.embedding_dim
        self.user_embedding = init.xavier_uniform("user_embedding", train.n_users, d)
        self.item_embedding = init.xavier_uniform("item_embedding", train.n_items, d)
        self._add_content(content, d, init)
        self.gate = nn.ModuleDict({m: init.linear(f"gate.{m}", d, d) for m in content})
        adjacency, dtype = bipartite(train), self.item_embedding.dtype
        self.graph = symmetric_normalised(adjacency, dtype=dtype)
        # R: the users' rows come first, and hold items shifted by the number of users.
        indptr, items = adjacency.indptr[: train.n_users + 1], torch.from_numpy(train.items)
        pattern = SparsePattern(indptr, items, train.n_items)
        self.of_users = SparseMatrix(pattern, self.graph.values[: train.n_edges])
        self.item_graphs = {
            m: _item_graph(*content.neighbours(m, min(k, train.n_items)), dtype)
            for m, k in _by_modality(neighbours, list(content)).items()
        }

    def lr_factor(self, epoch: int) -> float:
        """0.96^((epoch - 1) / 50)."""
        return float(0.96 ** ((epoch - 1) / 50))

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr`, `l2`, `user_contrast` and `item_contrast`."""
        config = self.config
        users, user_of = distinct(batch.users)
        items, item_of = distinct(torch.cat([batch.pos, batch.neg]))
        z, side = self._represented((users, items), batch)  # (n + k, d) each: users, then items
        e, n = z + side, len(users)
        user, pair = take(e[:n], user_of), take(e[n:], item_of)
        pos, neg = pair[: len(user)], pair[len(user) :]
        # A row that the batch holds several times is penalised as often.
        often = torch.cat([occurrences(user_of, e[:n]), occurrences(item_of, e[n:])])
        norms = (often * e.square().sum(1)).sum() * (config.reg_weight / (2 * config.batch_size))
        # Positives alone are contrasted: where they are among all items of the batch.
        liked, liked_of = distinct(batch.pos)
        row = torch.searchsorted(items, liked) + n
        parts = {
            "user": (side[:n], z[:n], occurrences(user_of, z[:n])),
            "item": (take(side, row), take(z, row), occurrences(liked_of, z[: len(liked)])),
        }
        return {
            "bpr": bpr_loss((user * pos).sum(1), (user * neg).sum(1)),
            "l2": norms,
            **{
                f"{name}_contrast": config.cl_weight * info_nce(x, y, config.temperature, count)
                for name, (x, y, count) in parts.items()
            },
        }

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return e of users and items."""
        z, side = self._represented()
        e = z + side
        return e[: self.n_users], e[self.n_users :]

    def _represented(
        self, rows: Rows | None = None, batch: Triples | None = None
    ) -> tuple[Tensor, Tensor]:
        """Z and side of a batch's rows, users, then items; or of all."""
        x, nodes = torch.cat([self.user_embedding, self.item_embedding]), None
        if rows is not None:
            nodes = torch.cat([rows[0], rows[1] + self.n_users])
        z = propagate(self.graph, x, self.config.n_ui_layers, rows=nodes)
        of_users = self.of_users if rows is None else self.of_users.rows(rows[0])
        views = []
        for graph, kept in zip(self._graphs(), self._filters(), strict=True):
            h: Tensor = self.item_embedding * kept  # (n_items, d)
            for _ in range(self.config.n_item_layers):
                h = graph @ h
            views.append(torch.cat([of_users @ h, h if rows is None else take(h, rows[1])]))
        return z, self._side(z, views, rows, batch)

    def _graphs(self) -> list[SparseMatrix]:
        """The item graph of each view."""
        return list(self.item_graphs.values())

    def _filters(self) -> list[Tensor]:
        """What each entry of an item's id is multiplied by, for each graph, (n_items, d)."""
        raise NotImplementedError

    def _side(
        self, z: Tensor, views: list[Tensor], rows: Rows | None, batch: Triples | None
    ) -> Tensor:
        """What the views h_v of some nodes become beside their z, (n, d) like both.

        `rows` and `batch` say whose they are and when they are drawn for; None: all, and nothing is
        drawn.
        """
        raise NotImplementedError


def opened(x: Tensor, gate: nn.Linear, mixing: Tensor | None = None) -> Tensor:
    """Sigmoid(x G^T + g); with `mixing` M, sigmoid((x M) G^T + g)."""
    # (x M) G^T = x (G M^T)^T: a product of two small matrices in place of one for all rows.
    weight = gate.weight if mixing is None else linear(gate.weight, mixing)
    return torch.sigmoid(linear(x, weight, gate.bias))


def _by_modality(given: Neighbours, modalities: list[str]) -> dict[str, int]:
    """The number of neighbours of each modality.

    Raises:
        UsageError: `given` does not name exactly the modalities.
    """
    if isinstance(given, int):
        return dict.fromkeys(modalities, given)
    if set(given) != set(modalities):
        raise UsageError(
            f"neighbours: the modalities are {', '.join(modalities)} (got {', '.join(given)}); "
            "give a number for each, or one for all"
        )
    return {m: given[m] for m in modalities}


def _item_graph(near: Tensor, cosines: Tensor, dtype: torch.dtype) -> SparseMatrix:
    """D^-1/2 C D^-1/2 of each item's nearest and their cosines, (n, k) each."""
    n, k = near.shape
    pattern = SparsePattern(torch.arange(n + 1, device=near.device) * k, near.reshape(-1), n)
    return SparseMatrix(pattern, laplacian(pattern, cosines.reshape(-1).double()).to(dtype))
