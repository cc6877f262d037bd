"""mmbench: training and evaluation of multimodal recommenders on feature stores.

The names below are the Python interface; docs/python.md describes it. They are imported when they
are first used, so that `import mmbench` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mmbase import __version__

if TYPE_CHECKING:
    from mmbench import errors
    from mmbench.config import Evaluation, Recipe
    from mmbench.interface.comparing import compare
    from mmbench.interface.data import load_dataset
    from mmbench.interface.reporting import Report, report
    from mmbench.interface.results import Comparisons, Dataset, Evaluated, Runs
    from mmbench.interface.scoring import Recommendations, evaluate, recommend
    from mmbench.interface.training import recipes, train, tune
    from mmbench.models.search_space import Range
    from mmbench.runs.result import Result

_INTERFACE = {
    "Comparisons": "results",
    "Dataset": "results",
    "Evaluated": "results",
    "Recommendations": "scoring",
    "Report": "reporting",
    "Runs": "results",
    "compare": "comparing",
    "evaluate": "scoring",
    "load_dataset": "data",
    "recipes": "training",
    "recommend": "scoring",
    "report": "reporting",
    "train": "training",
    "tune": "training",
}
_PLACES = {name: f"mmbench.interface.{module}" for name, module in _INTERFACE.items()} | {
    "Evaluation": "mmbench.config",
    "Range": "mmbench.models.search_space",
    "Recipe": "mmbench.config",
    "Result": "mmbench.runs.result",
}

__all__ = ["Comparisons", "Dataset", "Evaluated", "Evaluation", "Range", "Recipe"]
__all__ += ["Recommendations", "Report", "Result", "Runs", "__version__", "compare", "errors"]
__all__ += ["evaluate", "load_dataset", "recipes", "recommend", "report", "train", "tune"]


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("mmbench.errors")
    if name not in _PLACES:
        raise AttributeError(f"module 'mmbench' has no attribute {name!r}")
    value: object = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value  # the next look-up finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
