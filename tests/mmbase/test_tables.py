from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mmbase.errors import DataError, UsageError
from mmbase.tables import open_table


def column(path: Path, name: str = "t") -> list[bytes]:
    return open_table(path).read([name])[name].to_pylist()


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_text_stays_text(tmp_path: Path, line_end: bytes, bom: bytes) -> None:
    path = tmp_path / "a.tsv"
    rows = [b"id\tt", b"007\tNA", b"1e3\tnull", b"x\t", b"y\t2020-01-01", b"z\tTrue"]
    path.write_bytes(bom + line_end.join(rows) + line_end)
    table = open_table(path)
    assert table.columns == ("id", "t")
    assert column(path, "id") == [b"007", b"1e3", b"x", b"y", b"z"]
    assert column(path) == [b"NA", b"null", b"", b"2020-01-01", b"True"]


def test_quoted_cells_of_a_tsv_hold_tabs_lines_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'id\tt\n1\t"a\tb"\n2\t"c\nd"\n3\t"say ""hi"""\n')
    assert column(path) == [b"a\tb", b"c\nd", b'say "hi"']
    assert open_table(path).lines([0, 1, 2]) == [2, 4, 5]


def test_a_tsv_with_stray_marks_is_taken_literally(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'id\tt\n1\t"Heroes" and more\n2\t"open\n3\t12" record\n')
    assert column(path) == [b'"Heroes" and more', b'"open', b'12" record']


def test_a_csv_with_a_stray_mark_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,t\n1,fine\n2,"open\n3,lost\n')
    with pytest.raises(DataError, match=r"a\.csv, line 3: .*quotation mark"):
        open_table(path)


def test_semicolons_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id;t\n1;a,b\n")
    assert column(path) == [b"a,b"]


def test_a_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"id\tt\n1\ta\n\n2\tb\tc\n")
    with pytest.raises(DataError, match=r"a\.tsv, line 4: 3 cells \(expected 2"):
        column(path)


@pytest.mark.parametrize("content", [b"id\tt", b"id\tt\n", b"id\tt\r\n\n"])
def test_a_header_alone_gives_no_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    assert column(path) == []


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.parquet", "a.jsonl"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match="empty"):
        open_table(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tsv.gz", "a.csv.gz", "a.jsonl.gz"])
def test_broken_compression_is_refused(tmp_path: Path, name: str) -> None:
    whole = gzip.compress(b'{"id": "1"}\n' * 5000)
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="decompressed"):
        open_table(tmp_path / name).read(["id"])


def test_compressed_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress("id\tt\n日本\tü\n".encode()))
    assert column(path, "id") == ["日本".encode()]


def test_json_numbers_keep_their_spelling_and_lists_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"id": 7.0, "t": ["a", "", "b"]}\n\n{"id": "007"}\n{"id": 1e3, "t": null}\n',
        encoding="utf-8",
    )
    assert column(path, "id") == [b"7.0", b"007", b"1e3"]
    assert column(path) == [b"a b", b"", b""]
    assert open_table(path).lines([1]) == [3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2: not valid JSON"),
        ("[1]", "line 2: a JSON list"),
        ('{"t": {"a": 1}}', "line 2: 't' is a JSON dict.*a column of its own"),
    ],
)
def test_bad_json_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": "x"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        column(path)


def test_parquet_numbers_lists_and_categories_become_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "id": pa.array([7, 12345678901234567]),
        "t": pa.array(["NA", None]),
        "l": pa.array([["a", "b"], []]),
        "c": pa.array(["u", "v"]).dictionary_encode(),
        "f": pa.array([1.0, 2.0]),
    }
    parquet.write_table(pa.table(columns), path)
    assert column(path, "id") == [b"7", b"12345678901234567"]
    assert column(path, "t") == [b"NA", b""]
    assert column(path, "l") == [b"a b", b""]
    assert column(path, "c") == [b"u", b"v"]
    with pytest.raises(DataError, match="double"):
        column(path, "f")


def test_not_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match="Parquet"):
        open_table(tmp_path / "a.parquet")


def test_an_unknown_column_is_answered_with_the_closest(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("item_id\ttitle\n", encoding="utf-8")
    with pytest.raises(UsageError, match="Did you mean 'title'"):
        open_table(tmp_path / "a.tsv").read(["titel"])


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\tt\tt\n1\ta\tb\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.tsv: 2 columns are named t"):
        column(tmp_path / "a.tsv")


CELLS = st.text(
    st.characters(exclude_characters="\t\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=12
)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20))
def test_whatever_is_written_to_a_tsv_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    import csv

    path = tmp_path_factory.mktemp("tables") / "a.tsv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([("id", "t"), *rows])
    assert column(path, "id") == [row[0].encode() for row in rows]
    assert column(path) == [row[1].encode() for row in rows]


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["id", "t"]), CELLS, min_size=2), min_size=1, max_size=20
    )
)
def test_whatever_is_written_as_json_lines_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("tables") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert column(path) == [row["t"].encode() for row in rows]


def test_numbers_of_every_format(tmp_path: Path) -> None:
    cells = ["5", " 1.5", "1e3", "0.1", "1583378629552"]
    wanted = [5, 1.5, 1000, 0.1, 1583378629552]
    (tmp_path / "a.tsv").write_text("n\n" + "\n".join(cells))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"n": {cell}}}\n' for cell in cells))
    parquet.write_table(pa.table({"n": pa.array(wanted)}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"n": cells}), tmp_path / "b.parquet")
    parquet.write_table(
        pa.table({"n": pa.array([1, 2], pa.timestamp("ms"))}), tmp_path / "t.parquet"
    )
    for name in ("a.tsv", "a.jsonl", "a.parquet", "b.parquet"):
        assert open_table(tmp_path / name).read(["n"], ["n"])["n"].tolist() == wanted
    assert open_table(tmp_path / "t.parquet").read(["n"], ["n"])["n"].tolist() == [1, 2]


def test_what_is_no_number_is_nan(tmp_path: Path) -> None:
    cells = ["7", "", "x", "1_000", "2023-01-01", "0x10", "\u0665"]
    (tmp_path / "a.csv").write_text("n,m\n" + "".join(f"{cell},1\n" for cell in cells), "utf-8")
    numbers = open_table(tmp_path / "a.csv").read(["n"], ["n"])["n"].tolist()
    assert numbers[0] == 7
    assert all(number != number for number in numbers[1:])
    parquet.write_table(pa.table({"n": pa.array([1, None])}), tmp_path / "a.parquet")
    assert open_table(tmp_path / "a.parquet").read(["n"], ["n"])["n"].tolist()[0] == 1


def test_values_keep_lists_and_numbers(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"c": [["a|b", "c"], None], "n": [1.5, None]}), tmp_path / "a.parquet"
    )
    (tmp_path / "a.jsonl").write_text('{"c": ["a|b", "c"], "n": 1.5}\n{"d": 1}\n')
    for name in ("a.parquet", "a.jsonl"):
        values = open_table(tmp_path / name).values(["c", "n"])
        assert values == {"c": [["a|b", "c"], None], "n": [1.5, None]}
    (tmp_path / "a.tsv").write_bytes(b"c\nblue \xe9\n")
    assert open_table(tmp_path / "a.tsv").values(["c"]) == {"c": ["blue \ufffd"]}


def test_a_literal_table_is_split_at_tabs_alone(tmp_path: Path) -> None:
    text = '"id"\tt\n"a"\t"x\n"b"\ty"\n'
    for name in ("a.tsv", "a.txt", "u.data"):
        (tmp_path / name).write_text(text)
        read = open_table(tmp_path / name, literal=True).read(['"id"', "t"])
        assert [column.to_pylist() for column in read.values()] == [
            [b'"a"', b'"b"'],
            [b'"x', b'y"'],
        ]
    with pytest.raises(DataError, match=r"u\.data: not a table that can be read"):
        open_table(tmp_path / "u.data")


def test_rows_without_a_header_begin_in_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfa\t1\n\nb\t2")
    table = open_table(tmp_path / "a.tsv").headerless(("id", "n"))
    assert table.read(["id"])["id"].to_pylist() == [b"a", b"b"]
    assert table.lines([0, 1]) == [1, 3]
    assert table.where(1).endswith("a.tsv, line 3")
    (tmp_path / "a.tsv").write_bytes(b"a\t1\nb\n")
    with pytest.raises(DataError, match="line 2: 1 cell .expected 2, as in the first line"):
        table.read(["id"])


def test_a_key_that_first_appears_late_is_a_column(tmp_path: Path) -> None:
    lines = [f'{{"id": "{number}"}}' for number in range(150)] + ['{"id": "150", "brand": "x"}']
    (tmp_path / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = open_table(tmp_path / "items.jsonl")
    assert table.columns == ("id", "brand")
    assert table.read(["brand"])["brand"].to_pylist()[-2:] == [b"", b"x"]


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ([{"item_id": ["1"]}, {"title": ["a"], "item_id": ["2"]}], {"title": [b"", b"a"]}),
        ([{"item_id": [1]}, {"item_id": ["007"]}], {"item_id": [b"1", b"007"]}),
        ([{"item_id": ["007"]}, {"item_id": [8]}], {"item_id": [b"007", b"8"]}),
        ([{"title": pa.nulls(1)}, {"title": ["a"]}], {"title": [b"", b"a"]}),
        ([{"c": [["a", "b"]]}, {"c": [["c"]], "d": [1]}], {"c": [b"a b", b"c"], "d": [b"", b"1"]}),
    ],
)
def test_the_parts_of_a_parquet_folder_need_not_have_the_same_columns(
    tmp_path: Path, parts: list[dict[str, Any]], wanted: dict[str, list[bytes]]
) -> None:
    folder = tmp_path / "items.parquet"
    folder.mkdir()
    for number, columns in enumerate(parts):
        parquet.write_table(pa.table(columns), folder / f"part-{number}.snappy.parquet")
    read = open_table(folder).read(list(wanted))
    assert {name: read[name].to_pylist() for name in wanted} == wanted


def test_the_parts_of_a_parquet_folder_have_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "items.parquet").mkdir()
    table = pa.table({"item_id": ["x" * 100 + str(n) for n in range(1000)]})
    parquet.write_table(table, tmp_path / "items.parquet" / "part-0.parquet", compression="zstd")
    monkeypatch.setattr("mmbase.dialects.HARMLESS", 1000)
    monkeypatch.setattr("mmbase.dialects.EXPANSION", 1)
    with pytest.raises(DataError, match=r"part-0.parquet: expands to more than"):
        open_table(tmp_path / "items.parquet").read(["item_id"])
