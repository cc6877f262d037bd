"""Which kind of model each one is, and where it was published: a line per registered model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mmbench.models import MODELS, model_class

if TYPE_CHECKING:
    from mmbench.models.base import Recommender

Group = Literal["baselines", "ids", "content", "graph", "sequence"]

GROUPS: dict[Group, str] = {
    "baselines": "nothing is trained",
    "ids": "trained on who took what alone",
    "content": "ids and content in an inner product",
    "graph": "content, and messages on graphs of users and items",
    "sequence": "what a user takes next",
}
"""In the order in which they are shown."""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        group: Its kind.
        year: Of its publication; None: it has none.
        paper: Authors and venue; empty: it has none.
    """

    group: Group
    year: int | None = None
    paper: str = ""


ORIGINS: dict[str, Origin] = {
    "most-popular": Origin("baselines"),
    "random": Origin("baselines"),
    "item-knn": Origin("baselines", 2004, "Deshpande and Karypis, ACM TOIS"),
    "content-knn": Origin("baselines", 2004, "Deshpande and Karypis, ACM TOIS"),
    "bpr-mf": Origin("ids", 2009, "Rendle et al., UAI"),
    "lightgcn": Origin("ids", 2020, "He et al., SIGIR"),
    "simgcl": Origin("ids", 2022, "Yu et al., SIGIR"),
    "layergcn": Origin("ids", 2023, "Zhou et al., ICDE"),
    "vbpr": Origin("content", 2016, "He and McAuley, AAAI"),
    "deepstyle": Origin("content", 2017, "Liu et al., SIGIR"),
    "schema": Origin("content", 2023, "Malitesta et al., arXiv 2309.05273"),
    "mmgcn": Origin("graph", 2019, "Wei et al., ACM MM"),
    "grcn": Origin("graph", 2020, "Wei et al., ACM MM"),
    "lattice": Origin("graph", 2021, "Zhang et al., ACM MM"),
    "bm3": Origin("graph", 2023, "Zhou et al., WWW"),
    "freedom": Origin("graph", 2023, "Zhou and Shen, ACM MM"),
    "slmrec": Origin("graph", 2022, "Tao et al., IEEE TMM"),
    "egcf": Origin("graph", 2022, "Anelli et al., DL4SR at CIKM"),
    "dualgnn": Origin("graph", 2023, "Wang et al., IEEE TMM"),
    "mgcn": Origin("graph", 2023, "Yu et al., ACM MM"),
    "dragon": Origin("graph", 2023, "Zhou et al., ECAI"),
    "lgmrec": Origin("graph", 2024, "Guo et al., AAAI"),
    "smore": Origin("graph", 2025, "Ong and Khong, WSDM"),
    "content-style": Origin("content", 2022, "Deldjoo et al., ECIR"),
    "gru4rec": Origin("sequence", 2016, "Hidasi et al., ICLR"),
    "sasrec": Origin("sequence", 2018, "Kang and McAuley, ICDM"),
}


def origin(name: str) -> Origin:
    """The origin of a registered model; without a line, what its class lets one guess."""
    return ORIGINS.get(name) or Origin(_guess(model_class(name)))


def _guess(model: type[Recommender]) -> Group:
    if not model.trained:
        return "baselines"
    if model.in_order:
        return "sequence"
    if not model.uses_features:
        return "ids"
    backbone = model.cell.backbone if model.cell else ""
    return "graph" if "gcn" in backbone or "graph" in backbone else "content"


def grouped() -> dict[Group, list[str]]:
    """The registered models by group, in the order of the groups, then of years."""
    known = {name: origin(name) for name in MODELS}
    by_year = sorted(known, key=lambda name: known[name].year or 0)
    groups: dict[Group, list[str]] = {
        group: [name for name in by_year if known[name].group == group] for group in get_args(Group)
    }
    return {group: names for group, names in groups.items() if names}
