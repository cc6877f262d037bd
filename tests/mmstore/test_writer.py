"""The writer: refusals, resuming, retrying, restarting, locking, and full disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmstore import (
    FeatureSet,
    FeatureSetWriter,
    InvalidIds,
    InvalidInput,
    NotAFeatureSet,
    Pairs,
    ProvenanceMismatch,
    Status,
    StoreAccess,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreWarning,
)
from mmstore.spec import DENSE, LAYOUTS, RAGGED
from mmstore.testing import random_content

IDS = [f"item {row}" for row in range(20)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "visual" / "some-set.h5"


def open_writer(path: Path, **options: Any) -> FeatureSetWriter:
    defaults: dict[str, Any] = {
        "modality": "visual",
        "dim": 2,
        "ids": ["a", "b", "c"],
        "provenance": {},
    }
    return FeatureSetWriter(path, **(defaults | options))


def files(path: Path) -> list[str]:
    return sorted(found.name for found in path.parent.iterdir())


# ------------------------------------------------------------------------------------------------
# writing


def test_the_first_example(path: Path) -> None:
    with open_writer(path) as writer:
        assert writer.pending.tolist() == [0, 1, 2] and not writer.finished
        writer.write([2, 0], [[5, 6], [1, 2]])
        writer.mark_missing([1])
        assert writer.pending.tolist() == []
        assert writer.counts() == {
            Status.PENDING: 0,
            Status.OK: 2,
            Status.MISSING: 1,
            Status.CORRUPT: 0,
        }
        assert not path.exists()
        digest = writer.finish()
        assert writer.finished and writer.finish() == digest
    assert files(path) == ["some-set.h5"]
    features, present = FeatureSet(path).matrix(["c", "b", "a"])
    np.testing.assert_array_equal(features, [[5, 6], [np.nan, np.nan], [1, 2]])
    assert present.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("dtype", "vector", "message"),
    [
        ("float32", [1.0, np.nan], "the extractor returned NaN or infinity in 1 of 2 values"),
        ("float32", [np.inf, -np.inf], "the extractor returned NaN or infinity in 2 of 2 values"),
        ("float32", [1e39, 0.0], "does not fit in float32 (largest magnitude 1e+39"),
        (
            "float16",
            [-65520.0, 0.0],
            "does not fit in float16 (largest magnitude 65520, limit 65504)",
        ),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_is_corrupt_and_never_stored(
    path: Path, layout: str, dtype: str, vector: list[float], message: str
) -> None:
    with open_writer(path, layout=layout, dtype=dtype) as writer:
        good = [1.0, 65504.0]
        if layout == DENSE:
            writer.write([0, 1, 2], np.array([good, vector, good]))
        else:
            writer.write_ragged([0, 1, 2], [[good], [good, vector], [good, good]])
        assert writer.counts()[Status.CORRUPT] == 1
        writer.finish()
    found = FeatureSet(path)
    assert found.verify() == [] and found.status.tolist() == [1, 3, 1]
    ((row, said),) = found.errors()
    assert row == 1 and message.replace("of 2", "of 4" if layout == RAGGED else "of 2") in said


def test_a_row_without_vectors_is_corrupt(path: Path) -> None:
    with open_writer(path, layout=RAGGED) as writer:
        writer.write_ragged([0, 1, 2], [np.empty((0, 2)), [[1, 2]], [[1, 2], [3, 4]]])
        writer.finish()
    assert FeatureSet(path).errors() == [(0, "the extractor returned no vector")]


def test_messages_are_one_clean_line(path: Path) -> None:
    with open_writer(path) as writer:
        writer.mark_corrupt([2, 0, 1], ["two\nlines\t\0 of  it", "", "日" * 400 + "\udcff"])
        writer.finish()
    errors = dict(FeatureSet(path).errors())
    assert errors[2] == "two lines of it" and errors[0] == "unknown"
    assert errors[1] == "日" * 166, "cut between characters"
    assert FeatureSet(path).verify() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w.write([3], [[1, 2]]), r"rows: got 3 … 3, expected 0 … 2"),
        (lambda w: w.write([-1], [[1, 2]]), "rows: got -1"),
        (lambda w: w.write([0, 0], [[1, 2], [1, 2]]), "twice in one call"),
        (lambda w: w.write([0.0], [[1, 2]]), "expected integers"),
        (lambda w: w.write([[0]], [[1, 2]]), "expected integers of shape"),
        (lambda w: w.write([1], [[1, 2]]), "row 1 is missing already"),
        (lambda w: w.write([0], [[1, 2, 3]]), r"expected real numbers of shape \(1, 2\)"),
        (lambda w: w.write([0], [[1, 2], [3, 4]]), r"got int64 of shape \(2, 2\)"),
        (lambda w: w.write([0], [["x", "y"]]), "expected real numbers"),
        (lambda w: w.write([0], [[1j, 2]]), "expected real numbers"),
        (lambda w: w.write_ragged([0], [[[1, 2]]]), r"the set is dense; use write\(\)"),
        (
            lambda w: w.mark_corrupt([0, 2], ["why"]),
            "messages: got 1, expected one for each of 2 rows",
        ),
        (lambda w: w.mark_corrupt([0], "why"), "messages: got one string"),
        (lambda w: w.finish(), "2 of 3 rows are pending"),
    ],
)
def test_bad_calls_are_refused_and_change_nothing(path: Path, call: Any, message: str) -> None:
    with open_writer(path) as writer:
        writer.mark_missing([1])
        with pytest.raises(StoreError, match=message):
            call(writer)
        assert writer.pending.tolist() == [0, 2]


def test_ragged_calls_are_checked(path: Path) -> None:
    with open_writer(path, layout=RAGGED) as writer:
        with pytest.raises(InvalidInput, match=r"the set is ragged; use write_ragged"):
            writer.write([0], [[1, 2]])
        with pytest.raises(InvalidInput, match=r"shape \(k, 2\)"):
            writer.write_ragged([0], [[1, 2]])
        with pytest.raises(InvalidInput, match="vectors: got 2"):
            writer.write_ragged([0], [[[1, 2]], [[1, 2]]])
        assert writer.pending.size == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": ["a", "b", "a"]}, r"'a' occurs twice \(rows 0 and 2\)"),
        ({"ids": np.array([b"b", b"a", b"b"])}, r"'b' occurs twice \(rows 0 and 2\)"),
        ({"ids": ["a", ""]}, "row 1 is empty"),
        ({"ids": ["a\0b"]}, "NUL"),
        ({"ids": ["\ud800"]}, "lone surrogate"),
        ({"ids": [1, 2]}, "got int, expected str"),
        ({"ids": "abc"}, "got one str"),
        ({"ids": np.array([["a"]])}, "expected \\(n,\\)"),
        ({"ids": np.array([b"a", b""])}, "row 1 is empty"),
        ({"ids": np.array([b"a\0b"])}, "NUL"),
        ({"ids": np.array([b"ok", b"\xff"])}, "row 1 is not UTF-8"),
        ({"ids": np.array([b"\xed\xa0\x80"])}, "not UTF-8"),
        ({"ids": None}, "ids: got None, expected a sequence of ids"),
        ({"ids": Pairs(["a"], [])}, "1 user_ids for 0 item_ids"),
        ({"ids": Pairs(["a"], [""])}, "item_ids: row 0 is empty"),
        ({"ids": Pairs(["u", "u"], ["i", "i"])}, "'u' and 'i' occurs twice"),
        ({"ids": np.array([[b"u", b"i"]])}, "expected \\(n,\\)"),
        ({"layout": "sparse"}, "layout: got 'sparse'"),
        ({"dtype": "float64"}, "dtype: got 'float64', expected one of float16, float32"),
        ({"dim": 0}, "dim: got 0"),
        ({"dim": 2.0}, "dim: got 2.0"),
        ({"dim": True}, "dim: got True"),
        ({"modality": "Visual"}, "modality: got 'Visual'"),
        ({"modality": "../x"}, "modality: got"),
        ({"provenance": {"x": np.nan}}, "not JSON"),
        ({"provenance": {"x": Path()}}, "not JSON"),
        ({"provenance": {"x": "\ud800"}}, "not JSON"),
        ({"provenance": {"x": "a\0"}}, "NUL"),
        ({"provenance": [1]}, "expected a mapping"),
    ],
)
def test_bad_arguments_leave_no_file(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        open_writer(path, **options)
    assert not path.parent.exists()


def test_the_file_name_is_checked(tmp_path: Path) -> None:
    for name in ("x", "x.hdf5", ".h5", "a b.h5"):
        with pytest.raises(InvalidInput):
            open_writer(tmp_path / name)
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(NotAFeatureSet, match="is a folder"):
        open_writer(tmp_path / "folder.h5")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreAccess, match="file"):
        open_writer(tmp_path / "file" / "x.h5")
    assert isinstance(InvalidIds("x"), InvalidInput)


def test_numpy_arguments_are_fine(path: Path) -> None:
    with open_writer(path, dim=np.int32(2), dtype=np.float16, ids=("a", "b", "c")) as writer:
        writer.write(np.array([0, 1, 2], np.uint8), np.ones((3, 2), np.float64))
        writer.finish()
    assert FeatureSet(path).dtype == np.float16


def test_creation_time_comes_from_the_environment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    random_content(1, IDS).save(path)
    assert FeatureSet(path).provenance["created"] == "2023-11-14T22:13:20Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(InvalidInput, match="SOURCE_DATE_EPOCH: got 'yesterday'"):
        random_content(1, IDS).save(path.with_name("other.h5"))


def test_equal_input_makes_equal_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for layout in LAYOUTS:
        copies = []
        for _ in range(2):
            random_content(1, IDS, layout=layout).save(path, restart=True)
            copies.append(path.read_bytes())
        assert copies[0] == copies[1]


def test_dense_vectors_can_be_mapped_into_memory(path: Path) -> None:
    import h5py

    content = random_content(1, [str(row) for row in range(50)], dim=1000, absent=0.0)
    content.save(path)
    with h5py.File(path) as file:
        offset = file["features"].id.get_offset()
    mapped = np.memmap(path, "<f4", "r", offset, (50, 1000))
    np.testing.assert_array_equal(mapped, FeatureSet(path).matrix(content.keys)[0])
    assert offset % 4096 == 0


# ------------------------------------------------------------------------------------------------
# resuming


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", ["item", "interaction"])
def test_resumed_equals_uninterrupted(path: Path, layout: str, source: str) -> None:
    keys: Any = IDS if source == "item" else [("u", key) for key in IDS]
    content = random_content(6, keys, layout=layout)
    reference = content.save(path.with_name("reference.h5"))
    for rows in ([3, 17, 4], [0, 1, 2, 19], []):
        with content.writer(path) as writer:
            content.put(writer, rows)
    with content.writer(path) as writer:
        assert writer.pending.tolist() == sorted(set(range(20)) - {3, 17, 4, 0, 1, 2, 19})
        content.put(writer, writer.pending.tolist()[::-1])
    with content.writer(path) as writer:
        assert writer.pending.size == 0 and not writer.finished
        assert writer.finish() == reference
    assert files(path) == ["reference.h5", "some-set.h5"]
    assert FeatureSet(path).verify() == []


def test_unflushed_batches_are_pending_again_after_a_death(path: Path) -> None:
    content = random_content(6, IDS)
    writer = content.writer(path)
    content.put(writer, [0, 1, 2])
    writer.flush()
    content.put(writer, [3, 4, 5])
    copy = path.parent / "copy.h5.partial"
    shutil.copy(path.with_name("some-set.h5.partial"), copy)  # what a killed writer leaves behind
    writer.close()
    assert FeatureSet(copy).counts()[Status.PENDING] == 17
    assert FeatureSet(path.with_name("some-set.h5.partial")).counts()[Status.PENDING] == 14


def test_a_finished_set_of_the_same_plan_is_taken_as_it_is(path: Path) -> None:
    content = random_content(6, IDS)
    digest = content.save(path)
    before = path.stat()
    with content.writer(path) as writer:
        assert writer.finished and writer.pending.size == 0 and writer.finish() == digest
        assert writer.counts() == FeatureSet(path).counts()
        with pytest.raises(InvalidInput, match="already|finished"):
            writer.mark_missing([0])
    assert path.stat() == before and files(path) == ["some-set.h5"]


PLANS = [
    ({"provenance": {"encoder": "test", "pooling": "max"}}, ["provenance.pooling"]),
    ({"provenance": {"encoder": {"name": "x"}}}, ["provenance.encoder", "provenance.encoder.name"]),
    ({"ids": [*IDS[:-1], "another"]}, ["ids"]),
    ({"ids": IDS[:-1]}, ["rows"]),
    ({"ids": IDS[::-1]}, ["ids"]),
    ({"dim": 4}, ["dim"]),
    ({"dtype": "float16"}, ["dtype"]),
    ({"layout": RAGGED}, ["layout"]),
    ({"modality": "audio"}, ["modality"]),
    ({"ids": Pairs(IDS, IDS)}, ["source"]),
]


@pytest.mark.parametrize(("options", "keys"), PLANS)
@pytest.mark.parametrize("finished", [False, True])
def test_another_plan_is_never_continued(
    path: Path, options: dict[str, Any], keys: list[str], finished: bool
) -> None:
    content = random_content(6, IDS)
    with content.writer(path) as writer:
        content.put(writer, writer.pending.tolist() if finished else [0])
        if finished:
            writer.finish()
    before = {name: (path.parent / name).read_bytes() for name in files(path)}
    with pytest.raises(ProvenanceMismatch, match="--restart") as caught:
        content.writer(path, **options)
    assert list(caught.value.keys) == keys and all(key in str(caught.value) for key in keys)
    assert {name: (path.parent / name).read_bytes() for name in files(path)} == before
    with content.writer(path, restart=True, **options) as writer:
        assert writer.pending.size == writer.header.rows > 0
        assert path.exists() == finished, "the finished set stays until the new one is whole"
        writer.mark_missing(writer.pending)
        writer.finish()
    assert files(path) == ["some-set.h5"] and FeatureSet(path).verify() == []


def test_a_finished_set_may_be_of_other_versions(path: Path) -> None:
    def made_with(version: str) -> dict[str, Any]:
        return {
            "encoder": "test",
            "tool": {"name": "mmx", "version": version},
            "libraries": {"numpy": version},
        }

    content = random_content(6, IDS)
    with content.writer(path, provenance=made_with("1")) as writer:
        content.put(writer, writer.pending.tolist())
        digest = writer.finish()
    keys = ["provenance.libraries.numpy", "provenance.tool.version"]
    with content.writer(path, provenance=made_with("2")) as writer:
        assert writer.finished and writer.finish() == digest and writer.versions_differ == keys
    with content.writer(path, provenance=made_with("1")) as writer:
        assert writer.versions_differ == []
    assert FeatureSet(path).provenance["tool"]["version"] == "1"
    with pytest.raises(ProvenanceMismatch) as caught:
        content.writer(path, provenance={**made_with("2"), "encoder": "other"})
    assert list(caught.value.keys) == ["provenance.encoder"]
    for provenance in (
        {**made_with("1"), "tool": {"name": "other", "version": "1"}},
        {"encoder": "test", "libraries_": 1},
    ):
        with pytest.raises(ProvenanceMismatch):
            content.writer(path, provenance=provenance)


def test_vectors_of_two_versions_never_meet(path: Path) -> None:
    content = random_content(6, IDS)
    content.writer(path, provenance={"tool": {"version": "1"}}).close()
    with pytest.raises(ProvenanceMismatch, match=r"tool\.version"):
        content.writer(path, provenance={"tool": {"version": "2"}})
    with content.writer(path, provenance={"tool": {"version": "1"}}) as writer:
        writer.mark_corrupt(writer.pending, ["?"] * writer.pending.size)
        writer.finish()
    with pytest.raises(ProvenanceMismatch, match=r"tool\.version"):
        content.writer(path, provenance={"tool": {"version": "2"}}, retry_failed=True)
    with content.writer(
        path, provenance={"tool": {"version": "2"}}, retry_missing=True
    ) as writer:  # of which it has none
        assert writer.finished


def test_creation_time_is_no_part_of_the_plan(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random_content(6, IDS)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    content.writer(path).close()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2")
    content.save(path)
    assert FeatureSet(path).provenance["created"] == "1970-01-01T00:00:01Z"


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "foreign", "status"])
def test_a_partial_file_beyond_use_is_begun_anew(path: Path, damage: str) -> None:
    content = random_content(6, IDS)
    digest = content.save(path)
    shutil.move(path, path.with_name("other.h5"))
    content.writer(path).close()
    partial = path.with_name("some-set.h5.partial")
    if damage == "empty":
        partial.write_bytes(b"")
    elif damage == "text":
        partial.write_text("not HDF5")
    elif damage == "cut":
        partial.write_bytes(partial.read_bytes()[:1000])
    elif damage == "status":
        import h5py

        with h5py.File(partial, "r+") as file:
            file["status"][3] = 9
    else:
        import h5py

        with h5py.File(partial, "w") as file:
            file["x"] = 1
    with pytest.warns(StoreWarning, match="begun anew"), content.writer(path) as writer:
        assert writer.pending.size == 20
        content.put(writer, range(20))
        assert writer.finish() == digest


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 30,
        b"{}",
        b"[1]",
        b'{"row": [], "message": "x"}',
        b'{"row": 2, "message": 1}',
        b"\xff",
    ],
    ids=["zeros", "empty", "list", "unhashable", "number", "bytes"],
)
def test_a_damaged_error_log_costs_reasons_and_no_vectors(path: Path, line: bytes) -> None:
    with open_writer(path) as writer:
        writer.mark_corrupt([0], ["the reason"])
        writer.mark_corrupt([2], ["lost"])
    log = path.with_name(path.name + ".partial.errors")
    log.write_bytes(log.read_bytes().splitlines()[0] + b"\n" + line + b"\n")
    with open_writer(path) as writer:
        writer.write([1], [[1.0, 2.0]])
        writer.finish()
    errors = dict(FeatureSet(path).errors())
    assert errors[0] == "the reason" and errors[2].startswith("unknown")
    assert FeatureSet(path).verify() == []


def test_a_lost_vector_log_is_an_error_and_not_a_wrong_set(path: Path) -> None:
    content = random_content(6, IDS, layout=RAGGED, absent=0.0)
    with content.writer(path) as writer:
        content.put(writer, range(10))
    path.with_name("some-set.h5.partial.vectors").unlink()
    with pytest.raises(StoreError, match="shorter than the rows that refer to it.*--restart"):
        content.writer(path)
    content.save(path, restart=True)
    assert files(path) == ["some-set.h5"]


def test_orphaned_side_files_are_swept(path: Path) -> None:
    path.parent.mkdir()
    for suffix in ("new", "undo", "vectors", "errors"):
        path.with_name(f"some-set.h5.partial.{suffix}").write_bytes(b"left by a killed writer")
    content = random_content(6, IDS, layout=RAGGED)
    content.save(path)
    assert files(path) == ["some-set.h5"] and FeatureSet(path).verify() == []


# ------------------------------------------------------------------------------------------------
# retrying


@pytest.mark.parametrize("layout", LAYOUTS)
def test_corrupt_rows_are_retried_in_a_copy(path: Path, layout: str) -> None:
    content = random_content(6, IDS, layout=layout)
    corrupt = sorted(content.errors)
    assert len(corrupt) > 2
    digest = content.save(path)
    with content.writer(path, retry_failed=True) as writer:
        assert writer.pending.tolist() == corrupt and not writer.finished
        good = np.ones((1, 3), np.float32)
        if layout == DENSE:
            writer.write(corrupt[:1], good)
        else:
            writer.write_ragged(corrupt[:1], [good])
        assert FeatureSet(path).content_digest == digest, "the old set stays readable"
    with content.writer(path, retry_failed=True) as writer:
        assert writer.pending.tolist() == corrupt[1:]
        writer.mark_corrupt(corrupt[1:2], ["still broken"])
        writer.mark_missing(corrupt[2:])
        writer.finish()
    found = FeatureSet(path)
    assert found.verify() == [] and found.errors() == [(corrupt[1], "still broken")]
    assert files(path) == ["some-set.h5"]
    for row, vectors in enumerate(content.vectors):
        if vectors is not None:
            key = [content.keys[row]]
            got = found.matrix(key)[0] if layout == DENSE else found.ragged(key)[0]
            assert got is not None and got.tobytes() == vectors.tobytes()


def test_nothing_corrupt_leaves_nothing_to_retry(path: Path) -> None:
    content = random_content(6, IDS, absent=0.0)
    content.save(path)
    with content.writer(path, retry_failed=True) as writer:
        assert writer.finished


def test_corrupt_rows_of_an_unfinished_set_are_retried(path: Path) -> None:
    content = random_content(6, IDS)
    with content.writer(path) as writer:
        writer.mark_corrupt([0, 1], ["first try", "first try"])
    with content.writer(path) as writer:
        assert writer.pending.tolist() == list(range(2, 20))
    with content.writer(path, retry_failed=True) as writer:
        assert writer.pending.size == 20
        content.put(writer, range(20))
        writer.finish()
    assert dict(FeatureSet(path).errors()) == content.errors


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_rows_are_retried_on_request(path: Path, layout: str) -> None:
    content = random_content(6, IDS, layout=layout)
    missing = [
        row
        for row, vectors in enumerate(content.vectors)
        if vectors is None and row not in content.errors
    ]
    assert missing
    digest = content.save(path)
    with content.writer(path, retry_missing=True) as writer:
        assert writer.pending.tolist() == missing
        writer.mark_missing(missing)
        assert writer.finish() == digest
    assert FeatureSet(path).verify() == []


# ------------------------------------------------------------------------------------------------
# locking


def test_a_second_writer_is_refused(path: Path) -> None:
    content = random_content(6, IDS)
    with content.writer(path) as writer:
        for options in ({}, {"restart": True}):
            with pytest.raises(StoreLocked, match="another writer in this process"):
                content.writer(path, **options)
        content.save(path.with_name("neighbour.h5"))
        content.put(writer, range(20))
        writer.finish()
        assert content.writer(path).finished, "finishing lets go of the lock"
    assert "some-set.h5.lock" not in files(path)


def test_a_writer_in_another_process_is_refused(path: Path) -> None:
    random_content(6, IDS).writer(path).close()
    code = (
        "import sys, pathlib; from mmstore.testing import *; w = random_content(6, [f'item {i}' "
        "for i in range(20)])"
        ".writer(pathlib.Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "open\n"
        with pytest.raises(StoreLocked, match="another process writes this set"):
            random_content(6, IDS).writer(path)
        child.kill()
        child.wait()
    random_content(6, IDS).save(path)  # a killed writer holds nothing


def test_an_error_lets_go_of_the_lock_and_keeps_the_rows(path: Path) -> None:
    content = random_content(6, IDS)
    with pytest.raises(ZeroDivisionError), content.writer(path) as writer:
        content.put(writer, [0, 1])
        raise ZeroDivisionError
    with content.writer(path) as writer:
        assert writer.pending.size == 18
    with pytest.raises(InvalidInput, match="the writer is closed"):
        writer.flush()
    writer.close()


def test_a_writer_is_of_no_use_in_a_forked_process(path: Path) -> None:
    content = random_content(6, IDS)
    with content.writer(path) as writer:
        writer._pid += 1
        with pytest.raises(InvalidInput, match="forked"):
            content.put(writer, [0])
        writer.close()  # as the garbage collector of a child would
        writer._pid -= 1
        content.put(writer, range(20))
        writer.finish()


# ------------------------------------------------------------------------------------------------
# the disk

FULL_DISK = """
import os, resource, sys, pathlib
from mmstore import StoreFull
from mmstore.testing import random_content
path, layout = pathlib.Path(sys.argv[1]), sys.argv[2]
content = random_content(6, [f"item {row}" for row in range(400)], layout=layout, dim=500)
try:
    with content.writer(path) as writer:
        limit = 500_000 if layout == "dense" else 300_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for start in range(0, 400, 10):
            content.put(writer, range(start, start + 10))
            writer.flush()
except StoreFull as error:
    print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with content.writer(path) as writer:
        print(writer.pending.size)
        content.put(writer, writer.pending.tolist())
        print(writer.finish())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_is_said_and_survived(path: Path, layout: str) -> None:
    """A file size limit stands for the full disk: the refusal of the write is the same."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), layout],
        capture_output=True,
        text=True,
        check=True,
    )
    message, pending, digest = done.stdout.splitlines()
    assert "no space left to write" in message and "run the same command again" in message
    assert 0 < int(pending) < 400 and done.stderr == ""
    content = random_content(6, [f"item {row}" for row in range(400)], layout=layout, dim=500)
    assert content.save(path.with_name("reference.h5")) == digest
    assert FeatureSet(path).verify() == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_disk_that_fills_up_while_finishing(
    path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random_content(6, IDS, layout=layout)
    digest = content.save(path.with_name("reference.h5"))

    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    with content.writer(path) as writer:
        content.put(writer, range(20))
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", refuse)
            with pytest.raises(StoreFull, match="no space left"):
                writer.finish()
    assert not path.exists()
    with content.writer(path) as writer:
        assert writer.pending.size == 0 and writer.finish() == digest
    assert files(path) == ["reference.h5", "some-set.h5"] and FeatureSet(path).verify() == []


@pytest.mark.parametrize("torn", [slice(0, 3000), slice(-900, None)])
def test_a_torn_last_step_is_undone(
    path: Path, monkeypatch: pytest.MonkeyPatch, torn: slice
) -> None:
    """A kill while HDF5 rewrites its tables leaves neither the old file nor the new one."""
    import mmstore.partial

    content = random_content(6, IDS)
    digest = content.save(path.with_name("reference.h5"))

    def die(source: Path, target: Path) -> None:
        raw = bytearray(source.read_bytes())
        raw[torn] = bytes(len(raw[torn]))
        source.write_bytes(raw)
        raise KeyboardInterrupt

    with content.writer(path) as writer:
        content.put(writer, range(20))
        with monkeypatch.context() as patch:
            patch.setattr(mmstore.partial, "replace_synced", die)
            with pytest.raises(KeyboardInterrupt):
                writer.finish()
    with content.writer(path) as writer:  # a warning that it is begun anew would be an error here
        assert writer.pending.size == 0 and writer.finish() == digest
    assert files(path) == ["reference.h5", "some-set.h5"] and FeatureSet(path).verify() == []


def test_file_systems_that_cannot_reserve(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, offset: int, size: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    random_content(6, IDS).save(path)
    assert FeatureSet(path).verify() == []


def test_vectors_larger_than_the_disk_are_refused_at_the_start(path: Path) -> None:
    with pytest.raises(StoreFull, match="needs 4000000.00 GB"):
        open_writer(path, dim=10**15 // 3)
    assert files(path) == []


def test_a_failed_write_in_a_log_leaves_no_gap(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a half-written batch the same process goes on; the next batches are whole."""
    import mmstore.side_files

    content = random_content(6, IDS, layout=RAGGED)
    digest = content.save(path.with_name("reference.h5"))
    whole = mmstore.side_files.write_all

    def half(stream: Any, data: Any) -> None:
        stream.write(memoryview(data)[: len(memoryview(data)) // 2])
        raise OSError(28, "No space left on device")

    with content.writer(path) as writer:
        for row in range(20):
            with monkeypatch.context() as patch:
                if content.vectors[row] is not None or row in content.errors:
                    patch.setattr(mmstore.side_files, "write_all", half)
                    with pytest.raises(StoreFull):
                        content.put(writer, [row])
            assert mmstore.side_files.write_all is whole
            if row in writer.pending:
                content.put(writer, [row])
        assert writer.finish() == digest
    assert dict(FeatureSet(path).errors()) == content.errors


def test_every_flush_is_forced_onto_the_disk_on_request(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    counts = []
    for fsync in (False, True):
        for layout in LAYOUTS:
            content = random_content(6, IDS, layout=layout)
            with content.writer(path.with_name(f"{layout}-{fsync}.h5"), fsync=fsync) as writer:
                content.put(writer, range(20))
                calls.clear()
                writer.flush()
                counts.append(len(calls))
    assert counts == [0, 0, 3, 4]  # error log, [vector log,] rows, status


def test_a_discarded_set_leaves_nothing_and_begins_anew(path: Path) -> None:
    for _ in range(2):
        with open_writer(path) as writer:
            assert writer.pending.tolist() == [0, 1, 2]
            writer.mark_missing([0, 2])
            writer.mark_corrupt([1], ["broken"])
            writer.discard()
        assert not [one for one in path.parent.iterdir() if ".lock" not in one.name]
    with pytest.raises(StoreError):
        writer.discard()
