"""MGCN: content filtered by ids, propagated apart from behaviour, weighed by what a user prefers.

Paper: Yu, Tan, Lu, Bao: Multi-View Graph Convolutional Network for Multimedia Recommendation, ACM
MM 2023, https://doi.org/10.1145/3581783.3613915 (arXiv 2308.03588).

    g_m,i   = W_m features_m,i + b_m                        features_m starts from the raw vectors
    S_m     = D^-1/2 C_m D^-1/2 on the k = `neighbours` nearest items of each row by cosine of the
              raw vectors, itself included; C_m the cosines, D their row sums               frozen
    Â       = D^-1/2 A D^-1/2 of the user-item graph; R its rows of users and columns of items
    x       = [user_embedding; item_embedding]
    z       = mean of x, Â x, …, Â^L x                                          L = `n_ui_layers`
    h_m,i   = (S_m^`n_item_layers` (item_embedding * sigmoid(gate_m(g_m))))_i ;  h_m,u = (R h_m)_u
    a       = softmax over m of <query, tanh(asking(h_m))>
    c       = sum_m a_m h_m                                                what modalities share
    side    = (c + sum_m sigmoid(preference_m(z)) * (h_m - c)) / (M + 1)
    e       = z + side
    L       = mean over the batch of -log sigmoid(<e_u, e_i> - <e_u, e_j>)
              + reg_weight / (2 batch_size) * sum over the batch of (|e_u|² + |e_i|² + |e_j|²)
              + cl_weight * (contrast(side_u, z_u) + contrast(side_i, z_i))
              contrast(x, y): mean over the batch's rows b of
              -log(e(b, b) / sum over its rows c of e(b, c)), e(b, c) = exp(cos(x_b, y_c) / τ)
    s(u, i) = <e_u, e_i>                                                        τ = `temperature`

gate_m, preference_m and asking are linear layers. The learning rate is lr 0.96^((epoch - 1) / 50).
The equations are those of the authors' code, which MMRec runs line for line; M + 1 is the 3 of its
two modalities. There are no presets.

Differences from that code: a row sum of cosines that is not positive counts as none, instead of
turning S into NaN; so does a zero vector: it is similar to itself alone. One modality shares with
itself: c = h_m, side = c / 2, and neither query nor preferences are there.

Exact, and fast: what follows h_m, and the last user-item layer, is computed for the distinct users
and items of a batch only; contrasts run over these with their counts, in blocks; the vectors are a
`RowTable`, whose update multiplies their gradient out a few rows at a time.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d), for each modality features.<m>
(n_items, k_m), projection.<m>.weight (d, k_m), gate.<m>.weight (d, d), and their .bias (d,); with
several also preference.<m>.weight and common.asking.weight (d, d), their .bias (d,), and
common.query (1, d).
"""

from __future__ import annotations

from functools import reduce

import torch
from pydantic import Field
from torch import Tensor, nn

from mmbench.core.sampling import Init, Triples
from mmbench.models.base import Content, TrainSet
from mmbench.models.cells import Cell
from mmbench.models.multiview import MultiView, MultiViewConfig, Neighbours, Rows, opened
from mmbench.models.operators import Fusion


class MGCNConfig(MultiViewConfig):
    """Settings of MGCN; the defaults are what its authors recommend, for Amazon Baby too."""

    neighbours: Neighbours = Field(
        10, description="k, entries of each row of an item graph: a number, or one by modality"
    )


class MGCN(MultiView):
    """A purifier guided by ids, item graphs of each modality, a fuser aware of behaviour."""

    Config = MGCNConfig
    cell = Cell(
        modalities="any; pictures and texts in 2023",
        representation="coordinate",
        fusion="intermediate",
        operator="attention, and what it leaves by preference",
        side="item",
        backbone="lightgcn + frozen item graphs, contrasted",
    )

    def __init__(self, train: TrainSet, content: Content, config: MGCNConfig, init: Init) -> None:
        super().__init__(train, content, config, init, config.neighbours)
        d, several = config.embedding_dim, len(content) > 1
        self.common = Fusion("attention", len(content), d, "common", init)
        if several:
            # The authors' query is the weight of a linear layer with one output.
            self.common.query = init.uniform("common.query", 1, d, bound=d**-0.5)
        self.preference = nn.ModuleDict(
            {m: init.linear(f"preference.{m}", d, d) for m in (content if several else ())}
        )

    def _filters(self) -> list[Tensor]:
        return [
            torch.sigmoid(self._project(m, None, gate))  # type: ignore[arg-type]
            for m, gate in self.gate.items()
        ]

    def _side(
        self, z: Tensor, views: list[Tensor], rows: Rows | None, batch: Triples | None
    ) -> Tensor:
        common: Tensor = self.common(views)
        # What sets a modality apart counts as far as the behaviour says so.
        apart = [
            opened(z, layer) * (h - common)  # type: ignore[arg-type]
            for h, layer in zip(views, self.preference.values(), strict=False)
        ]
        return reduce(torch.add, apart, common) / (len(views) + 1)
