"""Checks of the writer's arguments: ids, rows, vectors and messages. Pure functions, no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmstore.errors import InvalidInput
from mmstore.ids import Bytes, Column, Pairs, duplicate_error, encode_ids, pair_keys
from mmstore.spec import MAX_MESSAGE_BYTES, Status


def id_columns(ids: Column | Pairs) -> list[Bytes]:
    """Return the id columns of a set as `S` arrays (n,): one of items, or users and items.

    Raises:
        InvalidInput: Columns of unequal length.
        InvalidIds: An id can't be stored, or ids (for interactions: pairs) repeat.
    """
    if isinstance(ids, Pairs):
        columns = [encode_ids(ids.users, "user_ids"), encode_ids(ids.items, "item_ids")]
        if columns[0].size != columns[1].size:
            sizes = f"{columns[0].size} user_ids for {columns[1].size} item_ids"
            raise InvalidInput(f"ids: {sizes}; give as many of each")
        keys = pair_keys(*columns)
    else:
        columns = [keys := encode_ids(ids)]
    if error := duplicate_error(keys, "ids"):
        raise error
    return columns


def pending_rows(rows: ArrayLike, status: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return `rows` as int64, shape (b,); `InvalidInput` unless each is pending, and given once."""
    given = np.asarray(rows)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        got = f"{given.dtype} of shape {given.shape}"
        raise InvalidInput(f"rows: got {got}, expected integers of shape (b,)")
    checked = given.astype(np.int64)
    if checked.size == 0:
        return checked
    if int(checked.min()) < 0 or int(checked.max()) >= status.size:
        got = f"{checked.min()} … {checked.max()}"
        raise InvalidInput(f"rows: got {got}, expected 0 … {status.size - 1}")
    done = np.flatnonzero(status[checked])
    if done.size:
        row = int(checked[done[0]])
        state = Status(status[row]).name.lower()
        raise InvalidInput(f"rows: row {row} is {state} already; write rows of `pending` only")
    if np.unique(checked).size != checked.size:
        raise InvalidInput("rows: a row occurs twice in one call; give each row once")
    return checked


def vectors(features: ArrayLike, rows: int | None, dim: int) -> NDArray[Any]:
    """Return `features` as real numbers of shape (rows, dim); `rows=None` allows any number."""
    given = np.asarray(features)
    fits = given.ndim == 2 and given.shape[1] == dim and rows in (None, len(given))
    if not fits or given.dtype.kind not in "fiu":
        got, wanted = f"{given.dtype} of shape {given.shape}", "k" if rows is None else rows
        raise InvalidInput(f"features: got {got}, expected real numbers of shape ({wanted}, {dim})")
    return given


def cast(given: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `given` in the stored dtype; a number that does not fit becomes infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        return given.astype(dtype, copy=False)


def why_not_finite(given: NDArray[Any], dtype: str) -> str:
    """Return why a row's vectors, as the extractor gave them, are not finite in `dtype`."""
    if given.size == 0:
        return "the extractor returned no vector"
    bad = int((~np.isfinite(given)).sum())
    if bad:
        return f"the extractor returned NaN or infinity in {bad} of {given.size} values"
    largest, limit = float(np.abs(given).max()), float(np.finfo(dtype).max)
    sizes = f"largest magnitude {largest:.6g}, limit {limit:.6g}"
    return f"the vector does not fit in {dtype} ({sizes})"


def check_count(what: str, values: Sequence[Any], rows: int) -> None:
    """Check that there is one of `values` for each row, and that they are no single string."""
    if isinstance(values, str) or len(values) != rows:
        got = "one string" if isinstance(values, str) else f"{len(values)}"
        raise InvalidInput(f"{what}: got {got}, expected one for each of {rows} rows")


def clean_message(message: object) -> bytes:
    """Return an error message as one line of at most `MAX_MESSAGE_BYTES` bytes of UTF-8."""
    line = " ".join(str(message).replace("\0", " ").split()) or "unknown"
    raw = line.encode("utf-8", "backslashreplace")[:MAX_MESSAGE_BYTES]
    return raw.decode("utf-8", "ignore").encode("utf-8")
