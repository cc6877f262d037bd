"""Output folders that appear when all of their files are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmbase import outputs
from mmbench.errors import DataError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield `<name>.partial`, an empty folder that gets its name when all of it is written.

    Raises:
        DataError: Something of that name exists, or the folder cannot be written.
    """
    if path.exists():
        raise DataError(f"{path}: exists already; choose another place, or remove it")
    with outputs.new_folder(path) as partial:
        yield partial
