"""Reviews as a source: rows are pairs of user and item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mmstore import FeatureSet, Status
from mmx.catalogue.interactions import load_interactions
from mmx.cli import cli
from mmx.errors import DataError, UsageError

ROWS = [
    "user_id\titem_id\trating\ttitle\ttext",
    "u1\t007\t5\tnice\ta warm red coat",
    "u2\t007\t1\t\t",
    "u1\t7\t3\tso so\tthe buttons came off",
    "u2\t7\t4\tgood\tcoat with warm buttons",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "reviews.tsv").write_text("\n".join(ROWS) + "\n", encoding="utf-8")
    (tmp_path / "items.tsv").write_text("item_id\ttitle\n007\tcoat\n7\tshirt\n", encoding="utf-8")
    return tmp_path


def run(root: Path, *more: str) -> Any:
    line = [
        "extract",
        "--modality",
        "textual",
        "--model",
        "tfidf-lsa",
        "--data",
        str(root),
        "--source",
        "interaction",
    ]
    return CliRunner().invoke(cli, [*line, *more])


def test_every_review_has_a_vector_that_is_found_by_user_and_item(root: Path) -> None:
    result = run(root)
    assert result.exit_code == 0, result.stderr
    assert "text: title + text of reviews.tsv" in result.stderr
    assert "a model must not see these" in result.stderr
    with FeatureSet(root / "features/textual/tfidf-lsa-interactions.h5") as features:
        assert features.source == "interaction"
        assert features.ids.tolist() == [["u1", "007"], ["u2", "007"], ["u1", "7"], ["u2", "7"]]
        assert features.status.tolist() == [Status.OK, Status.MISSING, Status.OK, Status.OK]
        found, present = features.matrix([("u2", "7"), ("u1", "007"), ("u2", "007")])
        assert present.tolist() == [True, True, False]
        assert np.array_equal(found[1], features.matrix([("u1", "007")])[0][0])
        assert features.verify() == []
    assert run(root).exit_code == 0


def test_the_set_of_items_lies_beside_it(root: Path) -> None:
    assert run(root).exit_code == 0
    line = ["extract", "--modality", "textual", "--model", "tfidf-lsa", "--data", str(root)]
    assert CliRunner().invoke(cli, line).exit_code == 0
    assert sorted(p.name for p in (root / "features/textual").glob("*.h5")) == [
        "tfidf-lsa-interactions.h5",
        "tfidf-lsa.h5",
    ]


def test_a_corrupt_review_is_named_by_user_and_item(root: Path) -> None:
    (root / "reviews.tsv").write_bytes("\n".join(ROWS).encode() + b"\nu3\t7\t1\tbad\t\xff\n")
    result = run(root)
    assert result.exit_code == 3
    assert "u3 on 7: text: not valid UTF-8" in result.stderr


def test_a_limit_keeps_users_and_items_together(root: Path) -> None:
    assert len(load_interactions(root, limit=3).users) == len(load_interactions(root, limit=3)) == 3


def test_a_pair_that_occurs_twice_is_refused_with_both_lines(root: Path) -> None:
    (root / "reviews.tsv").write_text("\n".join([*ROWS, ROWS[2]]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"u2 on 007 occurs twice \(lines 3 and 6\)"):
        load_interactions(root)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("item_id\ttext\na\tb\n", "no column of users"),
        ("user_id\ttext\na\tb\n", "no column of item ids"),
    ],
)
def test_a_table_without_users_or_items(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "interactions.tsv").write_text(table, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_interactions(tmp_path)


def test_no_table_or_another_one(root: Path, tmp_path: Path) -> None:
    (root / "reviews.tsv").rename(root / "opinions.tsv")
    with pytest.raises(DataError, match="no table of interactions"):
        load_interactions(root)
    assert (
        len(
            load_interactions(
                root, items_file="opinions.tsv", user_column="user_id", id_column="item_id"
            )
        )
        == 4
    )
    outside = root.parent / f"{root.name}.tsv"
    outside.write_text("\n".join(ROWS), encoding="utf-8")
    with pytest.raises(UsageError, match="outside"):
        load_interactions(root, items_file=f"../{outside.name}")


def test_reviews_are_texts(root: Path) -> None:
    line = ["extract", "--modality", "visual", "--model", "colour-hog", "--source", "interaction"]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 2
    assert "source interaction is about texts" in result.stderr
