"""Vectors in and out of a store: every row keeps its id and its numbers, and nothing is guessed."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmstore import (
    FeatureSet,
    FeatureSetWriter,
    InvalidIds,
    Pairs,
    ProvenanceMismatch,
    Status,
)
from mmx.errors import DataError, UsageError
from mmx.vectors import exporters, importers
from mmx.vectors.exporters import export_features
from mmx.vectors.ids import ids_from_dataset, ids_from_file, sha256_of
from mmx.vectors.importers import Imported, import_features
from mmx.vectors.readers import FORMATS
from mmx.vectors.sources import Source

IDS = ["007", "7", "097293751X", "B00日本", "a.v1"]
MATRIX = np.arange(15, dtype=np.float32).reshape(5, 3) + 0.5


def save(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


def lines(path: Path, *text: str) -> Path:
    path.write_text("".join(line + "\n" for line in text), encoding="utf-8")
    return path


def take_in(format_name: str, source: Source, root: Path, **options: Any) -> Imported:
    return import_features(
        format_name, source, root / "features", modality="visual", name="set", **options
    )


def npy(root: Path, array: Any, ids: list[str] | None = None, **options: Any) -> FeatureSet:
    source = Source(
        save(root / "m.npy", array),
        lines(root / "ids.txt", *(ids or [f"i{r}" for r in range(len(array))])),
    )
    return FeatureSet(take_in("npy", source, root, **options).path)


# ------------------------------------------------------------------------------------------------
# ids


def test_one_id_per_line_and_ids_stay_text(tmp_path: Path) -> None:
    assert ids_from_file(lines(tmp_path / "ids.txt", *IDS), 5).ids == IDS


def test_blanks_around_an_id_belong_to_it_and_line_ends_do_not(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf a\r\nb \r\n\r\n")
    assert ids_from_file(tmp_path / "ids.txt", 2).ids == [" a", "b "]


def test_one_line_too_many_is_a_header_and_said_to_be_one(tmp_path: Path) -> None:
    found = ids_from_file(lines(tmp_path / "ids.csv", "asin", *IDS), 5)
    assert found.ids == IDS
    assert found.notes == ("ids.csv: the first line, 'asin', is a header",)


@pytest.mark.parametrize("header", [[], ["asin\titemID"]])
def test_a_mapping_says_the_row_of_each_id(tmp_path: Path, header: list[str]) -> None:
    path = lines(tmp_path / "map.tsv", *header, "b\t1", "c\t2", "a\t0")
    assert ids_from_file(path, 3).ids == ["a", "b", "c"]


def test_a_tab_separated_file_called_csv_is_read_as_what_it_is(tmp_path: Path) -> None:
    path = lines(tmp_path / "i_id_mapping.csv", "asin\titemID", "0972,1\t1", "b\t0")
    assert ids_from_file(path, 2).ids == ["b", "0972,1"]
    named = ids_from_file(path, 2, id_column="asin", row_column="itemID")
    assert named.ids == ["b", "0972,1"]
    assert named.record["id_column"] == "asin" and named.record["row_column"] == "itemID"
    assert named.record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_column_that_numbers_the_rows_in_another_order_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("asin,title,itemID,rank\nx,5,2,1\ny,red,0,1\nz,,1,2\n")
    with pytest.raises(UsageError, match="--row-column itemID"):
        ids_from_file(path, 3, id_column="asin")
    assert ids_from_file(path, 3, id_column="asin", row_column="itemID").ids == ["y", "z", "x"]
    path.write_text("asin,itemID\nx,0\ny,1\nz,2\n")
    assert ids_from_file(path, 3, id_column="asin").ids == ["x", "y", "z"]


def test_a_column_of_a_table(tmp_path: Path) -> None:
    path = lines(tmp_path / "items.csv", "n,asin,title", '1,007,"a, b"', "2,8,c")
    assert ids_from_file(path, 2, id_column="asin").ids == ["007", "8"]
    with gzip.open(tmp_path / "items.csv.gz", "wb") as stream:
        stream.write(path.read_bytes())
    assert ids_from_file(tmp_path / "items.csv.gz", 2, id_column="asin").ids == ["007", "8"]
    with pytest.raises(UsageError, match="name the column of ids"):
        ids_from_file(path, 2)
    with pytest.raises(UsageError, match="Did you mean 'asin'"):
        ids_from_file(path, 2, id_column="asim")
    with pytest.raises(UsageError, match="which column holds the ids"):
        ids_from_file(path, 2, row_column="n")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_ids_in_binary_and_json_tables(tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    table = pd.DataFrame({"asin": ["007", "8"], "row": [1, 0]})
    path = tmp_path / f"ids{suffix}"
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    assert ids_from_file(path, 2).ids == ["8", "007"]
    assert ids_from_file(path, 2, id_column="asin", row_column="row").ids == ["8", "007"]
    with pytest.raises(UsageError, match="--row-column row"):
        ids_from_file(path, 2, id_column="asin")


def test_ids_of_a_table_are_checked_like_those_of_a_dataset(tmp_path: Path) -> None:
    import pandas as pd

    path = lines(tmp_path / "ids.csv", "asin,row", "a,0", " ,1")
    with pytest.raises(DataError, match=r"ids.csv, line 3: empty asin \(1 such row\)"):
        ids_from_file(path, 2, id_column="asin", row_column="row")
    pd.DataFrame({"asin": [0.5, 1.5]}).to_parquet(tmp_path / "ids.parquet")
    with pytest.raises(DataError, match="column 'asin' has type double"):
        ids_from_file(tmp_path / "ids.parquet", 2)
    path = lines(tmp_path / "ids.jsonl", '{"asin": ["a"]}', '{"asin": ["b"]}')
    with pytest.raises(DataError, match="'asin' is a JSON list"):
        ids_from_file(path, 2)
    lines(tmp_path / "interactions.csv", "user_id,item_id", "u,0", "u,")
    with pytest.raises(DataError, match=r"interactions.csv, line 3: empty item_id"):
        ids_from_dataset(tmp_path, 2, matrix="m.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["a", "b"], r"2 ids for 3 rows"),
        (["a", "b", "c", "d", "e"], r"5 ids for 3 rows"),
        (["a", "b", "a"], r"1 id occurs more than once \(for instance 'a'\)"),
        (["a\t0", "b\t1", "c\t3"], r"'c' is said to be row 3 \(expected 0 … 2\)"),
        (["a\t0", "b\t1", "c\t1"], r"'b' and 'c' are both said to be row 1"),
        (["a\t0", "b\tx", "c\t1"], r"'x' is not a row number"),
        (["a\t0", "\t1", "c\t2"], r"row 1 has an empty id"),
        ([], r"holds no ids"),
    ],
)
def test_ids_that_do_not_fit_the_rows(tmp_path: Path, content: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ids_from_file(lines(tmp_path / "ids.txt", *content), 3)


def test_ids_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"a\nb\xff\n")
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        ids_from_file(tmp_path / "ids.txt", 2)
    with pytest.raises(DataError, match="no such file"):
        ids_from_file(tmp_path / "absent.txt", 2)
    (tmp_path / "ids.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        ids_from_file(tmp_path / "ids.tsv.gz", 2)


@pytest.mark.parametrize("header", [["user_id\titem_id"], []])
def test_row_numbers_are_ids_only_where_the_dataset_has_exactly_these(
    tmp_path: Path, header: list[str]
) -> None:
    lines(tmp_path / "train.tsv", *header, "u\t0", "u\t2")
    lines(tmp_path / "test.tsv", *header, "v\t1")
    found = ids_from_dataset(tmp_path, 3, matrix="m.npy")
    assert found.ids == ["0", "1", "2"]
    assert "exactly 0 … 2" in found.notes[0]
    with pytest.raises(
        DataError,
        match=r"3 item ids in test.tsv, train.tsv of .* are not exactly 0 … 3 \(it lacks '3'\)",
    ):
        ids_from_dataset(tmp_path, 4, matrix="m.npy")
    with pytest.raises(DataError, match=r"\(it has '2'\).*--ids FILE"):
        ids_from_dataset(tmp_path, 2, matrix="m.npy")


def test_leading_zeros_are_not_row_numbers(tmp_path: Path) -> None:
    lines(tmp_path / "items.tsv", "item_id\ttitle", "00\ta", "01\tb")
    lines(tmp_path / "interactions.tsv", "user_id\titem_id", "u\t0", "u\t1")  # items.tsv goes first
    with pytest.raises(DataError, match="it has '00'"):
        ids_from_dataset(tmp_path, 2, matrix="m.npy")


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="to take item ids from"):
        ids_from_dataset(tmp_path, 2, matrix="m.npy")
    with pytest.raises(DataError, match="no such dataset folder"):
        ids_from_dataset(tmp_path / "absent", 2, matrix="m.npy")


def test_the_ids_of_a_dataset_that_has_a_written_split_alone(tmp_path: Path) -> None:
    split = tmp_path / "splits" / "mmrec"
    split.mkdir(parents=True)
    for part, items in {"train": "01", "valid": "2", "test": "13"}.items():
        (split / f"{part}.tsv").write_text(
            "user_id\titem_id\n" + "".join(f"u\t{item}\n" for item in items)
        )
    assert ids_from_dataset(tmp_path, 4, matrix="m.npy").ids == ["0", "1", "2", "3"]


# ------------------------------------------------------------------------------------------------
# npy


def test_npy_keeps_ids_order_and_numbers(tmp_path: Path) -> None:
    features = npy(tmp_path, MATRIX, IDS)
    assert features.ids.tolist() == IDS
    matrix, present = features.matrix(IDS[::-1])
    np.testing.assert_array_equal(matrix, MATRIX[::-1])
    assert present.all()
    assert features.verify() == []


def test_the_provenance_says_where_the_vectors_are_from(tmp_path: Path) -> None:
    provenance = npy(tmp_path, MATRIX.astype(">f8"), IDS, nan_is_missing=True).provenance
    assert provenance["extractor"] == "import-npy"
    importer = provenance["importer"]
    assert importer["file"] == "m.npy" and importer["dtype"] == ">f8"
    assert importer["file_sha256"] == hashlib.sha256((tmp_path / "m.npy").read_bytes()).hexdigest()
    assert importer["ids"] == {
        "file": "ids.txt",
        "sha256": hashlib.sha256((tmp_path / "ids.txt").read_bytes()).hexdigest(),
    }
    assert importer["nan_is_missing"] is True and importer["zero_is_missing"] is False
    assert str(tmp_path) not in str(provenance)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint16", "int64", ">f4"]
)
def test_every_real_number_type_becomes_float32(tmp_path: Path, dtype: str) -> None:
    array = np.array([[1, 2], [3, 100]]).astype(dtype)
    features = npy(tmp_path, array)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features.matrix(["i0", "i1"])[0], array.astype(np.float32))


def test_float16_can_be_asked_for(tmp_path: Path) -> None:
    assert npy(tmp_path, MATRIX, dtype="float16").dtype == np.float16
    with pytest.raises(DataError, match=r"holds 70000, more than float16 can.*--dtype float32"):
        npy(tmp_path, MATRIX * 0 + 70_000, dtype="float16")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"shape \(3,\) \(expected items x dimensions\)"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.zeros((0, 3)), r"is empty"),
        (np.array([["a", "b"]]), r"holds <U1 \(expected real numbers"),
        (np.array([[1j]]), r"holds complex128"),
        (np.array([[True]]), r"holds bool"),
        (np.array([[2**24 + 1]]), r"whole numbers that float32 would change"),
        (np.array([[1e300]]), r"holds 1e\+300, more than float32 can"),
        (np.array([[np.inf, 0.0], [1.0, 2.0]]), r"1 of 2 rows hold infinity \(row 0 = 'i0'\)"),
        (
            np.array([[np.nan, 0.0], [1.0, 2.0]]),
            r"1 of 2 rows hold NaN \(row 0 = 'i0'\).*--nan-is-missing",
        ),
    ],
)
def test_arrays_that_are_refused_leave_nothing_behind(
    tmp_path: Path, array: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        npy(tmp_path, array)
    assert not (tmp_path / "features").exists()


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (tmp_path / "owned").mkdir, ()

    array = np.empty((1, 1), dtype=object)
    array[0, 0] = Evil()
    np.save(tmp_path / "m.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match="not a .npy file of plain numbers"):
        take_in("npy", Source(tmp_path / "m.npy", lines(tmp_path / "ids.txt", "a")), tmp_path)
    assert not (tmp_path / "owned").exists()


def test_files_that_are_no_npy(tmp_path: Path) -> None:
    ids = lines(tmp_path / "ids.txt", "a")
    save(tmp_path / "m.npy", np.zeros((1000, 8)))
    whole = (tmp_path / "m.npy").read_bytes()
    np.savez(tmp_path / "m.npz", a=MATRIX)
    contents = {
        "cut.npy": whole[:2000],
        "text.npy": b"hello",
        "empty.npy": b"",
        "m.npz": (tmp_path / "m.npz").read_bytes(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="plain numbers|archive of arrays"):
            take_in("npy", Source(tmp_path / name, ids), tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        take_in("npy", Source(tmp_path / "absent.npy", ids), tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        take_in("npy", Source(tmp_path, ids), tmp_path)


def test_rows_without_ids_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.npy", MATRIX)
    with pytest.raises(UsageError, match="nothing says which row is which item"):
        take_in("npy", Source(path), tmp_path)
    with pytest.raises(UsageError, match="give one of them"):
        take_in("npy", Source(path, ids=path, data=tmp_path), tmp_path)


def test_an_id_that_no_store_can_hold(tmp_path: Path) -> None:
    with pytest.raises(InvalidIds, match="NUL"):
        npy(tmp_path, MATRIX[:1], ["a\0b"])


# ------------------------------------------------------------------------------------------------
# policies


def test_nan_rows_are_missing_when_said_so(tmp_path: Path) -> None:
    array = MATRIX.copy()
    array[1] = np.nan
    array[3, 0] = np.nan
    features = npy(tmp_path, array, IDS, nan_is_missing=True)
    assert features.status.tolist() == [
        Status.OK,
        Status.MISSING,
        Status.OK,
        Status.MISSING,
        Status.OK,
    ]
    assert features.verify() == []


@pytest.mark.parametrize("zero_is_missing", [False, True])
def test_zero_rows_stay_vectors_unless_said_otherwise(
    tmp_path: Path, zero_is_missing: bool
) -> None:
    array = MATRIX.copy()
    array[2] = 0.0
    features = npy(tmp_path, array, IDS, zero_is_missing=zero_is_missing)
    assert features.counts()[Status.MISSING] == int(zero_is_missing)
    assert features.matrix(IDS)[1].tolist() == [True, True, not zero_is_missing, True, True]


def test_what_was_guessed_or_dropped_is_said(tmp_path: Path) -> None:
    from mmbase.progress import Silent

    class Listening(Silent):
        def __init__(self) -> None:
            self.said: list[str] = []

        def note(self, message: str) -> None:
            self.said.append(message)

    array = np.zeros((6, 2))
    array[5] = np.nan
    progress = Listening()
    npy(tmp_path, array, nan_is_missing=True, progress=progress)
    assert progress.said[0] == "1 row with NaN is stored as missing"
    assert progress.said[1].startswith(
        "5 rows are all zeros (row 0 = 'i0', row 1 = 'i1', row 2 = 'i2', …) and stay"
    )


def test_blocks_of_one_row_give_the_same_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).normal(size=(50, 4))
    array[7] = np.nan
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = npy(tmp_path / "whole", array, nan_is_missing=True)
    monkeypatch.setattr(importers, "BLOCK_BYTES", 1)
    parts = npy(tmp_path / "parts", array, nan_is_missing=True)
    assert whole.content_digest == parts.content_digest


def test_the_same_import_again_does_nothing_and_another_needs_restart(tmp_path: Path) -> None:
    source = Source(save(tmp_path / "m.npy", MATRIX), lines(tmp_path / "ids.txt", *IDS))
    first = take_in("npy", source, tmp_path)
    before = first.path.stat().st_mtime_ns
    again = take_in("npy", source, tmp_path)
    assert (first.already, again.already, again.digest) == (False, True, first.digest)
    assert first.path.stat().st_mtime_ns == before
    save(tmp_path / "m.npy", MATRIX + 1)
    with pytest.raises(ProvenanceMismatch, match="file_sha256"):
        take_in("npy", source, tmp_path)
    assert take_in("npy", source, tmp_path, restart=True).digest != first.digest


def test_an_interrupted_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importers, "BLOCK_BYTES", 12)
    source = Source(save(tmp_path / "m.npy", MATRIX), lines(tmp_path / "ids.txt", *IDS))
    write, calls = FeatureSetWriter.write, []

    def failing(self: FeatureSetWriter, rows: Any, features: Any) -> None:
        calls.append(rows.tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(self, rows, features)

    monkeypatch.setattr(FeatureSetWriter, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        take_in("npy", source, tmp_path)
    assert not (tmp_path / "features" / "visual" / "set.h5").exists()
    done = take_in("npy", source, tmp_path)
    assert [rows for rows in calls[3:] if rows] == [[2], [3], [4]]
    np.testing.assert_array_equal(FeatureSet(done.path).matrix(IDS)[0], MATRIX)


# ------------------------------------------------------------------------------------------------
# folders of npy


def test_a_folder_of_npy_takes_ids_from_names_without_the_last_suffix(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    save(folder / "a.v1.npy", MATRIX[0])
    save(folder / "a.v2.npy", MATRIX[1][None])
    save(folder / "a.npy.npy", MATRIX[2])
    (folder / "log.txt").write_text("x")
    (folder / "._a.v1.npy").write_text("what macOS puts beside a file on other disks")
    features = FeatureSet(take_in("npy-folder", Source(folder), tmp_path).path)
    assert features.ids.tolist() == ["a.npy", "a.v1", "a.v2"]
    np.testing.assert_array_equal(features.matrix(["a.v1", "a.v2", "a.npy"])[0], MATRIX[:3])
    listing = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("a.npy.npy", "a.v1.npy", "a.v2.npy")
    )
    assert (
        features.provenance["importer"]["file_sha256"]
        == hashlib.sha256(listing.encode()).hexdigest()
    )


def test_vectors_of_a_folder_must_be_alike(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    with pytest.raises(DataError, match=r"no \.npy files"):
        take_in("npy-folder", Source(folder), tmp_path)
    save(folder / "a.npy", MATRIX[0])
    for wrong in (MATRIX[0, :2], MATRIX[:2], MATRIX[0].astype(np.float64)):
        save(folder / "b.npy", wrong)
        with pytest.raises(
            DataError, match=r"b\.npy: .*expected one vector like that of the first file"
        ):
            take_in("npy-folder", Source(folder), tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        take_in("npy-folder", Source(folder / "a.npy"), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["x\ta.npy", "x\tb.npy"], "id 'x' occurs twice"),
        (["x\ta.npy"], "names 1 of the 2 files"),
        (["x\ta.npy", "y\tc.npy"], "expected an id and the name of a file"),
        (["x\ta.npy", "y\ta.npy"], "names 1 of the 2 files"),
    ],
)
def test_a_mapping_of_files_must_name_each_once(
    tmp_path: Path, content: list[str], message: str
) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    for name in ("a", "b"):
        save(folder / f"{name}.npy", MATRIX[0])
    with pytest.raises(DataError, match=message):
        take_in("npy-folder", Source(folder, lines(tmp_path / "map.tsv", *content)), tmp_path)


# ------------------------------------------------------------------------------------------------
# parquet


def parquet(path: Path, **columns: Any) -> Path:
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_with_a_list_column_and_null_vectors(tmp_path: Path) -> None:
    vectors = [row.tolist() for row in MATRIX]
    path = parquet(
        tmp_path / "p.parquet", item_id=IDS, title=["t"] * 5, emb=[vectors[0], None, *vectors[2:]]
    )
    features = FeatureSet(take_in("parquet", Source(path), tmp_path).path)
    assert features.ids.tolist() == IDS
    assert features.status.tolist() == [1, 2, 1, 1, 1]
    np.testing.assert_array_equal(features.matrix(IDS)[0][[0, 2, 3, 4]], MATRIX[[0, 2, 3, 4]])


def test_parquet_with_numeric_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", asin=IDS, b=MATRIX[:, 0], a=MATRIX[:, 1], text=IDS)
    features = FeatureSet(take_in("parquet", Source(path), tmp_path).path)
    np.testing.assert_array_equal(features.matrix(IDS)[0], MATRIX[:, :2])
    chosen = take_in("parquet", Source(path, columns=("a",)), tmp_path, restart=True)
    np.testing.assert_array_equal(FeatureSet(chosen.path).matrix(IDS)[0], MATRIX[:, 1:2])


def test_parquet_in_several_row_groups_and_fixed_size_lists(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(MATRIX.ravel()), 3)
    pq.write_table(
        pa.table({"id": pa.array([1, 2, 3, 4, 5]), "v": vectors}),
        tmp_path / "p.parquet",
        row_group_size=2,
    )
    features = FeatureSet(take_in("parquet", Source(tmp_path / "p.parquet"), tmp_path).path)
    np.testing.assert_array_equal(features.matrix(["5", "1"])[0], MATRIX[[4, 0]])


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        (
            {"x": ["a"], "v": [[1.0]]},
            {},
            UsageError,
            r"which column holds the ids\? --id-column NAME \(got x, v\)",
        ),
        ({"id": ["a"], "v": [[1.0]]}, {"id_column": "key"}, UsageError, "no single column 'key'"),
        ({"id": ["a", None], "v": [[1.0], [1.0]]}, {}, DataError, "row 1 has no id"),
        (
            {"id": ["a", "b"], "v": [[1.0], [1.0, 2.0]]},
            {},
            DataError,
            r"2 different lengths \[1, 2\]",
        ),
        ({"id": ["a"], "v": [["x"]]}, {}, DataError, "holds string"),
        ({"id": ["a"], "v": [[1.0]], "w": [[1.0]]}, {}, UsageError, "several list columns"),
        ({"id": ["a"], "t": ["x"]}, {}, DataError, "no list column and no numeric columns"),
        ({"id": [1.5], "v": [[1.0]]}, {}, DataError, "are double"),
        ({"id": ["a"], "v": [[1.0, None]]}, {}, DataError, "rows hold NaN"),
        ({"id": ["a"], "v": [None]}, {}, DataError, "no list column"),
        ({"id": ["a"], "t": ["x"]}, {"columns": ("t",)}, DataError, "holds string"),
    ],
)
def test_parquet_files_that_are_refused(
    tmp_path: Path,
    columns: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    path = parquet(tmp_path / "p.parquet", **columns)
    with pytest.raises(error, match=message):
        take_in("parquet", Source(path, **options), tmp_path)


def test_parquet_with_nothing_but_null_vectors(tmp_path: Path) -> None:
    import pyarrow as pa

    path = parquet(tmp_path / "p.parquet", id=["a"], v=pa.array([None], pa.list_(pa.float32())))
    with pytest.raises(DataError, match="holds only nulls"):
        take_in("parquet", Source(path), tmp_path)


def test_a_folder_of_parquet_parts(tmp_path: Path) -> None:
    """As Spark writes it, with a marker; the parts in the order of their names, a null in one."""
    folder = tmp_path / "vectors.parquet"
    folder.mkdir()
    vectors = MATRIX.tolist()
    parquet(folder / "part-00001.parquet", item_id=IDS[3:], emb=vectors[3:])
    parquet(folder / "part-00000.parquet", item_id=IDS[:3], emb=[vectors[0], None, vectors[2]])
    (folder / "_SUCCESS").touch()
    done = take_in("parquet", Source(folder), tmp_path)
    with FeatureSet(done.path) as features:
        assert features.ids.tolist() == IDS
        matrix, present = features.matrix(IDS)
        assert present.tolist() == [True, False, True, True, True]
        assert matrix[present].tolist() == [vectors[0], *vectors[2:]]
        importer = features.provenance["importer"]
    assert (importer["file"], importer["files"]) == ("vectors.parquet", 2)
    listing = "".join(f"{sha256_of(part)}  {part.name}\n" for part in sorted(folder.glob("p*")))
    assert importer["file_sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    assert take_in("parquet", Source(folder), tmp_path).already
    parquet(folder / "part-00001.parquet", item_id=IDS[3:], emb=vectors[:2])
    with pytest.raises(ProvenanceMismatch, match="file_sha256"):
        take_in("parquet", Source(folder), tmp_path)


def test_a_folder_without_parquet_parts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Parquet files in this folder"):
        take_in("parquet", Source(tmp_path / "empty"), tmp_path)
    with pytest.raises(DataError, match="not a Parquet file that can be read"):
        take_in("parquet", Source(lines(tmp_path / "empty/p.parquet", "x").parent), tmp_path)


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a Parquet file"):
        take_in("parquet", Source(lines(tmp_path / "p.parquet", "x")), tmp_path)


# ------------------------------------------------------------------------------------------------
# safetensors


def test_safetensors_with_several_tensors_and_bfloat16(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path, ids = tmp_path / "t.safetensors", lines(tmp_path / "ids.txt", *IDS)
    save_file({"visual": torch.tensor(MATRIX).bfloat16(), "bias": torch.zeros(3)}, path)
    with pytest.raises(
        UsageError, match=r"2 tensors \(bias, visual\); choose one with --tensor NAME"
    ):
        take_in("safetensors", Source(path, ids), tmp_path)
    with pytest.raises(UsageError, match="no tensor 'audio'"):
        take_in("safetensors", Source(path, ids, tensor="audio"), tmp_path)
    features = FeatureSet(take_in("safetensors", Source(path, ids, tensor="visual"), tmp_path).path)
    np.testing.assert_array_equal(
        features.matrix(IDS)[0], torch.tensor(MATRIX).bfloat16().float().numpy()
    )
    assert features.provenance["importer"]["tensor"] == "visual"
    with pytest.raises(DataError, match=r"t.safetensors:bias: shape \(3,\)"):
        take_in("safetensors", Source(path, ids, tensor="bias"), tmp_path)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    ids = lines(tmp_path / "ids.txt", *IDS)
    with pytest.raises(DataError, match="not a safetensors file"):
        take_in("safetensors", Source(lines(tmp_path / "t.safetensors", "x" * 100), ids), tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        take_in("safetensors", Source(tmp_path / "absent.safetensors", ids), tmp_path)


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("npy", {"tensor": "x"}),
        ("npy", {"columns": ("x",)}),
        ("npy-folder", {"data": Path()}),
        ("npy-folder", {"id_column": "x"}),
        ("parquet", {"ids": Path("x")}),
        ("safetensors", {"columns": ("x",)}),
    ],
)
def test_options_without_meaning_are_refused(
    tmp_path: Path, format_name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"has no meaning for --format {format_name}"):
        take_in(format_name, Source(tmp_path, **options), tmp_path)


# ------------------------------------------------------------------------------------------------
# out and back

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
LINE = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\t\r\n\ufeff"), min_size=1, max_size=12
)
BACK: dict[str, Callable[[Path, Path | None], Source]] = {
    "npy": lambda path, ids: Source(path, ids),
    "npy-folder": lambda path, ids: Source(path, ids),
    "parquet": lambda path, ids: Source(path),
    "safetensors": lambda path, ids: Source(path, ids),
}


def a_set(path: Path, ids: list[str], matrix: Any, dtype: str, missing: Any = ()) -> FeatureSet:
    with FeatureSetWriter(
        path, modality="visual", dim=matrix.shape[1], ids=ids, dtype=dtype, provenance={}
    ) as writer:
        rows = np.setdiff1d(np.arange(len(ids)), np.asarray(missing, dtype=int))
        writer.write(rows, matrix[rows])
        writer.mark_missing(np.asarray(missing, dtype=int))
        writer.finish()
    return FeatureSet(path)


@pytest.mark.parametrize("format_name", sorted(BACK))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), dtype=st.sampled_from(["float32", "float16"]))
def test_export_then_import_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, format_name: str, data: st.DataObject, dtype: str
) -> None:
    root = tmp_path_factory.mktemp("round")
    ids = data.draw(
        st.lists(TEXT if format_name == "parquet" else LINE, min_size=1, max_size=6, unique=True)
    )
    shape = (len(ids), data.draw(st.integers(1, 4)))
    values = (
        FLOATS if dtype == "float32" else st.floats(width=16, allow_nan=False, allow_infinity=False)
    )
    matrix = data.draw(hnp.arrays(dtype, shape, elements=values))
    with a_set(root / "visual" / "a.h5", ids, matrix, dtype) as features:
        out = root / f"out.{format_name}"
        done = export_features(
            features,
            format_name,
            out,
            mapping=root / "map.tsv" if format_name == "npy-folder" else None,
        )
        back = take_in(format_name, BACK[format_name](out, done.ids), root, dtype=dtype)
        assert back.digest == features.content_digest
        assert done.left_out == 0


@settings(max_examples=12, deadline=None)
@given(
    matrix=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=FLOATS),
    data=st.data(),
)
def test_npy_in_and_out_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, matrix: Any, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("npy")
    ids = data.draw(st.lists(LINE, min_size=len(matrix), max_size=len(matrix), unique=True))
    with npy(root, matrix, ids) as features:
        done = export_features(features, "npy", root / "out.npy")
    assert (root / "out.npy").read_bytes() == (root / "m.npy").read_bytes()
    assert done.ids is not None and done.ids.read_bytes() == (root / "ids.txt").read_bytes()


def test_csv_holds_every_bit_of_the_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(40, 3)) * 10.0 ** rng.integers(-38, 38, (40, 3))).astype(np.float32)
    ids = [f'i,"{row}"\n' for row in range(40)]
    with a_set(tmp_path / "visual" / "a.h5", ids, matrix, "float32") as features:
        export_features(features, "csv", tmp_path / "out.csv")
    import csv

    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["item_id", "f0", "f1", "f2"]
    assert [row[0] for row in rows] == ids
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], dtype=np.float32), matrix)


@pytest.mark.parametrize("format_name", sorted(exporters.FORMATS))
def test_rows_without_a_vector_are_left_out_and_counted(tmp_path: Path, format_name: str) -> None:
    with a_set(
        tmp_path / "visual" / "a.h5", ["a", "b", "c"], MATRIX[:3], "float32", missing=[1]
    ) as features:
        done = export_features(features, format_name, tmp_path / "out")
    assert (done.rows, done.left_out) == (2, 1)
    if format_name in FORMATS:
        back = FeatureSet(
            take_in(format_name, BACK[format_name](tmp_path / "out", done.ids), tmp_path).path
        )
        assert back.ids.tolist() == ["a", "c"]


def test_rows_without_a_vector_can_be_kept_as_nan_or_zeros(tmp_path: Path) -> None:
    with a_set(
        tmp_path / "visual" / "a.h5", ["a", "b", "c"], MATRIX[:3], "float32", missing=[1]
    ) as features:
        done = export_features(features, "npy", tmp_path / "nan.npy", absent="nan")
        assert (done.rows, done.left_out) == (3, 0)
        back = take_in("npy", Source(tmp_path / "nan.npy", done.ids), tmp_path, nan_is_missing=True)
        assert back.digest == features.content_digest
        export_features(features, "npy", tmp_path / "zero.npy", absent="zero")
    np.testing.assert_array_equal(np.load(tmp_path / "zero.npy")[1], np.zeros(3))


@pytest.mark.parametrize(
    "item_id", ["a/b", "..", ".hidden", "a:b", "a ", "x" * 250, "a\nb", "日" * 81, "a\\b"]
)
def test_ids_that_are_no_file_names_need_a_mapping(tmp_path: Path, item_id: str) -> None:
    with a_set(tmp_path / "visual" / "a.h5", ["fine", item_id], MATRIX[:2], "float32") as features:
        with pytest.raises(
            DataError, match="is no safe file name; number the files with --mapping FILE"
        ):
            export_features(features, "npy-folder", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_ids_that_some_file_systems_confuse_need_a_mapping(tmp_path: Path) -> None:
    with a_set(tmp_path / "visual" / "a.h5", ["b0", "B0"], MATRIX[:2], "float32") as features:
        with pytest.raises(DataError, match="'b0' and 'B0' are one file name on some systems"):
            export_features(features, "npy-folder", tmp_path / "out")
        done = export_features(
            features, "npy-folder", tmp_path / "out", mapping=tmp_path / "map.tsv"
        )
        assert (tmp_path / "map.tsv").read_text() == "item_id\tfile\nb0\t0.npy\nB0\t1.npy\n"
        assert (
            take_in("npy-folder", Source(tmp_path / "out", done.ids), tmp_path).digest
            == features.content_digest
        )


def test_a_folder_export_is_what_ducho_writes(tmp_path: Path) -> None:
    with a_set(tmp_path / "visual" / "a.h5", IDS, MATRIX, "float32") as features:
        export_features(features, "npy-folder", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{item_id}.npy" for item_id in IDS
    )
    assert np.load(tmp_path / "out" / "097293751X.npy").shape == (1, 3)


@pytest.mark.parametrize("item_id", ["a\tb", "a\nb", "\ufeffa"])
def test_ids_that_do_not_fit_in_a_line(tmp_path: Path, item_id: str) -> None:
    features = a_set(tmp_path / "visual" / "a.h5", [item_id], MATRIX[:1], "float32")
    with pytest.raises(DataError, match="does not fit in a line of text; use --format parquet"):
        export_features(features, "npy", tmp_path / "out.npy")
    assert list(tmp_path.glob("*.npy")) == []


def test_nothing_is_overwritten_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_set(tmp_path / "visual" / "a.h5", IDS, MATRIX, "float32") as features:
        (tmp_path / "there.npy").write_text("mine")
        with pytest.raises(DataError, match="is there already"):
            export_features(features, "npy", tmp_path / "there.npy")
        (tmp_path / "new.ids.txt").write_text("mine")
        with pytest.raises(DataError, match="the ids would go there"):
            export_features(features, "npy", tmp_path / "new.npy")
        with pytest.raises(DataError, match="cannot be written"):
            export_features(features, "npy", tmp_path / "there.npy" / "below.npy")
        with pytest.raises(UsageError, match="--mapping: has no meaning"):
            export_features(features, "npy", tmp_path / "x.npy", mapping=tmp_path / "map")

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "save", full)
        for format_name in ("npy", "npy-folder"):
            with pytest.raises(DataError, match="No space left"):
                export_features(features, format_name, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "new.ids.txt",
        "there.npy",
        "visual",
    ]


def test_sets_of_interactions_and_ragged_sets_are_not_exported(tmp_path: Path) -> None:
    path = tmp_path / "textual" / "reviews.h5"
    with FeatureSetWriter(
        path, modality="textual", dim=1, ids=Pairs(["u"], ["i"]), provenance={}
    ) as writer:
        writer.write([0], [[1.0]])
        writer.finish()
    with FeatureSet(path) as features, pytest.raises(DataError, match="set of interactions"):
        export_features(features, "npy", tmp_path / "out.npy")
