"""The registry of recommenders: a name, and where the class is. Importing it imports no model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from mmbench.errors import unknown_name

if TYPE_CHECKING:
    from mmbench.models.base import Recommender

MODELS: dict[str, str] = {
    "most-popular": "mmbench.models.baselines:MostPopular",
    "random": "mmbench.models.baselines:Random",
    "item-knn": "mmbench.models.neighbours:ItemKNN",
    "content-knn": "mmbench.models.neighbours:ContentKNN",
    "bpr-mf": "mmbench.models.bprmf:BPRMF",
    "lightgcn": "mmbench.models.lightgcn:LightGCN",
    "vbpr": "mmbench.models.vbpr:VBPR",
    "mmgcn": "mmbench.models.mmgcn:MMGCN",
    "grcn": "mmbench.models.grcn:GRCN",
    "lattice": "mmbench.models.lattice:LATTICE",
    "bm3": "mmbench.models.bm3:BM3",
    "freedom": "mmbench.models.freedom:FREEDOM",
}


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
