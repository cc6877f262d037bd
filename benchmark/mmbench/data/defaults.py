"""The default feature sets and the default split of a dataset.

A default never changes because another command left something behind: the first choice is kept,
sets of some items or of random weights are never chosen, and several candidates are an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbase import choices
from mmbench.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmbench.core.content import Source
    from mmstore.store import FeatureStore

_KEPT_AS: dict[Source, str] = {"item": "features", "interaction": "interaction_features"}
"""Where `dataset.json` keeps the sets of either source."""


@dataclass(frozen=True)
class _Set:
    """A set with one vector per item, or per interaction.

    Attributes:
        name: Its name.
        created: When it was made, as its provenance says.
        flaws: Why it is never a default; empty if it may be one.
    """

    name: str
    created: str
    flaws: str


def default_features(
    store: FeatureStore,
    *,
    ask: bool = True,
    modality: str | None = None,
    flag: str = "--features",
    source: Source = "item",
) -> tuple[dict[str, str], dict[str, str]]:
    """Choose the default sets: those used before, else the only one of each modality.

    Args:
        store: The dataset's store.
        ask: Whether several sets, or none without flaws, are an error; else choose the first one
            made, or none.
        modality: The only modality to consider; None: all.
        flag: The option that names a set, for messages.
        source: What the vectors belong to.

    Returns:
        Modality to set name, and modality to a note if there were other sets.

    Raises:
        UsageError: A modality has several sets and none was used before.
        DataError: The store only has sets of some items or of random weights.
    """
    found = _sets(store, source, modality)
    before = _taken(store, found, source)
    chosen: dict[str, str] = {}
    notes: dict[str, str] = {}
    left_out: list[str] = []
    for kind, sets in sorted(found.items()):
        suited = [one for one in sets if not one.flaws]
        others = [f"{one.name} ({one.flaws})" if one.flaws else one.name for one in sets]
        if kind in before:
            chosen[kind] = before[kind]
        elif not suited or (before and modality is None):
            left_out += [f"{kind}={other}" for other in others]
            continue
        elif len(suited) == 1 or not ask:
            chosen[kind] = min(suited, key=lambda one: (one.created, one.name)).name
        else:
            names = ", ".join(one.name for one in suited)
            raise UsageError(
                f"{store.root}: {len(suited)} {kind} sets ({names}), and none was used before; "
                f"choose one with {flag} {kind}=NAME"
            )
        if len(sets) > 1:
            how = (
                "as before"
                if kind in before
                else f"the only one of all {source}s with trained weights"
            )
            notes[kind] = (
                f"{len(sets)} {kind} sets ({', '.join(others)}); took {chosen[kind]}, {how}; "
                f"choose with {flag} {kind}=NAME"
            )
    if left_out and not chosen and ask:
        raise DataError(
            f"{store.root}: no set of all {source}s with trained weights "
            f"({'; '.join(left_out)}); make "
            f"one with `mmx extract`, or name one with {flag} MODALITY=NAME"
        )
    if left_out and chosen:
        last = list(chosen)[-1]
        there = (
            f"other sets were not taken: {', '.join(left_out)}; choose with {flag} MODALITY=NAME"
        )
        notes[last] = "; ".join(filter(None, (notes.get(last), there)))
    return chosen, notes


def remember_features(
    store: FeatureStore, taken: Mapping[str, str], *, named: bool, source: Source = "item"
) -> None:
    """Keep the sets that a training uses as the default of later ones.

    Args:
        store: The dataset's store.
        taken: Modality to set name.
        named: Whether the user named them: then they are kept only if there was no default.
        source: What their vectors belong to.
    """
    if named:
        sets = _sets(store, source)
        flawed = {(kind, one.name) for kind, of in sets.items() for one in of if one.flaws}
        if flawed & set(taken.items()):
            return
        try:
            default_features(store, source=source)
        except UsageError:
            pass
        else:
            return
    choices.remember(store.root.parent, _KEPT_AS[source], dict(taken))


def remember_split(data: Path, taken: str, available: Mapping[str, Path], *, named: bool) -> None:
    """Keep the split that a training uses; a named one only if there was no default."""
    if not named or len(available) > 1:
        choices.remember(data, "split", taken)


def default_split(data: Path, available: Mapping[str, Path], made_here: str) -> tuple[str, str]:
    """Choose the default split: the one used before, else the only one.

    Args:
        data: The dataset folder.
        available: The splits that it has, by name.
        made_here: The specification of the split to make if there are none.

    Returns:
        The split, and a note if there are others; else an empty text.

    Raises:
        UsageError: There are several, and none was used before.
    """
    before = choices.recall(data).get("split")
    names = ", ".join(sorted(available))
    if isinstance(before, str) and (before in available or before.partition(":")[0] == "random"):
        others = [name for name in sorted(available) if name != before]
        told = f"split {before}, as before; choose another with --split: {', '.join(others)}"
        return before, told if others else ""
    if len(available) > 1:
        raise UsageError(
            f"{data}: has several splits; choose one with --split: {names} (none was used before)"
        )
    return next(iter(available), made_here), ""


def _sets(
    store: FeatureStore, source: Source, modality: str | None = None
) -> dict[str, list[_Set]]:
    found: dict[str, list[_Set]] = {}
    for kind, name in store.sets():
        if modality not in (None, kind):
            continue
        with store.open(kind, name) as features:
            if features.source == source and features.layout == "dense":
                made = features.provenance
                one = _Set(name, str(made.get("created", "")), "; ".join(_flaws(made)))
                found.setdefault(kind, []).append(one)
    return found


def _flaws(provenance: object) -> Iterator[str]:
    """Yield why vectors, or the sets they were fused from, only serve to try things out."""
    if isinstance(provenance, Mapping):
        if provenance.get("weights") == "random":
            yield "random weights"
        limit = _limit(provenance.get("input"))
        if limit:
            yield f"only the first {limit} items"
        provenance = list(provenance.values())
    if isinstance(provenance, list):
        for part in provenance:
            yield from _flaws(part)


def _limit(made_of: Any) -> Any:
    return made_of.get("limit") if isinstance(made_of, Mapping) else None


def _taken(store: FeatureStore, found: Mapping[str, list[_Set]], source: Source) -> dict[str, str]:
    """Return the sets used before; empty if one of them is gone."""
    taken = choices.recall(store.root.parent).get(_KEPT_AS[source])
    if not isinstance(taken, Mapping):
        return {}
    there = {(kind, one.name) for kind, sets in found.items() for one in sets}
    mine = {str(kind): str(name) for kind, name in taken.items() if kind in found}
    return mine if all(one in there for one in mine.items()) else {}
