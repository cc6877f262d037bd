"""What a check is, and how findings are told: one function and one line of a registry each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Generic, TypeVar

from mmbase.errors import ToolError
from mmbase.layout import counted, hanging
from mmstore.errors import StoreError

Subject = TypeVar("Subject", contravariant=True)
Result = TypeVar("Result")
SHOWN = 3
"""Examples of a finding that are told."""


class Severity(IntEnum):
    """What a finding means for a run."""

    NOTE = 0
    """Worth knowing; nothing need be done."""
    WARNING = 1
    """A run goes through, and its numbers may not mean what they seem to."""
    ERROR = 2
    """A run fails, or its numbers are wrong."""


NOTE, WARNING, ERROR = Severity


@dataclass(frozen=True)
class Found:
    """One occurrence of what a check looks for.

    Attributes:
        where: The file or feature set.
        what: The sentence, with its numbers, without a full stop.
        examples: Ids, cells or lines.
        fix: What to do, where that depends on the case; else the check's own.
        severity: Where that depends on the case.
    """

    where: str
    what: str
    examples: tuple[str, ...] = ()
    fix: str = ""
    severity: Severity | None = None


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """A mistake that is looked for.

    Attributes:
        name: In a report and in JSON; stable.
        severity: Of its findings.
        fix: What to do; `{where}` stands for the file or set.
        looks: Yields each occurrence; reads tables and arrays that are in memory, and no file.
        unless: Names of checks whose findings explain those of this one, which are then left out.
    """

    name: str
    severity: Severity
    fix: str
    looks: Callable[[Subject], Iterable[Found]]
    unless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A mistake that was found: see `Check` and `Found`."""

    name: str
    severity: str
    where: str
    what: str
    fix: str
    examples: tuple[str, ...] = ()

    @property
    def grade(self) -> Severity:
        """The severity as a number."""
        return Severity[self.severity.upper()]


def examine(checks: Sequence[Check[Subject]], subject: Subject) -> list[Finding]:
    """Return what the checks find, errors first, else in the order of the registry."""
    found = {check: list(check.looks(subject)) for check in checks}
    names = {check.name for check, there in found.items() if there}
    findings = [
        Finding(
            check.name,
            (check.severity if one.severity is None else one.severity).name.lower(),
            one.where,
            one.what,
            (one.fix or check.fix).replace("{where}", one.where),
            tuple(one.examples[:SHOWN]),
        )
        for check, there in found.items()
        if names.isdisjoint(check.unless)
        for one in there
    ]
    return sorted(findings, key=lambda one: -one.grade)


def worst(findings: Iterable[Finding]) -> Severity:
    """Return the highest severity; NOTE where there is nothing."""
    return max((one.grade for one in findings), default=NOTE)


def exit_code(findings: Iterable[Finding], *, strict: bool = False) -> int:
    """Return 1 where there is an error, 3 where there are warnings only, else 0.

    With `strict` a warning counts as an error.
    """
    return {NOTE: 0, WARNING: 1 if strict else 3, ERROR: 1}[worst(findings)]


def as_text(findings: Sequence[Finding], n_checks: int) -> str:
    """Return the findings as paragraphs as wide as the terminal, a summary last."""
    lines: list[str] = []
    for one in findings:
        lines.append(hanging(f"{one.severity}: {one.name} ({one.where})"))
        examples = f" (e.g. {'; '.join(one.examples)})" if one.examples else ""
        lines.append(hanging(f"{one.what}{examples}", "  "))
        lines += [hanging(one.fix, "  fix: "), ""]
    counts = {grade: sum(one.grade == grade for one in findings) for grade in Severity}
    words = [counted(counts[grade], grade.name.lower()) for grade in reversed(Severity)]
    lines.append(f"{counted(n_checks, 'check')}: {', '.join(words)}")
    return "\n".join(lines)


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings with JSON types only."""
    return [{**asdict(one), "examples": list(one.examples)} for one in findings]


def told(where: str, error: Exception) -> Found:
    """Return what a reader's error says: its sentence, and behind a semicolon its cure."""
    sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
    what, _, fix = sentence.partition("; ")
    return Found(where, what, fix=fix)


def attempted(action: Callable[[], Result], where: str, troubles: list[Found]) -> Result | None:
    """Return what an action returns; None, and its sentence among the troubles, where it fails."""
    try:
        return action()
    except (ToolError, StoreError, OSError) as error:
        troubles.append(told(where, error))
        return None
