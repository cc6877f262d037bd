"""Tables of interactions: every layout that people have, and every way to be wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbench.data.files import read_split
from mmbench.data.tables import UNSURE, InteractionTable, read_interactions, write_interactions
from mmbench.errors import DataError, UsageError

ROWS = [("u1", "007", 5.0, 10.0), ("u1", "7", 3.0, 11.0), ("日本", "a/b", 1.0, 12.0)]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def as_rows(table: InteractionTable) -> list[tuple[str, str]]:
    return list(zip(table.user_ids.tolist(), table.item_ids.tolist(), strict=True))


@pytest.mark.parametrize(
    "name", ["x.tsv", "x.csv", "x.tsv.gz", "x.parquet", "x.jsonl", "x.jsonl.gz", "x.inter"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame(ROWS, columns=["user_id", "item_id", "rating", "timestamp"])
    path = tmp_path / name
    if "parquet" in name:
        frame.to_parquet(path)
    elif "jsonl" in name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, sep="," if "csv" in name else "\t", index=False)
    table = read_interactions(path)
    assert as_rows(table) == [row[:2] for row in ROWS]
    assert table.ratings is not None
    assert table.timestamps is not None
    np.testing.assert_array_equal(table.ratings, [5, 3, 1])
    np.testing.assert_array_equal(table.timestamps, [10, 11, 12])


@pytest.mark.parametrize(
    ("text", "columns"),
    [("1\t2\n3\t4\n", 2), ("1\t2\t5\n3\t4\t1\n", 3), ("A1\tB1\t5.0\t99\nA2\tB2\t4.0\t98\n", 4)],
)
def test_headerless_files_are_understood_and_said(tmp_path: Path, text: str, columns: int) -> None:
    table = read_interactions(write(tmp_path / "train.tsv", text))
    assert len(table) == 2
    assert "no header" in table.note
    assert (table.ratings is not None) == (columns >= 3)
    assert (table.timestamps is not None) == (columns == 4)


@pytest.mark.parametrize(
    "header",
    [
        "user\titem",
        "userID\titemID\trating",
        "reviewerID\tasin\toverall",
        "USER_ID\tITEM_ID",
        "userId\tmovieId",
    ],
)
def test_names_of_other_frameworks_are_understood(tmp_path: Path, header: str) -> None:
    row = "\t".join(["a", "b", "1"][: len(header.split("\t"))])
    assert as_rows(read_interactions(write(tmp_path / "x.tsv", f"{header}\n{row}\n"))) == [
        ("a", "b")
    ]


def test_columns_override_the_detection(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "customer,product,stars\nu,i,4\n")
    with pytest.raises(
        DataError, match="no column is recognised as user_id or item_id.*--columns user_id=customer"
    ):
        read_interactions(path)
    table = read_interactions(path, {"user_id": "customer", "item_id": "product"})
    with pytest.raises(
        UsageError, match="--columns: customer cannot be user_id and item_id at once"
    ):
        read_interactions(path, {"user_id": "customer", "item_id": "customer"})
    assert as_rows(table) == [("u", "i")]
    assert table.ratings is not None
    with pytest.raises(DataError, match="no column 'client'"):
        read_interactions(path, {"user_id": "client"})


def test_the_hint_never_names_a_column_that_has_a_role(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "userId,sku,stars\nu,i,4\n")
    with pytest.raises(
        DataError, match=r"no column is recognised as item_id.*--columns item_id=sku$"
    ):
        read_interactions(path)
    with pytest.raises(
        DataError, match=r"no column is recognised as user_id.*--columns user_id=NAME$"
    ):
        read_interactions(path, {"item_id": "userId"})


def test_byte_order_mark_crlf_and_quotes(tmp_path: Path) -> None:
    table = read_interactions(write(tmp_path / "x.tsv", '\ufeffuser_id\titem_id\r\n"u\ti 1\r\n'))
    assert as_rows(table) == [('"u', "i 1")]
    table = read_interactions(write(tmp_path / "x.csv", 'user_id,item_id\n"u,1",i\n'))
    assert as_rows(table) == [("u,1", "i")]


def test_text_that_looks_like_missing_stays_text(tmp_path: Path) -> None:
    table = read_interactions(write(tmp_path / "x.tsv", "user_id\titem_id\nNA\tnull\n007\t1e5\n"))
    assert as_rows(table) == [("NA", "null"), ("007", "1e5")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("user_id\titem_id\n", "no rows"),
        ("user_id\titem_id\nu\t\n", "line 2: empty item_id"),
        ("user_id\titem_id\nu\ti\n\ti\n", "line 3: empty user_id"),
        ("user_id\titem_id\trating\nu\ti\tgood\n", "line 2: rating 'good' is no finite number"),
        (
            "user_id\titem_id\tdate\nu\ti\tyesterday\n",
            r"timestamp 'yesterday'.*write Unix seconds or dates.*, or give a column",
        ),
        ("user_id\titem_id\trating\nu\ti\tinf\n", "no finite number"),
        ("a\nb\n", "1 columns without a header"),
        ("# my log\nuser_id\titem_id\n", "delete its first line, '# my log', if that is no row"),
        ("1\t2\t3\t4\t5\n", "5 columns without a header"),
        (
            "user_id\titem_id\nu\ti\nu\ti\ttoo\tmany\n",
            r"x\.tsv, line 3: 4 cells \(expected 2, as in the header",
        ),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_interactions(write(tmp_path / "x.tsv", text))


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_interactions(tmp_path / "absent.tsv")
    with pytest.raises(DataError, match="cannot be read"):
        read_interactions(tmp_path)
    (tmp_path / "latin.tsv").write_bytes(b"user_id\titem_id\n\xff\xfe\ti\n")
    with pytest.raises(DataError, match=r"latin\.tsv, line 2: user_id .* is not valid UTF-8"):
        read_interactions(tmp_path / "latin.tsv")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="x.parquet"):
        read_interactions(tmp_path / "x.parquet")
    (tmp_path / "x.tsv.gz").write_bytes(gzip.compress(b"user_id\titem_id\nu\ti\n" * 500)[:-20])
    with pytest.raises(DataError, match=r"x.tsv.gz"):
        read_interactions(tmp_path / "x.tsv.gz")
    write(tmp_path / "x.jsonl", '{"user_id": "u", "item_id": "i"}\nnot json\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: not valid JSON"):
        read_interactions(tmp_path / "x.jsonl")


def test_float_ids_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"user_id": [1.0, 2.0], "item_id": ["a", "b"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="floating-point"):
        read_interactions(tmp_path / "x.parquet")


IDS = st.text(
    st.characters(blacklist_characters="\t\n\r\0", blacklist_categories=("Cs", "Zl", "Zp", "Cc")),
    min_size=1,
    max_size=8,
).filter(lambda text: text.strip() == text)


@given(st.lists(st.tuples(IDS, IDS, st.floats(-1e6, 1e6)), min_size=1, max_size=20))
def test_written_tables_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, float]]
) -> None:
    path = tmp_path_factory.mktemp("round") / "train.tsv"
    users, items, ratings = (list(column) for column in zip(*rows, strict=True))
    table = InteractionTable(
        np.array(users, object), np.array(items, object), np.array(ratings, np.float64), None
    )
    write_interactions(path, table)
    back = read_interactions(path)
    assert as_rows(back) == as_rows(table)
    assert back.ratings is not None
    np.testing.assert_array_equal(back.ratings, table.ratings)


def test_given_columns_make_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "customer\tproduct\nu1\ti1\n")
    table = read_interactions(path, {"user_id": "customer", "item_id": "product"})
    assert as_rows(table) == [("u1", "i1")]
    with pytest.raises(
        DataError, match="no column 'client' for user_id: its first line is no header"
    ):
        read_interactions(path, {"user_id": "client"})
    with pytest.raises(UsageError, match=r"unknown role in --columns 'usr_id'.*'user_id'"):
        read_interactions(path, {"usr_id": "customer"})


def test_columns_of_one_meaning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "user\tparent_asin\tasin\nu1\tp\tq\n")
    table = read_interactions(path)
    assert as_rows(table) == [("u1", "p")]
    assert (
        table.note == "item_id: read from parent_asin, not from asin; --columns decides otherwise"
    )
    assert as_rows(read_interactions(path, {"item_id": "asin"})) == [("u1", "q")]
    with pytest.raises(DataError, match="2 columns are named item"):
        read_interactions(write(tmp_path / "b.tsv", "user\titem\titem\nu1\tp\tq\n"))


# --- files without a header


def test_users_and_items_that_nothing_tells_apart_are_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "interactions.tsv", "1\t3\t5\n3\t2\t4\n")
    with pytest.raises(UsageError, match=r"both hold the id '3': which are.*user_id=1,item_id=2"):
        read_interactions(path, ask=True)
    given = {"user_id": "2", "item_id": "1"}
    table = read_interactions(path, given, ask=True)
    assert as_rows(table) == [("3", "1"), ("2", "3")]
    assert table.note == "no header; read as 2 user_id, 1 item_id, 3 rating"
    assert table.ratings is not None and table.ratings.tolist() == [5, 4]
    assert as_rows(read_interactions(path, {"user_id": "1", "item_id": "2"}, ask=True))[0] == (
        "1",
        "3",
    )
    note = read_interactions(path).note  # as a part of a split
    assert note.startswith(UNSURE) and "--columns user_id=2,item_id=1" in note
    assert UNSURE not in read_interactions(write(tmp_path / "b.tsv", "1\t3\n"), ask=True).note


def test_a_third_column_of_times_is_no_rating(tmp_path: Path) -> None:
    path = write(tmp_path / "interactions.tsv", "u\ti\t1400000000\nv\tj\t1400000001\n")
    with pytest.raises(UsageError, match=r"times, not ratings.*timestamp=3"):
        read_interactions(path, ask=True)
    given = {"user_id": "1", "item_id": "2", "timestamp": "3"}
    table = read_interactions(path, given, ask=True)
    assert table.ratings is None
    assert table.timestamps is not None and table.timestamps.tolist() == [1.4e9, 1.4e9 + 1]


def test_places_of_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "0\tu\ti\tx\t4\n")
    places = {"user_id": "2", "item_id": "3", "rating": "5"}
    table = read_interactions(path, places)
    assert as_rows(table) == [("u", "i")]
    assert table.ratings is not None and table.ratings.tolist() == [4]
    assert as_rows(read_interactions(write(tmp_path / "y.tsv", "i\tu\n"), {"user_id": "2"})) == [
        ("u", "i")
    ]
    for wrong in ("0", "6"):
        with pytest.raises(DataError, match=rf"no column '{wrong}' for rating.*1 to 5"):
            read_interactions(path, {**places, "rating": wrong})
    with pytest.raises(UsageError, match="cannot be user_id and item_id at once"):
        read_interactions(path, {"user_id": "2", "item_id": "2"})


def test_the_whole_interactions_of_a_folder_are_asked_about(tmp_path: Path) -> None:
    write(tmp_path / "interactions.tsv", "1\t3\n3\t2\n")
    with pytest.raises(UsageError, match="which are the users"):
        read_split(tmp_path)


def test_ratings_with_a_decimal_comma(tmp_path: Path) -> None:
    text = "user;item;rating\nu;i;4,5\nv;j;3\n"
    table = read_interactions(write(tmp_path / "a.csv", text))
    assert table.ratings is not None and table.ratings.tolist() == [4.5, 3]
    with pytest.raises(DataError, match="rating '4,5' is no finite number"):
        read_interactions(write(tmp_path / "b.csv", text + "w;k;1,234\n"))
