"""Item-based nearest neighbours: on who consumed an item (item-knn), on what it is (content-knn).

Paper: Deshpande, Karypis: Item-based top-N recommendation algorithms, ACM TOIS 22(1), 2004,
10.1145/963770.963776.

    score(u, i) = sum over j in N(u), j != i, of sim(i, j)
                                       sim kept for the `neighbours` most similar j of each i
                                       N(u) the user's items, or those of the `latest` rows
    item-knn:    sim(i, j) = |users of both| / (sqrt(|users of i| |users of j|) + shrinkage)
                                                                                 binary cosine
    content-knn: sim(i, j) = mean over modalities of the cosine of the items' vectors; negative
                             ones count as 0. An item whose vector is zero is similar to nothing.

Nothing is trained; both are controls that any content-aware model should beat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mmbench.core.interactions import Histories
from mmbench.core.sampling import Init
from mmbench.models.base import Content, Known, Recommender, Score, TrainSet
from mmbench.models.baselines import UntrainedConfig
from mmbench.ops.dense import top_k
from mmbench.ops.knn import BLOCK_BYTES, cosine_knn


class ItemKNNConfig(UntrainedConfig):
    """Settings of item-knn."""

    neighbours: int = Field(100, ge=1, description="most similar items kept per item")
    shrinkage: float = Field(
        10.0, ge=0, description="added to the cosine's denominator: distrust of small counts"
    )
    latest: int | None = Field(
        None, ge=1, description="how many rows at the end of a history count; all if null"
    )

    ADDED = frozenset({"latest"})


class ContentKNNConfig(UntrainedConfig):
    """Settings of content-knn."""

    neighbours: int = Field(100, ge=1, description="most similar items kept per item")


class _Neighbours(Recommender):
    """Scores by a sparse item-item similarity (n_items, n_items), rows are what is scored."""

    trained = False
    uses_seed = False
    by_history = True

    def __init__(self, train: TrainSet) -> None:
        super().__init__()
        self.n_items = train.n_items

    def _counted(self, histories: Histories) -> TrainSet:
        """The pairs that count."""
        return histories.distinct(self.n_items)

    def similarity(self) -> sp.csr_matrix:
        """The kept similarities, zero diagonal."""
        raise AssertionError("abstract")

    def scorer(self, known: Known) -> Score:
        """Sums of similarities to the distinct items of a user's history; unseen items get -inf."""
        return self._sums(self.similarity(), known)

    def _sums(self, similarity: sp.csr_matrix, known: Known) -> Score:
        """Score the first items by their rows of `similarity`, (n scored items, n_items)."""
        seen, transposed = _seen(self._counted(known.histories)), similarity.T.tocsr()
        n_unscored = known.n_items - similarity.shape[0]

        def score(rows: Tensor) -> Tensor:
            # score(u, i) = sum over j in N(u) of sim(i, j): rows of `seen` times sim^T.
            block = (seen[rows.cpu().numpy()] @ transposed).toarray()
            scores = torch.from_numpy(np.ascontiguousarray(block, np.float32)).to(rows.device)
            return (
                functional.pad(scores, (0, n_unscored), value=-math.inf) if n_unscored else scores
            )

        return score


def _seen(train: TrainSet) -> sp.csr_matrix:
    """1 where a user has an item, shape (n_users, n_items)."""
    ones = np.ones(train.n_edges, np.float32)
    return sp.csr_matrix((ones, train.items, train.indptr), shape=(train.n_users, train.n_items))


class ItemKNN(_Neighbours):
    """Neighbours by co-consumption."""

    Config = ItemKNNConfig
    uses_features = False

    def __init__(
        self, train: TrainSet, content: Content, config: ItemKNNConfig, init: Init
    ) -> None:
        super().__init__(train)
        self.config = config
        self.seen = _seen(train)

    def _counted(self, histories: Histories) -> TrainSet:
        """The pairs of the latest rows, among those of trained items."""
        latest = self.config.latest
        if latest is None:
            return super()._counted(histories)
        return histories.among(self.n_items).latest(latest).distinct(self.n_items)

    def similarity(self) -> sp.csr_matrix:
        """Cosines of the binary item columns, the largest per row; ties by ascending item id."""
        # The numerator: users who have both i and j.
        together = (
            self.seen.T @ self.seen
        ).tocsr()  # (n_items, n_items), as sparse as co-consumption
        # The sum leaves out j = i.
        together.setdiag(0)
        together.eliminate_zeros()
        together.sort_indices()
        # sqrt |users of i|, the length of the binary column.
        norm = np.sqrt(np.asarray(self.seen.sum(0)).ravel())
        rows = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        values = together.data / (norm[rows] * norm[together.indices] + self.config.shrinkage)
        return _largest(rows, together.indices, values, self.config.neighbours, together.shape[0])


class ContentKNN(_Neighbours):
    """Neighbours by content."""

    Config = ContentKNNConfig
    scores_unseen = True

    def __init__(
        self, train: TrainSet, content: Content, config: ContentKNNConfig, init: Init
    ) -> None:
        super().__init__(train)
        self.config = config
        self.modalities = tuple(content)
        self.register_buffer("content", self._side_by_side(content.vectors), persistent=False)

    def _side_by_side(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """The modalities' vectors, each of length 1, next to each other."""
        # With unit parts, the cosine of two concatenations is the mean of the modalities' cosines,
        # as long as no part is zero.
        return torch.cat(
            [functional.normalize(vectors[modality], dim=1) for modality in self.modalities], 1
        )

    def scorer(self, known: Known) -> Score:
        """The neighbours of an unseen item are the training items with the most similar content."""
        n, n_unseen = self.n_items, known.n_items - self.n_items
        similarity = self.similarity()
        if n_unseen:
            unseen = {m: known.content[m].vectors[n : known.n_items] for m in self.modalities}
            # Rows of unseen items follow; the columns stay the training items.
            similarity = sp.vstack([similarity, self._to_trained(unseen, n_unseen)]).tocsr()
        return self._sums(similarity, known)

    def _to_trained(self, unseen: Mapping[str, Tensor], n_unseen: int) -> sp.csr_matrix:
        """Positive cosines of unseen items to their nearest training items, (n_unseen, n_items)."""
        # Unit rows on both sides, so that products are cosines.
        content = functional.normalize(self.get_buffer("content"), dim=1)  # (n, d)
        n, k = self.n_items, min(self.config.neighbours, self.n_items)
        further = functional.normalize(self._side_by_side(unseen).to(content.device), dim=1)
        nearest = torch.zeros((n_unseen, k), dtype=torch.int64)
        cosines = torch.zeros((n_unseen, k))
        # As many rows of float32 cosines as fit into BLOCK_BYTES.
        at_a_time = max(BLOCK_BYTES // (4 * n), 1)
        for start in range(0, n_unseen, at_a_time):
            part = slice(start, start + at_a_time)
            block = further[part] @ content.T  # (B, n)
            found = top_k(block, k)
            nearest[part], cosines[part] = found, block.gather(1, found)
        rows, values = np.repeat(np.arange(n_unseen), k), cosines.numpy().ravel()
        keep = values > 0
        return sp.csr_matrix(
            (values[keep], (rows[keep], nearest.numpy().ravel()[keep])), shape=(n_unseen, n)
        )

    def similarity(self) -> sp.csr_matrix:
        """Mean cosines over the modalities, the largest per row."""
        content = self.get_buffer("content")
        n = len(content)
        # One more than asked for, because an item's list holds the item itself.
        indices, values = cosine_knn(content, min(self.config.neighbours + 1, n))
        rows = np.repeat(np.arange(n), indices.shape[1])
        columns, cosines = indices.cpu().numpy().ravel(), values.cpu().numpy().ravel()
        keep = (rows != columns) & (cosines > 0)
        return _largest(rows[keep], columns[keep], cosines[keep], self.config.neighbours, n)


def _largest(
    rows: NDArray[np.int64],
    columns: NDArray[np.integer],
    values: NDArray[np.floating],
    k: int,
    n: int,
) -> sp.csr_matrix:
    """The k largest values of each row of a sparse n x n matrix; ties by column. `rows` ascend."""
    # By row, then by value descending, then by column ascending: the tie rule.
    order = np.lexsort((columns, -values, rows))
    rank = np.arange(rows.size) - np.searchsorted(rows, rows)  # position within the row
    kept = order[rank < k]
    return sp.csr_matrix(
        (values[kept].astype(np.float32), (rows[kept], columns[kept])), shape=(n, n)
    )
