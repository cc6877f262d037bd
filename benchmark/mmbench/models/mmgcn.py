"""MMGCN: a graph network per modality over users and items, whose outputs are averaged.

Paper: Wei et al.: MMGCN: Multi-modal Graph Convolution Network for Personalized Recommendation of
Micro-video, ACM MM 2019, https://doi.org/10.1145/3343031.3351034.

    mean(X)   = D^-1 A X, the mean over the neighbours of each node in the user-item graph, without
                self loops
    rn(X)     = rows divided by max(their L2 norm, 1e-12) ;   LR(x) = max(x, 0.01 x)
    Z         = [user_embedding ; item_embedding], shared by all modalities

for each modality m with raw features F (networks.m):
    X_0       = rn([preference ; F W^T + c])        or rn([preference ; F]) where its width is None
    H_l       = LR(mean(X_l) conv_l)
    O_l       = LR(X_l linear_l^T + linear_bias_l) + Z
    X_(l+1)   = LR(H_l mix_l^T + mix_bias_l + O_l)
                                       `concatenate`: LR([H_l | O_l] mix_l^T + mix_bias_l)

    R         = mean over m of X_L ;   s(u, i) = <R_u, R_i>
    L         = mean over the batch of -log sigmoid(s(u, i) - s(u, j))                     (bpr)
              + reg_weight * [ 1/(d B) sum |Z_u|² + 1/(2 d B) sum (|Z_i|² + |Z_j|²) ]    (id_l2)
              + reg_weight * mean square of the first modality's preference      (preference_l2)

Presets (`preset`), see PRESETS
    paper      what produced the tables of arXiv 2309.05273.
    original   the authors' code as it runs: their flag for concatenation is the string 'False',
               which is true; the tables of ids and of preferences are no parameters and stay at
               their random start, so that only the projection and the layers learn and both
               penalties are constants; Xavier-normal start but for the later layers' mixes, one
               draw for the ids of all nodes.
    corrected  equals `paper`, which trains what the paper trains.

Always: the loss is computed stably, where both codes get infinity if a difference falls below -88.
Users are ranked by fresh embeddings; `stale_inference` ranks by those of the epoch's last batch,
before its optimiser step, as both codes do.

How it is computed, equal up to rounding: mean(X C) as mean(X) C where fewer nodes receive than
send, so that the mean over raw features is a constant, too, made once; the normalisation of raw
features is a constant always; the last layer for the batch's users and items only.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d), and in networks.<modality>:
preference (n_users, k), projection.weight (k, dim), projection.bias (k,), layers.<l>.conv (k or d,
same), layers.<l>.linear.weight (d, k or d), layers.<l>.mix.weight (d, k or d; `concatenate`: d more
columns) and their biases (d,). `original`: without the three tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.sampling import Init, Triples
from mmbench.models.base import Content, ModelConfig, Recommender, TrainSet, bpr_loss, mean_square
from mmbench.models.cells import Cell
from mmbench.models.stand_ins import StandIns
from mmbench.ops.dense import leaky_mix, linear, normalise_rows
from mmbench.ops.graph import row_normalised
from mmbench.ops.rows import distinct, grouped, pair_scores, take
from mmbench.ops.sparse import SparseMatrix, SparsePattern

Start = Literal["xavier_uniform", "xavier_normal"]
Pair = tuple[Tensor, Tensor]
"""Something of the users and the same of the items."""


@dataclass(frozen=True)
class Variant:
    """What the presets set: fields of `MMGCNConfig` that are None there."""

    n_layers: int
    concatenate: bool
    train_ids: bool
    train_preferences: bool
    start: Start


PRESETS = {
    "paper": Variant(3, False, True, True, "xavier_uniform"),
    "original": Variant(3, True, False, False, "xavier_normal"),
    "corrected": Variant(3, False, True, True, "xavier_uniform"),
}


class MMGCNConfig(ModelConfig):
    """Settings of MMGCN; the defaults are the published best values of Amazon Office.

    None: what the preset says.
    """

    preset: Literal["paper", "original", "corrected"] = Field("paper", description="whose MMGCN")
    lr: float = Field(1e-5, gt=0, description="Adam's step size")
    reg_weight: float = Field(1e-5, ge=0, description="weight of the mean squares in the loss")
    content_dims: tuple[int | None, ...] = Field(
        (256, None),
        min_length=1,
        description="width each modality is projected to, in the order visual, textual, audio, "
        "others by name, None: raw; the last one serves all others",
    )
    n_layers: int | None = Field(None, ge=1, le=10, description="graph layers of each modality")
    concatenate: bool | None = Field(None, description="mix [H | O] instead of adding O to the mix")
    train_ids: bool | None = Field(None, description="train the shared id embeddings")
    train_preferences: bool | None = Field(None, description="train the users' preferences")
    start: Start | None = Field(None, description="initial values of matrices")
    stale_inference: bool = Field(False, description="rank by what the epoch's last batch saw")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        "num_layers": "n_layers",
        "factors_multimod": "content_dims",
        "concatenation": "concatenate",
    }

    @property
    def variant(self) -> Variant:
        """The preset's values; where a field is given, that."""
        return self.over(PRESETS[self.preset])


class Layer(nn.Module):
    """One graph layer of one modality, for any set of nodes."""

    def __init__(
        self, name: str, width: int, d: int, variant: Variant, init: Init, *, first: bool
    ) -> None:
        super().__init__()
        self.width = width
        # The authors draw the first mix from Xavier and leave the later ones at torch's default.
        start = variant.start if first or variant.start == "xavier_uniform" else "default"
        self.conv = getattr(init, variant.start)(f"{name}.conv", width, width)
        self.linear = init.linear(f"{name}.linear", width, d, weight=variant.start)
        self.mix = init.linear(f"{name}.mix", width + d * variant.concatenate, d, weight=start)

    def forward(self, sent: Tensor, mean: SparseMatrix | None, x: Tensor, ids: Tensor) -> Tensor:
        """X_(l+1) of n nodes, shape (n, d).

        Args:
            sent: X_l of all nodes of the other side, (m, width); without `mean`, mean(X_l) of the
                nodes themselves, (n, width).
            mean: Takes the mean over each node's neighbours, n x m.
            x: X_l of the nodes, (n, width).
            ids: Z of the nodes, (n, d).
        """
        own = linear(x, self.linear.weight, self.linear.bias)
        own = functional.leaky_relu(own, inplace=True) + ids  # O_l, (n, d)
        weight = self.mix.weight
        # `concatenate`: mix splits into the columns for H and those for O.
        if weight.shape[1] > self.width:  # [H | O] mix^T without [H | O]
            weight, own = weight[:, : self.width], linear(own, weight[:, self.width :])
        mixed = leaky_mix(sent, self.conv, weight, self.mix.bias, mean) + own
        return functional.leaky_relu(mixed, inplace=True)


class Network(nn.Module):
    """The graph layers of one modality.

    Args:
        name: Prefix of its parameters.
        vectors: Raw features, shape (n_items, dim).
        items_of: Mean over each user's items, n_users x n_items.
        width: k, or None for dim.
        d: Width of the embeddings.
        variant: The preset's values.
        init: Draws the initial values.
        stand_ins: For absent content of this modality.
    """

    content: Tensor  # of the items: raw, or normalised where nothing is projected
    user_mean: Tensor | None  # mean of constant content over each user's items, (n_users, dim)
    preference: Tensor

    def __init__(
        self,
        name: str,
        vectors: Tensor,
        items_of: SparseMatrix,
        width: int | None,
        d: int,
        variant: Variant,
        init: Init,
        stand_ins: StandIns,
    ) -> None:
        super().__init__()
        self.modality, self.stand_ins = name.rpartition(".")[2], stand_ins
        k = width or vectors.shape[1]
        self.projection = init.linear(f"{name}.projection", vectors.shape[1], k) if width else None
        # Without a projection rn(F) is a constant, and so is its mean over each user's items.
        content = vectors if width else normalise_rows(vectors)
        self.register_buffer("content", content, persistent=False)
        changes = width or len(stand_ins) or _product_first(items_of)
        self.register_buffer("user_mean", None if changes else items_of @ content, persistent=False)
        preference = getattr(init, variant.start)(f"{name}.preference", items_of.shape[0], k)
        _add_table(self, "preference", preference, trained=variant.train_preferences)
        self.layers = nn.ModuleList(
            Layer(f"{name}.layers.{l}", d if l else k, d, variant, init, first=not l)
            for l in range(variant.n_layers)
        )

    def forward(
        self, items_of: SparseMatrix, users_of: SparseMatrix, ids: Pair, nodes: Pair | None
    ) -> Pair:
        """X_L of the given users and items, or of all.

        Args:
            items_of: Mean over each user's items, n_users x n_items.
            users_of: Mean over each item's users, n_items x n_users.
            ids: Z of all users (n_users, d) and of all items (n_items, d).
            nodes: Users (n,) and items (m,); None for all.
        """
        # X_0: rn works row by row, so users and items are normalised apart.
        users, items = normalise_rows(self.preference), self.content
        if self.projection is not None:
            items = linear(items, self.projection.weight, self.projection.bias)
        items = self.stand_ins.put_in(self.modality, items, self._of_token)
        if self.projection is not None:
            items = normalise_rows(items)
        for l, layer in enumerate(self.layers):
            # The last layer runs for the batch's nodes alone; earlier ones feed their neighbours.
            some_users, some_items = nodes if nodes and l == len(self.layers) - 1 else (None, None)
            constant = None if l else self.user_mean
            to_users = _sent(items_of, items, some_users, constant)
            # Both sides send X_l: this one is taken before `users` moves on to X_(l+1).
            to_items = _sent(users_of, users, some_items)
            users = layer(*to_users, _rows(users, some_users), _rows(ids[0], some_users))
            items = layer(*to_items, _rows(items, some_items), _rows(ids[1], some_items))
        return users, items

    def _of_token(self, token: Tensor) -> Tensor:
        """What a token of the modality is to the graph, (1, k)."""
        if self.projection is None:
            return normalise_rows(token)
        return linear(token, self.projection.weight, self.projection.bias)


class MMGCN(Recommender):
    """Multi-modal graph convolution over any modalities."""

    Config = MMGCNConfig
    learns_absent = True
    id_weights = (*Recommender.id_weights, "networks.*.preference", "stale_*")
    cell = Cell(
        modalities="any; pictures, sounds and texts in 2019",
        representation="coordinate",
        fusion="intermediate",
        operator="mean",
        side="item",
        backbone="a graph network of each modality, mixed with ids",
    )

    user_embedding: Tensor
    item_embedding: Tensor

    def __init__(self, train: TrainSet, content: Content, config: MMGCNConfig, init: Init) -> None:
        super().__init__()
        self.config, variant, d = config, config.variant, config.embedding_dim
        if variant.start == "xavier_uniform":
            users = init.xavier_uniform("user_embedding", train.n_users, d)
            items = init.xavier_uniform("item_embedding", train.n_items, d)
        else:
            # One draw for all nodes: Xavier's variance depends on the number of rows.
            both = init.xavier_normal("embedding", train.n_users + train.n_items, d).data
            users = nn.Parameter(both[: train.n_users].clone())
            items = nn.Parameter(both[train.n_users :].clone())
        _add_table(self, "user_embedding", users, trained=variant.train_ids)
        _add_table(self, "item_embedding", items, trained=variant.train_ids)
        # D^-1 A as two blocks, users x items and items x users; the other two are empty.
        indptr, indices = torch.from_numpy(train.indptr), torch.from_numpy(train.items)
        pattern = SparsePattern(indptr, indices, train.n_items)
        self.items_of = row_normalised(pattern, dtype=users.dtype)
        self.users_of = row_normalised(pattern.transpose[0], dtype=users.dtype)
        self.networks = nn.ModuleDict()
        for position, (m, vectors) in enumerate(content.vectors.items()):
            width = config.content_dims[min(position, len(config.content_dims) - 1)]
            self.networks[m] = Network(
                f"networks.{m}",
                vectors,
                self.items_of,
                width,
                d,
                variant,
                init,
                content.stand_ins(m),
            )
        # The only modality whose preferences are regularised.
        self.first = next(iter(content))
        self._see_start()

    def start_from(self, carried: Mapping[str, Tensor]) -> None:
        """See `Recommender.start_from`."""
        super().start_from(carried)
        self._see_start()

    def _see_start(self) -> None:
        """Until the first epoch's last batch, stale ranking sees the initial tables."""
        if self.config.stale_inference:
            with torch.no_grad():
                stale_users, stale_items = self.representation()
            self.register_buffer("stale_users", stale_users)
            self.register_buffer("stale_items", stale_items)

    def representation(self, nodes: Pair | None = None) -> Pair:
        """R of some users (n,) and items (m,), or of all: (n, d) and (m, d)."""
        ids = self.user_embedding, self.item_embedding
        networks = self.networks.values()
        parts = [network(self.items_of, self.users_of, ids, nodes) for network in networks]
        # Early fusion: R is the mean over modalities, and the score one inner product of means.
        users, items = (torch.stack(side).sum(0) / len(parts) for side in zip(*parts, strict=True))
        return users, items

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr`, `id_l2` and `preference_l2`."""
        if self.config.stale_inference and batch.last:
            with torch.no_grad():
                # A forward of all nodes: the loss needs the batch's alone.
                self.stale_users, self.stale_items = self.representation()
        # The last layer once for each distinct node of the batch.
        batch_users, pairs = grouped(batch.users), grouped(torch.cat([batch.pos, batch.neg]))
        users, user_of = distinct(batch_users)
        items, item_of = distinct(pairs)
        user_rows, item_rows = self.representation((users, items))
        user = take(user_rows, user_of)  # (B, d)
        pos, neg = pair_scores(user, item_rows, item_of)  # (B,)
        # Repeated rows count as often as the batch holds them.
        user_ids = take(self.user_embedding, batch_users)
        item_ids = take(self.item_embedding, pairs)
        id_l2 = mean_square(user_ids) + mean_square(item_ids)
        # The whole table, whatever the batch is.
        preference = cast(Network, self.networks[self.first]).preference
        return {
            "bpr": bpr_loss(pos, neg),
            "id_l2": id_l2 * self.config.reg_weight,
            "preference_l2": preference.square().mean() * self.config.reg_weight,
        }

    def embeddings(self) -> Pair:
        """R of all users and items."""
        if self.config.stale_inference:
            return self.stale_users, self.stale_items
        return self.representation()


def _add_table(module: nn.Module, name: str, table: nn.Parameter, *, trained: bool) -> None:
    if trained:
        module.register_parameter(name, table)
    else:
        module.register_buffer(name, table.data)


def _rows(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else take(x, index)


def _sent(
    mean: SparseMatrix, x: Tensor, index: Tensor | None, constant: Tensor | None = None
) -> tuple[Tensor, SparseMatrix | None]:
    """The first two arguments of a layer for some nodes, or for all; `constant`: mean(x)."""
    if constant is not None:
        return _rows(constant, index), None
    if index is not None:
        return mean.rows(index) @ x, None
    return (x, mean) if _product_first(mean) else (mean @ x, None)


def _product_first(mean: SparseMatrix) -> bool:
    """Whether mean(X C) costs less than mean(X) C: the nodes that send are fewer."""
    return mean.shape[1] < mean.shape[0]
