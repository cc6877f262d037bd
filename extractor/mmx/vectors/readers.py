"""Feature files that people already have, as matrices whose rows are known by id.

Read are .npy, a folder of .npy files, Parquet, HDF5 and safetensors. Nothing in a file is ever
executed, and the item of a row comes from an id list, a file name or a column, never from a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import is_hidden
from mmbase.layout import counted
from mmx.errors import DataError, UsageError
from mmx.vectors.foreign_hdf5 import read_hdf5
from mmx.vectors.ids import EXAMPLES, is_id_name, read_records, sha256_of, sha256_of_files
from mmx.vectors.parquet import read_parquet
from mmx.vectors.sources import Source, Vectors, checked, known_by_row, refuse

_CONVERT = (
    "reading such a file can run code, so save the numbers where you made them: "
    "numpy.save('vectors.npy', tensor.numpy()), and the ids one per line"
)
_OTHER_KINDS = {
    **{b"\x80" + bytes([protocol]): f"a pickle; {_CONVERT}" for protocol in range(2, 6)},
    b"\x89H": "HDF5; read it with --format hdf5",
    b"PA": "Parquet; read it with --format parquet",
}
"""First bytes of files of other formats, and the advice for each."""


def load_npy(path: Path, *, mapped: bool = True) -> NDArray[Any]:
    """Read the array in a .npy file; Python objects in it are refused, never unpickled.

    Raises:
        DataError: no such file, not .npy, truncated, or an array of objects.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
        if start in _OTHER_KINDS:
            raise DataError(f"{path.name}: no .npy file but {_OTHER_KINDS[start]}")
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path.name}: not a .npy file of plain numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        names = array.files
        array.close()
        if any(name.endswith("data.pkl") for name in names):
            raise DataError(f"{path.name}: no .npy file but one of torch.save; {_CONVERT}")
        raise DataError(
            f"{path.name}: an archive of arrays ({', '.join(names[:EXAMPLES])}); save the one you "
            "mean with numpy.save"
        )
    return array


def read_npy(source: Source) -> Vectors:
    """Read one 2-D array; the ids come from a file, or are row numbers that a dataset confirms."""
    refuse(source, "npy", "columns", "tensor", "dataset")
    return known_by_row(source, checked(source.path.name, load_npy(source.path)))


def read_npy_folder(source: Source) -> Vectors:
    """Read one .npy file per item, of shape (dim,) or (1, dim), named `<id>.npy`.

    With `ids`, a table of two columns, id and file name, says which file is whose instead.
    """
    refuse(source, "npy-folder", "columns", "tensor", "dataset", "data", "row_column", "id_column")
    if not source.path.is_dir():
        raise DataError(
            f"{source.path}: no such folder (--format npy-folder reads one .npy file per item)"
        )
    entries = sorted(path for path in source.path.iterdir() if not is_hidden(path.name))
    files = {path.name: path for path in entries if path.name.endswith(".npy") and path.is_file()}
    if not files:
        raise DataError(f"{source.path}: no .npy files in it")
    notes: tuple[str, ...] = ()
    if n_others := len(entries) - len(files):
        notes = (f"{counted(n_others, 'other file')} in {source.path.name}: left aside",)
    record: dict[str, Any] = {"files": len(files)}
    if source.ids is None:
        by_id = {name.removesuffix(".npy"): path for name, path in files.items()}
    else:
        by_id = _mapped_files(source.ids, files)
        record["ids"] = {"file": source.ids.name, "sha256": sha256_of(source.ids)}
    rows: list[NDArray[Any]] = []
    for path in by_id.values():
        array = load_npy(path, mapped=False)
        if array.ndim == 2 and len(array) == 1:
            array = array[0]
        first = rows[0] if rows else array
        if array.ndim != 1 or array.shape != first.shape or array.dtype != first.dtype:
            shape = first.shape if first.ndim == 1 else "(dim,) or (1, dim)"
            raise DataError(
                f"{path.name}: {array.dtype} of shape {array.shape} (expected one vector like that "
                f"of the first file, {first.dtype} of shape {shape})"
            )
        rows.append(array)
    digest = sha256_of_files(files)
    features = checked(source.path.name, np.stack(rows))
    return Vectors(list(by_id), features, digest, np.zeros(len(rows), dtype=bool), record, notes)


def _mapped_files(mapping: Path, files: Mapping[str, Path]) -> dict[str, Path]:
    records = read_records(mapping) if mapping.is_file() else []
    records = [cells for cells in records if cells != [""]]
    if records and is_id_name(records[0][0]) and records[0][-1] not in files:
        del records[0]  # a header
    by_id: dict[str, Path] = {}
    for cells in records:
        if len(cells) != 2 or cells[1] not in files:
            raise DataError(
                f"{mapping.name}: {' '.join(cells)!r} (expected an id and the name of a file in "
                "the folder; a header begins with item_id)"
            )
        if cells[0] in by_id:
            raise DataError(f"{mapping.name}: id {cells[0]!r} occurs twice; ids must be unique")
        by_id[cells[0]] = files[cells[1]]
    if len(set(by_id.values())) != len(files):
        raise DataError(
            f"{mapping}: names {len(set(by_id.values())):,} of the {len(files):,} files; it must "
            "name each once"
        )
    return by_id


def read_safetensors(source: Source) -> Vectors:
    """Read one 2-D tensor of a safetensors file; the ids come from a file, as for .npy."""
    from safetensors import SafetensorError, safe_open

    refuse(source, "safetensors", "columns", "dataset")
    name = source.path.name
    try:
        with safe_open(source.path, framework="numpy") as file:
            names = sorted(file.keys())
            if source.tensor is None and len(names) != 1:
                raise UsageError(
                    f"{name}: {len(names)} tensors ({', '.join(names)}); choose one with --tensor "
                    "NAME"
                )
            tensor = source.tensor or names[0]
            if tensor not in names:
                raise UsageError(f"{name}: no tensor {tensor!r} (got {', '.join(names)})")
            bfloat16 = file.get_slice(tensor).get_dtype() == "BF16"
            features = _bfloat16(source.path, tensor) if bfloat16 else file.get_tensor(tensor)
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{name}: not a safetensors file of plain numbers ({error})") from error
    features = checked(f"{name}:{tensor}", np.asarray(features))
    return known_by_row(source, features, {"tensor": tensor})


def _bfloat16(path: Path, tensor: str) -> NDArray[np.float32]:
    """Read a bfloat16 tensor as float32, which holds every such number; numpy has no such type."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return np.asarray(file.get_tensor(tensor).float().numpy())


FORMATS: dict[str, Callable[[Source], Vectors]] = {
    "npy": read_npy,
    "npy-folder": read_npy_folder,
    "parquet": read_parquet,
    "hdf5": read_hdf5,
    "safetensors": read_safetensors,
}
"""Readers by the name that `mmx store import --format` takes."""
