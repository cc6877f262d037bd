"""Columns that are named once are known from then on, to both tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmbase.catalogue.items import load_items
from mmbase.choices import recall_columns, remember_columns
from mmbench.cli import cli
from mmbench.data.dataset import load_split
from mmbench.data.files import read_known
from mmbench.errors import DataError
from mmx.catalogue.interactions import load_interactions

GIVEN = ("--columns", "user_id=who", "--columns", "item_id=what")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    rows = [f"u{n % 5}\ti{(n * 7) % 11}\t{n}" for n in range(60)]
    (folder / "interactions.tsv").write_text("who\twhat\ttimestamp\n" + "\n".join(rows) + "\n")
    items = "".join(f"i{n}\tthing {n}\n" for n in range(12))
    (folder / "items.tsv").write_text("what\ttitle\n" + items)
    return folder


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_columns_are_remembered_with_the_dataset(data: Path) -> None:
    (data / "dataset.json").write_text('{"name": "mine"}')
    with pytest.raises(DataError, match="--columns user_id=NAME,item_id=NAME"):
        load_split(data)
    given = run("data", "stats", str(data), *GIVEN)
    again = run("data", "stats", str(data))
    assert "as given before" not in given
    assert "columns as given before (dataset.json): user_id=who, item_id=what" in again
    assert given.partition("digest")[2].split()[0] == again.partition("digest")[2].split()[0]
    document = json.loads((data / "dataset.json").read_text())
    assert document == {
        "name": "mine",
        "columns": {"interactions": {"user_id": "who", "item_id": "what"}},
    }
    run("data", "split", str(data), "--name", "a", *GIVEN)
    assert "there already" in run("data", "split", str(data), "--name", "a")
    assert "who" not in (data / "splits" / "a" / "train.tsv").read_text()
    assert load_split(data, "a").training.n_trained  # parts with our names are read as ever
    run("data", "filter", str(data), "--filter", "kcore:2", "--out", str(data / "out"))
    run("train", "--data", str(data), "--model", "most-popular", "--out", str(data / "runs"))


def test_both_tools_know_them(data: Path) -> None:
    with pytest.raises(DataError):
        load_items(data)
    load_split(data, "random", {"user_id": "who", "item_id": "what"})
    items = load_items(data)
    assert len(items.ids) == 12
    assert "item_id: column 'what', as given before (dataset.json)" in items.notes
    (data / "interactions.tsv").write_text("who\twhat\tx\nu\ti\ta\n")
    assert load_interactions(data).users.to_pylist() == ["u"]


def test_what_is_given_goes_first_and_is_remembered_instead(data: Path) -> None:
    path = data / "interactions.tsv"
    read_known(data, path, {"user_id": "what", "item_id": "who"})  # the wrong way round
    assert read_known(data, path).user_ids[0] == "i0"
    right = read_known(data, path, {"user_id": "who", "item_id": "what"})
    assert (right.user_ids[0], right.note) == ("u0", "")
    assert read_known(data, path).user_ids[0] == "u0"
    assert recall_columns(data, "interactions") == {"user_id": "who", "item_id": "what"}


def test_a_table_without_these_columns_is_read_as_ever(data: Path) -> None:
    remember_columns(data, "interactions", {"user_id": "nobody"})
    path = data / "interactions.tsv"
    path.write_text("user_id\titem_id\nu\ti\n")
    table = read_known(data, path)
    assert (table.user_ids.tolist(), table.note) == (["u"], "")
    path.write_text("a\tb\tc\nu\ti\tj\n")
    with pytest.raises(DataError, match="nobody"):
        read_known(data, path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"columns": 3}', '{"columns": {"items": [1]}}'])
def test_a_strange_dataset_json_is_no_memory(data: Path, text: str) -> None:
    (data / "dataset.json").write_text(text)
    assert recall_columns(data, "items") == {}
    remember_columns(data, "items", {"item_id": "what"})
    kept = (data / "dataset.json").read_text()
    assert kept == text or json.loads(kept)["columns"] == {"items": {"item_id": "what"}}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("t_dat,customer_id,article_id,price", "user_id=customer_id,item_id=article_id"),
        ("price,visitorid,sku", "user_id=visitorid,item_id=sku"),
        ("price,qty,when", "user_id=NAME,item_id=NAME"),
        ("price,clientid,user_id", "item_id=NAME"),
    ],
)
def test_the_example_names_a_plausible_column(tmp_path: Path, header: str, expected: str) -> None:
    path = tmp_path / "interactions.csv"
    path.write_text(header + "\n" + ",".join("x" * (header.count(",") + 1)) + "\n")
    with pytest.raises(DataError) as error:
        read_known(tmp_path, path)
    assert str(error.value).endswith(f"--columns {expected}")
