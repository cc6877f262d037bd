"""What was first taken of a dataset, kept in its `dataset.json`, so that defaults stay the same.

A feature set or a split that another command leaves behind must not become a default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE = "dataset.json"
KEY = "taken"


def recall(data: Path) -> dict[str, Any]:
    """Return what was taken before, by kind (`split`, `features`); empty if nothing was."""
    taken = _read(data).get(KEY)
    return dict(taken) if isinstance(taken, Mapping) else {}


def remember(data: Path, kind: str, value: object) -> None:
    """Keep what is taken now, unless something of that kind was taken before.

    A folder that cannot be written, or whose `dataset.json` is no JSON object, is left as it is.
    """
    path, document = data / FILE, _read(data)
    taken = recall(data)
    if kind in taken or (path.exists() and not document):
        return
    text = json.dumps({**document, KEY: {**taken, kind: value}}, indent=2, ensure_ascii=False)
    partial = path.with_name(f".{FILE}.{os.getpid()}.partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _read(data: Path) -> dict[str, Any]:
    try:
        document = json.loads((data / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
