"""The exceptions of mmbench. Each message says where, what (got, expected) and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmbenchError(Exception):
    """Anything that went wrong for a reason the user can act on. Exit code 1."""

    exit_code = 1


class UsageError(MmbenchError):
    """A flag, recipe key or name that does not exist or has an impossible value. Exit code 2."""

    exit_code = 2


class DataError(MmbenchError):
    """Interactions, splits, lists or features that cannot be used as they are."""


class TrainingError(MmbenchError):
    """Training cannot go on: a loss that is not finite, or a run folder that does not fit the request."""


class ShapeError(MmbenchError, ValueError):
    """Arrays whose shapes do not fit together: a mistake in code, not in data."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that no registry has, with the closest match and all choices.

    Args:
        kind: What the name was meant to be, e.g. `model`.
        name: What was given.
        known: The names that exist.
    """
    choices = sorted(known)
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    offer = f"Choose one of: {', '.join(choices)}." if choices else "There is none."
    return UsageError(f"unknown {kind} {name!r}.{hint} {offer}")
