"""The contract of recommenders with the trainer and the evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.content import ItemContent, Known, Source
from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Edges, Init, Sampler
from mmbench.errors import ShapeError
from mmbench.models import ModelConfig
from mmbench.models.cells import Cell
from mmbench.models.stand_ins import StandIns
from mmbench.ops.dense import linear
from mmbench.ops.half_table import HalfTable
from mmbench.ops.knn import cosine_knn
from mmbench.ops.norms import norm
from mmbench.ops.norms import squared_norm as squared_norm
from mmbench.ops.row_table import RowTable
from mmbench.ops.sparse import SparseMatrix, SparsePattern
from mmbench.ops.tiles import InnerProducts

Score = Callable[[Tensor], Tensor]
Penalty = Literal["squared", "norm"]
PENALTY = "squared: reg_weight / 2B times the squares; norm: / B times the norms, as MMRec has it"

Neighbours = Callable[[str, Tensor, int], tuple[Tensor, Tensor]]
"""Modality, vectors (n, d) and k to each row's k nearest by cosine and the cosines, (n, k) each."""


class Content(Mapping[str, ItemContent]):
    """The items' content by modality, and their nearest neighbours.

    Args:
        content: Modality to content, in the order in which models see the modalities.
        find: How neighbours are found; exact search by default. What loads the content may put a
            cache in front.
        dropout: Of trained stand-ins for absent content; None: there are none.
        edges: Modality to vectors of the training pairs (reviews), (n_edges, dim) each, in the
            order of `TrainSet`; of no other pairs.
        categories: Each item's category, 0, 1, …, shape (n_items,), int64; None: not known.
    """

    def __init__(
        self,
        content: Mapping[str, ItemContent],
        find: Neighbours | None = None,
        dropout: float | None = None,
        edges: Mapping[str, Tensor] | None = None,
        categories: Tensor | None = None,
    ) -> None:
        self._content, self._dropout, self.categories = dict(content), dropout, categories
        self.edges = dict(edges or {})
        self._find = find or (lambda modality, x, k: cosine_knn(x, k))
        # Of an approximate search what it found; None for an exact one.
        approximate = getattr(find, "approximate", False)
        self.recalls: dict[str, dict[str, Any]] | None = (
            getattr(find, "recalls", {}) if approximate else None
        )

    @classmethod
    def complete(
        cls,
        vectors: Mapping[str, Tensor],
        find: Neighbours | None = None,
        edges: Mapping[str, Tensor] | None = None,
        categories: Tensor | None = None,
    ) -> Content:
        """Content that no item lacks, from modality to vectors, (n_items, dim) each."""
        return cls(
            {m: ItemContent(x, torch.ones(len(x), dtype=torch.bool)) for m, x in vectors.items()},
            find,
            edges=edges,
            categories=categories,
        )

    def __getitem__(self, modality: str) -> ItemContent:
        return self._content[modality]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The vectors alone, (n_items, dim) each."""
        return {modality: one.vectors for modality, one in self._content.items()}

    def stand_ins(self, *modalities: str) -> StandIns:
        """Return trained stand-ins for absent content, of all modalities unless some are named."""
        chosen = {m: one for m, one in self.items() if not modalities or m in modalities}
        return StandIns(chosen, self._dropout)

    def neighbours(self, modality: str, k: int) -> tuple[Tensor, Tensor]:
        """Return each item's k nearest by cosine, itself included, and the cosines, (n_items, k).

        Ties by ascending item row; a zero vector is similar to itself alone. See
        `mmbench.ops.knn.cosine_knn`.
        """
        return self._find(modality, self[modality].vectors, k)

    def side_by_side(self) -> Tensor:
        """All modalities concatenated, shape (n_items, sum of dims); of one the very tensor."""
        vectors = list(self.vectors.values())
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)


class Recommender(nn.Module):
    """A model: parameters, a loss of a batch, and scores of all items for given users.

    It owns no files, no optimiser and no seed: everything random arrives as an argument. Subclasses
    are built as `Model(train, content, config, init)` and must set `Config`; see CONTRIBUTING.md
    for a model from start to end.

    Class attributes:
        Config: The pydantic class of the model's settings.
        cell: Where it stands in the formal schema, for `mmbench models`; None: nowhere.
        trained: Whether it is trained by gradient descent; if not, it has no sampler and no loss.
        uses_features: Whether it needs at least one modality; where that depends on settings,
            `needs_content` says it.
        content_of: Whose vectors these are: of each item, or of each training pair
            (`Content.edges`; a pair is a user and an item, its vector that of a review, say).
        untrained: Parameters whose gradient is zero by construction (a bias that cancels in every
            difference, say).
        legacy_zero_grad: Whether parameters without gradient go on by their momentum; see
            `mmbench.trainer.Adam`.
        uses_categories: Whether it reads `Content.categories`.
        uses_seed: Whether its scores depend on the seed; if not, several seeds are one run.
        learns_absent: Whether it puts `Content.stand_ins` in where content is absent; where that
            depends on settings, `learns_absent_with` says it.
        scores_unseen: Whether it can score items that training has not seen; see `scorer`. Where
            that depends on settings, an instance says it, and `represents_unseen` beforehand.
        by_history: Whether a user is their history alone, so that users whom training has not seen
            can be scored too: the rows of `Known.histories` behind those of training.
        in_order: Whether the order of histories matters to it.
        id_weights: Patterns of the names of weights that belong to users or items: a row or a
            number for each. All others can be carried to another dataset.
        recalls: `Content.recalls`, where neighbours were searched approximately.
    """

    Config: ClassVar[type[ModelConfig]]
    cell: ClassVar[Cell | None] = None
    trained: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    content_of: ClassVar[Source] = "item"
    untrained: frozenset[str] = frozenset()
    legacy_zero_grad: bool = False
    uses_categories: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = True
    learns_absent: ClassVar[bool] = False
    scores_unseen: bool = False
    by_history: bool = False
    in_order: ClassVar[bool] = False
    id_weights: ClassVar[tuple[str, ...]] = ("user_*", "item_*")
    recalls: dict[str, dict[str, Any]] | None = None

    @classmethod
    def needs_content(cls, settings: ModelConfig) -> bool:
        """Whether a model of these settings needs at least one modality."""
        return cls.uses_features

    @classmethod
    def learns_absent_with(cls, settings: ModelConfig) -> bool:
        """Whether a model of these settings puts stand-ins in where content is absent."""
        return cls.learns_absent

    @classmethod
    def represents_unseen(cls, settings: ModelConfig) -> bool:
        """Whether a model of these settings can score items that training has not seen."""
        return cls.scores_unseen

    def make_sampler(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str
    ) -> Sampler:
        """The batches that `loss` takes: any kind, here every edge with a negative."""
        return Edges(train, batch_size, seed, device)

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Named scalar terms of a batch of `make_sampler`; the optimiser descends their sum."""
        raise NotImplementedError

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Called before the first batch of each epoch (1-based): the place to rebuild a graph.

        What this or a batch leaves for others must stay where captured steps read it, see
        `SparseMatrix.placed_in`.
        """

    def lr_factor(self, epoch: int) -> float:
        """Factor of the learning rate in this epoch (1-based); a schedule overrides it."""
        return 1.0

    @property
    def factorises(self) -> bool:
        """Whether scores are inner products of `embeddings`."""
        return type(self).embeddings is not Recommender.embeddings

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return representations of users, (n_users, d), and items: scores are inner products.

        Called once per evaluation, without gradients. Models that do not factorise override
        `scorer` instead.
        """
        raise AssertionError(f"{type(self).__name__} does not factorise; override scorer()")

    def scorer(self, known: Known) -> Score:
        """Return a function from user rows (B,) to scores (B, known.n_items).

        What can be computed once is computed here. Called without gradients; the function is valid
        until a parameter changes. A model of which `scores_unseen` is false gives items that
        training has not seen -inf, so that they are never listed: a representation that only
        training gives an item can't be made up afterwards.

        Args:
            known: The users' histories and the items' content; the modalities are those that the
                model was built with, the first rows those of the training items.
        """
        users, items = self.embeddings()
        # Laid out once: every chunk of users multiplies by the same columns.
        columns, n_unseen = items.T.contiguous(), known.n_items - len(items)
        if not n_unseen:
            return InnerProducts(users, columns)
        return lambda rows: functional.pad(users[rows] @ columns, (0, n_unseen), value=-math.inf)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Recommender:
        # Graphs are no parameters, but live on the same device. (Their values keep the dtype they
        # were computed in.)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        for name, value in list(vars(self).items()):
            if isinstance(value, SparseMatrix | SparsePattern):
                setattr(self, name, value.to(device))
            elif isinstance(value, dict) and any(
                isinstance(x, SparseMatrix) for x in value.values()
            ):
                setattr(self, name, {key: graph.to(device) for key, graph in value.items()})
        return self

    def weights(self) -> dict[str, Tensor]:
        """The trained values by name, without the optimiser's moments: what a checkpoint holds."""
        return {k: v for k, v in self.state_dict().items() if not k.endswith(_OPTIMISER_BUFFERS)}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the values of `weights()`.

        Raises:
            RuntimeError: A name is missing, unknown, or has another shape.
        """
        tables = {name for name, module in self.named_modules() if isinstance(module, RowTable)}
        # Before the tables of ids could be deferred, they were parameters whatever their size.
        weights = {f"{k}.values" if k in tables else k: v for k, v in weights.items()}
        # The moments keep their present values, since `weights` holds none.
        state = self.state_dict().items()
        self.load_state_dict(
            {**{k: v for k, v in state if k.endswith(_OPTIMISER_BUFFERS)}, **weights}
        )

    @classmethod
    def of_ids(cls, name: str) -> bool:
        """Whether the weight of this name belongs to users or items."""
        return any(fnmatchcase(name, pattern) for pattern in cls.id_weights)

    def start_from(self, carried: Mapping[str, Tensor]) -> None:
        """Take over weights that belong to no user or item; the others stay as they start.

        Raises:
            RuntimeError: A name is unknown, or has another shape.
        """
        self.load_weights({**self.weights(), **carried})

    def keep_features(self, content: Content, *, half: bool) -> None:
        """Leave content vectors as they are stored, or rounded to half precision.

        What a model trains otherwise stays fixed then; what it never trains is only rounded. A
        model without a formulation for it does nothing.

        Args:
            content: What the model was made with.
            half: Keep them as float16.

        Raises:
            DataError: A number is larger than half precision holds.
        """

    def parameter_counts(self) -> dict[str, int]:
        """How many trained numbers belong to `ids`, and to no user or item (`others`)."""
        tables = {
            f"{name}.values": module.values
            for name, module in self.named_modules()
            if isinstance(module, RowTable) and module.update != "frozen"
        }
        counts = {"ids": 0, "others": 0}
        for name, tensor in {**dict(self.named_parameters()), **tables}.items():
            counts["ids" if self.of_ids(name) else "others"] += tensor.numel()
        return counts


class TrainsContent(Recommender):
    """A model that trains the items' vectors, each modality through a projection of its own."""

    learns_absent = True
    id_weights = (*Recommender.id_weights, "features.*.values")

    def _add_content(
        self, content: Content, width: int, init: Init, *, weight: str = "default"
    ) -> None:
        """Make `features.<m>`, which start from the vectors, and `projection.<m>`."""
        vectors, self.stand_ins = content.vectors, content.stand_ins()
        self.features = nn.ModuleDict({m: RowTable(x.clone()) for m, x in vectors.items()})
        self.projection = nn.ModuleDict(
            {
                m: init.linear(f"projection.{m}", x.shape[1], width, weight=weight)
                for m, x in vectors.items()
            }
        )

    def keep_features(self, content: Content, *, half: bool) -> None:
        """The vectors are not trained: the tables share the content's memory, or are rounded."""
        for m, vectors in content.vectors.items():
            if half:
                self.features[m] = HalfTable(vectors)
            else:
                table = cast(RowTable, self.features[m])
                table.update, table.values = "frozen", vectors

    def _project(self, m: str, items: Tensor | None, behind: nn.Linear | None = None) -> Tensor:
        """W_m features_m + b_m of some items (distinct, ascending) or of all, (n, width).

        With `behind`, what that layer makes of them: the two are multiplied first, so that no row
        goes through both.
        """
        table = cast("RowTable | HalfTable", self.features[m])
        projection = cast(nn.Linear, self.projection[m])
        weight: Tensor = projection.weight
        bias: Tensor = projection.bias
        if behind is not None:
            weight = linear(behind.weight, weight.T)
            bias = linear(bias[None], behind.weight, behind.bias)[0]
        rows = table.project(items, weight, bias)
        return self.stand_ins.put_in(m, rows, lambda token: linear(token, weight, bias), items)


def bpr_loss(pos: Tensor, neg: Tensor) -> Tensor:
    """Mean Bayesian personalised ranking loss, -log sigmoid(pos - neg).

    Args:
        pos: Scores of observed items, shape (B,), any real number.
        neg: Scores of sampled items, shape (B,), same users in the same order.

    Returns:
        Scalar in nats, >= 0; computed with softplus, so it never overflows.

    Raises:
        ShapeError: `pos` and `neg` are not 1-D of equal length.

    Source: Rendle et al., BPR (UAI 2009), section 4.1, without the regulariser.
    """
    if pos.shape != neg.shape or pos.ndim != 1:
        raise ShapeError(
            f"bpr_loss: pos {tuple(pos.shape)} and neg {tuple(neg.shape)} must be 1-D of equal "
            "length"
        )
    # -log sigmoid(x) = log(1 + e^-x) = softplus(-x), with x = pos - neg.
    return functional.softplus(neg - pos).mean()


def penalty(kind: Penalty, weight: float, size: int, *rows: Tensor) -> Tensor:
    """The regulariser of a batch's rows, a scalar >= 0.

        squared    weight / (2 B) * sum of |X|²
        norm       weight / B * sum of |X|, the Frobenius norms

    Args:
        kind: Which. RecBole and MMRec take `norm` for their models of ids, so that the weights that
            their users publish mean nothing to the other.
        weight: >= 0.
        size: B, triples of the batch.
        rows: X: the users', the positives' and the negatives', one matrix each.
    """
    if kind == "squared":
        return squared_norm(*rows) * (weight / (2 * size))
    return torch.stack([norm(x) for x in rows]).sum() * (weight / size)


def mean_square(rows: Tensor) -> Tensor:
    """Mean of the squared entries, a scalar >= 0."""
    return squared_norm(rows) / rows.numel()


_OPTIMISER_BUFFERS = (".exp_avg", ".exp_avg_sq", ".steps")
"""What a `RowTable` keeps beside its values."""


__all__ = [
    "Cell", "Content", "ItemContent", "Known", "ModelConfig", "Neighbours", "Recommender", "Score",
    "TrainSet",
]  # fmt: skip
