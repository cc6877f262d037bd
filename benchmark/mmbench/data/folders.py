"""Output folders that appear when all of their files are written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmbench.errors import DataError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield `<name>.partial`, an empty folder that gets its name when all of it is written.

    Raises:
        DataError: Something of that name exists, or the folder cannot be written.
    """
    if path.exists():
        raise DataError(f"{path}: exists already; choose another place, or remove it")
    partial = path.with_name(path.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
