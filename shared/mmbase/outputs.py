"""Output files and folders: they get their name when they are whole, and outlive a kill.

Work goes into `<name>.partial`. What a killed command left there, the same command takes away; what
it left finished, the same command finds to be the same and leaves alone.
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmbase.errors import DataError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path to write to, which becomes `path` when the block ends well, else vanishes.

    Raises:
        DataError: Something else has that name, or the file can't be written.
    """
    with _new(path, lambda partial: partial.parent.mkdir(parents=True, exist_ok=True)) as partial:
        yield partial


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, which becomes `path` when the block ends well, else vanishes.

    Raises:
        DataError: Something else has that name, or the folder can't be written.
    """
    with _new(path, lambda partial: partial.mkdir(parents=True)) as partial:
        yield partial


@contextmanager
def _new(path: Path, prepare: Callable[[Path], None]) -> Iterator[Path]:
    partial = path.with_name(path.name + ".partial")
    try:
        remove(partial)
        prepare(partial)
        yield partial
        if not already(partial, path):
            partial.rename(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        remove(partial, ignore_errors=True)


def already(partial: Path, path: Path) -> bool:
    """Return whether `path` is there with the content of `partial`; refuse other content.

    Raises:
        DataError: It is there with other content.
    """
    if not path.exists() and not path.is_symlink():
        return False
    if not same(partial, path):
        what = f"{path}: is there already, with other content"
        raise DataError(f"{what}; delete it, or choose another name")
    return True


def remove(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a file or folder, if there is one; a link, not what it leads to."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        if not ignore_errors:
            raise


def same(one: Path, other: Path) -> bool:
    """Whether two files, or two folders with all that is in them, are equal byte by byte."""
    if one.is_dir() != other.is_dir():
        return False
    if not one.is_dir():
        return filecmp.cmp(one, other, shallow=False)
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        same(one / name, other / name) for name in names
    )
