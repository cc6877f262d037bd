"""DualGNN: a graph network of each modality that each user weighs, and users who learn from others.

Paper: Wang, Wei, Yin, Wu, Song, Nie: DualGNN: Dual Graph Neural Network for Multimedia
Recommendation, IEEE Transactions on Multimedia 25, 2023,
https://doi.org/10.1109/TMM.2021.3138298.

    rn(X)   = rows divided by max(their L2 norm, 1e-12) ;   LR(x) = max(x, 0.01 x)
    Â       = D^-1/2 A D^-1/2                                A: training pairs, no self loops
for each modality m with raw features F_m:
    x_m     = rn([preference_m ; LR(F_m hidden_m^T + c_m) projection_m^T + b_m])
    h_m     = x_m + Â x_m + … + Â^L x_m                                         L = `n_layers`
then with the weights w = user_weights, one of each user and modality:
    y_u     = sum_m w_u,m h_m,u
    N(u)    = the k = `n_co_users` users with the most items in common with u; equal numbers by
              ascending user row; nobody without a common item
    z_u     = y_u + sum over v in N(u) of a_uv y_v
              a_uv = softmax over N(u) of the numbers of common items, or 1/|N(u)|
                                                                      `user_weighting`
    q_i     = sum_m h_m,i ;   s(u, i) = <z_u, q_i>
    L       = mean over the batch of -log2 sigmoid(s(u, i) - s(u, j))                      (bpr)
              + reg_weight sum_m [mean square of preference_m,u over the batch]  (preference_l2)
              + reg_weight [mean square of user_weights]                             (weight_l2)

With one modality nothing is weighed: y = h, without user_weights and their penalty.

Presets (`preset`), see PRESETS
    paper      the equations above.
    original   MMRec's module as it runs, with which papers compare on the Amazon datasets.
               `fill_up`: it wants k users on every list; where fewer have an item in common, it
               repeats some, drawn anew in each epoch, and the softmax counts them as often.
               `first_is_sum`: it adds the modalities up in the memory of the first one's h, so that
               users weigh the sum over modalities in the place of the first: y_u = w_u,1 sum_m
               h_m,u + sum_(m > 1) w_u,m h_m,u. The authors' own code fills up, too, and does not
               add up in place.

Always: users are ranked by fresh embeddings, and with each co-user once; both codes rank by those
of the epoch's last batch, before its optimiser step. Both have weights of items, too, which nothing
but their own penalty reads, and one more layer for each modality that nothing reads: they are left
out. The masks by which the authors drop modalities of items are built and not used in either code.

Exact, and fast: co-users are counted one user at a time (`mmbench.ops.co_users`), and added up for
the batch's users only; users and items are propagated apart (`mmbench.ops.sides`), in the last
layer for the batch's items only. The content of all items is projected in each step: within two
layers and the co-users' lists a batch reaches nearly all of them.

Trainable: user_weights (n_users, n_modalities), and for each modality preference.<m> (n_users, d),
hidden.<m>.weight (4 d, dim), hidden.<m>.bias (4 d,), projection.<m>.weight (d, 4 d),
projection.<m>.bias (d,). User weights start as the softmax of N(0, 2 / (n_users + n_modalities)).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Init
from mmbench.models.base import Content, Known, Score, TrainSet
from mmbench.models.cells import Cell
from mmbench.models.dual_graphs import DualGraphs, DualGraphsConfig


@dataclass(frozen=True)
class Variant:
    """What the presets set: fields of `DualGNNConfig` that are None there."""

    fill_up: bool
    first_is_sum: bool


PRESETS = {"paper": Variant(False, False), "original": Variant(True, True)}


class DualGNNConfig(DualGraphsConfig):
    """Settings of DualGNN; the defaults are those of the authors' code, batches as in MMRec.

    Best values of the Amazon datasets have not been published.
    """

    first_is_sum: bool | None = Field(
        None, description="users weigh the sum over modalities in the place of the first one"
    )

    @property
    def variant(self) -> Variant:
        """The preset's values; where a field is given, that."""
        return self.over(PRESETS[self.preset])


class DualGNN(DualGraphs):
    """Networks of the modalities, weighed by each user, over co-users."""

    Config = DualGNNConfig
    scores_unseen = True
    cell = Cell(
        modalities="any; pictures, sounds and texts in 2021",
        representation="coordinate",
        fusion="intermediate",
        operator="sum; of a user weighed, by weights of its own",
        side="item",
        ids="users",
        backbone="lightgcn of each modality, then co-users",
    )

    def __init__(
        self, train: TrainSet, content: Content, config: DualGNNConfig, init: Init
    ) -> None:
        super().__init__(train, content, config, init, config.variant.fill_up)
        self.first_is_sum = config.variant.first_is_sum

    def _fused(self, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """The vectors y of all users, and q of some items or all."""
        h_users, h_items = self._networks(items)
        q = reduce(torch.add, h_items)
        if self.user_weights is None:
            return h_users[0], q
        weights = self.user_weights.unbind(1)
        if self.first_is_sum:
            # w_1 (h_1 + h_2 + …) + w_2 h_2 + …: every h but the first gets w_1 and its own weight.
            weights = (weights[0], *(weights[0] + weight for weight in weights[1:]))
        parts = (h * weight[:, None] for h, weight in zip(h_users, weights, strict=True))
        return reduce(torch.add, parts), q

    def scorer(self, known: Known) -> Score:
        """An unseen item has no neighbours: q is the sum of its x_m, made of its content alone."""
        users, items = self.embeddings()
        unseen = slice(len(items), known.n_items)
        if unseen.start < unseen.stop:
            vectors = {
                m: self.stand_ins.of_others(m, known.content[m], unseen).to(items.device)
                for m in self.preference
            }
            parts = [self._content(m, x, seen=False) for m, x in vectors.items()]
            items = torch.cat([items, reduce(torch.add, parts)])
        columns = items.T.contiguous()
        return lambda rows: users[rows] @ columns
