"""Times of interactions: every usual notation to whole ticks since 1970, none of them rounded.

A column of times has one unit. Numbers are Unix times in the unit in which all of them lie between
1990 and 2100; of other numbers only the order counts. Dates without a zone are UTC.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmbase.layout import counted
from mmbase.tables import Table
from mmbench.errors import DataError

FIRST, LAST = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (1990, 2100))
"""Unix seconds between which a number is a plausible time."""

UNITS = {1: "seconds", 10**3: "milliseconds", 10**6: "microseconds", 10**9: "nanoseconds"}
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_ZONE = r":\d\d.*(Z|[+-]\d\d(:?\d\d)?)$"
_DAYS = (
    "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%m %d, %Y", "%b %d, %Y",
    "%B %d, %Y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%m-%Y", "%m-%d-%Y",
)  # fmt: skip
_FORMATS = (
    *(day + hour for day in _DAYS for hour in ("", " %H:%M", " %H:%M:%S", " %I:%M:%S %p")),
    "%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z",
)  # fmt: skip
_EXPECTED = "Unix seconds or dates such as 2024-09-01T12:30:00"


class Times(NamedTuple):
    """A column of times.

    Attributes:
        ticks: Ticks since 1970 (UTC), shape (n,), int64.
        per_second: Ticks of a second, a power of ten; 1 also for plain numbers.
        note: How the times were understood, where that was not plain; else empty.
    """

    ticks: NDArray[np.int64]
    per_second: int
    note: str = ""


class _BadCells(Exception):
    """Cells that are no times: the rows, and what is wrong."""

    def __init__(self, rows: NDArray[np.int64], why: str = "is no time") -> None:
        super().__init__(why)
        self.rows, self.why = rows, why


def read_times(table: Table, name: str, column: Any) -> Times:
    """Return a column of `Table.read(…, raw=[name])` as times.

    Raises:
        DataError: A cell is empty or no time, units are mixed, dates can be read in two ways, or
            the column has another type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    try:
        if len(absent := np.flatnonzero(pc.is_null(column, nan_is_null=True))):
            raise _BadCells(absent)
        return _of_column(pa, pc, column)
    except _BadCells as error:
        first = int(error.rows[0])
        cell = column[first].as_py()
        cell = cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell
        what = f"timestamp {cell!r} {error.why} ({counted(error.rows.size, 'such row')})"
        cure = f"write {_EXPECTED}, or give a column that is no timestamp another name"
        raise DataError(f"{table.where(first)}: {what}; {cure}") from error
    except pa.ArrowException as error:
        what = f"column {name!r} has type {column.type}, which is no time"
        raise DataError(f"{table.path}: {what} (expected {_EXPECTED})") from error


def parse_time(text: str) -> Fraction:
    """Return a date or a Unix time as exact seconds since 1970.

    Raises:
        ValueError: It is neither.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        times = _of_column(pa, pc, pa.chunked_array([[text.strip()]], pa.string()))
    except (_BadCells, pa.ArrowException) as error:
        raise ValueError(f"{text!r} is no time (expected {_EXPECTED})") from error
    return Fraction(int(times.ticks[0]), times.per_second)


def as_text(ticks: NDArray[np.int64], per_second: int) -> list[str]:
    """Return times as Unix seconds, with as many decimals as they have."""
    if per_second == 1:
        return list(map(str, ticks.tolist()))
    places = len(str(per_second)) - 1
    parts = ((abs(one), "-" if one < 0 else "") for one in ticks.tolist())
    texts = (f"{sign}{one // per_second}.{one % per_second:0{places}d}" for one, sign in parts)
    return [text.rstrip("0").removesuffix(".") for text in texts]


def day(seconds: float) -> str:
    """Return the day of a Unix time, or nothing where it is no plausible one."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}" if FIRST <= seconds <= LAST else ""


def _of_column(pa: Any, pc: Any, column: Any) -> Times:
    """Return a column without nulls as times; an ArrowException where its type is none."""
    kinds, kind = pa.types, column.type
    if kinds.is_date(kind) or kinds.is_timestamp(kind):
        unit = "s" if kinds.is_date32(kind) else "ms" if kinds.is_date64(kind) else kind.unit
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        if kinds.is_date(kind):
            column = pc.cast(column, pa.timestamp(unit))
        ticks = np.asarray(pc.cast(column, pa.int64()))
        return _of_dates(ticks, per_second)
    if kinds.is_integer(kind):
        return _of_numbers(np.asarray(pc.cast(column, pa.int64())), 1)
    if kinds.is_floating(kind):
        return _of_numbers(*_scaled(np.asarray(pc.cast(column, pa.float64()))))
    if not (kinds.is_decimal(kind) or kinds.is_string(kind) or kinds.is_binary(kind)):
        column = pc.cast(column, pa.binary()) if "string" in str(kind) else column
        if not kinds.is_binary(column.type):
            raise pa.ArrowTypeError(str(kind))
    text = pc.cast(column, pa.string())
    if (plain := _integers(pa, pc, text)) is not None:
        return _of_numbers(plain, 1)
    text = pc.utf8_trim_whitespace(text)
    if (absent := np.flatnonzero(pc.equal(pc.binary_length(text), 0))).size:
        raise _BadCells(absent)
    numbers = np.asarray(pc.match_substring_regex(text, _NUMBER))
    if numbers.all():
        return _of_numbers(*_digits(pa, pc, text.combine_chunks()))
    # Dates repeat, and reading one that Arrow does not know takes microseconds.
    encoded = text.combine_chunks().dictionary_encode()
    distinct = pc.replace_substring_regex(encoded.dictionary, r" ?(UTC|GMT)$", "Z")
    codes = np.asarray(encoded.indices)
    try:
        values, bad = _dates(pa, pc, distinct)
    except _BadCells as error:
        raise _BadCells(np.flatnonzero(np.isin(codes, error.rows)), error.why) from error
    if bad.any():
        mixed = numbers.mean() > 0.5
        raise _BadCells(np.flatnonzero(~numbers if mixed else bad[codes]))
    return _of_dates(values[codes], 10**9)


def _of_dates(ticks: NDArray[np.int64], per_second: int) -> Times:
    ticks, per_second = _reduced(ticks, per_second)
    return Times(ticks, per_second, f"dates, {_span(ticks, per_second)}")


def _span(ticks: NDArray[np.int64], per_second: int) -> str:
    first, last = (day(int(one) / per_second) or "?" for one in (ticks.min(), ticks.max()))
    return f"{first} to {last} (UTC)"


def _reduced(ticks: NDArray[np.int64], per_second: int) -> tuple[NDArray[np.int64], int]:
    """Return the same times in the largest unit in which all are whole."""
    while per_second > 1 and not (ticks % 1000).any():
        ticks, per_second = ticks // 1000, per_second // 1000
    return ticks, per_second


def _scaled(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], int]:
    """Return floating-point numbers times `scale`, rounded to integers."""
    if not np.isfinite(values).all():
        raise _BadCells(np.flatnonzero(~np.isfinite(values)))
    for scale in (1, 10**3, 10**6, 10**9):
        whole = np.rint(values * scale)
        if (np.abs(whole) >= 2.0**63).any():
            break
        if (whole / scale == values).all() or scale == 10**9:
            return whole.astype(np.int64), scale
    raise _BadCells(np.flatnonzero(np.abs(values) >= np.abs(values).max()), "is too large a time")


def _integers(pa: Any, pc: Any, text: Any) -> NDArray[np.int64] | None:
    """Return whole numbers; None where a text is none. The usual case, and the fast one."""
    try:
        values = np.asarray(pc.cast(text, pa.int64()))
    except pa.ArrowInvalid:
        return None
    # Arrow takes 0x10 for a number.
    hexadecimal = (pc.any(pc.starts_with(text, mark)).as_py() for mark in ("0x", "0X", "-0"))
    return None if any(hexadecimal) else values


def _digits(pa: Any, pc: Any, text: Any) -> tuple[NDArray[np.int64], int]:
    """Return numbers in decimal notation times `scale`, exact integers."""
    for places in (0, 3, 6, 9):
        try:
            cells = pc.cast(text, pa.decimal128(38, places))
        except pa.ArrowInvalid:
            continue
        words = np.frombuffer(cells.buffers()[1], "<i8")[2 * cells.offset :].reshape(-1, 2)
        low, high = words[: len(cells)].T
        if (high == low >> 63).all():
            return low.copy(), 10**places
        break
    ticks, bad = [], []
    for row, cell in enumerate(text.to_pylist()):
        try:
            ticks.append(int((Decimal(cell) * 10**9).to_integral_value()))
        except (InvalidOperation, OverflowError):
            ticks.append(1 << 64)
        if abs(ticks[-1]) >= 1 << 63:
            bad.append(row)
    if bad:
        raise _BadCells(np.array(bad, np.int64), "is too large a time")
    return np.array(ticks, np.int64), 10**9


def _of_numbers(ticks: NDArray[np.int64], scale: int) -> Times:
    """Find the unit of numbers that are `scale` times too large."""
    timed = ticks > 0  # 0 and -1 stand for no time, whatever the unit of the others
    real = ticks[timed]
    least, most = (int(real.min()), int(real.max())) if real.size else (0, 0)
    for unit, name in UNITS.items():
        if FIRST * unit * scale <= least and most <= LAST * unit * scale:
            span = "" if unit == 1 else f"{name}, {_span(*_reduced(real, unit * scale))}"
            notes = filter(None, (span, _stand_ins(ticks)))
            return Times(*_reduced(ticks, unit * scale), "; ".join(notes))
    fits = {
        unit: (real >= FIRST * unit * scale) & (real <= LAST * unit * scale)
        for unit in UNITS
        if LAST * unit * scale < 1 << 63
    }
    if scale == 1 and real.size and (dates := _calendar(real)) is not None:
        ticks = ticks.copy()
        ticks[timed] = dates
        notes = filter(None, (f"dates, {_span(dates, 1)}", _stand_ins(ticks)))
        return Times(ticks, 1, "; ".join(notes))
    if real.size and np.any(list(fits.values()), axis=0).all():
        usual, other = sorted(fits, key=lambda unit: -np.count_nonzero(fits[unit]))[:2]
        rows = np.flatnonzero(timed)[fits[other]]
        raise _BadCells(rows, f"is in {UNITS[other]}, other rows in {UNITS[usual]}")
    ticks, per_second = _reduced(ticks, scale)
    far = max(int(ticks.max()), -int(ticks.min())) > 10**11 * scale
    order = "no Unix times of one unit; only their order counts" if far else ""
    return Times(ticks, per_second, order)


def _stand_ins(ticks: NDArray[np.int64]) -> str:
    """Return a note about times of 1970 and before among later ones; empty if there are none."""
    early = ticks[ticks <= 0]
    if not early.size:
        return ""
    which = "0 or less" if early.min() < 0 else "0"
    return (
        f"{early.size:,} of {ticks.size:,} times are {which}, which count as the earliest; if they "
        "stand for no time, leave such rows out"
    )


def _calendar(numbers: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return numbers such as 20240901 or 20240901123000 as Unix seconds; None where one is none."""
    digits = {len(str(int(one))) for one in (numbers.min(), numbers.max())}
    if len(digits) != 1 or (size := digits.pop()) not in (8, 12, 14):
        return None
    date, clock = np.divmod(numbers, 10 ** (size - 8))
    year, month, number = date // 10000, date // 100 % 100, date % 100
    if not ((year >= 1990) & (year <= 2100) & (month >= 1) & (month <= 12) & (number >= 1)).all():
        return None
    months = ((year - 1970) * 12 + month - 1).astype("M8[M]")
    days = months.astype("M8[D]") + (number - 1)
    clock = clock * 100 if size == 12 else clock
    hour, minute, second = clock // 10000, clock // 100 % 100, clock % 100
    if not ((days.astype("M8[M]") == months) & (hour < 24) & (minute < 60) & (second < 60)).all():
        return None
    return np.asarray(days.astype(np.int64) * 86400 + hour * 3600 + minute * 60 + second)


def _dates(pa: Any, pc: Any, texts: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return dates as nanoseconds, and which are none."""
    values, bad = np.zeros(len(texts), np.int64), np.zeros(len(texts), bool)
    zoned = np.asarray(pc.match_substring_regex(texts, _ZONE))
    try:
        for rows, kind in ((zoned, pa.timestamp("ns", "UTC")), (~zoned, pa.timestamp("ns"))):
            some = pc.filter(texts, pa.array(rows))
            values[rows] = np.asarray(pc.cast(pc.cast(some, kind), pa.int64()))
        return values, bad
    except pa.ArrowInvalid:
        pass
    cells = texts.to_pylist()
    readings = [found for one in _fitting(cells) if (found := _by_format(cells, one)) is not None]
    if not readings:
        for row, cell in enumerate(cells):
            one = _by_format([cell], None)
            bad[row] = one is None
            values[row] = 0 if one is None else one[0]
        return values, bad
    if (differ := np.flatnonzero(readings[0] != readings[-1])).size:
        row = int(differ[0])
        days = " or ".join(day(int(one[row]) / 10**9) for one in (readings[0], readings[-1]))
        raise _BadCells(np.array([row]), f"is {days}: day or month first is not said")
    return readings[0], bad


def _fitting(cells: list[str]) -> Iterator[str]:
    """Yield the formats that fit the first cell."""
    return (one for one in _FORMATS if _by_format(cells[:1], one) is not None)


def _by_format(cells: list[str], form: str | None) -> NDArray[np.int64] | None:
    """Return dates of one format (None: ISO 8601) as nanoseconds; None where one does not fit."""
    out = []
    for cell in cells:
        try:
            if form is None:
                if re.search(_NUMBER + r"|\.\d{7}", cell):  # Python would cut the digits
                    return None
                when = datetime.fromisoformat(cell)
            else:
                when = datetime.strptime(cell, form)
        except ValueError:
            return None
        when = when.replace(tzinfo=when.tzinfo or UTC)
        out.append(int(when.timestamp()) * 10**9 + when.microsecond * 1000)
    values = np.array(out, object)
    return values.astype(np.int64) if (np.abs(values) < 1 << 63).all() else None
