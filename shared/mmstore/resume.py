"""What an earlier writer left: an unfinished set to go on with, or a finished one, if they have the wanted plan."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmstore import hdf5
from mmstore.blocks import block_rows, spans
from mmstore.compatibility import refuse_other_plan
from mmstore.errors import DamagedFeatureSet, NotAFeatureSet, StoreError, StoreWarning
from mmstore.finishing import LENGTH, START
from mmstore.hdf5 import translated
from mmstore.ids import Bytes
from mmstore.row_file import Place
from mmstore.schema import Header
from mmstore.side_files import Paths, restore_undo
from mmstore.spec import DENSE, FEATURES, RAGGED, STATUS, Status


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An unfinished set of the wanted plan.

    Attributes:
        header: What it says about itself.
        status: Status of each row, shape (n,).
        places: Where the datasets lie that rows are written to.
        used_vectors: Ragged: one past the last vector of the log that a finished row refers to.
    """

    header: Header
    status: NDArray[np.uint8]
    places: dict[str, Place]
    used_vectors: int


def unfinished_set(paths: Paths, wanted: Header, columns: list[Bytes]) -> Unfinished | None:
    """The unfinished set at `paths`; None, with a warning, where it is beyond use and has to be begun anew.

    Raises:
        ProvenanceMismatch: It has another plan.
    """
    try:
        if paths.undo.exists():
            with translated(paths.undo):
                restore_undo(paths)
        file = hdf5.open_file(paths.partial)
    except (NotAFeatureSet, DamagedFeatureSet) as error:
        _begin_anew(error)
        return None
    with file:
        try:
            found, _ = hdf5.read_header(file, paths.partial)
            names = (FEATURES, STATUS) if found.layout == DENSE else (START, LENGTH, STATUS)
            places = {name: hdf5.place_of(file, paths.partial, name) for name in names}
            status = np.asarray(file[STATUS][:])
            if status.size and int(status.max()) > max(Status):
                raise DamagedFeatureSet(
                    f"{paths.partial}:/{STATUS}: holds {int(status.max())} (expected 0 … "
                    f"{max(Status)})"
                )
        except (NotAFeatureSet, DamagedFeatureSet) as error:
            _begin_anew(error)
            return None
        refuse_other_plan(found, wanted, file, columns, f"{paths.partial}: an unfinished set")
        used = _used_vectors(file, status) if found.layout == RAGGED else 0
    return Unfinished(found, status, places, used)


def finished_set(
    paths: Paths, wanted: Header, columns: list[Bytes], retry: Collection[Status]
) -> tuple[Header, NDArray[np.uint8], list[str]]:
    """Header and status, shape (n,), of the finished set at `paths`, and the keys of versions that differ.

    Raises:
        ProvenanceMismatch: It has another plan. Versions of programs may differ as long as it has
            no row to `retry`.
    """
    with hdf5.open_file(paths.final) as file:
        found, _ = hdf5.read_header(file, paths.final)
        status = np.asarray(file[STATUS][:])
        where, done = f"{paths.final}: a finished set", not np.isin(status, list(retry)).any()
        versions = refuse_other_plan(found, wanted, file, columns, where, any_versions=done)
        return found, status, versions


def _begin_anew(error: StoreError) -> None:
    warnings.warn(f"{error}; the unfinished set is begun anew", StoreWarning, stacklevel=6)


def _used_vectors(file: Any, status: NDArray[np.uint8]) -> int:
    used = 0
    for start, stop in spans(status.size, block_rows(16)):
        ends = file[START][start:stop] + file[LENGTH][start:stop]
        used = max(used, int(ends[status[start:stop] == Status.OK].max(initial=0)))
    return used
