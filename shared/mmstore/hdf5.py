"""Access to HDF5 and the operating system: opening, typed reading, creating, foreign errors.

Nothing that a file holds is trusted before its type is known. Object and reference dtypes,
variable-length data where the format demands fixed length, soft and external links, external and
virtual storage and filters that would load a plug-in are all refused before a byte of content is
read.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mmstore import errors, spec
from mmstore.errors import InvalidInput, NotAFeatureSet, StoreError, StoreFull, damaged
from mmstore.ids import spans
from mmstore.schema import Header, canonical_json, check_version

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_IMPORT = "import foreign features with `mmx store import`"
# Deflate makes data at most 1032 times smaller; a larger shape is damage, not data.
_MAX_DEFLATION = 1100
# Vectors deflate to a half, hardly ever to a hundredth: more is a bomb, if it is large as well. A
# chunk is inflated as a whole, whichever part of it is read.
_MAX_LARGE_DEFLATION, _LARGE_BYTES, _MAX_CHUNK_BYTES = 100, 1 << 28, 1 << 26
_BUILT_IN_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
# The oldest encoding of every object: newer ones mark a file as open for writing, and after a kill
# it can't be opened.
_LIBVER = ("earliest", "v110")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn foreign errors inside the block into `StoreError`s that name `path`."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise _translate(path, error) from error
    except (KeyError, RuntimeError, ValueError, TypeError, OverflowError, UnicodeError) as error:
        # h5py raises all of these when a file's structure is broken.
        raise damaged(f"{path}: unreadable ({_brief(error)})") from error


def _translate(path: Path, error: OSError) -> StoreError:
    number = error.errno
    if number is None and (match := re.search(r"errno = (\d+)", str(error))):
        number = int(match[1])  # HDF5 has it in the message only
    if number is None:
        return damaged(f"{path}: truncated or damaged ({_brief(error)})")
    if number in _FULL:
        cure = "free space on that disk and run the same command again"
        return StoreFull(f"{path}: no space left to write ({os.strerror(number)}); {cure}")
    if number == errno.ENOENT:
        return errors.StoreAccess(f"{path}: no such file; check the path")
    cure = "check the disk and run the command again"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        cure = "check the permissions of the file and of its folder"
    return errors.StoreAccess(f"{path}: {os.strerror(number)}; {cure}")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# ------------------------------------------------------------------------------------------------
# opening


def open_file(path: Path) -> h5py.File:
    """Open an existing HDF5 file for reading.

    Raises:
        StoreError: `NotAFeatureSet` for a folder, an empty file, or one of another format;
            `UnknownFeatureSet`, `StoreAccess` or `DamagedFeatureSet`.
    """
    with translated(path):
        if path.is_dir():
            raise NotAFeatureSet(f"{path}: is a folder; name the feature set inside it")
        try:
            with path.open("rb") as stream:
                start = stream.read(len(_SIGNATURE))
        except FileNotFoundError as error:
            what = f"{path}: no such feature set; `mmx store ls` lists what there is"
            raise errors.UnknownFeatureSet(what) from error
        if not start:
            raise NotAFeatureSet(f"{path}: is empty; delete it, and extract or copy the set again")
        if start != _SIGNATURE:
            raise NotAFeatureSet(f"{path}: is not an HDF5 file; {_IMPORT}")
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "lock" not in str(error):
                raise
            # The file system has no locks; a finished file never changes, so it needs none.
            return h5py.File(path, "r", locking=False)


@contextmanager
def edit_file(path: Path, growth: int) -> Iterator[h5py.File]:
    """Open an existing HDF5 file for changes that make it at most `growth` bytes longer.

    `StoreFull` where the disk has no room for them leaves the file's content as before.
    """
    with translated(path):
        # Reserved first: HDF5 loses data and crashes when the disk fills up under it.
        _reserve(path, growth)
        # No lock of HDF5's: the writer has its own, and one that child processes inherit would
        # outlive a killed writer. Large datasets begin on page boundaries, for those who map them
        # into memory.
        alignment = {"alignment_threshold": 1 << 16, "alignment_interval": 4096}
        file = h5py.File(path, "r+", locking=False, libver=_LIBVER, **alignment)
        try:
            yield file
            file.flush()
        finally:
            file.close()


@contextmanager
def new_file(path: Path, size: int) -> Iterator[h5py.File]:
    """Make an HDF5 file that is going to be about `size` bytes long; see `edit_file`."""
    with translated(path):
        # An empty image from memory: `edit_file` can reserve space only in a file that exists.
        with h5py.File("new", "w", driver="core", backing_store=False, libver=_LIBVER) as empty:
            empty.flush()
            image = empty.id.get_file_image()
        path.write_bytes(image)
    with edit_file(path, size) as file:
        yield file


def _reserve(path: Path, growth: int) -> None:
    """Make `path` longer by `growth` bytes that the disk really has."""
    size = path.stat().st_size
    with path.open("r+b", buffering=0) as stream:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(stream.fileno(), size, growth)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
        # The file system can't reserve: fill the space with zeros instead.
        stream.seek(size)
        for start, stop in spans(growth, spec.BLOCK_BYTES):
            write_all(stream, bytes(stop - start))


def write_all(stream: FileIO, data: memoryview | bytes) -> None:
    """Write all of `data` to an unbuffered stream, which may take it in pieces."""
    view = memoryview(data)
    while len(view):
        view = view[stream.write(view) :]


# ------------------------------------------------------------------------------------------------
# typed reading


def read_text(data: h5py.Dataset, start: int = 0, stop: int | None = None) -> NDArray[np.bytes_]:
    """Return rows of a fixed-length text dataset as a plain `S` array, without HDF5's dtype tag."""
    raw = np.asarray(data[start:stop])
    return raw.astype(f"S{max(1, raw.dtype.itemsize)}", copy=False)


def read_header(file: h5py.File, path: Path) -> tuple[Header, str | None]:
    """Return the header of an open feature set, and a warning if its version is a newer minor.

    Checks the structure (attributes, datasets, dtypes, equal lengths) and none of the content:
    `NotAFeatureSet` or `UnsupportedVersion` for what this library does not read, else
    `DamagedFeatureSet`.
    """
    with translated(path):
        found = _attribute(file, path, "format") if "format" in file.attrs else None
        if found != spec.FORMAT:
            got = "no root attribute 'format'" if found is None else f"format: got {found!r}"
            got += f", expected {spec.FORMAT!r}"
            raise NotAFeatureSet(f"{path}: HDF5, but not a feature set ({got}); {_IMPORT}")
        version = str(_attribute(file, path, "format_version"))
        warning = check_version(str(path), version)
        names = ("modality", "source", "layout", "name", "complete", "provenance", "content_digest")
        values: dict[str, Any] = {name: _attribute(file, path, name) for name in names}
        try:
            values["provenance"] = json.loads(values["provenance"])
        except ValueError as error:
            raise damaged(f"{path}: root attribute 'provenance' is not JSON ({error})") from error
        if not isinstance(values["provenance"], dict):
            raise damaged(f"{path}: root attribute 'provenance' is not a JSON object")
        features = _dataset(file, path, spec.FEATURES, ("<f2", "<f4"), ndim=2)
        n_rows = _length(file, path, spec.STATUS, "|u1")
        dim, dtype = int(features.shape[1]), str(features.dtype.name)
        try:
            header = Header(**values, dim=dim, dtype=dtype, rows=n_rows, format_version=version)
        except InvalidInput as error:
            raise damaged(f"{path}: bad header: {error}") from error
        _check_lengths(file, path, header)
        return header, warning


def _check_lengths(file: h5py.File, path: Path, header: Header) -> None:
    lengths = {spec.STATUS: header.rows}
    for name in spec.ID_DATASETS[header.source]:
        lengths[name] = _length(file, path, name, "utf-8")
    if header.layout == spec.DENSE:
        lengths[spec.FEATURES] = file[spec.FEATURES].shape[0]
    elif header.complete:
        lengths[spec.OFFSETS] = _length(file, path, spec.OFFSETS, "<i8") - 1
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"/{name}: {length}" for name, length in lengths.items())
        raise damaged(f"{path}: unequal numbers of rows ({listing})")
    if spec.ERRORS in file:
        rows = _length(file, path, spec.ERROR_ROW, "<i8")
        messages = _length(file, path, spec.ERROR_MESSAGE, "utf-8")
        if rows != messages:
            got = f"row: {rows}, message: {messages}"
            raise damaged(f"{path}:/{spec.ERRORS}: unequal lengths ({got})")
    elif header.complete:
        raise damaged(f"{path}:/{spec.ERRORS}: absent (expected a group)")


def _attribute(file: h5py.File, path: Path, name: str) -> object:
    where = f"{path}: root attribute '{name}'"
    if name not in file.attrs:
        raise damaged(f"{where} is absent")
    handle = file.attrs.get_id(name)
    is_text, wanted = h5py.check_string_dtype(handle.dtype) is not None, "UTF-8 text"
    if name == "complete":
        is_text, wanted = handle.dtype.kind in "biu", "a boolean"
    if handle.shape != () or not is_text:
        got = f"{handle.dtype} {handle.shape}"
        raise damaged(f"{where} has the wrong type (got {got}, expected one {wanted})")
    value = file.attrs[name]
    if name == "complete":
        return bool(value)
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _length(file: h5py.File, path: Path, name: str, dtype: str) -> int:
    return int(_dataset(file, path, name, (dtype,), ndim=1).shape[0])


def _dataset(file: h5py.File, path: Path, name: str, dtypes: tuple[str, ...], *, ndim: int) -> Any:
    """Return dataset `name`, checked to be plain data of one of `dtypes` (`<f4`, or `utf-8`)."""
    where = f"{path}:/{name}"
    found = _hard_child(file, name, where)
    if not isinstance(found, h5py.Dataset):
        raise damaged(f"{where}: absent (expected a dataset)")
    if found.external or found.is_virtual:
        raise damaged(f"{where}: its data lie outside the file, which is not allowed")
    properties = found.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if not filters <= _BUILT_IN_FILTERS:
        raise damaged(f"{where}: needs a compression plug-in, which is not allowed")
    kind = _kind(found.dtype)
    if kind not in dtypes:
        raise damaged(f"{where}: wrong dtype (got {kind}, expected {' or '.join(dtypes)})")
    if found.ndim != ndim:
        raise damaged(f"{where}: wrong shape (got {found.shape}, expected {ndim} axes)")
    # A huge shape with little data behind it would make a reader allocate without end.
    stored = found.id.get_storage_size() * (1 if found.chunks is None else _MAX_DEFLATION)
    if found.nbytes > stored:
        got = f"got {stored}, expected {found.nbytes}"
        raise damaged(f"{where}: fewer bytes than its shape says ({got})")
    if found.chunks is not None:
        _refuse_bomb(found, where)
    return found


def _refuse_bomb(data: h5py.Dataset, where: str) -> None:
    """Compare the declared sizes of a chunked dataset with a budget, before any of it is read."""
    chunk = math.prod(data.chunks) * data.dtype.itemsize
    if chunk > _MAX_CHUNK_BYTES:
        got = f"{chunk / 1e6:,.0f} MB (at most {_MAX_CHUNK_BYTES / 1e6:,.0f} MB)"
        raise damaged(f"{where}: a chunk takes {got} of memory; write it with smaller ones")
    stored = data.id.get_storage_size()
    if data.nbytes > max(_LARGE_BYTES, stored * _MAX_LARGE_DEFLATION):
        got = f"{stored / 1e6:,.1f} MB would become {data.nbytes / 1e6:,.0f} MB"
        raise damaged(f"{where}: {got}; if you trust it, write it anew without compression")


def _hard_child(file: h5py.File, name: str, where: str) -> Any:
    """Return the object at `name`, or None, by hard links only: nothing leads out of the file."""
    node: Any = file
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or part not in node:
            return None
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise damaged(f"{where}: is a link to elsewhere, which is not allowed")
        node = node[part]
    return node


def _kind(dtype: np.dtype[Any]) -> str:
    text = h5py.check_string_dtype(dtype)
    if text is not None:
        return "utf-8" if text.length is not None else "variable-length text"
    return str(dtype.str) if dtype.names is None and dtype.subdtype is None else "compound"


# ------------------------------------------------------------------------------------------------
# creating


def write_header(file: h5py.File, header: Header) -> None:
    """Set all root attributes."""
    values: dict[str, Any] = {
        "format": spec.FORMAT,
        "format_version": header.format_version,
        "modality": header.modality,
        "source": header.source,
        "layout": header.layout,
        "name": header.name,
        "complete": np.bool_(header.complete),
        "provenance": canonical_json(header.provenance),
        "content_digest": header.content_digest,
    }
    for name, value in values.items():
        if isinstance(value, str):
            # Fixed length: a damaged heap of variable-length strings can make HDF5 loop for ever.
            raw = value.encode("utf-8")
            file.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", max(1, len(raw))))
        else:
            file.attrs[name] = value


def create_text(file: h5py.File, name: str, values: NDArray[np.bytes_]) -> None:
    """Create a fixed-length UTF-8 dataset, null-padded, of the width of `values`."""
    width = max(1, values.dtype.itemsize)
    # A view, not a cast: numpy drops the tag for UTF-8 where the two dtypes are otherwise equal.
    tagged = np.ascontiguousarray(values, dtype=f"S{width}").view(h5py.string_dtype("utf-8", width))
    file.create_dataset(name, data=tagged)


def create_features(file: h5py.File, header: Header, vectors: int) -> h5py.Dataset:
    """Create `/features`, shape (vectors, dim): contiguous for dense sets, chunked for ragged."""
    shape = (vectors, header.dim)
    if header.layout == spec.RAGGED:
        chunk = max(1, min(vectors, (1 << 18) // header.vector_bytes))
        return file.create_dataset(
            spec.FEATURES,
            shape=shape,
            maxshape=(None, header.dim),
            chunks=(chunk, header.dim),
            dtype=header.vector_dtype,
        )
    # Allocated early and never filled: after this no write to the rows changes HDF5's metadata, so
    # that a process killed between two of them leaves a file that opens.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # equal content makes equal bytes
    dtype, space = h5py.h5t.py_create(header.vector_dtype), h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, spec.FEATURES.encode(), dtype, space, properties)
    return file[spec.FEATURES]


def create_errors(file: h5py.File, rows: NDArray[np.int64], messages: list[bytes]) -> None:
    """Create the group `/errors`: why each corrupt row is corrupt, in row order."""
    file.create_dataset(spec.ERROR_ROW, data=rows.astype("<i8"))
    texts = np.array(messages, dtype="S") if messages else np.empty(0, "S1")
    create_text(file, spec.ERROR_MESSAGE, texts)
