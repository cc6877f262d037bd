"""The registry of recommenders and the settings they share. Importing it imports no model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

from mmbench.errors import unknown_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from mmbench.models.base import Recommender

Preset = TypeVar("Preset", bound="DataclassInstance")

MODELS: dict[str, str] = {
    "most-popular": "mmbench.models.baselines:MostPopular",
    "random": "mmbench.models.baselines:Random",
    "item-knn": "mmbench.models.neighbours:ItemKNN",
    "content-knn": "mmbench.models.neighbours:ContentKNN",
    "bpr-mf": "mmbench.models.bprmf:BPRMF",
    "lightgcn": "mmbench.models.lightgcn:LightGCN",
    "layergcn": "mmbench.models.layergcn:LayerGCN",
    "simgcl": "mmbench.models.simgcl:SimGCL",
    "vbpr": "mmbench.models.vbpr:VBPR",
    "deepstyle": "mmbench.models.deepstyle:DeepStyle",
    "mmgcn": "mmbench.models.mmgcn:MMGCN",
    "grcn": "mmbench.models.grcn:GRCN",
    "lattice": "mmbench.models.lattice:LATTICE",
    "bm3": "mmbench.models.bm3:BM3",
    "freedom": "mmbench.models.freedom:FREEDOM",
    "mgcn": "mmbench.models.mgcn:MGCN",
    "lgmrec": "mmbench.models.lgmrec:LGMRec",
    "slmrec": "mmbench.models.slmrec:SLMRec",
    "dualgnn": "mmbench.models.dualgnn:DualGNN",
    "smore": "mmbench.models.smore:SMORE",
    "dragon": "mmbench.models.dragon:DRAGON",
    "egcf": "mmbench.models.egcf:EGCF",
    "content-style": "mmbench.models.content_style:ContentStyle",
    "sasrec": "mmbench.models.sasrec:SASRec",
    "gru4rec": "mmbench.models.gru4rec:GRU4Rec",
    "schema": "mmbench.models.schema:Schema",
}


class ModelConfig(BaseModel):
    """The settings that every model has; a model's own class adds to them.

    ALIASES are names that users bring from other frameworks. RETIRED are settings of older versions
    that changed nothing: they are passed over in a recipe that is read. ADDED are settings that are
    younger than runs of the model: a recipe has them only where they differ from their default, so
    that the names of those runs stay.
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
    RETIRED: ClassVar[frozenset[str]] = frozenset()
    ADDED: ClassVar[frozenset[str]] = frozenset()

    def over(self, preset: Preset) -> Preset:
        """A preset's values; where this configuration gives the field of the same name, that."""
        given = {field.name: getattr(self, field.name) for field in fields(preset)}
        return replace(
            preset, **{name: value for name, value in given.items() if value is not None}
        )


def model_name(name: str) -> str:
    """A model's name as it is registered, from one in any case, with `-` or `_`: `VBPR`, `bpr_mf`.

    Raises:
        UsageError: There is no such model; the message has the closest match.
    """
    registered = name.casefold().replace("_", "-")
    if registered not in MODELS:
        raise unknown_name("model", name, MODELS)
    return registered


def model_class(name: str) -> type[Recommender]:
    """The class registered under a name, which may be written as for `model_name`.

    Raises:
        UsageError: There is no such model; the message has the closest match.
    """
    module, attribute = MODELS[model_name(name)].split(":")
    return cast("type[Recommender]", getattr(importlib.import_module(module), attribute))
