"""Cells that name files, files that bear ids, and where both may lead."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from mmbase.catalogue.files import Content, FileContents, file_contents
from mmbase.catalogue.items import load_items
from mmbase.catalogue.paths import BETWEEN, Absent, Place, names_in
from mmx.errors import ContentError
from mmx.extraction.multipart import several_files


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def table(root: Path, **cells: str) -> Path:
    rows = "".join(f"{item}\t{cell}\n" for item, cell in cells.items())
    write(root / "items.tsv", f"item_id\timage\n{rows}")
    return root


def contents(root: Path, *, anywhere: bool = False) -> FileContents:
    return file_contents(load_items(root), "visual", anywhere=anywhere)


def found(root: Path, *, anywhere: bool = False) -> list[Content]:
    files = contents(root, anywhere=anywhere)
    return files.fetch(0, len(files.found))


@pytest.mark.parametrize(
    "cell",
    [
        "images/1.jpg", "1.jpg", "./images/1.jpg", r"images\1.jpg", r".\images\1.jpg",
        "['images/1.jpg']", '["1.jpg"]', "[images/1.jpg]", "['1.jpg', 'other.jpg']",
        "file://images/1.jpg", "file:images/1.jpg", "FILE://ROOT/images/1.jpg",
        "file://localhostROOT/images/1.jpg", "file://ROOT/./images/%31.jpg", "ROOT/images/1.jpg",
        f"1.jpg{BETWEEN}other.jpg",
    ],
)  # fmt: skip
def test_ways_to_write_a_path(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path / "images/1.jpg")
    table(tmp_path, a=cell.replace("ROOT", str(tmp_path)))
    (got,) = found(tmp_path)
    assert isinstance(got, Path) and got.samefile(path)


@pytest.mark.parametrize("cell", ["", " ", "NaN", "nan", "[]", "['']", "[nan]"])
def test_cells_that_name_nothing_leave_the_item_to_its_id(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path / "images/a.jpg")
    assert found(table(tmp_path, a=cell, b=cell)) == [path, None]
    assert list(contents(tmp_path).absent([0, 1])) == []


@pytest.mark.parametrize(
    ("cell", "cure"),
    [
        ("images/4.jpg", "paths start from"),
        ("data/books/images/1.jpg", "images/1.jpg is there: correct the folder"),
        (r"C:\pictures\1.jpg", "images/1.jpg is there: correct the folder"),
        ("https://example.org/1.jpg", "not fetched"),
        ("s3://bucket/1.jpg", "not fetched"),
        ("['4.jpg', '1.jpg']", "paths start from"),
        ("images/1.jpg/x", "paths start from"),
    ],
)
def test_a_file_that_is_named_and_not_there_is_told_from_one_that_is_not_named(
    tmp_path: Path, cell: str, cure: str
) -> None:
    write(tmp_path / "images/1.jpg")
    table(tmp_path, a="1.jpg", b=cell, c="")
    _, absent, unnamed = found(tmp_path)
    assert isinstance(absent, Absent) and cure in absent.cure and unnamed is None
    assert list(contents(tmp_path).absent([0, 1, 2])) == [(1, absent)]


def test_a_file_that_bears_the_id_stands_in_for_an_address_and_not_for_another_name(
    tmp_path: Path,
) -> None:
    own = write(tmp_path / "images/b.jpg")
    other = write(tmp_path / "images/1.jpg")
    root = table(tmp_path, a="1.jpg", b="https://example.org/9.jpg")
    assert found(root) == [other, own]
    table(root, a="https://example.org/9.jpg", b="https://example.org/8.jpg")  # nothing else
    assert found(root) == [None, own]
    ((row, absent),) = contents(root).absent([0, 1])
    assert row == 0 and "not fetched" in absent.cure
    table(root, a="1.jpg", b="4.jpg")
    assert isinstance(found(root)[1], Absent)


def test_lists_and_separators_name_several_files(tmp_path: Path) -> None:
    one, two = write(tmp_path / "images/1.jpg"), write(tmp_path / "images/2.jpg")
    cells = {"a": "['1.jpg', '2.jpg']", "b": f"1.jpg{BETWEEN}2.jpg", "c": "1.jpg", "d": "[]"}
    items = load_items(table(tmp_path, **cells))
    files = several_files(items, "visual", None, None)
    assert files.fetch(0, 4) == [(one, two), (one, two), (one,), None]
    assert list(files.absent(range(4))) == []
    assert any("1 cell names several files" in note for note in contents(tmp_path).notes)
    items = load_items(table(tmp_path, a=r"images\1.jpg|4.jpg", b="4.jpg|5.jpg"))
    files = several_files(items, "visual", None, "|")
    first, second = files.fetch(0, 2)
    assert (isinstance(first, tuple) and first[0] == one) or first[0].samefile(one)
    assert [(row, absent.name) for row, absent in files.absent([0, 1])] == [
        (0, "4.jpg"), (1, "4.jpg"),
    ]  # fmt: skip
    assert isinstance(second, tuple) and all(isinstance(part, Absent) for part in second)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_list_cells_of_typed_tables(tmp_path: Path, kind: str) -> None:
    one, two = write(tmp_path / "images/1.jpg"), write(tmp_path / "images/a b.jpg")
    rows: list[dict[str, Any]] = [
        {"item_id": "a", "image": ["1.jpg", "a b.jpg"]},
        {"item_id": "b", "image": ["a b.jpg", None]},
        {"item_id": "c", "image": []},
        {"item_id": "d", "image": None},
    ]
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    else:
        write(tmp_path / "items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    files = several_files(load_items(tmp_path), "visual", None, None)
    assert files.fetch(0, 4) == [(one, two), (two,), None, None]
    assert found(tmp_path) == [one, two, None, None]


def test_a_link_that_was_copied_as_text_is_named(tmp_path: Path) -> None:
    write(table(tmp_path, a="") / "images", "../elsewhere")
    assert any("images is a file, not a folder" in note for note in contents(tmp_path).notes)
    assert found(tmp_path) == [None]


def test_bytes_that_are_no_path() -> None:
    assert isinstance(names_in(b"\xff.jpg"), ContentError)


# ------------------------------------------------------------------------------------------------
# links


@pytest.mark.parametrize("cell", ["a.jpg", "images/a.jpg", ""])
def test_a_folder_of_pictures_on_another_disk_is_followed_for_names_and_ids(
    tmp_path: Path, cell: str
) -> None:
    write(tmp_path / "elsewhere/a.jpg")
    root = tmp_path / "data"
    root.mkdir()
    (root / "images").symlink_to("../elsewhere")
    assert found(table(root, a=cell)) == [root / "images/a.jpg"]


def test_what_a_linked_folder_leads_to_is_all_that_it_adds(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/a.jpg")
    secret = write(tmp_path / "secret.jpg")
    (tmp_path / "elsewhere/b.jpg").symlink_to(secret)
    (tmp_path / "elsewhere/c.jpg").symlink_to("a.jpg")
    root = tmp_path / "data"
    root.mkdir()
    (root / "images").symlink_to("../elsewhere")
    cells = {"a": "images/../secret.jpg", "b": "b.jpg", "c": "images/c.jpg", "d": "images/../../x"}
    got = found(table(root, **cells))
    assert got[2] == root / "images/c.jpg"
    for one in (got[0], got[1], got[3]):
        assert isinstance(one, ContentError) and "--allow-outside" in str(one)
    by_id = found(table(root, b="", c=""))
    assert isinstance(by_id[0], ContentError) and by_id[1] == root / "images/c.jpg"


def test_paths_may_lead_anywhere_where_that_is_allowed(tmp_path: Path) -> None:
    outside = write(tmp_path / "shared/1.jpg")
    root = table(
        tmp_path / "data", a=str(outside), b="../shared/1.jpg", c=f"file://{outside}", d=""
    )
    write(root / "images/x.jpg")
    (root / "images/d.jpg").symlink_to(outside)
    got = found(root, anywhere=True)
    assert all(isinstance(one, Path) and one.samefile(outside) for one in got)
    assert all(isinstance(one, ContentError) for one in found(root))
    table(root, a="../shared/2.jpg")
    assert isinstance(found(root, anywhere=True)[0], Absent)


def test_a_dataset_folder_that_is_a_link_or_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "real/images/a.jpg")
    table(tmp_path / "real", a="images/a.jpg", b="images/../../real/images/a.jpg")
    (tmp_path / "link").symlink_to("real")
    for root in (tmp_path / "link", Path("link"), Path("real/images/..")):
        monkeypatch.chdir(tmp_path)
        first, second = found(root)
        assert isinstance(first, Path) and first.samefile(tmp_path / "real/images/a.jpg")
        assert isinstance(second, Path)
    monkeypatch.chdir(tmp_path / "real")
    assert found(Path())[0] == Path("images/a.jpg")


# ------------------------------------------------------------------------------------------------
# files that bear ids


def test_folders_within_are_searched_for_ids(tmp_path: Path) -> None:
    for name in ("00/1.jpg", "00/deep/2.png", "top.jpg", "00/top.jpg", "x/3.jpg", "y/3.jpg"):
        write(tmp_path / "images" / name)
    write(tmp_path / "images/item/4.jpg")  # a folder of that item, for --several
    ids = ("1", "2", "top", "3", "item", "4", "none")
    write(tmp_path / "items.tsv", "item_id\n" + "".join(f"{one}\n" for one in ids))
    images = tmp_path / "images"
    assert found(tmp_path) == [
        images / "00/1.jpg", images / "00/deep/2.png", images / "top.jpg", None, None, None, None,
    ]  # fmt: skip
    told = "1 item has files of one name in several folders"
    assert any(told in note for note in contents(tmp_path).notes)


HIDDEN = ("images/._a.jpg", "images/.jpg", "images/.b.jpg", "images/__MACOSX/c.jpg", "._d.jpg",
          "images/.thumbs/e.jpg", "images/@eaDir/f.jpg", "images/$RECYCLE.BIN/g.jpg")  # fmt: skip


def test_hidden_and_sidecar_files_are_no_items(tmp_path: Path) -> None:
    for name in (*HIDDEN, "images/Thumbs.db", "images/.DS_Store", "images/a.jpg", "b.jpg"):
        write(tmp_path / name)
    assert load_items(tmp_path).ids.to_pylist() == ["a", "b"]
    write(tmp_path / "books.csv", "item_id\na\nb\nc\nd\ne\nf\ng\n._a\n")
    write(tmp_path / "._books.csv", "\0\0")
    items = load_items(tmp_path)
    assert len(items) == 8
    got = found(tmp_path)
    assert got[:2] == [tmp_path / "images/a.jpg", tmp_path / "b.jpg"]
    assert got[2:] == [None] * 6


def test_hidden_files_in_a_folder_of_an_item_are_not_taken(tmp_path: Path) -> None:
    one = write(tmp_path / "images/a/1.jpg")
    write(tmp_path / "images/a/._1.jpg")
    write(tmp_path / "items.tsv", "item_id\na\n")
    files = several_files(load_items(tmp_path), "visual", None, None)
    assert files.fetch(0, 1) == [(one,)]


@pytest.mark.skipif(os.name == "nt", reason="file names are UTF-16 there")
def test_folders_whose_names_are_not_utf8(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/images\xff")  # noqa: PTH102
    write(tmp_path / "images/a.jpg")
    os.mkdir(os.fsencode(tmp_path) + b"/images/\xff")  # noqa: PTH102
    write(tmp_path / "items.tsv", "item_id\na\nb\n")
    files = several_files(load_items(tmp_path), "visual", None, None)
    assert files.fetch(0, 2) == [(tmp_path / "images/a.jpg",), None]


@pytest.mark.parametrize("anywhere", [False, True])
def test_a_plain_file_is_found_as_by_following_every_link(tmp_path: Path, anywhere: bool) -> None:
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (root / "images" / "deep", root / "other", elsewhere / "sub"):
        folder.mkdir(parents=True)
    for place in ("a.jpg", "images/a.jpg", "images/b.jpg", "images/deep/c.jpg", "other/d.jpg"):
        (root / place).write_bytes(b"x")
    for place in ("e.jpg", "sub/f.jpg"):
        (elsewhere / place).write_bytes(b"x")
    (root / "out").symlink_to(elsewhere)
    (root / "images" / "leads_out").symlink_to(elsewhere)
    (root / "images" / "out.jpg").symlink_to(elsewhere / "e.jpg")
    (root / "images" / "in.jpg").symlink_to(root / "other" / "d.jpg")
    names = [
        "a.jpg", "b.jpg", "images/b.jpg", "images//b.jpg", "./images/./b.jpg", "deep/c.jpg",
        "other/../images/b.jpg", "../data/a.jpg", "../elsewhere/e.jpg", "out/e.jpg",
        "out/sub/f.jpg", "leads_out/e.jpg", "images/leads_out/sub/f.jpg", "out.jpg", "in.jpg",
        "images", "deep", "", ".", "..", "images/..", "no.jpg", "no/no.jpg", "a.jpg/no.jpg",
        "images\\b.jpg", "file://a.jpg", str(elsewhere / "e.jpg"), str(root / "a.jpg"), "x" * 300,
    ]  # fmt: skip
    place, followed = (Place(root, "images", anywhere) for _ in range(2))
    object.__setattr__(followed, "_plain", lambda name: None)
    n_plain = 0
    for name in [*names, *names]:
        found, expected = place.file(name), followed.file(name)
        assert (str(found), type(found)) == (str(expected), type(expected)), name
        n_plain += place._plain(name) is not None
    assert n_plain >= 20
