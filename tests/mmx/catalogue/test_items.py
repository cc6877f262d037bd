from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from mmbase.catalogue.files import Content, file_contents
from mmbase.catalogue.items import load_items
from mmbase.catalogue.paths import Absent
from mmx.catalogue.contents import text_contents
from mmx.errors import ContentError, DataError, UsageError
from mmx.extraction.multipart import several_files


def write(path: Path, text: str | bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def ids(root: Path) -> list[str]:
    return load_items(root).ids.to_pylist()


def files(root: Path, modality: str = "visual") -> list[Content]:
    items = load_items(root)
    return file_contents(items, modality).fetch(0, len(items))


def test_ids_are_text_in_the_order_of_the_table(tmp_path: Path) -> None:
    write(
        tmp_path / "items.tsv",
        "item_id\ttitle\n097293751X\ta\n007\tb\n7\tc\nNA\td\nnull\te\na/b\tf\n日本\tg\n 7\th\n",
    )
    items = load_items(tmp_path)
    assert items.ids.to_pylist() == ["097293751X", "007", "7", "NA", "null", "a/b", "日本", " 7"]
    assert items.id_array().tolist() == [item.encode() for item in items.ids.to_pylist()]
    assert load_items(tmp_path, limit=2).ids.to_pylist() == ["097293751X", "007"]


def test_parquet_ids_and_jsonl_ids(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    parquet.write_table(pa.table({"item_id": pa.array([7, 8])}), tmp_path / "a" / "items.parquet")
    write(tmp_path / "b" / "items.jsonl", '{"item_id": "007"}\n{"item_id": 7}\n')
    assert ids(tmp_path / "a") == ["7", "8"]
    assert ids(tmp_path / "b") == ["007", "7"]


def test_duplicates_are_named_with_both_lines(tmp_path: Path) -> None:
    write(tmp_path / "items.tsv", "item_id\ttitle\na\t1\nb\t2\n\nc\t3\nb\t4\n")
    with pytest.raises(DataError, match=r"item_id 'b' occurs twice \(lines 3 and 6\)"):
        load_items(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id\ttitle\n", "no items"),
        ("item_id\ttitle\na\tx\n\ty\n", "line 3: empty item_id"),
        (b"item_id\na\n\xff\n", "line 3: item_id .* not valid UTF-8"),
        (b"item_id\na\nb\x00c\n", "line 3: item_id .* NUL"),
        ("name\ttitle\n1\ta\n", "no column of item ids"),
        ("user_id\ttitle\n1\ta\n", "no column of item ids"),
    ],
)
def test_tables_without_proper_ids_are_refused(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    write(tmp_path / "items.tsv", text)
    with pytest.raises(DataError, match=message):
        load_items(tmp_path)


def test_a_folder_that_is_not_there_or_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        load_items(tmp_path / "absent")
    with pytest.raises(DataError, match="no items"):
        load_items(tmp_path)


def test_guesses_are_said(tmp_path: Path) -> None:
    write(tmp_path / "books.tsv", "book_id\ttitle\n1\ta\n")
    write(tmp_path / "interactions.tsv", "user_id\titem_id\nu\t1\n")
    items = load_items(tmp_path)
    assert items.ids.to_pylist() == ["1"]
    assert any("books.tsv" in note for note in items.notes)
    assert any("'book_id'" in note for note in items.notes)
    said = load_items(tmp_path, items_file="books.tsv", id_column="book_id")
    assert said.notes == ()
    write(tmp_path / "films.csv", "film_id,title\n1,a\n")
    with pytest.raises(DataError, match=r"books\.tsv, films\.csv"):
        load_items(tmp_path)


def test_the_named_table_may_not_lie_outside(tmp_path: Path) -> None:
    write(tmp_path / "other.tsv", "item_id\n1\n")
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="outside"):
        load_items(tmp_path / "data", items_file="../other.tsv")


def test_an_unknown_id_column_is_answered_with_the_closest(tmp_path: Path) -> None:
    write(tmp_path / "items.tsv", "item_id\n1\n")
    with pytest.raises(UsageError, match="Did you mean 'item_id'"):
        load_items(tmp_path, id_column="itemid")


def test_texts_are_joined_and_blank_ones_are_missing(tmp_path: Path) -> None:
    write(
        tmp_path / "items.tsv",
        b"item_id\tdescription\ttitle\tprice\n1\tD\t T \t9\n2\t\tNA\t9\n3\t  "
        b"\t\t9\n4\tok\t\xff\t9\n",
    )
    contents = text_contents(load_items(tmp_path))
    assert contents.columns == ("title", "description")
    first, second, third, fourth = contents.fetch(0, 4)
    assert (first, second, third) == ("T D", "NA", None)
    assert isinstance(fourth, ContentError)
    assert "title: not valid UTF-8" in str(fourth)
    assert contents.fetch(1, 2) == ["NA"]


def test_text_columns_have_to_exist(tmp_path: Path) -> None:
    write(tmp_path / "items.tsv", "item_id\tprice\n1\t9\n")
    items = load_items(tmp_path)
    with pytest.raises(UsageError, match="--text-columns"):
        text_contents(items)
    with pytest.raises(UsageError, match="Did you mean 'price'"):
        text_contents(items, ["prize"])
    assert text_contents(items, ["price"]).fetch(0, 1) == ["9"]


def test_the_digest_of_texts_tells_where_cells_end(tmp_path: Path) -> None:
    digests = set()
    for number, rows in enumerate(
        ["1\tab\tc\n2\td\te\n", "1\ta\tbc\n2\td\te\n", "1\tabc\t\n2\td\te\n", "1\tab\tc\n2\tde\t\n"]
    ):
        write(tmp_path / str(number) / "items.tsv", "item_id\ttitle\tbrand\n" + rows)
        digests.add(text_contents(load_items(tmp_path / str(number))).digest())
    assert len(digests) == 4


def test_files_are_matched_by_name_only(tmp_path: Path) -> None:
    write(tmp_path / "data" / "items.tsv", "item_id\na.v1\na/b\n../x\nB\nnone\nroot\ndir\n")
    root = tmp_path / "data"
    for name in ("images/a.v1.jpg", "images/a/b.jpg", "images/B.PNG", "images/B.txt", "root.jpeg"):
        write(root / name)
    write(tmp_path / "x.jpg")
    write(root / "x.jpg")
    (root / "images" / "dir.jpg").mkdir()
    assert files(root) == [
        root / "images/a.v1.jpg",
        None,
        None,
        root / "images/B.PNG",
        None,
        root / "root.jpeg",
        None,
    ]


def test_of_two_files_for_one_item_the_choice_is_fixed(tmp_path: Path) -> None:
    write(tmp_path / "items.tsv", "item_id\na\n")
    for name in ("images/a.png", "images/a.jpg", "a.jpeg"):
        write(tmp_path / name)
    assert files(tmp_path) == [tmp_path / "images/a.jpg"]
    (note,) = file_contents(load_items(tmp_path), "visual").notes
    assert note.startswith(
        "1 item has files of several extensions; only one is used (not images/a.png)"
    )


def test_files_of_no_item_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "items.tsv", "item_id\na\n")
    for name in "abc":
        write(tmp_path / "images" / f"{name}.jpg")
    notes = file_contents(load_items(tmp_path), "visual").notes
    assert any("2 visual files belong to no item" in note for note in notes)


def test_files_that_a_path_column_names_are_not_said_to_belong_to_no_item(tmp_path: Path) -> None:
    write(tmp_path / "items.tsv", "item_id\timage\na\t1.jpg\nb\t\n")
    for name in ("1", "b"):
        write(tmp_path / "images" / f"{name}.jpg")
    contents = file_contents(load_items(tmp_path), "visual")
    assert contents.fetch(0, 2) == [tmp_path / "images/1.jpg", tmp_path / "images/b.jpg"]
    assert contents.notes == ("files: column 'image' of items.tsv",)


def test_a_path_column_is_followed_inside_the_folder_only(tmp_path: Path) -> None:
    root = tmp_path / "data"
    outside = write(tmp_path / "secret.jpg")
    write(root / "pics/1.jpg")
    write(root / "images/2.jpg")
    write(root / "images/i4.jpg")
    (root / "pics/link.jpg").symlink_to(outside)
    (root / "pics/inner.jpg").symlink_to(root / "pics/1.jpg")
    (root / "pics/far").symlink_to(tmp_path)
    rows = [
        ("i1", "pics/1.jpg"), ("i2", "2.jpg"), ("i3", "pics/absent.jpg"), ("i4", ""),
        ("i5", "../secret.jpg"), ("i6", str(outside)), ("i7", "pics/link.jpg"),
        ("i8", "pics/inner.jpg"), ("i9", "pics/../../secret.jpg"), ("i10", "pics"),
        ("i11", "pics/far/secret.jpg"), ("i12", "../absent.jpg"), ("i13", str(root / "pics/1.jpg")),
        ("i14", "pics/1.jpg/x"), ("i15", "x" * 5000),
    ]  # fmt: skip
    write(
        root / "items.tsv", "item_id\timage\n" + "".join(f"{item}\t{path}\n" for item, path in rows)
    )
    found = dict(zip((item for item, _ in rows), files(root), strict=True))
    assert found["i1"] == root / "pics/1.jpg"
    assert found["i2"] == root / "images/2.jpg"
    assert isinstance(found["i3"], Absent) and found["i3"].name == "pics/absent.jpg"
    assert found["i4"] == root / "images/i4.jpg"
    assert found["i8"] == root / "pics/inner.jpg"
    assert found["i13"] == root / "pics/1.jpg"
    assert isinstance(found["i14"], Absent)
    for item in ("i5", "i6", "i7", "i9", "i11", "i12"):
        assert isinstance(found[item], ContentError), item
        assert "out of the dataset folder" in str(found[item])
    assert str(found["i10"]) == "pics: not a file"
    assert isinstance(found["i15"], ContentError)


def test_a_link_that_bears_an_id_may_not_lead_outside(tmp_path: Path) -> None:
    root = tmp_path / "data"
    outside = write(tmp_path / "secret.jpg")
    write(root / "items.tsv", "item_id\na\nb\n")
    inside = write(root / "images/b.jpg")
    (root / "images/a.jpg").symlink_to(outside)
    first, second = files(root)
    assert isinstance(first, ContentError)
    assert second == inside


def test_a_column_of_addresses_is_left_aside(tmp_path: Path) -> None:
    write(tmp_path / "items.tsv", "item_id\timage\na\thttps://example.org/a.jpg\n")
    path = write(tmp_path / "images/a.jpg")
    contents = file_contents(load_items(tmp_path), "visual")
    assert contents.fetch(0, 1) == [path]
    assert contents.columns == ()
    assert any("addresses" in note for note in contents.notes)


def test_without_a_table_the_files_are_the_items(tmp_path: Path) -> None:
    for name in ("images/b.jpg", "images/a.png", "audio/a.wav", "audio/c.flac", "d.wav"):
        write(tmp_path / name)
    items = load_items(tmp_path)
    assert items.ids.to_pylist() == ["a", "b", "c", "d"]
    assert any("no items table" in note for note in items.notes)
    assert file_contents(items, "audio").fetch(0, 4) == [
        tmp_path / "audio/a.wav",
        None,
        tmp_path / "audio/c.flac",
        tmp_path / "d.wav",
    ]
    with pytest.raises(DataError, match="no text"):
        text_contents(items)


@pytest.mark.real_data
def test_the_real_folders_are_read_as_they_are(real_data: Path) -> None:
    for name, modality, n in (("images", "visual", 1000), ("speech", "audio", 300)):
        items = load_items(real_data / name)
        found = file_contents(items, modality).fetch(0, len(items))
        assert len(items) == n
        assert all(isinstance(path, Path) for path in found)
    books = load_items(real_data / "titles")
    titles = text_contents(books).fetch(0, len(books))
    assert len(books) == 3000
    assert titles[220] == 'A Child Called "It" (Dave Pelzer #1) Dave Pelzer'


@pytest.mark.parametrize("name", ["items.parquet", "items.jsonl"])
def test_a_list_of_paths_names_several_files(tmp_path: Path, name: str) -> None:
    for file in ("a.jpg", "b.jpg"):
        write(tmp_path / "images" / file)
    if name == "items.parquet":
        images = pa.array([["a.jpg", None, "b.jpg"], ["b.jpg"], None])
        parquet.write_table(
            pa.table({"item_id": ["1", "2", "3"], "image": images}), tmp_path / name
        )
    else:
        write(tmp_path / name, '{"item_id": 1, "image": ["a.jpg", ["b.jpg"]]}\n'
              '{"item_id": 2, "image": "b.jpg"}\n{"item_id": 3}\n')  # fmt: skip
    a, b = (tmp_path / "images" / file for file in ("a.jpg", "b.jpg"))
    items = load_items(tmp_path)
    one = file_contents(items, "visual")
    assert one.fetch(0, 3) == [a, b, None]
    assert "1 cell names several files; only the first is used (--several" in one.notes[-1]
    every = several_files(items, "visual", None, None)
    assert every.fetch(0, 3) == [(a, b), (b,), None]
    assert not any("only the first" in note for note in every.notes)


def test_files_that_are_no_items_are_said(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.tga", "b.psd", "Thumbs.db", "._c.jpg"):
        (images / name).write_bytes(b"x")
    (images / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "items.json").write_text("[]")
    said = (
        r"3 files in images/ are no items.*\(a\.tga, b\.psd, gone\.jpg\).*items\.json is no table"
    )
    with pytest.raises(DataError, match=said):
        load_items(tmp_path)
    (images / "c.jpg").write_bytes(b"x")
    items = load_items(tmp_path)
    assert items.ids.to_pylist() == ["c"]
    assert [note[:8] for note in items.notes] == ["no items", "3 files ", "items.js"]


def test_a_folder_of_csv_files_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "items.csv").mkdir()
    with pytest.raises(DataError, match=r"items\.csv is a folder \(expected a file"):
        load_items(tmp_path)
