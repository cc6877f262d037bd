"""A model with initial values, as a recipe's settings and approximations ask for it."""

from __future__ import annotations

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Init
from mmbench.models import ModelConfig, model_class
from mmbench.models.base import Content, Recommender
from mmbench.ops.row_table import RowTable


def assemble(
    name: str,
    train: TrainSet,
    content: Content,
    settings: ModelConfig,
    seed: int,
    approximate: tuple[str, ...] = (),
) -> Recommender:
    """Make a model; its large tables follow Adam as `approximate` says.

    Raises:
        DataError: Vectors do not fit into half precision.
    """
    model = model_class(name)(train, content, settings, Init(seed))
    for table in (module for module in model.modules() if isinstance(module, RowTable)):
        if "lazy-adam" in approximate:
            table.update = "lazy"
    if {"frozen-features", "half-features"} & set(approximate):
        model.keep_features(content, half="half-features" in approximate)
    return model
