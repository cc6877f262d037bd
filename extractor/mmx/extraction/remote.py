"""Datasets and stores at addresses (`s3://`, `gs://`, `hdfs://`, `file://`, `memory://`).

fsspec reads and writes there; everything else works on local folders. So a dataset at an address
gets a skeleton: a folder with its tables, and for each other file an empty one of its name and
size, in whose place the content is fetched when it is loaded, and forgotten after that. A store at
an address has a folder where sets are made; a finished one is uploaded whole, under another name
that becomes its own once what is there has been read back and compared. An unfinished one stays,
and the same command goes on.

The folders are in `$MMX_STAGING`, else `mmx/staging` in the user's cache folder. Machines of a Ray
cluster need one that they share.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mmbase.catalogue.files import Content
from mmbase.choices import FILE
from mmbase.errors import install_extra
from mmbase.process import is_running
from mmbase.tables import is_table
from mmx.errors import DataError, ToolError, UsageError

if TYPE_CHECKING:  # loading processes fetch contents, and start without pydantic
    from mmx.config import RunConfig

SUFFIX = ".mmx-staged"
"""Ends the name of a folder that stands for an address, which its file `ADDRESS` holds."""
ADDRESS = ".address"

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.IGNORECASE | re.DOTALL)
_BLOCK = 1 << 23
_DATA = "data-"


def address_in(path: Path) -> str:
    """Return the address that was given as a path, or an empty text."""
    found = _SCHEME.fullmatch(path.as_posix())  # a path has one slash where an address has several
    if found is None:
        return ""
    scheme, rest = found.groups()
    root = "/" if scheme.lower() == "file" else ""
    return f"{scheme.lower()}://{root}{rest}"


@contextmanager
def staged(run: RunConfig) -> Iterator[RunConfig]:
    """Yield the run with local folders in place of addresses; one without addresses as it is.

    Raises:
        ToolError: What an address needs is not installed, or nothing can be read there.
    """
    data, out = address_in(run.data), address_in(run.store)
    if not data and not out:
        yield run
        return
    if run.engine == "ray" and "memory://" in (data + out):
        raise UsageError("memory:// is in the memory of one process; --engine ray has several")
    changes: dict[str, Any] = {"loading": "threads"} if data.startswith("memory://") else {}
    root = _root()
    _discard_skeletons(root)
    prefix = f"{_DATA}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root, suffix=SUFFIX) as folder:
        if data:
            changes["data"] = _skeleton(data, Path(folder))
        if out:
            changes["out"] = _folder_of(out, root)
        try:
            yield run.model_copy(update=changes)
        except ToolError as error:
            text = str(error)
            for name, address in (("data", data), ("out", out)):
                if address:
                    text = text.replace(str(changes[name]), address.rstrip("/"))
            raise type(error)(text) from error
        finally:
            if out:
                _discard_empty(changes["out"])


def _root() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("MMX_STAGING") or Path(cache) / "mmx" / "staging").absolute()
    root.mkdir(parents=True, exist_ok=True)
    return root


def _discard_skeletons(root: Path) -> None:
    """Remove the folders of processes of this machine that were killed."""
    for folder in root.glob(f"{_DATA}*{SUFFIX}"):
        process = folder.name.removeprefix(_DATA).partition("-")[0]
        if process.isdecimal() and not is_running(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _folder_of(address: str, root: Path) -> Path:
    """Return the folder where the sets of a store are made, the same in every run."""
    name = hashlib.blake2b(address.encode(), digest_size=16).hexdigest()
    folder = root / f"store-{name}{SUFFIX}"
    folder.mkdir(exist_ok=True)
    (folder / ADDRESS).write_text(address, encoding="utf-8")
    return folder


def _discard_empty(folder: Path) -> None:
    """Remove a folder in which no set is under way."""
    if [one.name for one in folder.iterdir()] == [ADDRESS]:
        shutil.rmtree(folder)


def _skeleton(address: str, folder: Path) -> Path:
    """Fill a folder with the tables of a dataset, and empty files in place of all others."""
    (folder / ADDRESS).write_text(address, encoding="utf-8")
    with _told(address) as (system, root):
        if not system.isdir(root):
            raise DataError(f"{address}: no such dataset folder")
        files = system.find(root, detail=True)
        for name, about in files.items():
            inside = PurePosixPath(name.strip("/")).relative_to(root.strip("/"))
            if ".." in inside.parts or inside.parts[0] == "features":
                continue
            path = folder / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_table(path) or inside.name == FILE:
                system.get_file(name, str(path))
            else:
                with path.open("wb") as stream:
                    stream.truncate(int(about.get("size") or 0))
            with suppress(AttributeError, TypeError, ValueError, OSError):
                changed = about.get("mtime") or about.get("LastModified") or about.get("created")
                changed_s = changed if isinstance(changed, int | float) else changed.timestamp()
                os.utime(path, (changed_s, changed_s))
    return folder


@contextmanager
def fetched(content: Content) -> Iterator[tuple[Content, float]]:
    """Yield a content that can be loaded, and the seconds for which it was fetched.

    Contents of local datasets, and texts, are yielded as they are.

    Raises:
        DataError: A file that was there when the run began is gone, has another size, or can't be
            read.
    """
    parts = content if isinstance(content, tuple) else (content,)
    if not any(isinstance(part, Path) and SUFFIX in str(part) for part in parts):
        yield content, 0.0
        return
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mmx-content-") as folder:
        here: list[Any] = []
        for number, part in enumerate(parts):
            if isinstance(part, Path):
                path = Path(folder) / f"{number}{part.suffix}"
                path.write_bytes(_content_of(part))
                here.append(path)
            else:
                here.append(part)
        yield tuple(here) if isinstance(content, tuple) else here[0], time.perf_counter() - began


def _content_of(path: Path) -> bytes:
    address = shown(path)
    gone = "the dataset must stay as it is while it is read; the same command goes on"
    with _told(address) as (system, name):
        try:
            content: bytes = system.cat_file(name)
        except FileNotFoundError as error:
            raise DataError(
                f"{address}: was there when the run began, and is gone; {gone}"
            ) from error
    size = path.stat().st_size
    if len(content) != size:
        raise DataError(
            f"{address}: had {size:,} bytes when the run began, and has {len(content):,} now; "
            f"{gone}"
        )
    return content


def shown(path: Path) -> str:
    """Return the address that a path stands for; the path itself where it stands for none."""
    folder = next((one for one in path.parents if one.name.endswith(SUFFIX)), None)
    if folder is None:
        return path.as_posix()
    return f"{_address_of(folder).rstrip('/')}/{path.relative_to(folder).as_posix()}"


@functools.lru_cache
def _address_of(folder: Path) -> str:
    return (folder / ADDRESS).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------
# sets


def adopt(path: Path) -> None:
    """Fetch the finished set that a store at an address has; nothing for local stores.

    Raises:
        ToolError: It is there and can't be read.
    """
    address = shown(path)
    if path.exists() or address == path.as_posix():
        return
    with _told(address) as (system, name):
        if not system.exists(name):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.name}.fetched")
        system.get_file(name, str(half))
        size = system.info(name)["size"]
        if half.stat().st_size != size:
            half.unlink()
            raise DataError(f"{address}: was changed while it was read; give the command again")
        half.replace(path)


def publish(path: Path) -> None:
    """Upload a finished set of a store at an address, and remove it here; nothing for local ones.

    Raises:
        ToolError: It can't be written, or what is there is not what was written.
    """
    address = shown(path)
    if address == path.as_posix():
        return
    with _told(address) as (system, name):
        for one in (path.with_name(f"{path.stem}.cost.json"), path):
            there = name if one == path else f"{name.rpartition('/')[0]}/{one.name}"
            if not one.exists():
                continue
            half = f"{there}.uploading"
            system.makedirs(there.rpartition("/")[0], exist_ok=True)
            system.put_file(str(one), half)
            with one.open("rb") as ours, system.open(half, "rb") as theirs:
                if _digest(ours) != _digest(theirs):
                    raise ToolError(
                        f"{address}: what was uploaded is not what is read back; the set is kept "
                        f"here ({one}), and the same command uploads it again"
                    )
            try:
                system.mv(half, there)
            except OSError:  # some systems don't move onto a file
                system.rm_file(there)
                system.mv(half, there)
    for one in (path, path.with_name(f"{path.stem}.cost.json")):
        one.unlink(missing_ok=True)
    with suppress(OSError):  # others are under way there
        path.parent.rmdir()


def _digest(stream: Any) -> str:
    state = hashlib.blake2b()
    while block := stream.read(_BLOCK):
        state.update(block)
    return state.hexdigest()


@contextmanager
def _told(address: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of an address and the path there; its errors become one line.

    Raises:
        ToolError: What it needs is not installed, or it refuses.
    """
    try:
        fsspec: Any = importlib.import_module("fsspec")
        system, name = fsspec.core.url_to_fs(address)
    except ImportError as error:
        ours = any(name in str(error) for name in ("fsspec", "s3fs"))
        cure = f"; run: {install_extra('remote')}" if ours else ""
        raise ToolError(
            f"{address}: needs a library that is not installed ({error}){cure}"
        ) from error
    except ValueError as error:
        raise ToolError(f"{address}: no address that fsspec reads ({error})") from error
    system.invalidate_cache()
    try:
        yield system, name
    except ToolError:
        raise
    except Exception as error:  # botocore, gcsfs and pyarrow each have their own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ToolError(f"{address}: {type(error).__name__}: {reason}") from error
