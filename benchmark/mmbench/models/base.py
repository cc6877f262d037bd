"""What every recommender is to the trainer and the evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Batch

Score = Callable[[Tensor], Tensor]


class ModelConfig(BaseModel):
    """The settings that every model has. A model's own class adds its own and may set other defaults.

    Names that users bring from other frameworks are accepted as aliases of these fields; see `ALIASES`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(200, ge=0, le=100_000, description="passes over the training set")
    batch_size: int = Field(1024, ge=1, description="triples per optimiser step")
    lr: float = Field(1e-3, gt=0, description="Adam's step size")
    embedding_dim: int = Field(64, ge=1, description="width of the user and item embeddings")

    ALIASES: ClassVar[Mapping[str, str]] = {
        "learning_rate": "lr",
        "factors": "embedding_dim",
        "embedding_size": "embedding_dim",
        "train_batch_size": "batch_size",
        "l_w": "reg_weight",
        "reg": "reg_weight",
    }


class Recommender(nn.Module):
    """A model: parameters, a loss of a batch, and scores of all items for given users.

    It owns no files, no optimiser and no seed: everything random arrives as an argument. Subclasses are built as
    `Model(train, features, config, init)` and must set `Config`; see CONTRIBUTING.md for a model from start to end.

    Class attributes:
        Config: The pydantic class of the model's settings.
        sampler: Name of the sampler in `mmbench.core.sampling.SAMPLERS`; None for a model that is not trained.
        uses_features: Whether it needs at least one modality.
    """

    Config: ClassVar[type[ModelConfig]]
    sampler: str | None = "edges"
    uses_features: ClassVar[bool] = True

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms; their sum is what the optimiser descends."""
        raise AssertionError(f"{type(self).__name__} is not trained by gradient descent")

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Called before the first batch of each epoch (1-based): the place to rebuild a graph."""

    def lr_factor(self, epoch: int) -> float:
        """What the learning rate is multiplied with in this epoch (1-based); 1 unless the model has a schedule."""
        return 1.0

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """User and item representations, (n_users, d) and (n_items, d), whose inner products are the scores.

        Called once per evaluation, without gradients. Models that do not factorise override `scorer` instead.
        """
        raise AssertionError(f"{type(self).__name__} does not factorise; use scorer()")

    def scorer(self) -> Score:
        """A function from user rows (B,) to scores (B, n_items); what can be computed once is computed here.

        Called without gradients; the function is valid until a parameter changes.
        """
        users, items = self.embeddings()
        columns = items.T.contiguous()
        return lambda rows: users[rows] @ columns


def concatenated(features: Mapping[str, Tensor]) -> Tensor:
    """The modalities side by side in the order of their names' listing, shape (n_items, sum of dims)."""
    return torch.cat(list(features.values()), dim=1)


__all__ = ["Batch", "ModelConfig", "Recommender", "Score", "TrainSet", "concatenated"]
