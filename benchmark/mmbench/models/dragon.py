"""DRAGON: networks of the modalities side by side, over graphs of users and of items.

Paper: Zhou, Zhou et al.: Enhancing Dyadic Relations with Homogeneous Graphs for Multimodal
Recommendation, ECAI 2023, https://arxiv.org/abs/2301.12097.

    rn(X)   = rows divided by max(their L2 norm, 1e-12) ;   LR(x) = max(x, 0.01 x)
    Â       = D^-1/2 A D^-1/2                                A: training pairs, no self loops
for each modality m with raw features F_m:
    x_m     = rn([preference_m ; LR(F_m hidden_m^T + c_m) projection_m^T + b_m])
    h_m     = x_m + Â x_m + … + Â^L x_m                                         L = `n_layers`
then with the weights w = user_weights, one of each user and modality:
    y_u     = [w_u,1 h_1,u | w_u,2 h_2,u | …] ;   g_i = [h_1,i | h_2,i | …]
    N(u)    = the k = `n_co_users` users with the most items in common with u; equal numbers by
              ascending user row; nobody without a common item
    z_u     = y_u + sum over v in N(u) of a_uv y_v
              a_uv = softmax over N(u) of the numbers of common items, or 1/|N(u)|
                                                                      `user_weighting`
    q_i     = g_i + (S^`n_item_layers` g)_i                 S: as in FREEDOM, of the raw features
    s(u, i) = <z_u, q_i>
    L       = mean over the batch of -log2 sigmoid(s(u, i) - s(u, j))                      (bpr)
              + reg_weight sum_m [mean square of preference_m,u over the batch]  (preference_l2)
              + reg_weight [mean square of user_weights]                             (weight_l2)

With one modality nothing is weighed: y = h, without user_weights and their penalty.

Presets (`preset`), see PRESETS
    paper      the equations above.
    original   the authors' code as it runs, MMRec's being the same. `fill_up`: it wants k users on
               every list; where fewer have an item in common, it repeats some, drawn anew in each
               epoch, and the softmax counts them as often.

Always: users are ranked by fresh embeddings, and with each co-user once; the authors' code ranks by
those of the epoch's last batch, before its optimiser step. It has trainable copies of the raw
features, projections of them, weights of items and more that no score and no loss reads: they are
left out. Modalities other than visual and textual have weights in S too, see `modality_weights`.

Exact, and fast: as DualGNN; the graph of items is multiplied for the batch's items only, but for
its first layers.

Trainable: user_weights (n_users, n_modalities), and for each modality preference.<m> (n_users, d),
hidden.<m>.weight (4 d, dim), hidden.<m>.bias (4 d,), projection.<m>.weight (d, 4 d),
projection.<m>.bias (d,). User weights start as the softmax of N(0, 2 / (n_users + n_modalities)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Init
from mmbench.models.base import Content, TrainSet
from mmbench.models.cells import Cell
from mmbench.models.dual_graphs import DualGraphs, DualGraphsConfig
from mmbench.models.freedom import frozen_item_graph, item_propagation, modality_weights
from mmbench.ops.rows import take


@dataclass(frozen=True)
class Variant:
    """What the presets set: the field of `DRAGONConfig` that is None there."""

    fill_up: bool


PRESETS = {"paper": Variant(False), "original": Variant(True)}


class DRAGONConfig(DualGraphsConfig):
    """Settings of DRAGON; the defaults are the published best values of Amazon Baby."""

    reg_weight: float = Field(
        1e-3, ge=0, description="weight of the mean squares of preferences and user weights"
    )
    n_item_layers: int = Field(1, ge=0, description="propagations on the item-item graph")
    neighbours: int = Field(10, ge=1, description="entries of each row of the item-item graph")
    modality_weights: dict[str, float] | None = Field(
        None,
        description="of the item-item graph, by modality; none: visual 0.1 and the others 0.9 "
        "together, without visual equal shares",
    )

    ALIASES: ClassVar[Mapping[str, str]] = {
        **DualGraphsConfig.ALIASES,
        **dict.fromkeys(["top_k", "knn_k"], "neighbours"),
        "n_mm_layers": "n_item_layers",
    }

    @property
    def variant(self) -> Variant:
        """The preset's values; where a field is given, that."""
        return self.over(PRESETS[self.preset])


class DRAGON(DualGraphs):
    """Networks of the modalities, concatenated, over co-users and a frozen item graph."""

    Config = DRAGONConfig
    cell = Cell(
        modalities="any; pictures and texts in 2023",
        representation="coordinate",
        fusion="intermediate",
        operator="concat; of a user weighed, by weights of its own",
        side="item",
        ids="users",
        backbone="lightgcn of each modality, then co-users and a frozen item graph",
    )

    def __init__(self, train: TrainSet, content: Content, config: DRAGONConfig, init: Init) -> None:
        super().__init__(train, content, config, init, config.variant.fill_up)
        weights = modality_weights(config.modality_weights, list(content))
        dtype = self.graph.values.dtype
        self.item_graph = frozen_item_graph(content, config.neighbours, weights, dtype)
        self.n_item_layers = config.n_item_layers

    def _fused(self, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """The vectors y of all users, and q of some items or all."""
        # The batch's items need h of their neighbours on the item graph, which may be any.
        h_users, h_items = self._networks()
        if self.user_weights is not None:
            weights = self.user_weights.unbind(1)
            h_users = [h * weight[:, None] for h, weight in zip(h_users, weights, strict=True)]
        y, g = torch.cat(h_users, 1), torch.cat(h_items, 1)
        own = g if items is None else take(g, items)
        return y, own + item_propagation(self.item_graph, g, self.n_item_layers, items)
