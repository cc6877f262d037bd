"""Controls that learn nothing: the most popular items, and a random order. Both ignore features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.core.sampling import Init, torch_rng
from mmbench.models.base import Content, Known, ModelConfig, Recommender, Score, TrainSet


class UntrainedConfig(ModelConfig):
    """Settings of a model without training."""

    epochs: int = 0


class MostPopular(Recommender):
    """Everyone gets the items with the most distinct training users; ties by ascending item id."""

    Config = UntrainedConfig
    trained = False
    uses_features = False
    uses_seed = False
    scores_unseen = True
    by_history = True
    id_weights = ("popularity",)

    def __init__(
        self, train: TrainSet, content: Content, config: UntrainedConfig, init: Init
    ) -> None:
        super().__init__()
        self.register_buffer("popularity", torch.from_numpy(train.popularity).float())

    def scorer(self, known: Known) -> Score:
        """The same scores, item popularities in users, for everyone; unseen items have 0."""
        popularity = self.get_buffer("popularity")
        popularity = functional.pad(popularity, (0, known.n_items - len(popularity)))
        # A view of one row for all users, (B, n_items).
        return lambda rows: popularity.expand(rows.numel(), -1)


class Random(Recommender):
    """Every user gets a uniformly random order of the items, which follows from (seed, user)."""

    Config = UntrainedConfig
    trained = False
    uses_features = False
    scores_unseen = True

    def __init__(
        self, train: TrainSet, content: Content, config: UntrainedConfig, init: Init
    ) -> None:
        super().__init__()
        self.n_items, self.seed = train.n_items, init.seed

    def scorer(self, known: Known) -> Score:
        """Uniform scores in [0, 1); a user's row depends on seed and user alone."""
        sizes = (self.n_items, known.n_items - self.n_items)  # unseen items change no other's score

        def scores_of(user: int) -> Tensor:
            # One CPU stream per user: neither chunk nor device changes a user's order.
            generator = torch_rng(self.seed, "scores", user)
            return torch.cat([torch.rand(n, generator=generator) for n in sizes])

        return lambda rows: torch.stack([scores_of(user) for user in rows.tolist()]).to(rows.device)
