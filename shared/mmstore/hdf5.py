"""The rim to HDF5 and the operating system: opening, typed access, and translation of foreign errors.

Nothing that a file holds is trusted before its type is known: object and reference dtypes,
variable-length data where the format says fixed-length, soft and external links, external and
virtual storage and filters that would load a plug-in are all refused before a byte of content is
read.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mmstore.errors import (
    DamagedFeatureSet,
    InvalidInput,
    NotAFeatureSet,
    StoreAccess,
    StoreError,
    StoreFull,
    UnknownFeatureSet,
)
from mmstore.ids import spans
from mmstore.schema import Header, canonical_json, check_format, check_version
from mmstore.spec import (
    ATTRIBUTES,
    BLOCK_BYTES,
    DENSE,
    ERROR_MESSAGE,
    ERROR_ROW,
    ERRORS,
    FEATURES,
    FORMAT,
    ID_DATASETS,
    OFFSETS,
    RAGGED,
    STATUS,
)

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_MAX_DEFLATION = (
    1100  # deflate makes data at most 1032 times smaller; a larger shape is damage, not data
)
_BUILT_IN_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
# The oldest encoding of every object: newer ones mark a file as open for writing, and after a kill
# it can't be opened.
_LIBVER = ("earliest", "v110")
_PAGE = 4096
EXTRACT_AGAIN = "extract it again with --restart, or copy it again from where it came"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contiguous dataset lies in its file.

    Attributes:
        start: First byte.
        shape: Sizes of the axes; the first counts rows.
        dtype: Type of the elements.
    """

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def stop(self) -> int:
        """One past the last byte."""
        return self.start + self.shape[0] * self.row_bytes


def write_all(stream: FileIO, data: memoryview | bytes) -> None:
    """Write all of `data` to an unbuffered stream, which may take it in pieces."""
    view = memoryview(data)
    while len(view):
        view = view[stream.write(view) :]


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of the operating system and of HDF5 inside the block into `StoreError`s that name `path`."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise translate(path, error) from error
    except (KeyError, RuntimeError, ValueError, TypeError, OverflowError, UnicodeError) as error:
        # h5py speaks in all of these when a file's structure is broken.
        raise DamagedFeatureSet(f"{path}: unreadable ({_brief(error)}); {EXTRACT_AGAIN}") from error


def translate(path: Path, error: OSError) -> StoreError:
    """The `StoreError` that says what an `OSError` of the operating system or of HDF5 means for `path`."""
    number = error.errno
    if number is None and (match := re.search(r"errno = (\d+)", str(error))):
        number = int(match[1])
    if number in _FULL:
        return StoreFull(
            f"{path}: no space left to write ({os.strerror(number or errno.ENOSPC)}); free space "
            "on that disk and "
            "run the same command again, it goes on from the last saved batch"
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreAccess(
            f"{path}: {os.strerror(number)}; check the permissions of the file and of its folder"
        )
    if number == errno.ENOENT:
        return StoreAccess(f"{path}: no such file; check the path")
    if number is not None:
        return StoreAccess(
            f"{path}: {os.strerror(number)}; check the disk and run the command again"
        )
    return DamagedFeatureSet(f"{path}: truncated or damaged ({_brief(error)}); {EXTRACT_AGAIN}")


def open_file(path: Path) -> h5py.File:
    """An existing HDF5 file, open for reading.

    Where the file system has no locks, it is opened without: a finished file never changes.

    Raises:
        NotAFeatureSet: A folder, an empty file, or not HDF5.
        UnknownFeatureSet: It does not exist.
        StoreAccess: It may not be opened.
        DamagedFeatureSet: HDF5 can't open it.
    """
    with translated(path):
        if path.is_dir():
            raise NotAFeatureSet(
                f"{path}: is a folder, expected a file; name the feature set inside it"
            )
        try:
            with path.open("rb") as stream:
                start = stream.read(len(_SIGNATURE))
        except FileNotFoundError as error:
            raise UnknownFeatureSet(
                f"{path}: no such feature set; `mmx store ls` lists what there is"
            ) from error
        if not start:
            raise NotAFeatureSet(f"{path}: is empty; delete it, and extract or copy the set again")
        if start != _SIGNATURE:
            raise NotAFeatureSet(
                f"{path}: is not an HDF5 file; import foreign features with `mmx store import`"
            )
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "lock" not in str(error):
                raise
            return h5py.File(path, "r", locking=False)


@contextmanager
def edit_file(path: Path, growth: int) -> Iterator[h5py.File]:
    """An existing HDF5 file, open for changes that make it at most `growth` bytes longer.

    The bytes are reserved first, because HDF5 loses data and crashes when the disk fills up under
    it.

    Raises:
        StoreFull: They can't be reserved; the file's content is as before.
    """
    with translated(path):
        _reserve(path, growth)
        # No lock of HDF5's: the writer has its own, and one that child processes inherit would
        # outlive a killed writer. Large datasets begin on page boundaries, for those who map them
        # into memory.
        file = h5py.File(
            path,
            "r+",
            locking=False,
            libver=_LIBVER,
            alignment_threshold=1 << 16,
            alignment_interval=_PAGE,
        )
        try:
            yield file
            file.flush()
        finally:
            file.close()


@contextmanager
def new_file(path: Path, size: int) -> Iterator[h5py.File]:
    """A new HDF5 file that is going to be about `size` bytes long; see `edit_file`."""
    with translated(path):
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
        stream.seek(size)
        for start, stop in spans(growth, BLOCK_BYTES):
            write_all(stream, bytes(stop - start))


def place_of(file: h5py.File, path: Path, name: str) -> Place:
    """Where a dataset lies in its file.

    Raises:
        DamagedFeatureSet: It is not contiguous.
    """
    data = file[name]
    start = data.id.get_offset()
    if data.size and start is None:
        raise DamagedFeatureSet(f"{path}:/{name}: is not stored contiguously; {EXTRACT_AGAIN}")
    return Place(int(start or 0), data.shape, np.dtype(data.dtype.str))


# ------------------------------------------------------------------------------------------------
# typed reading


def dataset(
    file: h5py.File, path: Path, name: str, *, ndim: int, dtypes: tuple[str, ...]
) -> h5py.Dataset:
    """Dataset `name`, checked to be plain data of the expected rank and dtype.

    Args:
        file: The open file.
        path: The file's path, for messages.
        name: Path of the dataset inside the file.
        ndim: Number of axes.
        dtypes: Allowed dtypes as numpy spells them (`<f4`), or `utf-8` for fixed-length text.

    Raises:
        DamagedFeatureSet: It is absent or anything else.
    """
    where = f"{path}:/{name}"
    with translated(path):
        found = _hard_child(file, path, name)
        if not isinstance(found, h5py.Dataset):
            raise DamagedFeatureSet(f"{where}: absent (expected a dataset); {EXTRACT_AGAIN}")
        if found.external or found.is_virtual:
            raise DamagedFeatureSet(
                f"{where}: its data lie outside the file, which is not allowed; {EXTRACT_AGAIN}"
            )
        properties = found.id.get_create_plist()
        for i in range(properties.get_nfilters()):
            if properties.get_filter(i)[0] not in _BUILT_IN_FILTERS:
                raise DamagedFeatureSet(
                    f"{where}: needs a compression plug-in, which is not allowed; {EXTRACT_AGAIN}"
                )
        kind = _kind(found.dtype)
        if kind not in dtypes:
            raise DamagedFeatureSet(
                f"{where}: wrong dtype (got {kind}, expected {' or '.join(dtypes)}); "
                f"{EXTRACT_AGAIN}"
            )
        if found.ndim != ndim:
            raise DamagedFeatureSet(
                f"{where}: wrong shape (got {found.shape}, expected {ndim} axes); {EXTRACT_AGAIN}"
            )
        stored = found.id.get_storage_size() * (1 if found.chunks is None else _MAX_DEFLATION)
        if found.nbytes > stored:
            raise DamagedFeatureSet(
                f"{where}: fewer bytes than its shape says (got {stored}, expected "
                f"{found.nbytes}); {EXTRACT_AGAIN}"
            )
        return found


def _hard_child(file: h5py.File, path: Path, name: str) -> Any:
    """The object at `name`, or None; every step on the way must be a hard link, so nothing leads out of the file."""
    node: Any = file
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or part not in node:
            return None
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise DamagedFeatureSet(
                f"{path}:/{name}: is a link to elsewhere, which is not allowed; {EXTRACT_AGAIN}"
            )
        node = node[part]
    return node


def _kind(dtype: np.dtype[Any]) -> str:
    text = h5py.check_string_dtype(dtype)
    if text is not None:
        return "utf-8" if text.length is not None else "variable-length text"
    return str(dtype.str) if dtype.names is None and dtype.subdtype is None else "compound"


def read_text(data: h5py.Dataset, start: int = 0, stop: int | None = None) -> NDArray[np.bytes_]:
    """Rows of a fixed-length text dataset as a plain `S` array, without padding and without HDF5's dtype tag."""
    raw = np.asarray(data[start:stop])
    return raw.astype(f"S{max(1, raw.dtype.itemsize)}", copy=False)


def _attribute(file: h5py.File, path: Path, name: str) -> object:
    if name not in file.attrs:
        raise DamagedFeatureSet(f"{path}: root attribute '{name}' is absent; {EXTRACT_AGAIN}")
    handle = file.attrs.get_id(name)
    wanted = "a boolean" if name == "complete" else "UTF-8 text"
    is_text = h5py.check_string_dtype(handle.dtype) is not None
    is_bool = handle.dtype.kind in "biu"
    if handle.shape != () or not (is_bool if name == "complete" else is_text):
        raise DamagedFeatureSet(
            f"{path}: root attribute '{name}' has the wrong type "
            f"(got {handle.dtype} {handle.shape}, expected one {wanted}); {EXTRACT_AGAIN}"
        )
    value = file.attrs[name]
    if name == "complete":
        return bool(value)
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def read_header(file: h5py.File, path: Path) -> tuple[Header, str | None]:
    """The header of an open feature set, and a warning where its version is newer than this library.

    Checks the structure (attributes, datasets, dtypes, equal lengths) and none of the content.

    Raises:
        NotAFeatureSet: HDF5 of another format.
        UnsupportedVersion: A major version that this library does not read.
        DamagedFeatureSet: The structure breaks a rule.
    """
    with translated(path):
        if "format" not in file.attrs:
            raise NotAFeatureSet(
                f"{path}: HDF5, but not a feature set (no root attribute 'format', expected "
                f"{FORMAT!r}); "
                "import foreign features with `mmx store import`"
            )
        check_format(str(path), str(_attribute(file, path, "format")))
        version = str(_attribute(file, path, "format_version"))
        warning = check_version(str(path), version)
        values: dict[str, Any] = {name: _attribute(file, path, name) for name in ATTRIBUTES[2:]}
        try:
            values["provenance"] = json.loads(values["provenance"])
        except ValueError as error:
            raise DamagedFeatureSet(
                f"{path}: root attribute 'provenance' is not JSON ({error}); {EXTRACT_AGAIN}"
            ) from error
        if not isinstance(values["provenance"], dict):
            raise DamagedFeatureSet(
                f"{path}: root attribute 'provenance' is not a JSON object; {EXTRACT_AGAIN}"
            )
        features = dataset(file, path, FEATURES, ndim=2, dtypes=("<f2", "<f4"))
        status = dataset(file, path, STATUS, ndim=1, dtypes=("|u1",))
        try:
            header = Header(
                **values,
                dim=int(features.shape[1]),
                dtype=str(features.dtype.name),
                rows=int(status.shape[0]),
                format_version=version,
            )
        except InvalidInput as error:
            raise DamagedFeatureSet(f"{path}: bad header: {error}; {EXTRACT_AGAIN}") from error
        _check_lengths(file, path, header)
        return header, warning


def _check_lengths(file: h5py.File, path: Path, header: Header) -> None:
    lengths = {STATUS: header.rows}
    for name in ID_DATASETS[header.source]:
        lengths[name] = dataset(file, path, name, ndim=1, dtypes=("utf-8",)).shape[0]
    if header.layout == DENSE:
        lengths[FEATURES] = file[FEATURES].shape[0]
    elif header.complete:
        lengths[OFFSETS] = dataset(file, path, OFFSETS, ndim=1, dtypes=("<i8",)).shape[0] - 1
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"/{name}: {length}" for name, length in lengths.items())
        raise DamagedFeatureSet(f"{path}: unequal numbers of rows ({listing}); {EXTRACT_AGAIN}")
    if ERRORS in file:
        rows = dataset(file, path, ERROR_ROW, ndim=1, dtypes=("<i8",))
        messages = dataset(file, path, ERROR_MESSAGE, ndim=1, dtypes=("utf-8",))
        if rows.shape != messages.shape:
            raise DamagedFeatureSet(
                f"{path}:/{ERRORS}: unequal lengths (row: {rows.shape[0]}, message: "
                f"{messages.shape[0]}); {EXTRACT_AGAIN}"
            )
    elif header.complete:
        raise DamagedFeatureSet(f"{path}:/{ERRORS}: absent (expected a group); {EXTRACT_AGAIN}")


# ------------------------------------------------------------------------------------------------
# writing


def write_header(file: h5py.File, header: Header) -> None:
    """Set all root attributes."""
    values: dict[str, object] = {
        "format": FORMAT,
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
            raw = value.encode("utf-8")
            # Fixed length: a damaged heap of variable-length strings can make HDF5 loop for ever.
            file.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", max(1, len(raw))))
        else:
            file.attrs[name] = value


def create_text(file: h5py.File, name: str, values: NDArray[np.bytes_]) -> None:
    """A fixed-length UTF-8 dataset, null-padded, of the narrowest width that holds `values`."""
    width = max(1, values.dtype.itemsize)
    # A view, not a cast: numpy drops the tag that says UTF-8 where the two dtypes are otherwise
    # equal.
    tagged = np.ascontiguousarray(values, dtype=f"S{width}").view(h5py.string_dtype("utf-8", width))
    file.create_dataset(name, data=tagged)


def create_features(file: h5py.File, header: Header, vectors: int) -> h5py.Dataset:
    """The dataset `/features` of shape (vectors, dim): contiguous for dense sets, chunked for ragged ones."""
    dtype = np.dtype(header.dtype).newbyteorder("<")
    if header.layout == RAGGED:
        chunk = max(1, min(vectors, (1 << 18) // header.vector_bytes))
        return file.create_dataset(
            FEATURES,
            shape=(vectors, header.dim),
            maxshape=(None, header.dim),
            chunks=(chunk, header.dim),
            dtype=dtype,
        )
    # Allocated early and never filled: after this no write to the rows changes HDF5's metadata, so
    # that a process killed between two of them leaves a file that opens.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # equal content makes equal bytes
    space = h5py.h5s.create_simple((vectors, header.dim))
    h5py.h5d.create(file.id, FEATURES.encode(), h5py.h5t.py_create(dtype), space, properties)
    return file[FEATURES]


def create_errors(file: h5py.File, rows: NDArray[np.int64], messages: list[bytes]) -> None:
    """The group `/errors`: why each corrupt row is corrupt, in row order."""
    file.create_dataset(ERROR_ROW, data=rows.astype("<i8"))
    create_text(
        file, ERROR_MESSAGE, np.array(messages, dtype="S") if messages else np.empty(0, "S1")
    )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
