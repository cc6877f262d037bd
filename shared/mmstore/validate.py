"""Checking a whole file against `FORMAT.md` in blocks: structure, content and digest."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mmstore.hdf5 as hdf5
from mmstore import spec
from mmstore.errors import InvalidIds, StoreError, StoreWarning, damaged
from mmstore.hashing import content_digest
from mmstore.ids import block_rows, duplicate_error, encode_ids, pair_keys, spans
from mmstore.schema import Header
from mmstore.spec import Status


def verify_apart(path: Path, *, limit_s: float | None = None) -> list[str]:
    """Check a file in a process of its own; answers and warns as `verify_file`.

    A damaged structure can make HDF5 itself loop for ever, crash, or ask for all memory there is:
    that is one line as well. The limit counts seconds of the processor, so that a slow disk is no
    damage: 60 and one for each 20 MB, if none is given.
    """
    with suppress(OSError):
        limit_s = limit_s or 60 + path.stat().st_size / 2e7
    limit_s = limit_s or 60.0
    command = [sys.executable, "-m", "mmstore.validate", str(path), str(math.ceil(limit_s))]
    places = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, env=environment, timeout=20 * limit_s, check=False
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        what = f"can't be read to its end: HDF5 crashes on it, or needs more than {limit_s:.0f} s"
        return [str(damaged(f"{path}: {what}"))]
    for warning in answer["warnings"]:
        warnings.warn(warning, StoreWarning, stacklevel=2)
    return list(answer["problems"])


def verify_file(path: Path) -> list[str]:
    """Return all violations of the format, one line each; a file that can't be opened is one too.

    A newer minor version warns (`StoreWarning`) and is checked by the rules that are known.
    """
    problems_found: list[str] = []
    try:
        with hdf5.open_file(path) as file:
            header, warning = hdf5.read_header(file, path)
            if warning:
                warnings.warn(warning, StoreWarning, stacklevel=3)
            with hdf5.translated(path):
                problems_found += [f"{path}{problem}" for problem in problems(file, header)]
    except StoreError as error:
        problems_found.append(str(error))
    return problems_found


def problems(file: Any, header: Header) -> Iterator[str]:
    """Yield the violations of an open set, to be read behind its path; the digest comes last."""
    status = np.asarray(file[spec.STATUS][:])
    if not header.complete:
        state = f"{(status == Status.PENDING).sum()} of {status.size} rows pending"
        yield f": incomplete ({state}); run the extraction again"
        return
    yield from _id_problems(file, header)
    yield from _status_problems(file, status)
    offsets = None
    if header.layout == spec.RAGGED:
        offsets = np.asarray(file[spec.OFFSETS][:])
        yield from _offset_problems(offsets, status, int(file[spec.FEATURES].shape[0]))
    elif file[spec.FEATURES].chunks is not None:
        yield f":/{spec.FEATURES}: chunked (a dense set is contiguous); extract it again"
    marks = status if header.layout == spec.DENSE else None
    yield from _vector_problems(file[spec.FEATURES], marks)
    digest = content_digest(file, header, status, offsets)
    if digest != header.content_digest:
        differ = f"got {digest}, the file says {header.content_digest!r}"
        yield f": content_digest differs ({differ}); its content was altered"


def _id_problems(file: Any, header: Header) -> Iterator[str]:
    columns = []
    for name in spec.ID_DATASETS[header.source]:
        try:
            columns.append(encode_ids(hdf5.read_text(file[name]), f":/{name}"))
        except InvalidIds as error:
            yield str(error)
            return
    keys = columns[0] if len(columns) == 1 else pair_keys(*columns)
    if repeated := duplicate_error(keys, ":/" + " and /".join(spec.ID_DATASETS[header.source])):
        yield str(repeated)


def _status_problems(file: Any, status: NDArray[np.uint8]) -> Iterator[str]:
    if status.size and int(status.max()) > max(Status):
        row = int(status.argmax())
        yield f":/{spec.STATUS}: row {row} is {status[row]} (expected 1, 2 or 3)"
    if pending := int((status == Status.PENDING).sum()):
        yield f":/{spec.STATUS}: {pending} rows are pending in a complete set"
    rows = np.asarray(file[spec.ERROR_ROW][:])
    if not np.array_equal(rows, np.flatnonzero(status == Status.CORRUPT)):
        yield f":/{spec.ERRORS}: not the corrupt rows of /{spec.STATUS} in ascending order"


def _offset_problems(
    offsets: NDArray[np.int64], status: NDArray[np.uint8], vectors: int
) -> Iterator[str]:
    lengths = np.diff(offsets)
    if int(offsets[0]) != 0 or int(offsets[-1]) != vectors:
        yield f":/{spec.OFFSETS}: runs from {offsets[0]} to {offsets[-1]} (expected 0 to {vectors})"
    if bool((lengths < 0).any()):
        yield f":/{spec.OFFSETS}: descends after row {int(np.argmax(lengths < 0))}"
    wrong = (lengths > 0) != (status == Status.OK)
    if bool(wrong.any()):
        row = int(np.argmax(wrong))
        what = f"row {row} has {lengths[row]} vectors and status {status[row]}"
        yield f":/{spec.OFFSETS}: {what} (present rows have some, others none)"


def _vector_problems(features: Any, status: NDArray[np.uint8] | None) -> Iterator[str]:
    """Present rows are finite, absent ones NaN throughout; at most one line for each rule."""
    not_finite, filled = [], []
    row_bytes = features.shape[1] * features.dtype.itemsize
    for start, stop in spans(features.shape[0], block_rows(row_bytes)):
        block = np.asarray(features[start:stop])
        present = np.ones(len(block), bool) if status is None else status[start:stop] == Status.OK
        not_finite.append(np.flatnonzero(present & ~np.isfinite(block).all(axis=1)) + start)
        filled.append(np.flatnonzero(~present & ~np.isnan(block).all(axis=1)) + start)
    for found, what in (
        (not_finite, "marked present and holds NaN or infinity"),
        (filled, "absent and holds numbers"),
    ):
        rows = np.concatenate(found) if found else np.empty(0, np.int64)
        if rows.size:
            yield f":/{spec.FEATURES}: row {rows[0]} is {what} ({rows.size} such rows)"


def _main(path: str, limit_s: str) -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's limit is the only one
        pass
    else:
        seconds = int(limit_s)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = verify_file(Path(path))
    told = [str(one.message) for one in caught if issubclass(one.category, StoreWarning)]
    sys.stdout.write(json.dumps({"problems": found, "warnings": told}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
