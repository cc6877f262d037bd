"""What was taken first is kept in `dataset.json`, beside what else that holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmbase.choices import (
    recall,
    recall_columns,
    recall_texts,
    remember,
    remember_columns,
    remember_texts,
)


def test_the_first_choice_stays_and_the_document_too(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    file.write_text('{"name": "shop"}')
    assert recall(tmp_path) == {}
    remember(tmp_path, "split", "random:0.2,0.2,42")
    remember(tmp_path, "split", "other")
    remember(tmp_path, "features", {"visual": "a"})
    assert recall(tmp_path) == {"split": "random:0.2,0.2,42", "features": {"visual": "a"}}
    assert json.loads(file.read_text())["name"] == "shop"
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


@pytest.mark.parametrize("content", ["[1]", "{", "", "[" * 5000, '{"taken": 3}'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    assert recall(tmp_path) == {}
    if not content.startswith("{") or content == "{":
        remember(tmp_path, "split", "a")
        assert (tmp_path / "dataset.json").read_text() == content


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    remember(tmp_path / "absent", "split", "a")
    assert recall(tmp_path / "absent") == {}


def test_columns_of_roles_and_of_texts_are_kept_beside_each_other(tmp_path: Path) -> None:
    remember_texts(tmp_path, "items", ["Titel", "Marke"])
    remember_columns(tmp_path, "items", {"item_id": "Artikel"})
    remember_columns(tmp_path, "interactions", {"user_id": "Kunde"})
    assert recall_texts(tmp_path, "items") == ["Titel", "Marke"]
    assert recall_columns(tmp_path, "items") == {"item_id": "Artikel"}
    remember_texts(tmp_path, "items", ["Text"])
    assert recall_texts(tmp_path, "items") == ["Text"]
    assert recall_texts(tmp_path, "interactions") == []
    assert recall_columns(tmp_path, "items") == {"item_id": "Artikel"}
    assert recall_columns(tmp_path, "interactions") == {"user_id": "Kunde"}


@pytest.mark.parametrize("texts", ['"Titel"', "3", "null", "[1]", "{}"])
def test_texts_of_another_kind_are_none(tmp_path: Path, texts: str) -> None:
    document = {"columns": {"items": {"texts": json.loads(texts)}}}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    assert recall_texts(tmp_path, "items") == []
