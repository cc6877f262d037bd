"""The conventions of a dataset folder: both tools give the same answer to the same tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mmbase.catalogue.items import load_items
from mmbase.dataset import checked_ids, columns_of, find_table, item_id_column, open_interactions
from mmbase.errors import DataError, ToolError
from mmbase.tables import open_table
from mmbench.data.files import read_item_ids
from mmbench.data.tables import read_interactions
from mmx.catalogue.interactions import load_interactions
from mmx.finetuning import histories


def outcome(read: object, *arguments: object) -> object:
    """Return what a reader returns, or the type and text of its error."""
    try:
        return read(*arguments)
    except ToolError as error:
        return type(error), str(error)


def both_item_ids(root: Path) -> tuple[object, object]:
    return (outcome(lambda: load_items(root).ids.to_pylist()), outcome(lambda: read_item_ids(root)))


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("uid,parent_key,title", None),
        ("UserID,title", None),
        ("user_id:token,title", None),
        ("reviewerID,userid,title", None),
        ("name,title", None),
        ("uid,movie_id,title", 1),
        ("uid,parent_asin", 1),
        ("user,item,title", 1),
        ("id,item_id", 1),
        ("asin,item_id", 1),
        ("parent_asin,asin", 1),
        ("id,itemID", 1),
        ("title,movieId", 1),
        ("item,id", 1),
        ("title,track_id,price", 1),
        ("item,track_id", 1),
        ("title, ITEM_ID ", 1),
        ("user_id,item_id:token", 1),
        ("title,item_id,item_id", "2 columns are named item_id"),
        ("user_id,track_id,track_id", "2 columns are named track_id"),
    ],
)
@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_both_tools_take_the_same_column_of_item_ids(
    tmp_path: Path, header: str, column: int | str | None, suffix: str
) -> None:
    names = header.split(",")
    rows = [[f"{place}-{n}" for place in range(len(names))] for n in range(3)]
    text = "\n".join(",".join(row) for row in [names, *rows])
    (tmp_path / f"items{suffix}").write_text(text.replace(",", "\t") if suffix == ".tsv" else text)
    mmx, mmbench = both_item_ids(tmp_path)
    assert mmx == mmbench
    if isinstance(column, int):
        assert mmx == [row[column] for row in rows]
    else:
        assert mmx[0] is DataError
        wanted = "no column of item ids" if column is None else column
        assert wanted in mmx[1]


def test_a_table_of_users_is_refused_with_the_flags_of_both_tools(tmp_path: Path) -> None:
    (tmp_path / "items.tsv").write_text("uid\tparent_key\ttitle\nu\tp\tt\n")
    with pytest.raises(
        DataError,
        match=r"expected item_id; got uid, parent_key, title\).*"
        r"--id-column NAME.*--columns item_id=NAME",
    ):
        item_id_column(open_table(tmp_path / "items.tsv"))


@pytest.mark.parametrize(
    "text",
    [
        b"item_id\ttitle\n",
        b"item_id\ttitle\na\tx\n\ty\n",
        b"item_id\na\n\xff\n",
        b"item_id\na\nb\x00c\n",
        b"item_id\ttitle\na\tx\nb\n",
        b'item_id\ttitle\n"a\tb"\tx\n',
        b'item_id\ttitle\n"a" b\tx\n',
        b"item_id\ttitle\n007\t\xff\n 7\t\n",
        b"",
    ],
)
def test_both_tools_refuse_or_read_the_same_ids(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "items.tsv").write_bytes(text)
    mmx, mmbench = both_item_ids(tmp_path)
    assert mmx == mmbench


def test_two_tables_of_items_are_refused_by_both_tools(tmp_path: Path) -> None:
    for name in ("items.tsv", "items.csv"):
        (tmp_path / name).write_text("item_id\na\n")
    mmx, mmbench = both_item_ids(tmp_path)
    assert (
        mmx == mmbench == (DataError, f"{tmp_path}: both items.tsv and items.csv; keep one of them")
    )


@pytest.mark.parametrize(
    "header",
    ["user_id\titem_id", "userID\titemID", "uid\tiid", "item\tuser", "asin\treviewerID",
     "user\tuser_id\tparent_asin\tasin", "user_id:token\titem_id:token"],
)  # fmt: skip
def test_both_tools_read_the_same_users_and_items(tmp_path: Path, header: str) -> None:
    names = header.split("\t")
    rows = ["\t".join(f"{name}{n}" for name in names) for n in range(4)]
    path = tmp_path / "interactions.tsv"
    path.write_text("\n".join([header, *rows]) + "\n")
    ours, theirs = read_interactions(path), load_interactions(tmp_path)
    assert ours.user_ids.tolist() == theirs.users.to_pylist()
    assert ours.item_ids.tolist() == theirs.ids.to_pylist()


@pytest.mark.parametrize("header", ["", "userId\tmovieId\n", "user_id:token\titem_id:token\n"])
def test_fine_tuning_sees_the_pairs_that_training_sees(tmp_path: Path, header: str) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(header + 'u\ti1\nu\t"i2"\nv\ti1\n')
    (tmp_path / "items.csv").write_text('item_id\ni1\n"""i2"""\n')
    table = read_interactions(path)
    assert table.item_ids.tolist() == ["i1", '"i2"', "i1"]
    assert [own.tolist() for own in histories(path, load_items(tmp_path))] == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "given", "header"),
    [
        ("1\t2\n", (), False),
        ("u1\ti1\t5\n", (), False),
        ("user_id\titem_id\n", (), True),
        ("User_ID \t itemId\n", (), True),
        ("user_id\tsku\n", (), False),  # one known name could be an id
        ("customer\tsku\n", ("sku",), True),
        ("customer\tsku\tvalue\n", (), True),  # no rating is called value
    ],
)
def test_a_header_is_recognised_by_its_names(
    tmp_path: Path, text: str, given: tuple[str, ...], header: bool
) -> None:
    (tmp_path / "a.tsv").write_text(text)
    table = open_interactions(tmp_path / "a.tsv", given)
    assert table.header == header
    if not header:
        assert table.columns == ("user_id", "item_id", "rating")[: len(table.columns)]


def test_the_last_row_of_a_file_needs_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("u\ti")
    table = open_interactions(path)
    assert checked_ids(table, "item_id", table.read(["item_id"])["item_id"]).to_pylist() == ["i"]


def test_tables_are_found_by_stem_and_suffix(tmp_path: Path) -> None:
    assert find_table(tmp_path, ("valid", "val")) is None
    (tmp_path / "val.inter").touch()
    (tmp_path / "valid.xlsx").touch()
    assert find_table(tmp_path, ("valid", "val")) == tmp_path / "val.inter"
    (tmp_path / "valid.tsv.gz").touch()
    with pytest.raises(DataError, match=r"both valid\.tsv\.gz and val\.inter"):
        find_table(tmp_path, ("valid", "val"))


def test_roles_keep_the_order_of_the_table() -> None:
    names = ("parent_asin", "USER", "asin", "uid", "title")
    assert columns_of("item_id", names) == ["parent_asin", "asin"]
    assert columns_of("user_id", names) == ["USER", "uid"]


def test_items_of_parquet_and_json_lines(tmp_path: Path) -> None:
    frame = pd.DataFrame({"uid": ["u", "v"], "sku_id": [7, 8], "title": ["a", "b"]})
    for name in ("parquet", "jsonl"):
        (tmp_path / name).mkdir()
    frame.to_parquet(tmp_path / "parquet/items.parquet")
    frame.to_json(tmp_path / "jsonl/items.jsonl", orient="records", lines=True)
    for name in ("parquet", "jsonl"):
        assert both_item_ids(tmp_path / name) == (["7", "8"], ["7", "8"])
    frame.assign(sku_id=[7.0, 8.0]).to_parquet(tmp_path / "parquet/items.parquet")
    mmx, mmbench = both_item_ids(tmp_path / "parquet")
    assert mmx == mmbench
    assert "may have lost digits" in mmx[1]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("user_id,isbn\nu1,i1\nu2,i2\n", "no column is recognised as item_id"),
        ("customer,article\nu1,i1\nu2,i2\n", "'customer' and 'article', a header or a row"),
        ("alice,apple\nbob,pear\nalice,pear\n", 3),  # a name of columns does not recur
        ("u1,i1\nu2,i2\n", 2),
        ("user_id,item_id\nu1,i1\nuser_id,item_id\nu2,i2\n", "line 3: the header, .* once more"),
    ],
)
def test_a_header_is_never_a_row(tmp_path: Path, text: str, rows: int | str) -> None:
    path = tmp_path / "interactions.csv"
    path.write_text(text)
    if isinstance(rows, int):
        assert len(read_interactions(path)) == rows
    else:
        with pytest.raises(ToolError, match=rows):
            read_interactions(path)


def test_parent_asin_is_the_item_and_asin_its_variant(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("asin,parent_asin,user_id,text\nA1,P,u,good\n")
    assert read_interactions(tmp_path / "reviews.csv").item_ids.tolist() == ["P"]
    assert load_interactions(tmp_path).ids.to_pylist() == ["P"]


def test_both_tools_keep_blanks_around_ids_and_say_so(tmp_path: Path) -> None:
    for name, head in (("items", "item_id,title"), ("interactions", "item_id,user_id")):
        (tmp_path / f"{name}.csv").write_text(f"{head}\n a,t\nb ,t\nc,t\n")
    said = "csv: 2 values of item_id begin or end with a blank"
    assert both_item_ids(tmp_path) == ([" a", "b ", "c"], [" a", "b ", "c"])
    assert any(said in note for note in load_items(tmp_path).notes)
    assert any(said in note for note in load_interactions(tmp_path).notes)
    assert said in read_interactions(tmp_path / "interactions.csv").note


def test_an_id_costs_what_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "items.tsv"
    path.write_text("item_id\n" + "x" * 25_000 + "\n")
    mmx, mmbench = both_item_ids(tmp_path)
    assert mmx == mmbench
    assert "line 2: item_id 'xxxxxxxxxxxxxxxxxxxx'… has 25,000 bytes" in mmx[1]
    monkeypatch.setattr("mmbase.catalogue.items._HARMLESS", 1000)
    path.write_text("item_id\n" + "x" * 900 + "\n" + "".join(f"{n}\n" for n in range(100)))
    with pytest.raises(DataError, match="101 ids are kept at the length of the longest"):
        load_items(tmp_path)
