"""LGMRec: ids and content on the user-item graph, and hypergraphs that content makes of all nodes.

Paper: Guo, Li, Li, Wang, Shi, Ruan: LGMRec: Local and Global Graph Learning for Multimodal
Recommendation, AAAI 2024, https://doi.org/10.1609/aaai.v38i8.28688 (arXiv 2312.16400).

    Â       = D^-1/2 A D^-1/2, 1e-7 added to each degree, no self loops
    R       = user-item block of A ;  R̄ = its rows divided by the users' degrees, 1e-7 added
    rn(X)   = rows divided by max(their L2 norm, 1e-12)
local graphs, of ids and of each modality m with raw features F_m:
    z       = mean of x, Â x, …, Â^L x ;  x = [user_embedding; item_embedding]    L = `n_ui_layers`
    c_m     = Â^C [R̄ F_m; F_m] projection_m^T                              C = `n_content_layers`
a hypergraph of each modality, whose K = `n_hyperedges` hyperedges hold all users and items:
    a_m     = F_m hyperedges_m^T ;  b_m = R a_m                items' and users' parts, K numbers
    H_m,i   = drop softmax((a_m,i + g) / t) ;  H_m,u = drop softmax((b_m,u + g) / t)
              g: `noise`, anew for each entry and step; t = `temperature`
              drop: zero with probability 1 - keep_rate, else divided by keep_rate
    E_0     = z of the items ;  S_h = H_m^T E_(h-1) ;  E_h = H_m S_h ;  G_m,u = H_m,u S_N
    G_m     = [G_m,u; E_N]                                                   N = `n_hyper_layers`
together:
    e       = z + sum_m rn(c_m) + alpha rn(sum_m G_m) ;  s(u, i) = <e_u, e_i>
    L       = mean over the batch of -log sigmoid(s(u, i) - s(u, j))                        (bpr)
              + cl_weight sum_(m < n) [C(users; G_m, G_n) + C(positives; G_m, G_n)]    (contrast)
              + reg_weight / B (|e of users| + |e of positives| + |e of negatives|)         (reg)
                                                            Frobenius norms, not squared
    C(rows; X, Y) = sum over the batch's rows b of -log(e(b, b) / sum over all users, or all items,
                    c of e(b, c)),   e(b, c) = exp(cos(X_b, Y_c) / t)

The paper and both codes have two modalities, a visual and a textual one, and contrast the first
with the second; here each contrasts with those after it, and one alone with none.

Where the paper differs from the authors' code (and MMRec's, which is the same), this is the code:
noise of the Gumbel law, where the paper has log δ - log(1 - δ), which `noise` logistic gives; a sum
of unsquared norms of the batch's representations, where the paper has the squares of all
parameters; a contrast of the batch's rows, where the paper sums over all. There are no presets.

Differences from both codes: ranking adds no noise, where both draw it anew for each batch of users,
so that two rankings of one model differ; the batches of an epoch do not depend on what was trained
before; the users' noise and dropout of the first modality are drawn for the users of a batch alone
(the same law: one draw for each row, however often the row occurs).

Exact, and fast: Â^C [R̄ F; F] is a constant, made once, of which a step projects the rows of its
batch (not where stand-ins change F in each epoch); S_h = (H^T H) S_(h-1), so that a hypergraph of
any depth is K vectors; only the last modality's users are needed beyond the batch; where K < d the
contrast compares K numbers, for <X_b, H S> = <X_b S^T, H>, and its exponentials are made once, in
blocks, see `mmbench.ops.partition`.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d), for each modality
projection.<m> (d, k_m) and hyperedges.<m> (K, k_m).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmbench.core.sampling import Batch, Init, Triples
from mmbench.models.base import Content, ModelConfig, Recommender, TrainSet, bpr_loss
from mmbench.models.cells import Cell
from mmbench.models.propagated import Propagated
from mmbench.ops import draws
from mmbench.ops.dense import SMALLEST_NORM, linear, normalise_rows
from mmbench.ops.graph import DEGREE_EPSILON, bipartite, propagate, symmetric_normalised
from mmbench.ops.norms import norm
from mmbench.ops.partition import log_partition
from mmbench.ops.rows import Grouped, distinct, occurrences, take
from mmbench.ops.sparse import SparseMatrix, SparsePattern

Noise = Literal["gumbel", "logistic"]
LAWS = {"gumbel": draws.gumbel, "logistic": draws.logistic}


class LGMRecConfig(ModelConfig):
    """Settings of LGMRec; the defaults are the published best values of Amazon Baby."""

    batch_size: int = Field(2048, ge=1, description="triples per step, over which contrasts add up")
    n_ui_layers: int = Field(2, ge=0, description="L, propagations of ids; 0: matrix factorisation")
    n_content_layers: int = Field(2, ge=0, description="C, propagations of content")
    n_hyper_layers: int = Field(1, ge=1, description="N, passes through the hypergraphs")
    n_hyperedges: int = Field(4, ge=1, description="K, hyperedges of each modality")
    keep_rate: float = Field(0.5, gt=0, le=1, description="share of the hypergraphs' entries kept")
    alpha: float = Field(0.3, ge=0, description="weight of the hypergraphs' vectors beside z")
    cl_weight: float = Field(1e-4, ge=0, description="weight of the contrast between modalities")
    reg_weight: float = Field(1e-6, ge=0, description="weight of the batch's norms")
    temperature: float = Field(0.2, gt=0, description="t, of the softmax and of the contrast")
    noise: Noise = Field("gumbel", description="law of the noise on the hypergraphs' entries")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        "feat_embed_dim": "embedding_dim",
        "n_mm_layers": "n_content_layers",
        "n_hyper_layer": "n_hyper_layers",
        "hyper_num": "n_hyperedges",
        "tau": "temperature",
    }


@dataclass(frozen=True, eq=False)
class Hypergraph:
    """One modality's, in one step.

    Attributes:
        nodes: H of the nodes that are asked for, (n, K): users, then items.
        users: H of all users, (n_users, K); None where nobody needs it.
        items: H of all items, (n_items, K).
        edges: S_N, (K, d).
    """

    nodes: Tensor
    users: Tensor | None
    items: Tensor
    edges: Tensor


class LGMRec(Recommender):
    """Local graphs of ids and content, global hypergraphs of content."""

    Config = LGMRecConfig
    learns_absent = True
    cell = Cell(
        modalities="any; pictures and texts in 2024",
        representation="coordinate",
        fusion="intermediate",
        operator="sum",
        side="item",
        backbone="lightgcn + propagated content + hypergraphs of content",
    )

    def __init__(self, train: TrainSet, content: Content, config: LGMRecConfig, init: Init) -> None:
        super().__init__()
        self.config, self.sizes = config, [train.n_users, train.n_items]
        d = config.embedding_dim
        self.user_embedding = init.xavier_uniform("user_embedding", train.n_users, d)
        self.item_embedding = init.xavier_uniform("item_embedding", train.n_items, d)
        self.stand_ins = content.stand_ins()
        self.projection, self.hyperedges = nn.ParameterDict(), nn.ParameterDict()
        for m, vectors in content.vectors.items():
            self.register_buffer(f"features_{m}", vectors, persistent=False)
            k = vectors.shape[1]
            self.projection[m] = init.xavier_uniform(f"projection.{m}", d, k)
            self.hyperedges[m] = init.xavier_uniform(f"hyperedges.{m}", config.n_hyperedges, k)
        dtype = self.user_embedding.dtype
        self.graph = symmetric_normalised(bipartite(train), epsilon=DEGREE_EPSILON, dtype=dtype)
        indptr, items = torch.from_numpy(train.indptr), torch.from_numpy(train.items)
        pattern = SparsePattern(indptr, items, train.n_items)
        self.items_of = SparseMatrix(pattern, torch.ones(pattern.nnz, dtype=dtype))  # R
        mean = 1 / (pattern.degree.double() + DEGREE_EPSILON)
        self.mean_of = SparseMatrix(pattern, mean[pattern.row].to(dtype))  # R̄
        self._propagated = Propagated(sum(self.sizes))

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Make Â^C [R̄ F; F] of each modality that no stand-in changes, if it is not there yet."""
        for m in self.projection:
            if m not in self.stand_ins:
                self._propagated.make(m, self.get_buffer(f"features_{m}"), self._over_graph)

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr`, `contrast` where there are two modalities or more, and `reg`."""
        size, config = len(batch.users), self.config
        users, user_of = distinct(batch.users)
        items, item_of = distinct(torch.cat([batch.pos, batch.neg]))
        graphs, e = self._represented((users, items), batch)
        user = take(e[: len(users)], user_of)  # (B, d)
        pos, neg = torch.split(take(e[len(users) :], item_of), size)
        norms = [norm(rows) for rows in (user, pos, neg)]
        terms = {"bpr": bpr_loss((user * pos).sum(1), (user * neg).sum(1))}
        if self._contrasts:
            contrast = self._contrast(batch, users, user_of, graphs)
            terms["contrast"] = config.cl_weight * contrast
        return {**terms, "reg": torch.stack(norms).sum() * (config.reg_weight / size)}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """E of all users and items, without noise and dropout."""
        users, items = torch.split(self._represented(None, None)[1], self.sizes)
        return users, items

    def _represented(
        self, nodes: tuple[Tensor, Tensor] | None, batch: Batch | None
    ) -> tuple[list[Hypergraph], Tensor]:
        """The hypergraphs, and e (n, d) of some users, then some items, or of all.

        Without a batch there is no noise and no dropout.
        """
        n_users, rows = self.sizes[0], None
        if nodes is not None:
            rows = torch.cat([nodes[0], nodes[1] + n_users])
        # All of z, not the batch's alone: a hyperedge gathers every item.
        x = torch.cat([self.user_embedding, self.item_embedding])
        z = propagate(self.graph, x, self.config.n_ui_layers)
        graphs = [self._hypergraph(m, z[n_users:], nodes, batch) for m in self.projection]
        e = z if rows is None else take(z, rows)
        for m in self.projection:
            e = e + normalise_rows(self._content(m, rows))
        spread = [linear(graph.nodes, graph.edges.t()) for graph in graphs]  # G_m, (n, d) each
        return graphs, e + self.config.alpha * normalise_rows(torch.stack(spread).sum(0))

    def _content(self, m: str, rows: Tensor | None) -> Tensor:
        """C_m of some nodes or of all, (n, d)."""
        if rows is not None and m in self._propagated:
            return linear(self._propagated[m][rows], self.projection[m])
        return self._over_graph(self._of_items(m, self.projection[m]), rows)

    def _of_items(self, m: str, weight: Tensor) -> Tensor:
        """F_m W^T of all items, tokens put in, (n_items, w)."""
        rows = linear(self.get_buffer(f"features_{m}"), weight)
        return self.stand_ins.put_in(m, rows, lambda token: linear(token, weight))

    def _over_graph(self, items: Tensor, rows: Tensor | None = None) -> Tensor:
        """Â^C [R̄ X; X] of the items' X (n_items, w): of some nodes or of all, (n, w)."""
        x, n = torch.cat([self.mean_of @ items, items]), self.config.n_content_layers
        # Only the last product can be limited to rows: those before it need the rows' neighbours.
        for _ in range(n if rows is None else n - 1):
            x = self.graph @ x
        if rows is None:
            return x
        return self.graph.rows(rows) @ x if n else take(x, rows)

    def _hypergraph(
        self, m: str, z: Tensor, nodes: tuple[Tensor, Tensor] | None, batch: Batch | None
    ) -> Hypergraph:
        """One modality's, from z of the items (n_items, d)."""
        parts = self._of_items(m, self.hyperedges[m])  # a_m, (n_items, K)
        items = self._dependence(f"items:{m}", parts, None, batch)
        edges = linear(items.t(), z.t())  # S_1, (K, d)
        if self.config.n_hyper_layers > 1:
            # S_h = H^T E_(h-1) = (H^T H) S_(h-1): no E but the last is made.
            gram = linear(items.t(), items.t())
            for _ in range(self.config.n_hyper_layers - 1):
                edges = linear(gram, edges.t())
        if nodes is None:
            users = self._dependence(f"users:{m}", self.items_of @ parts, None, batch)
            return Hypergraph(torch.cat([users, items]), users, items, edges)
        chosen = take(items, nodes[1])
        if self._contrasts and m != next(iter(self.projection)):
            # Other modalities' users are compared with all of these.
            users = self._dependence(f"users:{m}", self.items_of @ parts, None, batch)
            return Hypergraph(torch.cat([take(users, nodes[0]), chosen]), users, items, edges)
        b = self.items_of.rows(nodes[0]) @ parts
        users = self._dependence(f"users:{m}", b, nodes[0], batch)
        return Hypergraph(torch.cat([users, chosen]), None, items, edges)

    def _dependence(
        self, name: str, parts: Tensor, rows: Tensor | None, batch: Batch | None
    ) -> Tensor:
        """H of `users:<m>` or `items:<m>` from a or b, (n, K): of the given rows, or of all."""
        if batch is None:
            return torch.softmax(parts / self.config.temperature, 1)
        noise, kept = self._drawn(name, parts, rows, batch)
        found = torch.softmax((parts + noise) / self.config.temperature, 1)
        return found * (kept.to(found.dtype) / self.config.keep_rate)

    def _drawn(
        self, name: str, parts: Tensor, rows: Tensor | None, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The noise on entries (n, K) and which of them stay: one draw for each row."""
        shape = (parts.shape[0], parts.shape[1])
        noise = LAWS[self.config.noise](batch.stream(f"noise:{name}"), shape, parts.dtype)
        stream = batch.stream(f"dropout:{name}")
        return noise, draws.kept(stream, shape, 1 - self.config.keep_rate)

    @property
    def _contrasts(self) -> bool:
        return len(self.projection) > 1 and self.config.cl_weight > 0

    def _contrast(
        self, batch: Triples, users: Tensor, user_of: Grouped, graphs: list[Hypergraph]
    ) -> Tensor:
        """The contrasts of all pairs of modalities, of the batch's users and positives, in nats."""
        pos, pos_of = distinct(batch.pos)
        total, t = self.user_embedding.new_zeros(()), self.config.temperature
        for one, other in combinations(graphs, 2):
            assert other.users is not None
            x = normalise_rows(linear(one.nodes[: len(users)], one.edges.t())) / t
            total = total + _cross_entropy(x, other.users, other.edges, users, user_of)
            x = normalise_rows(linear(take(one.items, pos), one.edges.t())) / t
            total = total + _cross_entropy(x, other.items, other.edges, pos, pos_of)
        return total


def _cross_entropy(x: Tensor, h: Tensor, edges: Tensor, own: Tensor, places: Grouped) -> Tensor:
    """Sum over a batch's rows of log(sum over c of exp <x_b, y_c>) - <x_b, y_b>, y = rn(h edges).

    Args:
        x: Of the distinct rows of the batch, (n, d).
        h: H of all users or items, (m, K).
        edges: S, (K, d).
        own: Where the distinct rows are among the m, (n,).
        places: Where the rows of the batch are among the distinct ones.
    """
    if len(edges) < edges.shape[1]:
        # <x, h S> = <x S^T, h>, and |h S|² = h (S S^T) h^T: K numbers instead of d.
        squares = (linear(h, linear(edges, edges)) * h).sum(1, keepdim=True)
        y = h / squares.clamp_min(SMALLEST_NORM**2).sqrt()
        x = linear(x, edges)
    else:
        y = normalise_rows(linear(h, edges.t()))
    # Copies that only fill up a shape count 0 times.
    counts = occurrences(places, x)
    return log_partition(x, y, counts) - (counts * (x * take(y, own)).sum(1)).sum()
