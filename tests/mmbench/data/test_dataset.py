"""From a folder to index arrays: the split taken, the rows given, what notes report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmbench.data.dataset import load_split
from mmbench.data.files import read_split
from mmbench.data.splits import write_split
from mmbench.data.splitting import make_split
from mmbench.data.tables import sorted_ids
from mmbench.errors import DataError, UsageError


def given(folder: Path, **parts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, text in parts.items():
        (folder / f"{part}.tsv").write_text(text)
    return folder


TRAIN = "user_id\titem_id\trating\nu2\ti2\t5\nu1\ti9\t3\nu1\ti2\t4\nu1\ti2\t1\n"
VALID = "user_id\titem_id\trating\nu1\ti5\t5\n"
TEST = "user_id\titem_id\trating\nu2\ti9\t2\nstranger\ti2\t5\nu2\ti9\t4\n"


def test_rows_follow_the_order_of_the_ids(tmp_path: Path) -> None:
    split = load_split(given(tmp_path / "d", train=TRAIN, valid=VALID, test=TEST))
    training = split.training
    assert training.name == "d"
    # those of training first; `stranger` and i5 occur in held-out rows only
    assert training.user_ids.tolist() == ["u1", "u2", "stranger"]
    assert training.item_ids.tolist() == ["i2", "i9", "i5"]
    assert (training.train.n_users, training.n_trained) == (2, 2)
    assert list(zip(training.train.users.tolist(), training.train.items.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
    ]
    assert training.valid.items.tolist() == [2]
    # the later of two equal pairs wins, the stranger's rows come last and are said
    assert split.test.rows.users.tolist() == [1, 2]
    assert split.test.rows.items.tolist() == [1, 0]
    assert split.test.rows.ratings.tolist() == [4, 5]
    assert training.of_trained_users(split.test.rows).users.tolist() == [1]
    text = "\n".join(training.notes)
    assert "test: 1 user without training rows (1 row)" in text
    assert "train: 1 repeated pair was counted once" in text
    assert "1 item occurs outside training only" in text


def test_histories_keep_order_times_and_repetitions(tmp_path: Path) -> None:
    header = "user_id\titem_id\ttimestamp\n"
    train = "u2\ti2\t9\nu1\ti9\t5\nu1\ti2\t5\nu1\ti2\t1\nu1\ti9\t7\n"
    rows = {"valid": header + "u1\ti2\t8\n", "test": header + "new\ti2\t8\nu1\ti2\t8\n"}
    training = load_split(given(tmp_path / "a", train=header + train, **rows)).training
    history = training.histories
    assert history.indptr.tolist() == [0, 4, 5]
    assert history.items.tolist() == [0, 1, 0, 1, 0]  # i2 at 1, then i9 and i2 at 5 as in the file
    assert history.times is not None
    assert history.times.tolist() == [1, 5, 5, 7, 9]
    distinct = history.distinct(2)
    assert (distinct.users.tolist(), distinct.items.tolist()) == ([0, 0, 1], [0, 1, 0])
    without = load_split(given(tmp_path / "b", train=TRAIN, valid=VALID, test=TEST)).training
    assert without.histories.times is None
    assert without.histories.items.tolist() == [1, 0, 0, 0]  # the order of the file


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["10", "9", "0"], ["0", "9", "10"]),
        (["10", "9", "007"], ["007", "10", "9"]),
        (["b", "a", "B"], ["B", "a", "b"]),
        (["²", "3"], ["3", "²"]),
    ],
)
def test_integers_sort_as_numbers_and_nothing_else_does(
    ids: list[str], expected: list[str]
) -> None:
    assert sorted_ids(np.array(ids, object)) == expected


def test_validation_goes_by_any_of_its_names(tmp_path: Path) -> None:
    for name in ("valid", "val", "validation"):
        folder = given(tmp_path / name, train=TRAIN, test=TEST, **{name: VALID})
        assert load_split(folder).training.valid.users.size == 1


def test_which_split_is_taken(tmp_path: Path) -> None:
    folder = given(
        tmp_path / "d",
        interactions=TRAIN + "u2\ti7\t1\nu2\ti8\t1\nu2\ti5\t1\nu1\ti7\t1\nu1\ti8\t1\nu2\ti4\t1\n",
    )
    assert load_split(folder).training.split == "random:0.2,0.2,42"
    assert load_split(folder, "random:0.3,0.2,7").training.split == "random:0.3,0.2,7"
    write_split(folder / "splits" / "mine", read_split(folder, "random"))
    mine = load_split(folder)
    assert mine.training.split == "mine"
    # written and read again, the split is the same
    assert mine.training.digest == load_split(folder, "random").training.digest
    for left in (
        "mine.partial",
        ".hidden",
    ):  # what a killed split or a file manager leaves is no split
        write_split(folder / "splits" / left, read_split(folder, "random"))
    assert load_split(folder).training.split == "mine"
    write_split(folder / "splits" / "other", read_split(folder, "random"))
    with pytest.raises(
        UsageError, match="has several splits; choose one with --split: mine, other"
    ):
        load_split(folder)
    with pytest.raises(UsageError, match="no split 'theirs' .it has: mine, other"):
        load_split(folder, "theirs")
    with pytest.raises(UsageError, match="both shares must lie between 0 and 1"):
        load_split(folder, "random:1,0.1")


def test_the_digest_covers_everything_that_training_sees(tmp_path: Path) -> None:
    first = load_split(given(tmp_path / "a", train=TRAIN, valid=VALID, test=TEST))
    same = load_split(given(tmp_path / "b", train=TRAIN, valid=VALID, test=TEST))
    assert (first.training.digest, first.test.digest) == (same.training.digest, same.test.digest)
    other = load_split(given(tmp_path / "c", train=TRAIN + "u2\ti9\t1\n", valid=VALID, test=TEST))
    assert other.training.digest != first.training.digest
    other = load_split(
        given(tmp_path / "e", train=TRAIN, valid=VALID, test=TEST.replace("u2\ti9\t4", "u2\ti9\t5"))
    )
    assert other.training.digest == first.training.digest
    assert other.test.digest != first.test.digest


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "neither a split"),
        ({"train": TRAIN, "test": TEST}, "no file valid or val or validation"),
        (
            {"train": TRAIN, "valid": "user_id\titem_id\nnobody\ti2\n", "test": TEST},
            "no user of the valid part occurs",
        ),
        ({"train": "user_id\titem_id\n", "valid": VALID, "test": TEST}, "no rows"),
    ],
)
def test_incomplete_folders_say_what_is_missing(
    tmp_path: Path, parts: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_split(given(tmp_path / "d", **parts))


def test_files_of_other_names_are_named(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId\n1,2\n")
    with pytest.raises(
        DataError, match=r"`mmbench data import` makes.*or give it its name: here are ratings\.csv$"
    ):
        load_split(tmp_path)


def test_a_written_split_of_columns_of_other_names(tmp_path: Path) -> None:
    rows = "".join(f"u{n % 5}\t00{n % 7}\n" for n in range(35))
    (tmp_path / "interactions.tsv").write_text("customer\tsku\n" + rows)
    (tmp_path / "items.tsv").write_text(
        "item_id\tsku\n" + "".join(f"x{n}\t00{n}\n" for n in range(9))
    )
    columns = {"user_id": "customer", "item_id": "sku"}
    made = load_split(tmp_path, "random", columns, catalogue=True)
    make_split(tmp_path, "mine", "random", [], columns, test_ratio=0.2, valid_ratio=0.2, seed=42)
    written = load_split(tmp_path, "mine", columns, catalogue=True)
    assert written.training.digest == made.training.digest
    assert (
        set(written.training.item_ids)
        == set(made.training.item_ids)
        == {f"00{n}" for n in range(9)}
    )


def test_an_items_table_of_other_ids_is_refused(tmp_path: Path) -> None:
    folder = given(tmp_path / "d", train=TRAIN, valid=VALID, test=TEST)
    (folder / "items.tsv").write_text("item_id\nI1\nI2\n")
    with pytest.raises(
        DataError,
        match=r"none of the 2 items of the items table occurs in the interactions .'I1' there",
    ):
        load_split(folder, catalogue=True)
    load_split(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        load_split(tmp_path / "absent")


def test_two_files_for_one_part(tmp_path: Path) -> None:
    folder = given(tmp_path / "d", train=TRAIN, valid=VALID, test=TEST)
    (folder / "train.csv").write_text("user_id,item_id\nu,i\n")
    with pytest.raises(DataError, match=r"both train.tsv and train.csv"):
        load_split(folder)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("amazon-office", (4905, 2414, 31118, 9720, 12420, 6)),
        ("tiktok", (9298, 6245, 59541, 3046, 6125, 465)),
    ],
)
def test_counts_of_the_real_data(real_data: Path, name: str, counts: tuple[int, ...]) -> None:
    split = load_split(real_data / name)
    training, train = split.training, split.training.train
    held_out = (
        training.of_trained_users(training.valid).users.size,
        training.of_trained_users(split.test.rows).users.size,
        training.item_ids.size - training.n_trained,
    )
    assert (train.n_users, train.n_items, train.n_edges, *held_out) == counts


def test_the_digest_of_the_catalogue_covers_the_rows_of_strangers(tmp_path: Path) -> None:
    folders = [
        given(tmp_path / "a", train=TRAIN, valid=VALID + "new\ti1\t1\n", test=TEST),
        given(tmp_path / "b", train=TRAIN, valid=VALID, test=TEST + "new\ti1\t1\n"),
    ]
    a, b = map(load_split, folders)
    assert a.training.user_ids.tolist() == b.training.user_ids.tolist()
    assert a.catalogue_digest != b.catalogue_digest


@pytest.mark.parametrize("name", ["random:0.2.3,0.1", "random:.,0.1", "random:0.2"])
def test_a_random_split_that_is_misspelled(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no split"):
        load_split(given(tmp_path / "d", train=TRAIN, valid=VALID, test=TEST), name)


def test_pairs_that_cannot_be_found_are_said(tmp_path: Path) -> None:
    split = load_split(given(tmp_path / "d", train=TRAIN, valid=VALID, test=TEST + "u1\ti9\t5\n"))
    assert "test: 1 repeated pair was counted once, by the last row" in split.training.notes
    assert any(
        note.startswith("test: 1 pair is also in train: relevant, but")
        for note in split.training.notes
    )
    assert not any(note.startswith("valid:") for note in split.training.notes)


@pytest.mark.parametrize(("low", "said"), [(0, True), (-1, True), (1, False)])
def test_rows_that_are_rated_0_and_trained_on_are_said(
    tmp_path: Path, low: int, said: bool
) -> None:
    for part in ("train", "valid", "test"):
        rows = [f"u{u}\ti{i}\t{low if i == u else 2}" for u in range(3) for i in range(3)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(["user_id\titem_id\trating", *rows]))
    notes = [note for note in load_split(tmp_path).training.notes if "rated 0 or less" in note]
    assert bool(notes) == said
    if said:
        assert "3 of 9 rows" in notes[0] and "--filter min-rating:2" in notes[0]


def test_a_column_of_labels_is_not_passed_over(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.tsv").write_text("user_id\titem_id\tlabel\nu\ti\t0\nu\tj\t1\n")
    (note,) = [note for note in load_split(tmp_path).training.notes if "label" in note]
    assert "--columns rating=label" in note
    notes = load_split(tmp_path, columns={"rating": "label"}).training.notes
    assert any("1 of 2 rows are rated 0 or less" in note for note in notes)
