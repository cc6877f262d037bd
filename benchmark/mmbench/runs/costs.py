"""How large data and trainings are, by arithmetic on shapes: what the choice of a device rests on.

Weights, memory and multiply-adds, which only the models themselves know, are in `runs.miniature`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmbench.config import Recipe
from mmbench.core.content import Source
from mmbench.evaluation.protocol import Setting
from mmbench.models import ModelConfig, model_class, model_name

COMPARISONS = 50
"""Multiply-adds of a search for neighbours that take about as long as one number of a step: 16
threads search the 4096 numbers of 23,016 items in 2.07 s."""

COSTLY = {"mmgcn": 20, "grcn": 3, "lgmrec": 5, "dualgnn": 5, "dragon": 5}
"""Models whose steps take so many times as long as their numbers say, by README's table: all nodes'
content is multiplied with matrices, or every edge has weights of its own."""

PREDICTION = 6
"""Numbers that a sequence model goes over at each step of a history, in squares of its width: by
docs/models/sasrec.md and gru4rec.md 24 to 40 µs at a width of 64."""

PRODUCTS = 20
"""Multiply-adds of a product of matrices in the time of one number: GRU4Rec's against all items."""

_LAYERS = ("n_layers", "n_ui_layers")


@dataclass(frozen=True)
class Shapes:
    """How large the data of a training are.

    Attributes:
        n_users: Users with training pairs.
        n_items: Items with training pairs.
        n_edges: Distinct training pairs.
        widths: Modality to numbers per vector; empty where the model sees no content.
        per_edge: Whether vectors belong to training pairs, and not to items.
    """

    n_users: int
    n_items: int
    n_edges: int
    widths: Mapping[str, int] = field(default_factory=dict)
    per_edge: bool = False

    @classmethod
    def of(cls, setting: Setting, source: Source = "item") -> Shapes:
        """The shapes of a setting whose vectors belong to `source`."""
        train = setting.training.train
        widths = {m: int(one.vectors.shape[1]) for m, one in setting.features.items()}
        return cls(train.n_users, train.n_items, train.n_edges, widths, source != "item")

    @property
    def content_bytes(self) -> int:
        """Bytes of the vectors, float32."""
        rows = self.n_edges if self.per_edge else self.n_items
        return 4 * rows * sum(self.widths.values())


@dataclass(frozen=True)
class Work:
    """How large a training is.

    Attributes:
        per_step: Numbers that one step of the optimiser goes over; 0 where nothing is trained.
        in_all: Numbers that all of it goes over.
        steps: Steps of an epoch; 0 where nothing is trained.
    """

    per_step: int
    in_all: int
    steps: int = field(default=0, compare=False)

    @property
    def per_epoch(self) -> int:
        """Numbers that an epoch goes over."""
        return self.per_step * self.steps


def work_of(recipe: Recipe, setting: Setting) -> Work:
    """Return how large the training of a recipe is: all epochs, whether or not it stops early.

    What only some models do in a step is left out, so that this is too little rather than too much.
    """
    model = model_class(recipe.model)
    return work(recipe.model, recipe.settings, Shapes.of(setting, model.content_of))


def work(name: str, settings: ModelConfig, shapes: Shapes) -> Work:
    """Return how large a training of these settings on data of these shapes is."""
    model = model_class(name)
    width = sum(shapes.widths.values()) if model.uses_features else 0
    rows = shapes.n_edges if shapes.per_edge else shapes.n_items
    if not model.trained:  # the only work is the search for neighbours in the content
        return Work(0, shapes.n_items**2 * width // COMPARISONS)
    dim = settings.embedding_dim
    if model.in_order:  # a step is of some users' histories, and no user has a row
        steps = -(-shapes.n_users // settings.batch_size)
        per_step = rows * width + shapes.n_items * dim
        per_step += _predictions(settings, shapes) * PREDICTION * dim**2 // steps
        if getattr(settings, "against_all", False):  # logits and both gradients: three products
            products = 3 * _predictions(settings, shapes) * shapes.n_items * dim
            per_step += products // (steps * PRODUCTS)
    else:
        steps = -(-shapes.n_edges // settings.batch_size)
        layers = sum(int(getattr(settings, name, None) or 0) for name in _LAYERS)
        nodes = shapes.n_users + shapes.n_items
        per_step = rows * width + nodes * dim + 2 * shapes.n_edges * dim * layers
        per_step *= COSTLY.get(model_name(name), 1)
    return Work(per_step, per_step * steps * settings.epochs, steps)


def _predictions(settings: ModelConfig, shapes: Shapes) -> int:
    """Interactions that an epoch predicts: each but a user's first, at most `max_len` of a user."""
    longest = getattr(settings, "max_len", None) or shapes.n_edges
    return max(0, min(shapes.n_edges - shapes.n_users, shapes.n_users * int(longest)))
