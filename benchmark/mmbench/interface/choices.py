"""Keyword arguments that are keys of a recipe: their meaning and defaults stand in `config`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

from mmbase.progress import Progress, Silent, Terminal
from mmbench.config import Approximation, Evaluation, Protocol, Recipe
from mmbench.core.content import Scaling
from mmbench.data.controls import Control
from mmbench.data.masks import Pattern
from mmbench.errors import UsageError, unknown_name
from mmbench.ops import SparseBackend
from mmbench.runs.result import Result

Place: TypeAlias = str | PathLike[str]
"""The path of a file or folder."""

RunPlace: TypeAlias = Place | Result | Sequence[Result]
"""A finished run: its folder, its result, or the results of a training that made one."""


class Scoring(TypedDict, total=False):
    """How runs are validated and scored: the fields of `mmbench.config.Evaluation`."""

    protocol: Protocol
    repeats: Literal["allowed", "masked"]
    diversity_features: str | None
    categories: str | None
    metrics: Sequence[str]
    cutoffs: Sequence[int]
    select_by: str
    every: int
    patience: int | None
    select_decimals: int | None
    threshold: float


class Choices(Scoring, total=False):
    """What a run is made of, and how it is scored: fields of `mmbench.config.Recipe`, too."""

    split: str | None
    columns: Mapping[str, str]
    features: Mapping[str, str]
    missing: str | Mapping[str, Any]
    mask: Mapping[str, float]
    pattern: Pattern
    control: Mapping[str, Control]
    mask_seed: int
    scaling: Scaling
    start_from: RunPlace | None
    device: str
    sparse_backend: SparseBackend
    approximate: Sequence[Approximation]


def of(kind: type[Recipe | Evaluation], choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are fields of a class; None stands for not given."""
    found = {name: choices[name] for name in kind.model_fields if name in choices}
    return {name: value for name, value in found.items() if value is not None}


def require_known(choices: Mapping[str, Any], known: type) -> None:
    """Refuse keyword arguments that are not keys of `known`, a typed dictionary.

    Raises:
        UsageError: There is one; the message has the closest name.
    """
    for name in choices:
        if name not in known.__annotations__:
            raise unknown_name("argument", name, known.__annotations__)


def run_folder(run: RunPlace) -> Path:
    """Return the folder of a finished run.

    Raises:
        UsageError: There are several runs, or none, or it is something else.
    """
    if isinstance(run, Result):
        return run.path
    if isinstance(run, str | PathLike):
        return Path(run)
    found = list(run) if isinstance(run, Iterable) else [run]
    results = [one for one in found if isinstance(one, Result)]
    if len(results) != len(found):
        raise UsageError(f"expected a run folder or a result of a training (got {run!r})")
    if len(results) != 1:
        raise UsageError(f"expected one run (got {len(results)}); choose one of them, e.g. runs[0]")
    return results[0].path


def several(value: Any) -> Sequence[Any]:
    """Return a list of one where a single value was given."""
    single = isinstance(value, str | PathLike | Result) or not isinstance(value, Iterable)
    return [value] if single else list(value)


def require_mappings(example: str, **given: Any) -> None:
    """Refuse arguments that are no mappings; None stands for not given.

    Args:
        example: What one looks like.
        given: Name and value.

    Raises:
        UsageError: There is one.
    """
    for name, value in given.items():
        if value is not None and not isinstance(value, Mapping):
            raise UsageError(f"{name}: expected a mapping, e.g. {example} (got {value!r})")


def require_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of 1 or more.

    Raises:
        UsageError: It is something else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} = {value!r}: expected a whole number, 1 or more")


def reporter(progress: Progress | bool | None) -> Progress:
    """Return where to report to: True stands for stderr, as on the command line."""
    if progress is None or isinstance(progress, bool):
        return Terminal() if progress else Silent()
    return progress
