"""Output files and folders that get their name when they are complete.

Work goes into `<name>.partial`. A repeated command removes what a killed one left there, and leaves
a finished output of equal content alone.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmbase.errors import DataError
from mmbase.process import is_running


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path to write to; rename it to `path` on success, remove it on an error.

    Raises:
        DataError: Something else has that name, or the file can't be written.
    """
    with _new(path, lambda partial: partial.parent.mkdir(parents=True, exist_ok=True)) as partial:
        yield partial


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; rename it to `path` on success, remove it on an error.

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
        if already(partial, path):
            remove(partial)
        else:
            partial.rename(path)
    except BaseException as error:
        remove(partial, ignore_errors=True)
        if isinstance(error, OSError):
            what = f"{path}: cannot be written ({error.strerror or error})"
            raise DataError(what) from error
        raise


def put(path: Path, content: str | bytes) -> None:
    """Write a file in one step, in place of one of that name; folders are made as needed.

    Args:
        path: The file.
        content: Bytes, or a text, written as UTF-8; what a name of a file has that is none becomes
            an escape.

    Raises:
        DataError: It can't be written; nothing is left behind.
    """
    # Another process, or thread, may be writing the same file.
    own = f"{os.getpid()}-{threading.get_ident()}"
    partial = path.with_name(f"{path.name[:50]}.{own}.partial")
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException as error:
        remove(partial, ignore_errors=True)
        if isinstance(error, OSError):
            what = f"{path}: cannot be written ({error.strerror or error}); choose another name"
            raise DataError(what) from error
        raise


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed left of this file."""
    start = f"{path.name[:100]}."
    for there in path.parent.iterdir():
        name = there.name
        own = name.removeprefix(start).removesuffix(".partial")
        process, _, thread = own.partition("-")
        ours = name == f"{start}{own}.partial" and (process + thread).isdecimal()
        if ours and not is_running(int(process)):
            remove(there, ignore_errors=True)


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
    """Remove a file or folder, if there is one; of a link only the link itself."""
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
