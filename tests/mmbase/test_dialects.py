"""Encodings, delimiters, quotation marks and bounds of text tables."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from mmbase import dialects
from mmbase.catalogue.items import load_items
from mmbase.errors import DataError
from mmbase.tables import open_table
from mmbench.data.tables import read_interactions
from mmx.catalogue.contents import text_contents

ROWS = ["item_id,title", "1,café crème", "2,Müller’s thé", "3,plain"]


def read(path: Path) -> dict[str, list[str]]:
    table = open_table(path)
    columns = table.read(table.columns)
    return {name: [cell.decode() for cell in cells.to_pylist()] for name, cells in columns.items()}


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("cp1252", "Windows-1252"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".jsonl", ".jsonl.gz"])
def test_the_encoding_is_found_and_said(
    tmp_path: Path, encoding: str, said: str | None, suffix: str
) -> None:
    lines = ROWS
    if ".jsonl" in suffix:
        names = ROWS[0].split(",")
        rows = [dict(zip(names, row.split(","), strict=True)) for row in ROWS[1:]]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if suffix == ".tsv":
        lines = [line.replace(",", "\t") for line in ROWS]
    data = "".join(line + "\r\n" for line in lines).encode(encoding)
    path = tmp_path / f"items{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    titles = [row.split(",")[1] for row in ROWS[1:]]
    assert read(path) == {"item_id": ["1", "2", "3"], "title": titles}
    items = load_items(tmp_path)
    assert text_contents(items, ["title"]).fetch(0, 3) == titles
    assert [note for note in items.notes if "read as" in note] == (
        [] if said is None else [next(note for note in open_table(path).notes if said in note)]
    )


@pytest.mark.parametrize(
    "data",
    [
        "1,привет мир".encode("cp1251"),
        "1,日本語テキスト".encode("shift-jis"),
        "1,déjà".encode() + b"\n2,damage \xff\xfe here",
    ],
)
def test_other_encodings_are_not_guessed(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "items.csv").write_bytes(b"item_id,title\n" + data + b"\n")
    table = open_table(tmp_path / "items.csv")
    assert (table.encoding, table.notes) == ("utf-8", ())


@pytest.mark.parametrize("mark", [",", ";", "\t", "|", "::"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
@pytest.mark.parametrize("header", [True, False])
def test_the_delimiter_is_found_and_said_by_both_tools(
    tmp_path: Path, mark: str, suffix: str, header: bool
) -> None:
    head = [["user_id", "item_id", "rating"]] if header else []
    lines = [mark.join(row) for row in [*head, ["1", "i1", "4.5"], ["2", "i 2", "3"]]]
    path = tmp_path / f"interactions{suffix}"
    path.write_text("\n".join(lines) + "\n")
    table = read_interactions(path)
    assert table.item_ids.tolist() == ["i1", "i 2"]
    assert table.ratings is not None
    assert table.ratings.tolist() == [4.5, 3]
    usual = mark == ("," if suffix == ".csv" else "\t")
    assert ("separated by" in table.note) is not usual
    path.rename(tmp_path / f"items{suffix}")
    if header:
        items = load_items(tmp_path, id_column="item_id")
        assert items.ids.to_pylist() == ["i1", "i 2"]
        assert any("separated by" in note for note in items.notes) is not usual


def test_one_column_and_text_with_commas_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("title\none, two\nthree\n")
    assert read(tmp_path / "a.tsv") == {"title": ["one, two", "three"]}
    (tmp_path / "a.csv").write_text("item_id,genres\n1,a|b|c\n2,d\n")
    assert read(tmp_path / "a.csv") == {"item_id": ["1", "2"], "genres": ["a|b|c", "d"]}


@pytest.mark.parametrize(
    ("rows", "titles", "noted"),
    [
        # stray marks that would make one cell of three rows
        (['A\t"Great', "B\tlamp", 'C\tTV 32"', "D\tx"], ['"Great', "lamp", 'TV 32"', "x"], True),
        # the same, and a real quoted cell on a line of its own
        (['A\t"Great', 'B\tTV 32"', 'C\t"say ""hi"""'], ['"Great', 'TV 32"', '"say ""hi"""'], True),
        # a cell of two lines that are no rows
        (['A\t"two', 'lines"', "B\tx"], ["two\nlines", "x"], True),
        (['A\t"quoted"', "B\tx"], ["quoted", "x"], False),
    ],
)  # fmt: skip
def test_no_quotation_mark_of_a_tsv_swallows_rows(
    tmp_path: Path, rows: list[str], titles: list[str], noted: bool
) -> None:
    path = tmp_path / "items.tsv"
    path.write_text("\n".join(["item_id\ttitle", *rows]) + "\n")
    assert read(path)["title"] == titles
    assert bool(open_table(path).notes) is noted
    assert load_items(tmp_path).notes == open_table(path).notes


def test_a_csv_cell_that_spans_rows_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,t\n1,"open\n2,lost\n3,TV 32"\n4,x\n')
    assert read(path)["id"] == ["1", "4"]
    assert "line 2 is closed on line 4" in open_table(path).notes[0]
    path.write_text('id,t\n1,"an\nordinary\ntext"\n4,x\n')
    assert open_table(path).notes == ()


def zst(path: Path, data: bytes) -> None:
    with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as file:
        file.write(data)


@pytest.mark.parametrize("name", ["a.tsv.gz", "a.csv.zst", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_compressed_table_is_bounded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = b'{"t": "x"}\n' if "jsonl" in name else b"x\n"
    path = tmp_path / name

    def write(data: bytes) -> None:
        path.write_bytes(gzip.compress(data)) if name.endswith(".gz") else zst(path, data)

    monkeypatch.setattr(dialects, "HARMLESS", 1 << 16)
    write(line * 100_000)
    with pytest.raises(DataError, match=r"expands to more than .* bytes"):
        open_table(path)
    monkeypatch.setattr(dialects, "HARMLESS", 1 << 28)
    assert len(open_table(path).columns) == 1
    monkeypatch.setattr(dialects, "LONGEST_LINE", 1 << 21)
    write(line + b" " * (1 << 22) + line)
    with pytest.raises(DataError, match=r"line 2: a line of more than"):
        open_table(path)


def test_a_first_line_without_end_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"x" * (dialects.LONGEST_HEADER + 1))
    with pytest.raises(DataError, match="the first line has more than"):
        open_table(tmp_path / "a.tsv", literal=True)


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ("[" * 900 + '"deep"' + "]" * 900, b"deep"),
        ("9" * 5000, b"9" * 5000),
        ("NaN", b""),
        ("[NaN, null, 1]", b"1"),
        ("-Infinity", b"-Infinity"),
    ],
)
def test_strange_json_values(tmp_path: Path, value: str, outcome: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"t": {value}}}\n')
    assert open_table(path).read(["t"])["t"].to_pylist() == [outcome]
    assert len(open_table(path).values(["t"])["t"]) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"t": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2: not valid JSON"),
        ('{"t": ' + '{"t": ' * 500 + "1" + "}" * 501, "line 2: 't' is a JSON dict"),
        ('{"t": [[1, {"a": 1}]]}', "line 2: 't' is a JSON list of dict"),
        ("[1]", "line 2: a JSON list"),
        ('"text"', "line 2: a JSON str"),
        ('{"t": 1}{"t": 2}', "line 2: not valid JSON"),
    ],
)
def test_bad_json_is_one_line_of_words(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        open_table(path).read(["t"])


def test_a_parquet_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    zeros = pa.array([0] * 20_000, pa.int32())
    repeated = pa.table({"t": pa.DictionaryArray.from_arrays(zeros, ["x" * 25_000])})
    # 500 MB in a file of a few kilobytes, which doesn't say that there is a dictionary
    parquet.write_table(repeated, path, compression="zstd", store_schema=False)
    with pytest.raises(DataError, match=r"a\.parquet: expands to more than 268,435,456 bytes"):
        open_table(path).read(["t"])
    plain = pa.table({"t": ["y" * 1000] * 1000, "u": ["z"] * 1000})
    parquet.write_table(plain, path, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(dialects, "HARMLESS", 1 << 16)
    with pytest.raises(DataError, match="expands to more than"):
        open_table(path).read(["t"])
    assert len(open_table(path).read(["u"])["u"]) == 1000


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "items.parquet"
    folder.mkdir()
    for part in "01":
        parquet.write_table(pa.table({"item_id": [f"i{part}"]}), folder / f"part-{part}.parquet")
    (folder / "_SUCCESS").touch()
    assert load_items(tmp_path).ids.to_pylist() == ["i0", "i1"]


def test_a_character_that_is_cut_off_is_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"item_id,title\n1,caf\xe9")
    assert read(tmp_path / "a.csv")["title"] == ["café"]


@pytest.mark.parametrize("line", ["sep=;", '"sep=,"', "SEP=;;;"])
def test_excels_line_about_the_separator_is_no_header(tmp_path: Path, line: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(f"{line}\nitem_id;title\na;b\n")
    with pytest.raises(DataError, match=r"items\.csv, line 1: .*for Excel and no header; delete"):
        open_table(path)
