"""A toy sequence model with a sampler and a batch kind of its own, as a model outside the tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Batch, Init, clocks, numpy_rng
from mmbench.models.base import Content, ModelConfig, Recommender
from mmbench.ops.draws import kept


@dataclass(frozen=True, eq=False)
class Histories(Batch):
    """Each user's items in their order, (B, L), filled up with -1 at the end."""

    items: Tensor


class UserHistories:
    """Every user with two items or more once per epoch, in a fresh order."""

    def __init__(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str
    ) -> None:
        self.train, self.batch_size, self.seed, self.device = train, batch_size, seed, device
        self.users = np.flatnonzero(train.user_degree >= 2)

    def __len__(self) -> int:
        return -(-self.users.size // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Histories]:
        users = numpy_rng(self.seed, "histories", epoch).permutation(self.users)
        for step, clock in enumerate(clocks(epoch, len(self), self.device)):
            rows = users[step * self.batch_size : (step + 1) * self.batch_size]
            items = histories(self.train, rows).to(self.device)
            yield Histories(self.seed, clock, step == 0, step == len(self) - 1, items)


def histories(train: TrainSet, users: np.ndarray) -> Tensor:
    sequences = [
        torch.from_numpy(train.items[train.indptr[user] : train.indptr[user + 1]]) for user in users
    ]
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=-1)


class NextItem(Recommender):
    """Softmax over all items from the mean of the items before."""

    Config = ModelConfig
    uses_features = False
    id_weights = ("before", "after")
    make_sampler = UserHistories

    def __init__(self, train: TrainSet, features: Content, config: ModelConfig, init: Init) -> None:
        super().__init__()
        self.sequences = histories(train, np.arange(train.n_users))
        self.before = init.xavier_uniform("before", train.n_items, config.embedding_dim)
        self.after = init.xavier_uniform("after", train.n_items, config.embedding_dim)

    def means(self, items: Tensor) -> Tensor:
        """Mean of the embeddings up to each position, (B, L, d)."""
        there = (items >= 0)[..., None]
        rows = functional.embedding(items.clamp(min=0), self.before) * there
        return rows.cumsum(1) / there.cumsum(1).clamp(min=1)

    def loss(self, batch: Histories) -> dict[str, Tensor]:
        known = batch.items.masked_fill(~kept(batch.stream("dropout"), batch.items.shape, 0.1), -1)
        logits = self.means(known)[:, :-1] @ self.after.T  # (B, L - 1, n_items)
        target = batch.items[:, 1:].flatten()
        return {"next": functional.cross_entropy(logits.flatten(0, 1), target, ignore_index=-1)}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        sequences = self.sequences.to(self.before.device)
        return self.means(sequences)[:, -1], self.after
