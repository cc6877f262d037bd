"""Tables of one's own: what a file is, what its columns mean, and what is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from mmbench.commands.exchange import import_
from mmbench.data.exchange.bundle import WHOLE, texts_of
from mmbench.data.exchange.tables import read_tables
from mmbench.data.files import read_items
from mmbench.data.tables import read_interactions
from mmbench.errors import DataError, ToolError, UsageError


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(import_, [str(one) for one in arguments])


def pairs(path: Path) -> list[tuple[str, str]]:
    read = read_interactions(path)
    return list(zip(read.user_ids.tolist(), read.item_ids.tolist(), strict=True))


def test_the_preview_says_what_was_understood_and_writes_nothing(tmp_path: Path) -> None:
    orders = write(tmp_path / "orders.csv", "Customer,SKU,Stars,shop", "c1,007,4,x", "c2,8,5,y")
    out = tmp_path / "out"
    done = call(orders, "--out", out, "--preview")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "orders.csv: interactions, 2 rows",
        "  user_id  Customer  c1",
        "  item_id  SKU       007",
        "  rating   Stars     4",
        "  not read: shop",
        f"{out} (not written): 2 interactions of 2 users and 2 items; ratings 4 to 5",
    ]
    assert not out.exists()
    assert call(orders, "--out", out).exit_code == 0
    assert pairs(out / "interactions.tsv") == [("c1", "007"), ("c2", "8")]
    (imported,) = json.loads((out / "dataset.json").read_text())["imported"]
    assert imported["columns"] == {"user_id": "Customer", "item_id": "SKU", "rating": "Stars"}
    again = call(orders, "--out", out)
    assert isinstance(again.exception, DataError) and "exists already" in str(again.exception)


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        ("customer_id,visitor_id,item", UsageError, "which column is user_id, customer_id or vis"),
        ("user,product_id,sku", UsageError, "which column is item_id, product_id or sku"),
        ("user,item,created_at,ts", UsageError, "which column is timestamp, created_at or ts"),
        ("who,what,why", DataError, "no column is recognised as user_id or item_id"),
    ],
)
def test_what_could_be_several_or_no_columns_is_asked(
    tmp_path: Path, header: str, error: type[ToolError], message: str
) -> None:
    row = ",".join(f"x{place}" for place in range(header.count(",") + 1))
    path = write(tmp_path / "log.csv", header, row)
    with pytest.raises(error, match=message):
        read_tables([path], {})


def test_a_column_that_no_file_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "who,what", "u,i")
    with pytest.raises(UsageError, match=r"user_id in any of the files 'hwo'\. Did you mean 'who'"):
        read_tables([path], {"user_id": "hwo", "item_id": "what"})
    with pytest.raises(UsageError, match="unknown role in --columns 'usr'"):
        read_tables([path], {"usr": "who"})
    bundle, _ = read_tables([path], {"user_id": "who", "item_id": "what"})
    assert bundle.parts[WHOLE].user_ids.tolist() == ["u"]


def test_numbers_without_a_header_are_asked_about_and_places_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "log.txt", "1\t2\t4\t1500000000", "2\t1\t3\t1500000001")
    with pytest.raises(UsageError, match="which are the users"):
        read_tables([path], {})
    items = write(tmp_path / "titles.csv", "id,title", "1,a", "2,b")
    bundle, told = read_tables([path, items], {"user_id": "2", "item_id": "1"})
    table = bundle.parts[WHOLE]
    assert table.user_ids.tolist() == ["2", "1"] and table.item_ids.tolist() == ["1", "2"]
    assert table.ratings is not None and table.ratings.tolist() == [4, 3]
    assert told[0].columns[0] == ("user_id", "column 2", "2")
    assert told[0].unread == ()  # the cells of the first line are no names
    assert bundle.items is not None and bundle.items["title"].tolist() == ["a", "b"]


def test_rows_without_an_id_are_dropped_on_request_and_counted(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item,rating", "u,i,1", ",i,2", "v, ,3", "v,j,4")
    items = write(tmp_path / "items.csv", "item,title", "i,a", ",b", "j,c")
    with pytest.raises(DataError, match=r"log.csv, line 3: empty user \(1 such row\)"):
        read_tables([log, items], {})
    out = tmp_path / "out"
    done = call(log, items, "--out", out, "--drop-empty")
    assert done.exit_code == 0, done.output
    assert "dropped: 2 rows without a user or an item" in done.output
    assert pairs(out / "interactions.tsv") == [("u", "i"), ("v", "j")]
    texts = read_items(out)
    assert texts is not None and texts.to_numpy().tolist() == [["i", "a"], ["j", "c"]]


def test_several_files_are_joined(tmp_path: Path) -> None:
    first = write(tmp_path / "may.csv", "user,item,date", "u,i,2024-05-01")
    second = tmp_path / "june.parquet"
    when = pd.to_datetime(["2024-06-01 00:00:00.5"])
    pd.DataFrame({"user": ["v"], "item": ["j"], "date": when}).to_parquet(second)
    table = read_tables([first, second], {})[0].parts[WHOLE]
    assert table.user_ids.tolist() == ["u", "v"]
    assert table.numbers()["timestamp"] == ["1714521600", "1717200000.5"]
    third = write(tmp_path / "july.csv", "user,item", "w,k")
    with pytest.raises(DataError, match="timestamps are in 1 of 2 tables"):
        read_tables([first, third], {})


def test_a_table_of_users_is_left_out_and_said(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "customer_id,article_id", "u,i")
    users = write(tmp_path / "customers.csv", "customer_id,age", "u,33")
    _, told = read_tables([users, log], {})
    assert [one.kind for one in told] == ["left out", "interactions"]
    ratings = write(tmp_path / "ratings.dat", "1::2::3::978300760", "2::3::3::978300761")
    users = write(tmp_path / "users.dat", "1::F::1::10::48067", "2::M::56::16::70072")
    _, told = read_tables([ratings, users], {})
    assert [one.kind for one in told] == ["interactions", "left out"]
    genres = "|".join("01" * 9 + "0")
    films = write(tmp_path / "u.item", f"1|Film|01-Jan-1995||http://x|{genres}")
    log = write(tmp_path / "u.data", "1\t1\t3\t978300760", "2\t1\t5\t978300761")
    people = write(tmp_path / "u.user", "1|24|M|technician|85711", "2|53|F|other|94043")
    bundle, told = read_tables([log, films, people], {})
    assert [one.kind for one in told] == ["interactions", "items", "left out"]
    assert bundle.items is not None and bundle.items["title"].tolist() == ["Film"]


def test_dates_and_plain_numbers_are_not_joined(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", "user_id,item_id,timestamp", "u,i,2023-11-15")
    two = write(tmp_path / "b.csv", "user_id,item_id,timestamp", "u,j,45200")
    with pytest.raises(DataError, match="plain numbers, such as 45200, in others"):
        read_tables([one, two], {})
    with pytest.raises(DataError, match="no interactions among them"):
        read_tables([write(tmp_path / "items.csv", "item_id,title", "i,a")], {})


def test_an_item_counts_once_and_texts_get_the_names_that_mmx_knows(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,sku", "u,1")
    items = tmp_path / "items.jsonl"
    records = [
        {"sku": "1", "prod_name": "a\nb", "tags": ["x", "y"], "size": {"w": 1}, "n": 2.5},
        {"sku": "1", "prod_name": "c", "tags": [], "n": None},
    ]
    items.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    done = call(log, items, "--out", out)
    assert done.exit_code == 0, done.output
    assert "1 row is of an item that occurs earlier, e.g. '1'; the first counts" in done.output
    assert "not read: size" in done.output
    (row,) = map(json.loads, (out / "items.jsonl").read_text().splitlines())
    assert row == {"item_id": "1", "title": "a\nb", "tags": ["x", "y"], "n": "2.5"}


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.xlsx", "save it as CSV"), ("a.json", "name it .jsonl"), ("absent.csv", "no such file")],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, message: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        read_tables([tmp_path / name], {})


def test_options_of_files_and_of_folders_are_not_mixed(tmp_path: Path) -> None:
    log, out = write(tmp_path / "log.csv", "user,item", "u,i"), tmp_path / "out"
    for arguments in (
        [log, tmp_path, "--out", out],
        [log, "--format", "recbole", "--out", out],
        [tmp_path, "--drop-empty", "--out", out],
    ):
        assert isinstance(call(*arguments).exception, UsageError)
    assert not out.exists()


def test_an_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": ["u", "v"], "item": ["i", "j"]}, index=np.array([5, 3]))
    frame.to_parquet(tmp_path / "log.parquet")
    _, (one,) = read_tables([tmp_path / "log.parquet"], {})
    assert one.unread == ("__index_level_0__",)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"Titel": ["rote Lampe", "blauer Stuhl", ""]}, ["Titel"]),
        ({"Titel": ["Lampe", "Stuhl", "Tisch"], "EAN": ["A1", "B2", "C3"]}, ["Titel"]),
        ({"Farbe": ["rot", "blau", ""], "Titel": ["eine Lampe", "ein Stuhl", "x"]}, ["Titel"]),
        ({"Titel": ["rote Lampe", "", ""], "title": ["1", "2", "3"]}, []),
        ({"Preis": ["1", "2,5", "3"], "Bild": ["a/b.jpg", "c.png", ""]}, []),
        ({"Seit": ["1 Mai 2024", "2 Mai 2024", "3 Mai 2024"], "Link": ["http://a"] * 3}, []),
        ({"Worte": [["rot", "blau"], ["rot", "x-rot"], ["a"]], "Leer": ["", "", ""]}, ["Worte"]),
        ({"Bild": ["a b.jpg", "der Stuhl.PNG", "c d.webp"]}, []),
        ({}, []),
    ],
)
def test_texts_are_recognised_by_their_cells(
    columns: dict[str, list[Any]], found: list[str]
) -> None:
    assert texts_of(pd.DataFrame({"item_id": ["a", "b", "c"], **columns})) == found


def test_columns_of_names_of_files_get_the_names_that_mmx_knows(tmp_path: Path) -> None:
    rows = [f"{n},p{n}.JPG,s{n}.wav,http://x/{n}.jpg" for n in range(5)]
    items = write(tmp_path / "items.csv", "sku,Foto,Ton,web", *rows, "9,,,")
    log = write(tmp_path / "log.csv", "customer_id,sku", "u,1", "u,2", "v,9")
    shown = call(items, log, "--out", tmp_path / "out").output
    assert "image    Foto  p0.JPG" in shown and "audio    Ton   s0.wav" in shown
    head = (tmp_path / "out/items.tsv").read_text().splitlines()[0]
    assert head == "item_id\timage\taudio\tweb"
