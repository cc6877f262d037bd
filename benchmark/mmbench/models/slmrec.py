"""SLMRec: LightGCN of ids and of each modality, fused, and self-supervision over its parts.

Paper: Tao, Liu, Xia, Wang, Yang, Huang, Chua: Self-supervised Learning for Multimedia
Recommendation, IEEE Transactions on Multimedia 2022, https://doi.org/10.1109/TMM.2022.3187556.

    Â       = D^-1/2 A D^-1/2, no self loops ;  P x = mean of x, Â x, …, Â^L x       L = `n_layers`
    rn(X)   = rows divided by max(their L2 norm, 1e-12)
    x_0     = item_embedding ;  x_m = rn(F_m) W_m^T + b_m         F_m: raw vectors of modality m
    z_p     = P [user_embedding; x_p]            for each part p: the ids (0) and every modality
    e_u     = A [z_0; z_m; …] + a ;  e_i = B [z_0; z_m; …] + b        the parts side by side
    s(u, i) = <e_u, e_i>
    C(X, Y; t) = mean over the batch's rows b of -log(exp(<X_b, Y_b> / t) / sum over the batch's
              rows c of exp(<X_b, Y_c> / t))
    L       = C(rn(e of users), rn(e of positives); temperature)                       (contrast)
              + ssl_weight * S                                                              (ssl)
              + weight_decay / 2 * sum of the squares of all trained numbers                 (l2)

S by `ssl_task`
    FAC     fine and coarse: ids and modalities meet in a chain of spaces, one modality in each,
            y_0 = z_0 of the positives: y_k = H_k y_(k-1) + h_k ;  S = sum_k C(y_k, V_k z_(m_k);
            ssl_temperature). Spaces have d columns, the last one of several d // 2.
    FD      feature dropout: two views of e, in each of which every layer of P is dropped out anew
            (zero with probability `dropout`, else divided by 1 - dropout), Â x becoming D(Â x);
            S = C(users' views) + C(positives' views), of rn of the views, at ssl_temperature
    FM      feature masking: two views, each without x_p of another part p, drawn in each step
    FD+FM   both

Presets (`preset`), see PRESETS; where they differ
    paper      as above.
    original   the code as it runs. The layers of the two views are exchanged, but not what they
               start from: a view of FM has layer 0 without one part and the others without another
               one (with FD alone this only renames the views). With two modalities there is one
               more linear map before the last space: that of a third one, whose contrast MMRec,
               which lacks sounds, left out.

Differences from both codes: users are ranked by fresh representations, where both rank by those of
the last batch before its optimiser step, and by inner products, not their sigmoids, which tie where
they round to 1; V_k has no bias, which would cancel in C; weight decay, which Adam adds to the
gradients, is in the loss; MMRec runs FAC alone; the batches of an epoch do not depend on what was
trained before. Only FAC's modalities may be one to any number in any order: theirs are pictures,
sounds, texts.

Exact, and fast. Â leads from users to items and back, so that the even layers of one propagation of
[user_embedding; item_embedding] hold what a node has of its own side, the odd ones what it has of
the other: P [user_embedding; 0] and P [0; item_embedding] cost one propagation together. The former
serves every part. P [0; rn(F_m)] is a constant, made once, of which a step projects the rows of its
batch (but for FD, and where stand-ins change F in each epoch). Equal rows of a batch are compared
once, with their counts.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d), projection.<m>.weight (d, k_m),
projection.<m>.bias (d,), fuse_users.weight and fuse_items.weight (d, (M + 1) d) for M modalities,
their biases (d,). FAC: chain.<m>.weight H and entry.<m> V (d or d // 2, d), chain.<m>.bias h;
`original` with two modalities: spare.weight (d, d), spare.bias (d,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmbench.core.philox import below
from mmbench.core.sampling import EdgesOnly, Init, Pairs
from mmbench.models.base import Content, ModelConfig, Recommender, TrainSet, squared_norm
from mmbench.models.cells import Cell
from mmbench.models.propagated import Propagated
from mmbench.ops.dense import SMALLEST_NORM, linear, normalise_rows
from mmbench.ops.draws import kept
from mmbench.ops.graph import bipartite, propagate, symmetric_normalised
from mmbench.ops.partition import log_partition
from mmbench.ops.rows import Grouped, distinct, occurrences, take

Task = Literal["FAC", "FD", "FM", "FD+FM"]


@dataclass(frozen=True)
class Variant:
    """What the presets set: fields of `SLMRecConfig` that are None there."""

    exchange_layers: bool
    spare_map: bool


PRESETS = {"paper": Variant(False, False), "original": Variant(True, True)}


class SLMRecConfig(ModelConfig):
    """Settings of SLMRec; the defaults are those of the authors' configuration.

    None: what the preset says.
    """

    preset: Literal["paper", "original"] = Field("paper", description="whose SLMRec")
    batch_size: int = Field(2048, ge=1, description="pairs per step, which are compared")
    lr: float = Field(1e-2, gt=0, description="Adam's step size")
    n_layers: int = Field(3, ge=0, description="L, propagations on the user-item graph")
    temperature: float = Field(0.2, gt=0, description="of the contrast of users and positives")
    ssl_task: Task = Field("FAC", description="fine and coarse, feature dropout, feature masking")
    ssl_weight: float = Field(0.1, ge=0, description="weight of the self-supervised task")
    ssl_temperature: float = Field(0.2, gt=0, description="of the self-supervised contrasts")
    dropout: float = Field(0.3, ge=0, lt=1, description="FD: share of a layer's entries made zero")
    weight_decay: float = Field(1e-4, ge=0, description="weight of half the squares of all numbers")
    exchange_layers: bool | None = Field(None, description="FM: the views exchange their layers")
    spare_map: bool | None = Field(None, description="FAC of two: a map before the last space")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        "recdim": "embedding_dim",
        "layer_num": "n_layers",
        "temp": "temperature",
        "ssl_alpha": "ssl_weight",
        "ssl_temp": "ssl_temperature",
        "dropout_rate": "dropout",
    }

    @property
    def variant(self) -> Variant:
        """The preset's values; where a field is given, that."""
        return self.over(PRESETS[self.preset])


@dataclass(frozen=True, eq=False)
class Rows:
    """The distinct users and items of a batch.

    Attributes:
        users: Shape (n,), ascending.
        items: Shape (m,).
        user_of: Where the batch's users are among them.
        item_of: Where the batch's items are.
        nodes: Both as nodes of the graph, (n + m,).
    """

    users: Tensor
    items: Tensor
    user_of: Grouped
    item_of: Grouped
    nodes: Tensor

    @classmethod
    def of(cls, batch: Pairs, n_users: int) -> Rows:
        """Those of a batch."""
        users, user_of = distinct(batch.users)
        items, item_of = distinct(batch.pos)
        return cls(users, items, user_of, item_of, torch.cat([users, items + n_users]))


class SLMRec(Recommender):
    """LightGCN of ids and modalities, fused by a linear layer, self-supervised."""

    Config = SLMRecConfig
    learns_absent = True
    cell = Cell(
        modalities="any; pictures, sounds and texts in 2022",
        representation="coordinate",
        fusion="intermediate",
        operator="concat, then a linear layer",
        side="item",
        backbone="lightgcn of ids and of each modality",
    )
    make_sampler = EdgesOnly

    def __init__(self, train: TrainSet, content: Content, config: SLMRecConfig, init: Init) -> None:
        super().__init__()
        self.config, self.variant = config, config.variant
        self.sizes, d = [train.n_users, train.n_items], config.embedding_dim
        self.user_embedding = init.xavier_uniform("user_embedding", train.n_users, d)
        self.item_embedding = init.xavier_uniform("item_embedding", train.n_items, d)
        self.stand_ins = content.stand_ins()
        self.projection = nn.ModuleDict()
        for m, x in content.vectors.items():
            self.register_buffer(f"features_{m}", x, persistent=False)
            norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # rn(F) is never stored
            scale = 1 / norms.clamp_min(SMALLEST_NORM)
            self.register_buffer(f"scale_{m}", scale, persistent=False)
            self.projection[m] = _xavier(init, f"projection.{m}", x.shape[1], d)
        for side in ("fuse_users", "fuse_items"):
            setattr(self, side, _xavier(init, side, (len(content) + 1) * d, d))
        if config.ssl_task == "FAC":
            self._add_spaces(list(content), init)
        dtype = self.user_embedding.dtype
        self.graph = symmetric_normalised(bipartite(train), dtype=dtype)
        self._propagated = Propagated(sum(self.sizes))
        # What each node has of a constant 1 of the items: the factor of a projection's bias.
        ones = self._of_items(torch.ones(train.n_items, 1, dtype=dtype))
        self.register_buffer("ones", ones, persistent=False)

    ones: Tensor

    def _add_spaces(self, modalities: list[str], init: Init) -> None:
        """FAC's `chain` and `entry`, and `spare`."""
        d = self.config.embedding_dim
        self.chain, self.entry = nn.ModuleDict(), nn.ParameterDict()
        for k, m in enumerate(modalities):
            width = max(1, d // 2) if 0 < k == len(modalities) - 1 else d
            self.chain[m] = _xavier(init, f"chain.{m}", d, width)
            self.entry[m] = init.xavier_uniform(f"entry.{m}", width, d)
        self.spare: nn.Linear | None = None
        if self.variant.spare_map and len(modalities) == 2:
            self.spare = _xavier(init, "spare", d, d)

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Make P [0; rn(F)] of each modality that no stand-in changes, if it is not there yet."""
        for m in self.projection:
            if m not in self.stand_ins:
                scale = self.get_buffer(f"scale_{m}")
                self._propagated.make(
                    m,
                    self.get_buffer(f"features_{m}"),
                    lambda x, scale=scale: self._of_items(x * scale),  # type: ignore[misc]
                )

    def loss(self, batch: Pairs) -> dict[str, Tensor]:
        """`contrast`, `ssl` and `l2`."""
        config, rows = self.config, Rows.of(batch, self.sizes[0])
        of_users, of_items = self._shares(rows.nodes)
        parts = [of_users + part for part in of_items]  # z of ids and of each modality, (n + m, d)
        users, items = (normalise_rows(e) for e in self._fused(parts, len(rows.users)))
        x = users / config.temperature
        counts = occurrences(rows.user_of, users), occurrences(rows.item_of, items)
        own = (take(x, rows.user_of) * take(items, rows.item_of)).sum()
        sums = log_partition(x, items, *counts)
        size = len(batch.users)
        terms = {"contrast": (sums - own) / size}
        if config.ssl_weight:
            if config.ssl_task == "FAC":
                ssl = self._fine_and_coarse([z[len(rows.users) :] for z in parts], counts[1])
            else:
                one, other = self._views(rows, batch, of_users, of_items)
                ssl = self._contrast(normalise_rows(one[0]), normalise_rows(other[0]), counts[0])
                ssl = ssl + self._contrast(
                    normalise_rows(one[1]), normalise_rows(other[1]), counts[1]
                )
            terms["ssl"] = ssl * (config.ssl_weight / size)
        if config.weight_decay:
            terms["l2"] = squared_norm(*self.parameters()) * (config.weight_decay / 2)
        return terms

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """E of all users and items."""
        of_users, of_items = self._shares(None)
        users, items = self._fused([of_users + part for part in of_items], self.sizes[0])
        return users, items

    def _fused(self, parts: Sequence[Tensor], n_users: int) -> tuple[Tensor, Tensor]:
        """E of users and items from the parts of users, then items, (n, d) each."""
        layers = cast(nn.Linear, self.fuse_users), cast(nn.Linear, self.fuse_items)
        sides = zip(*(torch.split(z, [n_users, len(z) - n_users]) for z in parts), strict=True)
        users, items = (
            linear(torch.cat(side, 1), layer.weight, layer.bias)
            for side, layer in zip(sides, layers, strict=True)
        )
        return users, items

    def _shares(self, nodes: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """What P gives some nodes, or all, of the users' ids and of each part's items, (n, d)."""
        x, n_layers = torch.cat([self.user_embedding, self.item_embedding]), self.config.n_layers
        # Layer l holds what l steps bring: of the node's own side if l is even.
        layers, sums = x, [x, torch.zeros_like(x)]
        for l in range(1, n_layers + (nodes is None)):
            layers = self.graph @ layers
            sums[l % 2] = sums[l % 2] + layers
        if nodes is not None:
            sums = [take(one, nodes) for one in sums]
            if n_layers:
                last = self.graph.rows(nodes) @ layers
                sums[n_layers % 2] = sums[n_layers % 2] + last
        own, other = (one / (n_layers + 1) for one in sums)
        index = torch.arange(len(x), device=x.device) if nodes is None else nodes
        of_user = (index < self.sizes[0])[:, None]
        of_users, of_ids = torch.where(of_user, own, other), torch.where(of_user, other, own)
        return of_users, [of_ids, *(self._of_content(m, nodes) for m in self.projection)]

    def _of_content(self, m: str, nodes: Tensor | None) -> Tensor:
        """P [0; x_m] of some nodes or of all, (n, d)."""
        if nodes is not None and m in self._propagated:
            projection = cast(nn.Linear, self.projection[m])
            image = linear(self._propagated[m][nodes], projection.weight)
            return image + self.ones[nodes] * projection.bias
        return self._of_items(self._projected(m), nodes)

    def _of_items(self, x: Tensor, nodes: Tensor | None = None) -> Tensor:
        """P [0; x] of some nodes or of all, from x of all items (n_items, w)."""
        all_nodes = torch.cat([x.new_zeros(self.sizes[0], x.shape[1]), x])
        return propagate(self.graph, all_nodes, self.config.n_layers, rows=nodes)

    def _projected(self, m: str, items: Tensor | None = None) -> Tensor:
        """x_m of some items or of all, tokens put in, (n, d)."""
        projection, x = cast(nn.Linear, self.projection[m]), self.get_buffer(f"features_{m}")
        scale = self.get_buffer(f"scale_{m}")
        if items is not None:
            x, scale = x[items], scale[items]
        rows = linear(x, projection.weight) * scale + projection.bias

        def image(token: Tensor) -> Tensor:
            return linear(normalise_rows(token), projection.weight, projection.bias)

        return self.stand_ins.put_in(m, rows, image, items)

    def _fine_and_coarse(self, parts: Sequence[Tensor], counts: Tensor) -> Tensor:
        """FAC's contrasts, summed over the batch, of the parts of its distinct items (m, d)."""
        y, total = parts[0], parts[0].new_zeros(())
        for k, (m, z) in enumerate(zip(self.projection, parts[1:], strict=True)):
            if k and self.spare is not None:
                y = linear(y, self.spare.weight, self.spare.bias)
            chain = cast(nn.Linear, self.chain[m])
            y = linear(y, chain.weight, chain.bias)
            total = total + self._contrast(y, linear(z, self.entry[m]), counts)
        return total

    def _contrast(self, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        """Sum over a batch's rows of C's terms, of two vectors of its distinct rows (n, d)."""
        x = x / self.config.ssl_temperature
        return log_partition(x, y, counts, counts) - (counts * (x * y).sum(1)).sum()

    def _views(
        self, rows: Rows, batch: Pairs, of_users: Tensor, of_items: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """E of the batch's users and of its items in two views."""
        task, n_parts = self.config.ssl_task, len(of_items)
        gates = [[of_users.new_ones(())] * n_parts] * 2
        if task != "FD":
            hidden = self._hidden(batch, n_parts)  # (2,)
            gates = [[(one != p).to(of_users.dtype) for p in range(n_parts)] for one in hidden]
        views = []
        for view in range(2):
            # Whose layers but the first this view has.
            of = 1 - view if self.variant.exchange_layers else view
            parts = []
            for p in range(n_parts):
                start, later = gates[view][p], gates[of][p]
                if task == "FM":
                    # Masked parts are linear: layer 0 by one gate, the others by the other.
                    first = self._first_layer(p, rows)
                    parts.append(of_users + later * of_items[p] + (start - later) * first)
                else:
                    parts.append(self._dropped(of, p, start, later, rows, batch))
            views.append(self._fused(parts, len(rows.users)))
        return views

    def _start(self, p: int, items: Tensor | None = None) -> Tensor:
        """x_p of some items or of all, (n, d)."""
        if p:
            return self._projected(list(self.projection)[p - 1], items)
        return self.item_embedding if items is None else take(self.item_embedding, items)

    def _first_layer(self, p: int, rows: Rows) -> Tensor:
        """What x_p adds to P before any propagation, of the batch's nodes, (n + m, d)."""
        x = self._start(p, rows.items) / (self.config.n_layers + 1)
        return torch.cat([x.new_zeros(len(rows.users), x.shape[1]), x])

    def _dropped(
        self, of: int, p: int, start: Tensor, later: Tensor, rows: Rows, batch: Pairs
    ) -> Tensor:
        """Z_p of the batch's nodes with dropped-out layers, (n + m, d).

        `start` and `later` are 0 or 1: whether x_p is there in layer 0, and in what is propagated.
        """
        x, n_layers = self._start(p), self.config.n_layers
        total = take(torch.cat([self.user_embedding, start * x]), rows.nodes)
        layer = torch.cat([self.user_embedding, later * x])
        for l in range(1, n_layers + 1):
            nodes = rows.nodes if l == n_layers else None
            layer = self.graph @ layer if nodes is None else self.graph.rows(nodes) @ layer
            there = self._kept(f"{p}:{of}:{l}", layer, nodes, batch).to(layer.dtype)
            layer = layer * (there / (1 - self.config.dropout))
            total = total + (layer if nodes is not None else take(layer, rows.nodes))
        return total / (n_layers + 1)

    def _kept(self, name: str, layer: Tensor, nodes: Tensor | None, batch: Pairs) -> Tensor:
        """Which entries of a layer, `<part>:<0 or 1>:<layer>`, of some nodes or of all stay."""
        shape = (layer.shape[0], layer.shape[1])
        return kept(batch.stream(f"dropout:{name}"), shape, self.config.dropout)

    def _hidden(self, batch: Pairs, n_parts: int) -> Tensor:
        """The parts that the two views go without, (2,), different."""
        high, low, *others = batch.stream("masking").words(1)
        first = below(n_parts, high, low)
        return torch.cat([first, (first + 1 + below(n_parts - 1, *others)) % n_parts])


def _xavier(init: Init, name: str, inputs: int, outputs: int) -> nn.Linear:
    return init.linear(name, inputs, outputs, weight="xavier_uniform")
