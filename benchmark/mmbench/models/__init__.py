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


def model_class(name: str) -> type[Recommender]:
    """The class registered under a name, case-insensitively.

    Raises:
        UsageError: There is no such model; the message has the closest match.
    """
    path = MODELS.get(name.casefold().replace("_", "-"))
    if path is None:
        raise unknown_name("model", name, MODELS)
    module, attribute = path.split(":")
    return cast("type[Recommender]", getattr(importlib.import_module(module), attribute))
