"""What a writer asks of its arguments: ids, rows, vectors and messages. Pure functions, no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmstore.errors import InvalidInput
from mmstore.ids import Bytes, duplicate_error, encode_ids, first_duplicate, pair_keys
from mmstore.spec import INTERACTION, MAX_MESSAGE_BYTES, Status

Column = Sequence[str] | NDArray[Any]


def id_columns(
    source: str, ids: Column | None, user_ids: Column | None, item_ids: Column | None
) -> list[Bytes]:
    """The id columns of a set, each an `S` array (n,): one for items, users and items for interactions.

    Raises:
        InvalidInput: The wrong columns for `source`, or of unequal length.
        InvalidIds: An id can't be stored, or ids (for interactions: pairs) repeat.
    """
    if source == INTERACTION:
        if ids is not None or user_ids is None or item_ids is None:
            raise InvalidInput("ids: source 'interaction' takes user_ids and item_ids, and no ids")
        columns = [encode_ids(user_ids, "user_ids"), encode_ids(item_ids, "item_ids")]
        if columns[0].size != columns[1].size:
            raise InvalidInput(
                f"ids: {columns[0].size} user_ids for {columns[1].size} item_ids; give as many of "
                "each"
            )
        keys = pair_keys(*columns)
    else:
        if ids is None or user_ids is not None or item_ids is not None:
            raise InvalidInput(
                f"ids: source {source!r} takes ids, and neither user_ids nor item_ids"
            )
        columns = [encode_ids(ids)]
        keys = columns[0]
    if first_duplicate(keys) is not None:
        raise duplicate_error(keys, "ids")
    return columns


def pending_rows(rows: ArrayLike, status: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`rows` as int64, shape (b,), each once and each pending according to `status`, shape (n,).

    Raises:
        InvalidInput: They are anything else.
    """
    given = np.asarray(rows)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InvalidInput(
            f"rows: got {given.dtype} of shape {given.shape}, expected integers of shape (b,)"
        )
    checked = given.astype(np.int64)
    if checked.size == 0:
        return checked
    if int(checked.min()) < 0 or int(checked.max()) >= status.size:
        raise InvalidInput(
            f"rows: got {checked.min()} … {checked.max()}, expected 0 … {status.size - 1}"
        )
    done = np.flatnonzero(status[checked])
    if done.size:
        row = int(checked[done[0]])
        raise InvalidInput(
            f"rows: row {row} is {Status(status[row]).name.lower()} already; write rows of "
            "`pending` only"
        )
    if np.unique(checked).size != checked.size:
        raise InvalidInput("rows: a row occurs twice in one call; give each row once")
    return checked


def vectors(features: ArrayLike, rows: int | None, dim: int) -> NDArray[Any]:
    """`features` as an array of real numbers of shape (rows, dim); `rows=None` allows any number of them.

    Raises:
        InvalidInput: They are anything else.
    """
    given = np.asarray(features)
    fits = given.ndim == 2 and given.shape[1] == dim and rows in (None, len(given))
    if not fits or given.dtype.kind not in "fiu":
        raise InvalidInput(
            f"features: got {given.dtype} of shape {given.shape}, "
            f"expected real numbers of shape ({'k' if rows is None else rows}, {dim})"
        )
    return given


def cast(given: NDArray[Any], dtype: str) -> NDArray[Any]:
    """`given` in the stored dtype, little-endian; what does not fit becomes infinity, which the caller looks for."""
    with np.errstate(over="ignore", invalid="ignore"):
        return given.astype(np.dtype(dtype).newbyteorder("<"), copy=False)


def why_not_finite(given: NDArray[Any], dtype: str) -> str:
    """Why vectors that are not finite in `dtype` are not, as they came from the extractor."""
    if given.size == 0:
        return "the extractor returned no vector"
    finite = np.isfinite(given)
    if finite.all():
        largest, limit = float(np.abs(given).max()), float(np.finfo(dtype).max)
        return f"the vector does not fit in {dtype} (largest magnitude {largest:.6g}, limit {limit:.6g})"
    return (
        f"the extractor returned NaN or infinity in {int((~finite).sum())} of {given.size} values"
    )


def one_for_each(what: str, values: Sequence[Any], rows: int) -> None:
    """Check that there is one of `values` for each row.

    Raises:
        InvalidInput: There are more, fewer, or one string.
    """
    if isinstance(values, str) or len(values) != rows:
        got = "one string" if isinstance(values, str) else f"{len(values)}"
        raise InvalidInput(f"{what}: got {got}, expected one for each of {rows} rows")


def clean_message(message: object) -> bytes:
    """An error message as one line of at most `MAX_MESSAGE_BYTES` bytes of UTF-8."""
    line = " ".join(str(message).replace("\0", " ").split()) or "unknown"
    raw = line.encode("utf-8", "backslashreplace")[:MAX_MESSAGE_BYTES]
    return raw.decode("utf-8", "ignore").encode("utf-8")
