"""The exceptions of both tools; a message says where, what (got, expected), and the fix."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path


def install_extra(extra: str) -> str:
    """Return the command that installs an extra, from this checkout or distribution file.

    The tools are on no package index: their name alone installs nothing.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e '{checkout}[{extra}]'"
    return f"pip install 'mmx-mmbench[{extra}]{_installed_from()}'"


def _installed_from() -> str:
    """Return ` @ URL` of the installed distribution, if pip recorded it (PEP 610)."""
    try:
        noted = metadata.distribution("mmx-mmbench").read_text("direct_url.json")
        return f" @ {json.loads(noted or '')['url']}"
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return ""


# How to get what the core dependencies lack.
INSTALL_EXTRA = install_extra("extract")


class ToolError(Exception):
    """An error that the user can act on. Exit code 1."""

    exit_code = 1


class UsageError(ToolError):
    """A flag, recipe key or name that does not exist or has an impossible value. Exit code 2."""

    exit_code = 2


class DataError(ToolError):
    """A dataset, split, list or feature file that cannot be used as it is."""


class ContentError(ToolError):
    """Content of one item that cannot be used: recorded as `corrupt`; never stops a run."""


class Interrupted(ToolError):
    """Stopped by the user; the same command continues from where it stopped. Exit code 130."""

    exit_code = 130


_MANY, _OFFERED = 30, 5  # from how many choices on only some are offered, and how many


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for an unknown `kind` (a model, say), with the closest match and choices."""
    choices = sorted(known)
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(name.casefold(), folded, n=_OFFERED, cutoff=0.5)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    offer = f"Choose one of: {', '.join(choices)}." if choices else "There is none."
    if len(choices) > _MANY:
        alike = [folded[one] for one in close] or choices[:_OFFERED]
        offer = f"There are {len(choices)}, such as {', '.join(alike)}."
    return UsageError(f"unknown {kind} {name!r}.{hint} {offer}")
