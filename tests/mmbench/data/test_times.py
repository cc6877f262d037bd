"""Times: every notation to exact seconds, and what is no time is refused with its row."""

from __future__ import annotations

import datetime as dt
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mmbench.commands.data import data
from mmbench.data.tables import InteractionTable, read_interactions, write_interactions
from mmbench.data.times import parse_time
from mmbench.errors import DataError

SECOND = 1_682_899_200  # 2023-05-01


def times(tmp_path: Path, cells: list[Any]) -> InteractionTable:
    path = tmp_path / "interactions.csv"
    rows = [f'u{n % 2},i{n},"{cell}"' for n, cell in enumerate(cells)]
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    return read_interactions(path)


def seconds(tmp_path: Path, cells: list[Any]) -> list[str]:
    return times(tmp_path, cells).numbers()["timestamp"]


@pytest.mark.parametrize(
    ("cells", "wanted", "note"),
    [
        ([SECOND, SECOND + 1], ["1682899200", "1682899201"], ""),
        ([SECOND * 1000, SECOND * 1000 + 5], ["1682899200", "1682899200.005"], "milliseconds"),
        ([f"{SECOND}.5", f"{SECOND}"], ["1682899200.5", "1682899200"], ""),
        (["1.6828992e9", f"{SECOND}.0"], ["1682899200", "1682899200"], ""),
        ([SECOND * 10**6 + 1], ["1682899200.000001"], "microseconds"),
        ([SECOND * 10**9 + 1], ["1682899200.000000001"], "nanoseconds"),
        ([0, SECOND * 1000], ["0", "1682899200"], "milliseconds"),  # 0: no time, in any unit
        ([-1, SECOND * 1000], ["-0.001", "1682899200"], "milliseconds"),
        ([0, SECOND], ["0", "1682899200"], "1 of 2 times are 0, which count as the earliest"),
        ([-1, SECOND], ["-1", "1682899200"], "1 of 2 times are 0 or less"),
        ([0, 20230501], ["0", "1682899200"], "dates, 2023-05-01 to 2023-05-01"),
        ([10, 11, 12], ["10", "11", "12"], ""),  # plain numbers
        ([20230501, 20230502], ["1682899200", "1682985600"], "dates, 2023-05-01 to 2023-05-02"),
        ([202305010130], ["1682904600"], "dates"),
        ([20230501013005], ["1682904605"], "dates"),
        ([20230501, 20231399], ["20230501", "20231399"], ""),  # no calendar has month 13
        (["2023-05-01", "2023-05-01 00:00:01"], ["1682899200", "1682899201"], "dates"),
        (["2023-05-01T02:00+02:00", "2023-05-01"], ["1682899200", "1682899200"], "dates"),
        (["2023-05-01T00:00:00.000000001Z"], ["1682899200.000000001"], "dates"),
        (["2023-05-01 00:00:00 UTC"], ["1682899200"], "dates"),
        (["2023/05/01", "2023/05/02"], ["1682899200", "1682985600"], "dates"),
        (["01.05.2023", "02.05.2023 10:00"[:10]], ["1682899200", "1682985600"], "dates"),
        (["31/05/2023", "01/05/2023"], ["1685491200", "1682899200"], "dates"),
        (["05/31/2023", "05/01/2023"], ["1685491200", "1682899200"], "dates"),
        (["05 1, 2023", "05 31, 2023"], ["1682899200", "1685491200"], "dates"),  # Amazon 2014
        (["May 1, 2023"], ["1682899200"], "dates"),
        (["Mon May 01 00:00:00 +0000 2023"], ["1682899200"], "dates"),  # Twitter
        (["1969-12-31 23:59:59.5"], ["-0.5"], "dates"),
    ],
)
def test_every_usual_notation_is_exact(
    tmp_path: Path, cells: list[Any], wanted: list[str], note: str
) -> None:
    table = times(tmp_path, cells)
    assert table.numbers()["timestamp"] == wanted
    assert note in table.note
    assert bool(note) is bool(table.note)
    write_interactions(tmp_path / "again.tsv", table)
    assert read_interactions(tmp_path / "again.tsv").numbers() == table.numbers()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([SECOND, ""], r"line 3: timestamp '' is no time \(1 such row\)"),
        (["2023-05-01", "soon", "later"], r"line 3: timestamp 'soon' is no time \(2 such rows\)"),
        ([SECOND, "2023-05-01", SECOND], r"line 3: timestamp '2023-05-01' is no time"),
        ([SECOND, SECOND * 1000, SECOND], "line 3: .* is in milliseconds, other rows in seconds"),
        (["02/05/2023", "03/05/2023"], "line 2: .* is 2023-0.-0. or .*day or month first"),
        (["inf"], "is no time"),
        ([10**30], "is too large a time"),
        (["2023-02-30"], "is no time"),
    ],
)
def test_what_is_no_time_is_refused_with_its_row(
    tmp_path: Path, cells: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        times(tmp_path, cells)


DAY = dt.datetime(2023, 5, 1)


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        *((pa.array([DAY], pa.timestamp(one)), ["1682899200"]) for one in ("s", "ms", "us", "ns")),
        (pa.array([DAY], pa.timestamp("ms", "Europe/Berlin")), ["1682899200"]),
        (pa.array([DAY.date()], pa.date32()), ["1682899200"]),
        (pa.array([DAY.date()], pa.date64()), ["1682899200"]),
        (pa.array([SECOND * 10**9 + 7], pa.uint64()), ["1682899200.000000007"]),
        (pa.array([SECOND + 0.125]), ["1682899200.125"]),
        (pa.array(["2023-05-01"]).dictionary_encode(), ["1682899200"]),
        (pa.array(["2023-05-01"], pa.string_view()), ["1682899200"]),
        (pa.array(["2023-05-01"], pa.large_string()), ["1682899200"]),
        (pa.array([None, DAY], pa.timestamp("us")), r"line 1: timestamp None is no time"),
        (pa.array([float("nan")]), "is no time"),
        (pa.array([True]), "has type bool, which is no time"),
        (pa.array([5], pa.duration("s")), r"has type duration\[s\], which is no time"),
        (pa.array([5], pa.time32("ms")), r"has type time32\[ms\], which is no time"),
        (pa.array([[SECOND]]), "has type list<.*, which is no time"),
    ],
)  # fmt: skip
def test_types_of_parquet(tmp_path: Path, column: Any, wanted: list[str] | str) -> None:
    n = len(column)
    ids = {"user_id": ["u"] * n, "item_id": list(map(str, range(n)))}
    parquet.write_table(pa.table({**ids, "timestamp": column}), tmp_path / "x.parquet")
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=wanted):
            read_interactions(tmp_path / "x.parquet")
    else:
        assert read_interactions(tmp_path / "x.parquet").numbers()["timestamp"] == wanted


@given(
    st.sampled_from([1, 1000, 10**6, 10**9]),
    st.lists(st.integers(SECOND, SECOND + 10**6), min_size=1, max_size=9),
    st.integers(0, 10**9 - 1),
)
def test_ticks_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, per_second: int, whole: list[int], rest: int
) -> None:
    path = tmp_path_factory.mktemp("times") / "a.tsv"
    ticks = np.array([one * per_second + rest % per_second for one in whole], np.int64)
    ids = np.array(["x"] * len(whole), object)
    write_interactions(path, InteractionTable(ids, ids, None, ticks, per_second=per_second))
    back = read_interactions(path)
    assert (back.ticks(10**9) == ticks * (10**9 // per_second)).all()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2024-09-01", 1725148800),
        ("1725148800", 1725148800),
        ("1725148800000", 1725148800),
        ("1725148800.000000001", Fraction(1725148800 * 10**9 + 1, 10**9)),
        ("7", 7),
    ],
)
def test_an_instant_is_a_date_or_a_number(text: str, wanted: Fraction) -> None:
    assert parse_time(text) == wanted


def run(*arguments: str) -> Any:
    return CliRunner().invoke(data, arguments, standalone_mode=False)


def interactions(folder: Path, unit: int) -> Path:
    """Write three users of six rows, a nanosecond apart, the latest first."""
    folder.mkdir()
    rows = [
        f"u{user},i{5 - row},{(SECOND + user * 86400) * 10**9 * unit // 10**9 + 5 - row}"
        for user in range(3)
        for row in range(6)
    ]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    return folder


def test_the_latest_row_is_the_latest_a_nanosecond_apart(tmp_path: Path) -> None:
    folder = interactions(tmp_path / "d", 10**9)
    run("split", str(folder), "--method", "leave-k-out", "--name", "loo")
    test = read_interactions(folder / "splits/loo/test.tsv")
    assert set(test.item_ids.tolist()) == {"i5"}
    assert test.numbers()["timestamp"][0] == "1682899200.000000005"


@pytest.mark.parametrize("unit", [1, 1000, 10**9])
def test_a_date_divides_the_same_rows_whatever_the_unit(tmp_path: Path, unit: int) -> None:
    folder = interactions(tmp_path / "d", unit)
    dates = ("--valid-from", "2023-05-02", "--test-from", "2023-05-03T00:00:00Z")
    for _ in range(2):
        outcome = run("split", str(folder), "--method", "global-temporal", "--name", "t", *dates)
        assert outcome.exception is None
    assert "(there already)" in outcome.output
    for part, user in (("train", "u0"), ("valid", "u1"), ("test", "u2")):
        ids = read_interactions(folder / f"splits/t/{part}.tsv").user_ids
        assert ids.tolist() == [user] * 6
    wrong = run("split", str(folder), "--method", "global-temporal", "--test-from", "soon")
    assert "'soon' is no time" in str(wrong.exception)


def test_units_of_two_parts_are_compared_as_times(tmp_path: Path) -> None:
    split = tmp_path / "splits/mine"
    split.mkdir(parents=True)
    head = "user_id\titem_id\ttimestamp\n"
    (split / "train.tsv").write_text(f"{head}u\ta\t{SECOND}.25\nu\tb\t{SECOND + 9}\n")
    (split / "valid.tsv").write_text(f"{head}u\tc\t{SECOND + 1}\n")
    (split / "test.tsv").write_text(f"{head}u\td\t2023-05-01T00:00:05\n")
    told = run("validate", str(tmp_path)).output
    assert "LEAK          1  training rows later than a test row of the same user (u b)" in told


def test_what_writes_times_says_how_they_were_read(tmp_path: Path) -> None:
    rows = [f"u{n % 3},i{n},{SECOND * 1000 + n}" for n in range(12)] + ["u0,i20,-1"]
    path = tmp_path / "shop" / "interactions.csv"
    path.parent.mkdir()
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    split = ["split", str(path.parent), "--method", "leave-k-out", "--name", "loo"]
    called = [
        split,
        split,  # there already
        ["filter", str(path.parent), "--filter", "min-user:1", "--out", str(tmp_path / "core")],
        ["validate", str(path.parent), "--split", "random"],
    ]
    for arguments in called:
        text = " ".join(CliRunner().invoke(data, arguments).output.split())
        assert "note: timestamp: milliseconds, 2023-05-01 to 2023-05-01 (UTC)" in text
        assert "1 of 13 times are 0 or less" in text
    found = CliRunner().invoke(data, [*split, "--json"]).output
    assert json.loads(found)["notes"][0].startswith("timestamp: milliseconds")


def test_a_date_does_not_divide_plain_numbers(tmp_path: Path) -> None:
    rows = [f"u{n % 3},i{n},{45200 + n}.5" for n in range(12)]  # days, as spreadsheets count them
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    words = ["split", str(tmp_path), "--method", "global-temporal", "--name", "g", "--test-from"]
    done = CliRunner().invoke(data, [*words, "2023-10-05"])
    assert "its times, 45200.5 to 45211.5, are plain numbers" in str(done.exception)
    assert CliRunner().invoke(data, [*words, "45209"]).exit_code == 0
