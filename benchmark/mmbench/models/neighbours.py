"""Item-based nearest neighbours: on who consumed an item (item-knn) and on what it contains (content-knn).

Paper: Deshpande, Karypis: Item-based top-N recommendation algorithms, ACM TOIS 22(1), 2004, 10.1145/963770.963776.

    score(u, i) = sum over j in N(u), j != i, of sim(i, j)          sim kept for the `neighbours` most similar j of each i

item-knn:    sim(i, j) = |users of both| / (sqrt(|users of i| |users of j|) + shrinkage)      binary cosine
content-knn: sim(i, j) = mean over modalities of the cosine of the items' vectors; negative ones count as 0. An item whose
             vector is zero is similar to nothing.

Nothing is trained; both are controls that any content-aware model should beat.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mmbench.core.init import Init
from mmbench.core.knn import cosine_knn
from mmbench.models.base import Features, Recommender, Score, TrainSet
from mmbench.models.baselines import UntrainedConfig


class ItemKNNConfig(UntrainedConfig):
    """Settings of item-knn."""

    neighbours: int = Field(100, ge=1, description="most similar items kept per item")
    shrinkage: float = Field(10.0, ge=0, description="added to the cosine's denominator: distrust of small counts")


class ContentKNNConfig(UntrainedConfig):
    """Settings of content-knn."""

    neighbours: int = Field(100, ge=1, description="most similar items kept per item")


class _Neighbours(Recommender):
    """Scores by a sparse item-item similarity, shape (n_items, n_items), row = the item that is scored."""

    sampler = None
    uses_seed = False

    def __init__(self, train: TrainSet) -> None:
        super().__init__()
        ones = np.ones(train.n_edges, np.float32)
        self.seen = sp.csr_matrix((ones, train.items, train.indptr), shape=(train.n_users, train.n_items))

    def similarity(self) -> sp.csr_matrix:
        """The kept similarities, zero diagonal."""
        raise AssertionError("abstract")

    def scorer(self) -> Score:
        """Sums of similarities to the user's training items."""
        transposed = self.similarity().T.tocsr()

        def score(rows: Tensor) -> Tensor:
            block = (self.seen[rows.cpu().numpy()] @ transposed).toarray()
            return torch.from_numpy(np.ascontiguousarray(block, np.float32)).to(rows.device)

        return score


class ItemKNN(_Neighbours):
    """Neighbours by co-consumption."""

    Config = ItemKNNConfig
    uses_features = False

    def __init__(self, train: TrainSet, features: Features, config: ItemKNNConfig, init: Init) -> None:
        super().__init__(train)
        self.config = config

    def similarity(self) -> sp.csr_matrix:
        """Cosines of the binary item columns, the largest per row; ties by ascending item id."""
        together = (self.seen.T @ self.seen).tocsr()  # (n_items, n_items), as sparse as co-consumption
        together.setdiag(0)
        together.eliminate_zeros()
        together.sort_indices()
        norm = np.sqrt(np.asarray(self.seen.sum(0)).ravel())
        rows = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        values = together.data / (norm[rows] * norm[together.indices] + self.config.shrinkage)
        return _largest(rows, together.indices, values, self.config.neighbours, together.shape[0])


class ContentKNN(_Neighbours):
    """Neighbours by content."""

    Config = ContentKNNConfig

    def __init__(self, train: TrainSet, features: Features, config: ContentKNNConfig, init: Init) -> None:
        super().__init__(train)
        self.config = config
        unit = {modality: functional.normalize(vectors, dim=1) for modality, vectors in features.items()}
        self.register_buffer("content", torch.cat(list(unit.values()), 1), persistent=False)

    def similarity(self) -> sp.csr_matrix:
        """Mean cosines over the modalities, the largest per row."""
        content = self.get_buffer("content")
        n = len(content)
        indices, values = cosine_knn(content, min(self.config.neighbours + 1, n))
        rows = np.repeat(np.arange(n), indices.shape[1])
        columns, cosines = indices.cpu().numpy().ravel(), values.cpu().numpy().ravel()
        keep = (rows != columns) & (cosines > 0)
        return _largest(rows[keep], columns[keep], cosines[keep], self.config.neighbours, n)


def _largest(
    rows: NDArray[np.int64], columns: NDArray[np.integer], values: NDArray[np.floating], k: int, n: int
) -> sp.csr_matrix:
    """The k largest values of each row of a sparse n x n matrix; ties by ascending column. `rows` ascend."""
    order = np.lexsort((columns, -values, rows))
    rank = np.arange(rows.size) - np.searchsorted(rows, rows)  # position within the row, since `rows` ascend
    kept = order[rank < k]
    return sp.csr_matrix((values[kept].astype(np.float32), (rows[kept], columns[kept])), shape=(n, n))
