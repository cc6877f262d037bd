"""Ids as fixed-length UTF-8 bytes, look-up by id, and rows in blocks. Pure functions, no files.

An id is opaque text. It is kept byte for byte, so `"007"`, `"7"` and `" 7"` are three ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from mmstore.errors import InvalidIds
from mmstore.spec import BLOCK_BYTES

# Array of fixed-length byte strings, shape (n,), numpy kind `S`.
Bytes = NDArray[np.bytes_]
# Ids as text, or an `S` array of UTF-8, shape (n,).
Column = Sequence[str] | NDArray[Any]

_BLOCK = 1 << 16
_PAIR_SEPARATOR = b"\xff"  # occurs in no UTF-8 text, so that joined pairs stay distinct
_NEVER_STORED = b"\xfe"  # stands for NUL in ids that are only looked up


class Pairs(NamedTuple):
    """The ids of interactions: user and item of each row, shape (n,) each."""

    users: Column
    items: Column


def split_pairs(pairs: Any) -> Pairs:
    """Return the two columns of (user, item) pairs: tuples, or an array of shape (b, 2)."""
    if isinstance(pairs, np.ndarray):
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise InvalidIds(f"ids: got shape {pairs.shape}, expected pairs of shape (b, 2)")
        return Pairs(pairs[:, 0], pairs[:, 1])
    pairs = list(pairs)
    for row, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidIds(f"ids: element {row} is {pair!r}, expected a (user, item) pair")
    return Pairs([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def encode_ids(ids: Iterable[str] | NDArray[Any], where: str = "ids") -> Bytes:
    """Return text, or an `S` array of UTF-8, as an `S` array of storable ids, shape (n,).

    Raises:
        InvalidIds: An id is not text, is empty, holds NUL or a lone surrogate, or is not UTF-8.
            Repetitions are left to `duplicate_error`.
    """
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "S":
        return _check_bytes(ids, where)
    return _encode(ids, where, _encode_storable)


def lookup_keys(ids: Any, *, pairs: bool) -> Bytes:
    """Return the keys, shape (b,), of ids or (user, item) pairs; unstorable ones match nothing.

    Raises:
        InvalidIds: An id is not text at all (an int, say, which would lose leading zeros).
    """
    if not pairs:
        return encode_lookup(ids)
    users, items = split_pairs(ids)
    return pair_keys(encode_lookup(users, "user ids"), encode_lookup(items, "item ids"))


def encode_lookup(ids: Iterable[str] | NDArray[Any], where: str = "ids") -> Bytes:
    """Return ids to look up as an `S` array, shape (b,)."""
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "S":
        return np.ascontiguousarray(ids)
    return _encode(ids, where, _encode_any)


def decode_ids(raw: Bytes) -> NDArray[np.str_]:
    """Return the text of UTF-8 ids, shape (n,), numpy kind `U`; `InvalidIds` for other bytes."""
    if raw.size == 0:
        return np.empty(0, "U1")
    try:
        return np.asarray(np.char.decode(raw, "utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidIds(f"ids: not UTF-8 ({error.reason}); write the file again") from error


def pair_keys(users: Bytes, items: Bytes) -> Bytes:
    """Return one key per (user, item) pair, shape (n,); equal keys mean equal pairs."""
    if users.size == 0:
        return np.empty(0, "S1")
    joined = np.char.add(np.char.add(users, np.bytes_(_PAIR_SEPARATOR)), items)
    return cast("Bytes", np.asarray(joined))


def first_duplicate(keys: Bytes) -> tuple[int, int] | None:
    """Return both rows of the first key, in row order, that repeats an earlier one, or None."""
    if keys.size < 2 or bool((keys[1:] > keys[:-1]).all()):
        return None
    in_order = np.sort(keys)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    if repeated.size == 0:
        return None
    seen: dict[bytes, int] = {}
    for row in np.flatnonzero(np.isin(keys, repeated)).tolist():
        key = bytes(keys[row])
        if key in seen:
            return seen[key], row
        seen[key] = row
    return None


def duplicate_error(keys: Bytes, where: str) -> InvalidIds | None:
    """Return the error that names the first repeated id among `keys`; None if all differ."""
    pair = first_duplicate(keys)
    if pair is None:
        return None
    parts = bytes(keys[pair[0]]).split(_PAIR_SEPARATOR)
    text = " and ".join(repr(part.decode("utf-8", "replace")) for part in parts)
    rows = f"rows {pair[0]} and {pair[1]}"
    return InvalidIds(f"{where}: {text} occurs twice ({rows}); ids must be unique")


def byte_lengths(raw: Bytes) -> NDArray[np.int64]:
    """Return the length of each id in bytes, without the padding, shape (n,)."""
    return np.asarray(np.char.str_len(raw), dtype=np.int64)


def byte_table(raw: Bytes) -> NDArray[np.uint8]:
    """Return the padded bytes of the ids, shape (n, width)."""
    raw = np.ascontiguousarray(raw)
    return raw.view(np.uint8).reshape(raw.size, raw.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class IdIndex:
    """Finds rows by binary search: 8 bytes per row beyond the keys, and no Python objects."""

    sorted_keys: Bytes
    rows: NDArray[np.int64]

    @classmethod
    def build(cls, keys: Bytes, where: str) -> IdIndex:
        """Index `keys`, shape (n,); `InvalidIds` where one occurs twice."""
        if keys.size > 1 and bool((keys[1:] > keys[:-1]).all()):
            return cls(keys, np.arange(keys.size, dtype=np.int64))
        rows = np.argsort(keys, kind="stable").astype(np.int64, copy=False)
        sorted_keys = keys[rows]
        if error := duplicate_error(keys, where):
            raise error
        return cls(sorted_keys, rows)

    def find(self, keys: Bytes) -> NDArray[np.int64]:
        """Return the row of each key, -1 where it is absent, shape (b,)."""
        if self.rows.size == 0 or keys.size == 0:
            return np.full(keys.size, -1, dtype=np.int64)
        # Sorted queries walk through memory in order: several times faster for millions of them.
        order = np.argsort(keys, kind="stable")
        wanted = keys[order]
        at = np.minimum(np.searchsorted(self.sorted_keys, wanted), self.rows.size - 1)
        found = np.empty(keys.size, np.int64)
        found[order] = np.where(self.sorted_keys[at] == wanted, self.rows[at], np.int64(-1))
        return found


def _encode(ids: Iterable[Any], where: str, encode: Callable[[str, str], bytes]) -> Bytes:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        got = f"one {type(ids).__name__}" if ids is not None else "None"
        raise InvalidIds(f"{where}: got {got}, expected a sequence of ids; put it in a list")
    if isinstance(ids, np.ndarray) and ids.ndim != 1:
        raise InvalidIds(f"{where}: got an array of shape {ids.shape}, expected (n,)")
    sequence = ids if isinstance(ids, list | tuple | np.ndarray) else list(ids)
    blocks = [np.empty(0, "S1")]
    for start, stop in spans(len(sequence), _BLOCK):
        block = []
        for row, text in enumerate(sequence[start:stop], start):
            if not isinstance(text, str):
                got = f"{text!r} (got {type(text).__name__}, expected str)"
                raise InvalidIds(f"{where}: row {row} is {got}; read ids as text, not as numbers")
            block.append(encode(text, f"{where}: row {row}"))
        blocks.append(np.array(block, dtype="S"))
    return np.concatenate(blocks)


def _encode_any(text: str, where: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").replace(b"\0", _NEVER_STORED)


def _encode_storable(text: str, where: str) -> bytes:
    if not text:
        raise InvalidIds(f"{where} is empty; every row needs an id")
    if "\0" in text:
        raise InvalidIds(f"{where} ({text!r}) holds a NUL character, which ids can't; remove it")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"{where} ({text!r}) holds a lone surrogate, which UTF-8 can't"
        raise InvalidIds(f"{what}; decode the ids properly") from error


def _check_bytes(raw: Bytes, where: str) -> Bytes:
    if raw.ndim != 1:
        raise InvalidIds(f"{where}: got an array of shape {raw.shape}, expected (n,)")
    raw = np.ascontiguousarray(raw)
    for start, stop in spans(raw.size, block_rows(raw.dtype.itemsize)):
        table = byte_table(raw[start:stop])
        for bad, what in (
            (table[:, 0] == 0, "is empty or begins with NUL"),
            (((table[:, 1:] != 0) & (table[:, :-1] == 0)).any(axis=1), "holds a NUL byte"),
        ):
            if bad.any():
                row = start + int(np.argmax(bad))
                got = bytes(raw[row])
                raise InvalidIds(f"{where}: row {row} {what} ({got!r}); ids are non-empty text")
        # ASCII is UTF-8, so only the other ids need decoding, one by one.
        for row in (np.flatnonzero((table & 0x80).any(axis=1)) + start).tolist():
            text = bytes(raw[row])
            try:
                text.decode("utf-8")
            except UnicodeDecodeError as error:
                what = f"{where}: row {row} is not UTF-8 ({text!r}); convert the ids to UTF-8"
                raise InvalidIds(what) from error
    return raw


# ------------------------------------------------------------------------------------------------
# rows in blocks


def block_rows(row_bytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Return the number of rows of `row_bytes` that fit in a block; at least 1."""
    return max(1, block_bytes // max(1, row_bytes))


def spans(n: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield half-open ranges `(start, stop)` of at most `step` that cover `range(n)` in order."""
    for start in range(0, n, step):
        yield start, min(start + step, n)


def runs(
    rows: NDArray[np.int64], *, max_gap: int = 0, max_span: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yield positions `(i, j)` such that ascending row numbers `rows[i:j]` lie close together.

    A run goes on over at most `max_gap` absent rows and never crosses a multiple of `max_span`.
    """
    if rows.size == 0:
        return
    ends = np.diff(rows) > max_gap + 1
    if max_span is not None:
        block = rows // max_span
        ends |= block[1:] != block[:-1]
    edges = np.concatenate(([0], np.flatnonzero(ends) + 1, [rows.size]))
    yield from zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
