"""Vectors in an HDF5 file that another program wrote: a matrix and its ids, or an array per item.

Only plain numbers and texts that lie in the file itself are read: no links to elsewhere, no
external or virtual storage, no compression that needs a plug-in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.layout import counted
from mmx.errors import DataError, UsageError
from mmx.vectors.ids import in_row_order, sha256_of
from mmx.vectors.sources import Source, Vectors, checked, known_by_row, refuse

_SHOWN = 8
_INFLATION = 1100
"""Upper bound of the compression ratio of deflate and LZF: a larger declared shape is false."""


def read_hdf5(source: Source) -> Vectors:
    """Read a 2-D dataset whose ids are another dataset, or a group of one vector per item.

    `source.dataset` names the dataset or group (`/` is the file itself); without it the file must
    hold a single matrix. `source.ids` is the key of the ids, or a file as for .npy.

    Raises:
        DataError: no HDF5 file, or what the keys name is no matrix, vectors or ids.
        UsageError: no such key, or several matrices and none named.
    """
    refuse(source, "hdf5", "columns", "tensor")
    with _opened(source.path) as file:
        key = source.dataset or _only_matrix(source.path, file)
        node = _node(source.path, file, key)
        record = {"dataset": key}
        if not _is_dataset(node):
            refuse(source, "hdf5 with a group of vectors", "ids", "data", "id_column", "row_column")
            ids, features = _vectors(source.path, node, key)
            absent = np.zeros(len(ids), dtype=bool)
            note = f"{source.path.name}: {counted(len(ids), 'vector')}, each named by its item"
            return Vectors(ids, features, sha256_of(source.path), absent, record, (note,))
        features = checked(f"{source.path.name}:{key}", _read(source.path, node, key))
        if source.ids is None or not _has(file, source.ids.as_posix()):
            if source.ids is not None and not source.ids.is_file():
                keys = ", ".join(_keys(file)[:_SHOWN])
                raise UsageError(
                    f"--ids {source.ids}: neither a key of {source.path.name} nor a file (keys: "
                    f"{keys})"
                )
            return known_by_row(source, features, record)
        refuse(replace(source, ids=None), "hdf5 with ids in the file", "data", "id_column",
               "row_column")  # fmt: skip
        at = source.ids.as_posix()
        names = _texts(source.path, _read(source.path, _node(source.path, file, at), at), at)
    where = Path(f"{source.path.name}:{at}")
    ids = in_row_order(where, [(name, None) for name in names], len(features))
    absent = np.zeros(len(ids), dtype=bool)
    return Vectors(ids, features, sha256_of(source.path), absent, {**record, "ids": at})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import h5py

    if not path.is_file():
        raise DataError(
            f"{path}: cannot be read ({'a folder' if path.is_dir() else 'no such file'})"
        )
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not an HDF5 file that can be read ({reason})") from error


def _is_dataset(node: Any) -> bool:
    import h5py

    return isinstance(node, h5py.Dataset)


def _has(file: Any, key: str) -> bool:
    try:
        return key in file
    except (ValueError, KeyError):
        return False


def _keys(group: Any, prefix: str = "") -> list[str]:
    """Return the paths of all datasets that hard links lead to, each object once."""
    import h5py

    found: list[str] = []
    seen: set[Any] = set()

    def visit(node: Any, path: str) -> None:
        for name in node:
            if not isinstance(node.get(name, getlink=True), h5py.HardLink):
                continue
            child = node[name]
            place = h5py.h5o.get_info(child.id)
            if (place.fileno, place.addr) in seen:
                continue
            seen.add((place.fileno, place.addr))
            if isinstance(child, h5py.Dataset):
                found.append(f"{path}{name}")
            elif isinstance(child, h5py.Group):
                visit(child, f"{path}{name}/")

    visit(group, prefix)
    return found


def _only_matrix(path: Path, file: Any) -> str:
    keys = _keys(file)
    matrices = [key for key in keys if file[key].ndim == 2 and file[key].dtype.kind in "fiu"]
    if len(matrices) == 1:
        return matrices[0]
    shapes = [f"{key} {file[key].shape} of {file[key].dtype}" for key in keys[:_SHOWN]]
    more = ", …" if len(keys) > _SHOWN else ""
    raise UsageError(
        f"{path.name}: which dataset holds the vectors? --dataset KEY, a matrix, or a group (/ is "
        f"the whole file) of one vector per item, named by it; it has: {', '.join(shapes)}{more}"
    )


def _node(path: Path, file: Any, key: str) -> Any:
    """Return the object at `key`, by hard links alone: nothing leads out of the file."""
    import h5py

    node = file
    for part in filter(None, key.split("/")):
        if not isinstance(node, h5py.Group) or part not in node:
            keys = _keys(file)
            shown = ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
            raise UsageError(f"{path.name}: no key {key!r} (got {shown})")
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise DataError(f"{path.name}:{key}: a link to elsewhere, which is not followed")
        node = node[part]
    return node


def _read(path: Path, node: Any, key: str) -> NDArray[Any]:
    """Return the content of a dataset of numbers or texts, after what it declares was checked."""
    import h5py

    where = f"{path.name}:{key}"
    if not _is_dataset(node):
        raise DataError(f"{where}: a group (expected a dataset)")
    if node.external or node.is_virtual:
        raise DataError(f"{where}: its numbers lie in another file, which is not read")
    text = h5py.check_string_dtype(node.dtype)
    if node.dtype.kind not in "fiuS" and text is None:
        raise DataError(f"{where}: holds {node.dtype} (expected numbers, or texts for ids)")
    properties = node.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    z = h5py.h5z
    built_in = {z.FILTER_DEFLATE, z.FILTER_SHUFFLE, z.FILTER_FLETCHER32, z.FILTER_SCALEOFFSET,
                z.FILTER_LZF}  # fmt: skip
    if not filters <= built_in:
        raise DataError(f"{where}: its compression needs a plug-in; save it with gzip or without")
    stored = node.id.get_storage_size() * (1 if node.chunks is None else _INFLATION)
    if node.nbytes > stored:
        raise DataError(f"{where}: {node.nbytes:,} bytes by its shape, and fewer in the file")
    return np.asarray(node[()])


def _texts(path: Path, values: NDArray[Any], key: str) -> list[str]:
    where = f"{path.name}:{key}"
    if values.ndim != 1 or values.dtype.kind not in "iuSO":
        raise DataError(
            f"{where}: {values.dtype} of shape {values.shape} (expected one text or whole number "
            "per row)"
        )
    cells = values.tolist()
    try:
        return [cell.decode() if isinstance(cell, bytes) else str(cell) for cell in cells]
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: an id that is not UTF-8 ({error.object!r})") from error


def _vectors(path: Path, group: Any, key: str) -> tuple[list[str], NDArray[Any]]:
    """Return the names and vectors of a group of datasets of shape (dim,) or (1, dim)."""
    ids: list[str] = []
    rows: list[NDArray[Any]] = []
    for name in group:
        at = f"{key.rstrip('/')}/{name}"
        vector = _read(path, _node(path, group, name), at)
        if vector.ndim == 2 and len(vector) == 1:
            vector = vector[0]
        first = rows[0] if rows else vector
        if vector.ndim != 1 or vector.shape != first.shape or vector.dtype != first.dtype:
            raise DataError(
                f"{path.name}:{at}: {vector.dtype} of shape {vector.shape} (expected one vector "
                "like the first of the group)"
            )
        ids.append(str(name))
        rows.append(vector)
    if not rows:
        raise DataError(f"{path.name}:{key}: an empty group (expected one vector per item)")
    return ids, checked(f"{path.name}:{key}", np.stack(rows))
