"""What finished runs were made on, and the labels that tell systems apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmbench.errors import UsageError, unknown_name
from mmbench.runs.fit import in_words

if TYPE_CHECKING:
    from mmbench.config import Recipe
    from mmbench.runs.finished_runs import FinishedRun

KINDS = ("dataset", "split", "protocol")
"""What `--only` takes: facts that runs of one table share."""


def kind_of(run: FinishedRun) -> dict[str, str]:
    """Return the names of a run's dataset, split and protocol."""
    data = run.record["dataset"]
    protocol = run.record["protocol"]["name"]
    return {"dataset": data["name"], "split": data["split"], "protocol": protocol}


def kind_in_words(kind: Mapping[str, str]) -> str:
    """Return `demo, split random:0.2,0.2,42, protocol strict`."""
    return f"{kind['dataset']}, split {kind['split']}, protocol {kind['protocol']}"


def conditions(run: FinishedRun) -> dict[str, Any]:
    """Return the facts that runs of one table share, by their names in messages."""
    data, protocol = run.record["dataset"], run.record["protocol"]
    return {
        **kind_of(run),
        "the dataset's digest": data["digest"],
        "the test digest": data["test_digest"],
        "the candidates": protocol.get("candidates"),
        "the catalogue's digest": protocol.get("digests", {}).get("catalogue"),
        "the mask": protocol.get("masked"),
        "the relevance threshold": run.recipe.evaluation.threshold,
    }


def digest_of(told: Mapping[str, Any]) -> str:
    """Return six hex digits of conditions, for two kinds of one name."""
    return hashlib.blake2b(repr(told).encode(), digest_size=3).hexdigest()


def by_kind(runs: Iterable[FinishedRun]) -> list[list[FinishedRun]]:
    """Divide runs into those that share all conditions, ordered by dataset, split and protocol."""
    found: dict[str, list[FinishedRun]] = {}
    for run in runs:
        found.setdefault(repr(conditions(run)), []).append(run)
    return sorted(found.values(), key=lambda members: list(kind_of(members[0]).values()))


def only(runs: Sequence[FinishedRun], wanted: Sequence[str]) -> list[FinishedRun]:
    """Return the runs of the wanted datasets, splits and protocols.

    Args:
        runs: The runs.
        wanted: `NAME=VALUE` with a name of `KINDS`; values of one name are alternatives.

    Raises:
        UsageError: No such name, or no run has such a value; the message lists the choices.
    """
    values: dict[str, set[str]] = {}
    for text in wanted:
        name, equals, value = text.partition("=")
        if name not in KINDS or not equals:
            raise UsageError(f"--only {text}: expected {', '.join(f'{one}=…' for one in KINDS)}")
        known = {kind_of(run)[name] for run in runs}
        if value not in known:
            raise unknown_name(f"{name} of these runs", value, known)
        values.setdefault(name, set()).add(value)
    kept = [run for run in runs if all(kind_of(run)[name] in of for name, of in values.items())]
    if not kept:
        raise UsageError(f"--only {' --only '.join(wanted)}: no run has all of these")
    return kept


@dataclass(frozen=True)
class Facts:
    """The facts that may distinguish a system from others of its model.

    Attributes:
        model: Name of the model.
        features: Feature sets, modality to name.
        settings: The settings, `searched` for those that differ between seeds.
        searched: Names of the settings that validation chose.
        others: All else, by names of options.
        treatment: What is done to the stored vectors, see `treatment_of`.
        kind: See `kind_of`; every label names the facts in which any two systems differ.
    """

    model: str
    features: Mapping[str, str]
    settings: Mapping[str, Any]
    searched: frozenset[str]
    others: Mapping[str, Any]
    kind: Mapping[str, str] = field(default_factory=dict)
    treatment: Mapping[str, Any] = field(default_factory=dict)


def labels(systems: Sequence[Facts]) -> list[str]:
    """Return a label per system: its model, and what distinguishes it from others of that model.

    That is its features, what is done to them and the settings that were given; if these are equal,
    the settings that validation chose; else all other options.
    """
    mixed = [name for name in KINDS if len({one.kind.get(name) for one in systems}) > 1]
    out = []
    for mine in systems:
        rivals = [one for one in systems if one is not mine and one.model == mine.model]
        names = {name for one in rivals for name in _differing(mine, one)}
        known = {**mine.others, **mine.settings, **mine.treatment}
        parts = [_features(mine, rivals)] if "features" in names else []
        parts += [f"{name}={in_short(known.get(name))}" for name in sorted(names - {"features"})]
        parts += [f"{name}={mine.kind[name]}" for name in mixed]
        out.append(f"{mine.model}({', '.join(parts)})" if parts else mine.model)
    return out


def _differing(mine: Facts, other: Facts) -> set[str]:
    """Return the names of what tells two systems of one model apart."""
    settings = _unequal(mine.settings, other.settings)
    given = settings - (mine.searched & other.searched)
    told = given | ({"features"} if mine.features != other.features else set())
    told |= _unequal(mine.treatment, other.treatment)
    if told or settings:
        return told or settings
    others = _unequal(mine.others, other.others)
    # A label already names another split, whose digest differs as well.
    return others - {"digest"} if mine.kind != other.kind else others


TREATMENT = ("missing", "mask", "pattern", "control", "mask_seed")
"""Fields of a recipe that say what is done to the stored vectors, beside their scaling."""


def treatment_of(recipe: Recipe) -> dict[str, Any]:
    """Return what is done to the stored vectors, in short: what stands at its default is left out.

    One share, or one control, of all modalities stands alone: `mask=0.3`, `control=shuffled`.
    """
    plain = recipe.dump()
    told = {name: plain[name] for name in TREATMENT if name in plain}
    told["missing"] = recipe.treatment.policy.short
    for name in ("mask", "control"):
        values = set(told.get(name, {}).values())
        if len(values) == 1 and set(told[name]) == set(recipe.features):
            (told[name],) = values
    return {name: value for name, value in told.items() if value != "mean"}


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


def _features(mine: Facts, rivals: Sequence[Facts]) -> str:
    """Return `visual+textual`, with the names of the sets where these differ between systems."""
    parts = []
    for modality, name in mine.features.items():
        same = all(one.features.get(modality, name) == name for one in rivals)
        parts.append(modality if same else f"{modality}={name}")
    return "+".join(parts) or "no features"


def in_short(value: Any) -> str:
    """Return a value as labels have it: `visual:0.3+textual:0.5`."""
    if isinstance(value, Mapping):
        return "+".join(f"{name}:{in_short(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ",".join(map(in_short, value)) or "none"
    return "none" if value is None else in_words(value, 6)
