"""The same cells in every format: equal or refused, by both tools; docs/data.md has the outcome."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from mmbase.catalogue.items import load_items
from mmbase.errors import DataError
from mmbase.tables import open_table
from mmbench.data.files import read_item_ids, read_items
from mmbench.data.tables import read_interactions
from mmx.catalogue.contents import text_contents
from mmx.catalogue.interactions import load_interactions

DOCS = Path(__file__).parents[2] / "docs/data.md"
Row = Mapping[str, Any]
NOTHING = "–"
"""Stands for a value that a format cannot hold."""


def write_text(path: Path, row: Row) -> bool:
    cells = [
        "" if value is None or value != value else value.isoformat() if isinstance(value, dt.date)
        else str(value) for value in row.values()
    ]  # fmt: skip
    with path.open("w", encoding="utf-8", newline="") as file:
        mark = "\t" if path.suffix == ".tsv" else ","
        csv.writer(file, delimiter=mark, lineterminator="\n").writerows([row, cells])
    return not any(isinstance(value, list | dict | bool) for value in row.values())


def write_json(path: Path, row: Row) -> bool:
    path.write_text(json.dumps(row, default=dt.date.isoformat) + "\n", encoding="utf-8")
    return True


def typed(row: Row, change: Callable[[Any], Any]) -> pa.Table:
    return pa.table({name: change(pa.array([value])) for name, value in row.items()})


def as_type(kind: Any) -> Callable[[Any], Any]:
    """Return what casts texts, also in lists, to another type of text."""

    def nested(own: Any) -> Any:
        if pa.types.is_list(own):
            return pa.list_(nested(own.value_type))
        return kind if pa.types.is_string(own) else own

    return lambda array: array.cast(nested(array.type))


def plain(array: Any) -> Any:
    return array


def dictionary(array: Any) -> Any:
    return array.dictionary_encode() if pa.types.is_string(array.type) else array


def large_lists(array: Any) -> Any:
    kind = array.type
    return array.cast(pa.large_list(kind.value_type)) if pa.types.is_list(kind) else array


def write_parquet(change: Callable[[Any], Any]) -> Callable[[Path, Row], bool]:
    def write(path: Path, row: Row) -> bool:
        parquet.write_table(typed(row, change), path)
        return True

    return write


def write_arrow(path: Path, row: Row) -> bool:
    table = typed(row, plain)
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return True


def write_stream(path: Path, row: Row) -> bool:
    table = typed(row, plain)
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    return True


def packed(write: Callable[[Path, Row], bool]) -> Callable[[Path, Row], bool]:
    def compress(path: Path, row: Row) -> bool:
        bare = path.with_suffix("")
        done = write(bare, row)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(bare.read_bytes()))
        else:
            with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as file:
                file.write(bare.read_bytes())
        bare.unlink()
        return done

    return compress


FORMATS: Mapping[str, Mapping[str, Callable[[Path, Row], bool]]] = {
    "TSV, CSV, .gz, .zst": {
        ".tsv": write_text,
        ".csv": write_text,
        ".tsv.gz": packed(write_text),
        ".csv.zst": packed(write_text),
    },
    "JSON lines, .gz, .zst": {
        ".jsonl": write_json,
        ".jsonl.gz": packed(write_json),
        ".jsonl.zst": packed(write_json),
    },
    "Parquet, Arrow": {
        ".parquet": write_parquet(plain),
        "dictionary.parquet": write_parquet(dictionary),
        "large_string.parquet": write_parquet(as_type(pa.large_string())),
        "string_view.parquet": write_parquet(as_type(pa.string_view())),
        "binary.parquet": write_parquet(as_type(pa.binary())),
        "large_list.parquet": write_parquet(large_lists),
        ".arrow": write_arrow,
        "stream.arrow": write_stream,
    },
}
TEXTS: Mapping[str, Any] = {
    "`a b`": "a b",
    "`007`, `1e5`, `NA`": "007 1e5 NA",
    "`日本 ü`": "日本 ü",
    '`say "hi"`': 'say "hi"',
    "`two⏎lines`": "two\nlines",
    "empty, null, NaN": None,
    "number 7": 7,
    "number 7.5": 7.5,
    "true": True,
    'list `["a", "b"]`': ["a", "b"],
    'list `["a", null, "", "b"]`': ["a", None, "", "b"],
    'list `[["a", "b"], ["c"]]`': [["a", "b"], ["c"]],
    "list of numbers": [1, 22],
    "list of nothing": [],
    "object": {"a": "b"},
}
IDS: Mapping[str, Any] = {
    "`007`": "007",
    "number 7": 7,
    "` a`, with a note": " a",
    "empty, null": None,
    "blanks alone": "  ",
    "1,001 bytes": "x" * 1001,
    "number 7.5": 7.5,
    "true": True,
    'list `["a"]`': ["a"],
}
TWO = dt.datetime(2024, 9, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2)))
TIMES: Mapping[str, Any] = {
    "number 1725148800": 1725148800,
    "number 1725148800.25": 1725148800.25,
    "number 1725148800250": 1725148800250,
    "number 1725148800000000001": 1725148800000000001,
    "number 20240901": 20240901,
    "`2024-09-01`": "2024-09-01",
    "`2024-09-01T02:00:00+02:00`": "2024-09-01T02:00:00+02:00",
    "`2024-09-01 00:00:00.250`": "2024-09-01 00:00:00.250",
    "`09 1, 2024`": "09 1, 2024",
    "type date": dt.date(2024, 9, 1),
    "type timestamp, with a zone": TWO,
    "`01/09/2024`": "01/09/2024",
    "empty, null, NaT": None,
    "true": True,
    "list": ["2024-09-01"],
}  # fmt: skip


def text_outcome(path: Path, row: Row) -> str:
    """Return how both tools read a text; the table alone and the tools must agree."""
    try:
        cell = open_table(path).read(["title"])["title"].to_pylist()[0].decode()
    except DataError:
        return "refused"
    (content,) = text_contents(load_items(path.parent), ["title"]).fetch(0, 1)
    assert content == (cell or None)
    frame = read_items(path.parent)
    assert frame is not None
    assert frame["title"].tolist() == [cell]
    return f"`{cell}`".replace("\n", "⏎") if cell else "missing"


def id_outcome(path: Path, row: Row) -> str:
    outcomes = []
    readers: tuple[Callable[[Path], Any], ...] = (
        read_item_ids,
        lambda folder: load_items(folder).ids.to_pylist(),
        lambda folder: read_interactions(path).item_ids.tolist(),
        lambda folder: load_interactions(folder, items_file=path.name).ids.to_pylist(),
    )
    for read in readers:
        try:
            outcomes.append(read(path.parent)[0])
        except DataError as error:
            assert str(path) in str(error)
            outcomes.append(None)
    assert len(set(outcomes)) == 1, (path, outcomes)
    return "refused" if outcomes[0] is None else f"`{outcomes[0]}`"


def time_outcome(path: Path, row: Row) -> str:
    try:
        return read_interactions(path).numbers()["timestamp"][0]
    except DataError as error:
        assert str(path) in str(error)
        return "refused"


def outcome(folder: Path, row: Row, group: str, read: Callable[[Path, Row], str], stem: str) -> str:
    found = {}
    for number, (suffix, write) in enumerate(FORMATS[group].items()):
        own = folder / str(number)
        own.mkdir(parents=True)
        path = own / f"{stem}.{suffix.rsplit('.', 1)[-1] if suffix[0] != '.' else suffix[1:]}"
        found[suffix] = read(path, row) if write(path, row) else NOTHING
    assert len(set(found.values())) == 1, (row, found)
    return next(iter(found.values()))


def table(
    folder: Path, head: str, rows: Mapping[str, Row], read: Callable[[Path, Row], str], stem: str
) -> str:
    lines = [f"| {' | '.join([head, *FORMATS])} |", "|---" * (len(FORMATS) + 1) + "|"]
    for number, (label, row) in enumerate(rows.items()):
        cells = [
            outcome(folder / f"{number}-{place}", row, group, read, stem)
            for place, group in enumerate(FORMATS)
        ]
        lines.append(f"| {' | '.join([label, *cells])} |")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("head", "rows", "read", "stem"),
    [
        ("text", {k: {"item_id": "1", "title": v} for k, v in TEXTS.items()}, text_outcome,
         "items"),
        ("id", {k: {"user_id": "u", "item_id": v} for k, v in IDS.items()}, id_outcome, "items"),
        ("time", {k: {"user_id": "u", "item_id": "1", "timestamp": v} for k, v in TIMES.items()},
         time_outcome, "interactions"),
    ],
)  # fmt: skip
def test_every_format_reads_the_same_cells_as_the_docs_say(
    tmp_path: Path, head: str, rows: Mapping[str, Row], read: Any, stem: str
) -> None:
    shown = table(tmp_path, head, rows, read, stem)
    assert shown in DOCS.read_text(encoding="utf-8"), f"docs/data.md should hold:\n{shown}"
