"""Write, then read: nothing is lost or moves, whatever the ids, layouts, dtypes and orders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmstore import FeatureSet, FeatureStore, Status, StoreError
from mmstore.spec import DENSE, RAGGED
from mmstore.testing import ODD_IDS, Content, contents, random_content, tiny_store

FILES = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def saved(content: Content, **options: Any) -> Iterator[FeatureSet]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "visual" / "some-set.h5"
        digest = content.save(path, **options)
        with FeatureSet(path) as found:
            assert found.content_digest == digest
            yield found


def assert_rows_equal(found: FeatureSet, content: Content, rows: list[int]) -> None:
    """The vectors of these rows, asked for by id, are the written ones bit for bit."""
    keys = [content.keys[row] for row in rows]
    if content.layout == DENSE:
        features, present = found.matrix(keys, dtype=content.dtype)
        assert features.shape == (len(rows), content.dim) and features.dtype == content.dtype
        got: list[Any] = [features[i : i + 1] if present[i] else None for i in range(len(rows))]
        assert np.isnan(features[~present]).all()
    else:
        got = found.ragged(keys)
    for row, vectors in zip(rows, got, strict=True):
        expected = content.vectors[row]
        assert (vectors is None) == (expected is None)
        if expected is not None:
            assert vectors.tobytes() == expected.tobytes()


@FILES
@given(contents())
def test_what_was_written_is_read(content: Content) -> None:
    with saved(content) as found:
        assert found.verify() == []
        assert len(found) == len(content)
        assert found.ids.tolist() == [
            list(key) if isinstance(key, tuple) else key for key in content.keys
        ]
        assert found.status.tolist() == content.status.tolist()
        assert dict(found.errors()) == content.errors
        assert (found.source, found.layout, found.dim, found.dtype) == (
            content.source,
            content.layout,
            content.dim,
            content.dtype,
        )
        assert found.complete and found.provenance["encoder"] == "test"
        assert_rows_equal(found, content, list(range(len(content))))


@FILES
@given(contents(), st.data())
def test_rows_follow_the_ids_asked_for(content: Content, data: st.DataObject) -> None:
    """Any order, with repetitions: alignment is by id."""
    every = st.lists(st.integers(0, len(content) - 1), max_size=20) if len(content) else st.just([])
    with saved(content) as found:
        assert_rows_equal(found, content, data.draw(every))


@pytest.mark.parametrize(
    "rows", [[0, 0, 2], [0, 2, 2], [2, 0, 0], [1, 1, 1, 4, 5], [5, 5, 3, 3], [4, 1, 4, 0, 0]]
)
@pytest.mark.parametrize("layout", [DENSE, RAGGED])
def test_as_many_repetitions_as_gaps(rows: list[int], layout: str) -> None:
    """The rows asked for span as many rows as there are, and are not those rows."""
    content = random_content(1, ["a", "b", "c", "d", "e", "f"], layout=layout, absent=0.0)
    with saved(content) as found:
        assert_rows_equal(found, content, rows)


@FILES
@given(contents(), st.lists(st.text(max_size=5), max_size=8))
def test_unknown_ids_are_absent(content: Content, strangers: list[str]) -> None:
    """Also ids that no store can hold: empty, with NUL, lone surrogates."""
    known = set(content.keys)
    wanted = ["", "\0", "\ud800", "7\0", *strangers]
    keys: list[Any] = wanted if content.source == "item" else [(text, text) for text in wanted]
    with saved(content) as found:
        keys = [key for key in keys if key not in known]
        if content.layout == DENSE:
            features, present = found.matrix(keys)
            assert not present.any() and np.isnan(features).all() and features.dtype == np.float32
        else:
            assert found.ragged(keys) == [None] * len(keys)


@FILES
@given(contents(), st.integers(1, 7))
def test_batches_cover_all_rows_in_order(content: Content, size: int) -> None:
    with saved(content) as found:
        batches = list(found.iter_batches(size))
        assert all(
            len(ids) == len(features) == len(status) <= size for ids, features, status in batches
        )
        assert [row for ids, _, _ in batches for row in ids.tolist()] == found.ids.tolist()
        rows = [
            (vector, status)
            for _, features, statuses in batches
            for vector, status in zip(features, statuses, strict=True)
        ]
        assert len(rows) == len(content)
        for (vector, status), expected in zip(rows, content.vectors, strict=True):
            assert (status == Status.OK) == (expected is not None)
            if expected is not None:
                assert vector.tobytes() == expected.tobytes()
            else:
                assert np.isnan(vector).all() and (
                    content.layout == DENSE or vector.shape == (0, content.dim)
                )


@settings(FILES, max_examples=20)  # each writes in up to twelve interrupted steps
@given(contents(), st.randoms(use_true_random=False), st.integers(1, 5))
def test_the_digest_depends_on_content_and_not_on_how_it_came(
    content: Content, random: Any, size: int
) -> None:
    """Order, batches, flushes, interruptions, name, modality and provenance don't change it."""
    with saved(content) as reference, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "other.h5"
        done = False
        while not done:
            with content.writer(path, modality="audio", provenance={"other": 1}) as writer:
                rows = writer.pending.tolist()
                random.shuffle(rows)
                content.put(writer, rows[:size])
                if random.random() < 0.5:
                    writer.flush()
                done = len(rows) <= size
                if done:
                    assert writer.finish() == reference.content_digest
        assert FeatureSet(path).verify() == []


@FILES
@given(contents().filter(lambda content: len(content) > 0), st.data())
def test_any_change_of_content_changes_the_digest(content: Content, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(content) - 1))
    vectors = list(content.vectors)
    ids = [list(column) for column in content.ids]
    errors = dict(content.errors)
    if data.draw(st.booleans()):
        ids[-1][row] += "x"
        keys = list(zip(*ids, strict=True))
        if keys.index(keys[row]) != row or keys.count(keys[row]) > 1:
            return  # that id exists already
    elif vectors[row] is None:
        if errors.pop(row, None) is None:
            errors[row] = "now corrupt"
    else:
        changed = vectors[row].copy()
        changed[0, 0] = 0.5 if changed[0, 0] != 0.5 else 0.25
        vectors[row] = changed
    other = Content(
        content.source,
        content.layout,
        content.dtype,
        content.dim,
        tuple(map(tuple, ids)),
        tuple(vectors),
        errors,
    )
    with saved(content) as one, saved(other) as two:
        assert one.content_digest != two.content_digest


def test_large_sets_are_read_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny blocks every loop over blocks runs many times."""
    import mmstore.hashing
    import mmstore.ids
    import mmstore.reader

    ids = [f"item {row}" for row in range(300)]
    for layout in (DENSE, RAGGED):
        content = random_content(2, ids, layout=layout, dtype="float16", dim=5)
        plain = content.save(tmp_path / f"{layout}-plain.h5")
        with monkeypatch.context() as patch:
            patch.setattr(mmstore.reader, "_READ_BYTES", 64)
            patch.setattr(mmstore.reader, "_GAP_BYTES", 20)
            patch.setattr(mmstore.ids.block_rows, "__defaults__", (64,))
            assert content.save(tmp_path / f"{layout}-blocks.h5") == plain
            with FeatureSet(tmp_path / f"{layout}-blocks.h5") as found:
                assert found.verify() == []
                rows = np.random.default_rng(1).permutation(300).tolist()
                assert_rows_equal(found, content, rows)
                assert_rows_equal(found, content, rows[::17] * 2)


def test_odd_ids_stay_apart(tmp_path: Path) -> None:
    content = random_content(1, ODD_IDS, absent=0.0)
    content.save(tmp_path / "odd.h5")
    with FeatureSet(tmp_path / "odd.h5") as found:
        for row, key in enumerate(ODD_IDS):
            assert_rows_equal(found, content, [row])
            assert found.matrix([key])[0].tobytes() == content.vectors[row].tobytes()
        assert not found.matrix(["07", "7\t", "日", "É", "7\0", "\0007", "nan\0"])[1].any()


def test_byte_ids_are_taken_without_a_detour(tmp_path: Path) -> None:
    raw = np.array([text.encode() for text in ODD_IDS])
    content = random_content(1, ODD_IDS, absent=0.0)
    digest = content.save(tmp_path / "text.h5")
    assert content.save(tmp_path / "bytes.h5", ids=raw) == digest
    assert content.save(tmp_path / "unicode-array.h5", ids=np.array(ODD_IDS)) == digest
    assert content.save(tmp_path / "objects.h5", ids=np.array(ODD_IDS, dtype=object)) == digest
    with FeatureSet(tmp_path / "bytes.h5") as found:
        assert found.raw_ids.dtype.kind == "S" and found.raw_ids.tolist() == raw.tolist()
        assert found.matrix(raw[::-1])[0].tobytes() == found.matrix(ODD_IDS[::-1])[0].tobytes()


def test_interactions_have_two_columns(tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    with store.open("textual") as found:
        assert found.user_ids.tolist()[:3] == ["u0", "u1", "u2"]
        assert found.item_ids.tolist() == list(ODD_IDS)
        assert found.ids.shape == found.raw_ids.shape == (len(ODD_IDS), 2)
        same = found.matrix(found.ids)[0]
        assert same.tobytes() == found.matrix(found.raw_ids)[0].tobytes()
        assert not found.matrix([("u0", "007"), ("u1", "097293751X")])[1].any(), (
            "the pair counts, not its parts"
        )
        for bad in (["a"], [("a",)], np.array(["a"])):
            with pytest.raises(StoreError, match="pair"):
                found.matrix(bad)
    with store.open("audio") as found, pytest.raises(StoreError, match="not interactions"):
        _ = found.user_ids


def test_pairs_are_not_joined_ambiguously(tmp_path: Path) -> None:
    content = random_content(1, [("a", "bc"), ("ab", "c")], absent=0.0)
    content.save(tmp_path / "pairs.h5")
    with FeatureSet(tmp_path / "pairs.h5") as found:
        assert found.verify() == []
        assert_rows_equal(found, content, [1, 0])


def test_the_dtype_asked_for(tmp_path: Path) -> None:
    content = random_content(3, ["a", "b", "c"], absent=0.0)
    content.save(tmp_path / "f4.h5")
    small = Content("item", DENSE, "float32", 1, (("a",),), (np.array([[0.1]], "f4"),), {})
    small.save(tmp_path / "small.h5")
    with FeatureSet(tmp_path / "f4.h5") as found:
        wide = found.matrix(["a"], dtype=np.float64)[0]
        assert wide.dtype == np.float64 and (wide == content.vectors[0]).all()
        with pytest.raises(StoreError, match="floating dtype"):
            found.matrix(["a"], dtype=np.int64)
    huge = Content("item", DENSE, "float32", 1, (("a",),), (np.array([[1e9]], "f4"),), {})
    huge.save(tmp_path / "huge.h5")
    with (
        FeatureSet(tmp_path / "huge.h5") as found,
        pytest.raises(StoreError, match="do not fit in float16"),
    ):
        found.matrix(["a"], dtype=np.float16)
    with FeatureSet(tmp_path / "small.h5") as found:
        assert found.matrix(["a"], dtype=np.float16)[0] == np.float16(0.1)


def test_an_array_may_be_given_to_be_filled() -> None:
    content = random_content(4, [f"item {n}" for n in range(9)])
    with saved(content) as found:
        keys = [*content.keys, "unknown"]
        features, present = found.matrix(keys)
        given = np.ones((10, content.dim), np.float64)
        same, there = found.matrix(keys, out=given)
        assert same is given
        np.testing.assert_array_equal(given, features.astype(np.float64))
        np.testing.assert_array_equal(there, present)
        with pytest.raises(StoreError, match=r"out: got shape \(10, 1\), expected"):
            found.matrix(keys, out=np.ones((10, 1)))
        with pytest.raises(StoreError, match="floating"):
            found.matrix(keys, out=np.ones((10, content.dim), np.int64))


def test_layouts_are_not_mixed_up(tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    with pytest.raises(StoreError, match="use matrix"):
        store.open("visual", "dense-f4").ragged(["007"])
    with pytest.raises(StoreError, match="use ragged"):
        store.open("visual", "ragged-f2").matrix(["007"])
    with pytest.raises(StoreError, match="batch_size"):
        next(store.open("audio").iter_batches(0))


@pytest.mark.parametrize("ids", [[7], [None], [b"7"], [1.0], "abc", b"abc", [["a"]]])
def test_only_text_is_an_id(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(StoreError, match="expected"):
        tiny_store(tmp_path).open("audio").matrix(ids)


def test_an_empty_set_is_a_set(tmp_path: Path) -> None:
    for layout in (DENSE, RAGGED):
        content = Content("item", layout, "float32", 4, ((),), (), {})
        content.save(tmp_path / f"{layout}.h5")
        found = FeatureSet(tmp_path / f"{layout}.h5")
        assert (
            found.verify() == [] and len(found) == 0 and found.dim == 4 and found.ids.tolist() == []
        )
        assert list(found.iter_batches()) == []
    assert FeatureSet(tmp_path / "dense.h5").matrix(["a"])[1].tolist() == [False]


def test_the_store_lists_and_opens(tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    (tmp_path / "visual" / "not a set.h5").write_bytes(b"")
    (tmp_path / "visual" / "folder.h5").mkdir()
    (tmp_path / "loose.h5").write_bytes(b"")
    assert store.sets() == [
        ("audio", "dense-f2"),
        ("textual", "reviews-f4"),
        ("visual", "dense-f4"),
        ("visual", "ragged-f2"),
    ]
    content = random_content(1, ["a", "b"])
    content.writer(store.path("audio", "half"), modality="audio").close()
    assert store.partials() == [("audio", "half")] and ("audio", "half") not in store.sets()
    assert store.open("visual", "dense-f4").name == "dense-f4"
    assert store.open("audio").name == "dense-f2"
    for modality, name, message in (
        ("visual", None, "several visual sets \\(dense-f4, ragged-f2\\)"),
        ("visual", "dense", "did you mean 'dense-f4'"),
        ("visul", None, "did you mean 'visual'"),
        ("audio", "half", "Unfinished: half"),
        ("visual", "../audio/dense-f2", "no visual set"),
    ):
        with pytest.raises(StoreError, match=message):
            store.open(modality, name)
    assert FeatureStore(tmp_path / "nowhere").sets() == []
    with pytest.raises(StoreError, match="the store is empty"):
        FeatureStore(tmp_path / "nowhere").open("visual")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "ä", "a b", "x\n", "x" * 201, None, 3]
)
def test_a_name_is_never_a_path(tmp_path: Path, name: Any) -> None:
    with pytest.raises(StoreError, match="name: got"):
        FeatureStore(tmp_path).path("visual", name)
    with pytest.raises(StoreError, match="modality: got"):
        FeatureStore(tmp_path).path(name, "x")


def test_a_set_in_the_wrong_folder_is_refused(tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    store.path("audio", "dense-f2").rename(store.path("textual", "moved"))
    with pytest.raises(StoreError, match="its modality is 'audio'"):
        store.open("textual", "moved")


def test_a_reader_works_after_a_fork_and_a_pickle(tmp_path: Path) -> None:
    import multiprocessing
    import pickle  # of our own objects, as a data loader does to reach its workers

    found = tiny_store(tmp_path).open("audio")
    expected = found.matrix(["日本"])[0].tobytes()
    assert pickle.loads(pickle.dumps(found)).matrix(["日本"])[0].tobytes() == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read, (found,)) == expected
    found._pid = -1  # what a forked child sees: an open file of another process
    assert found.matrix(["日本"])[0].tobytes() == expected
    found.close()
    assert found.matrix(["日本"])[0].tobytes() == expected


def _read(found: FeatureSet) -> bytes:
    return found.matrix(["日本"])[0].tobytes()


def test_others_may_have_the_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same process through plain h5py, before or after us, and without file locks."""
    import h5py

    path = tiny_store(tmp_path).path("audio", "dense-f2")
    for options in ({}, {"locking": False}):
        with h5py.File(path, "r", **options), FeatureSet(path) as found:
            assert found.matrix(["007"])[1].all()
    with FeatureSet(path) as found:
        assert found.matrix(["007"])[1].all()
        with h5py.File(path) as file:
            assert file["features"].shape == (len(ODD_IDS), 3)
    plain = h5py.File

    def no_locks(*arguments: Any, **options: Any) -> Any:
        if "locking" not in options:
            raise OSError(37, "Unable to synchronously open file (unable to lock file, errno = 37)")
        return plain(*arguments, **options)

    monkeypatch.setattr(h5py, "File", no_locks)
    assert FeatureSet(path).matrix(["007"])[1].all()


def test_a_set_that_is_replaced_in_use_is_noticed(tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    found = store.open("audio")
    random_content(8, ODD_IDS).save(found.path, modality="audio", restart=True)
    assert found.matrix(["007"])[0].shape == (1, 3), "an open reader keeps the old file"
    found.close()
    with pytest.raises(StoreError, match="was replaced while it was in use"):
        found.matrix(["007"])


def test_reprs_name_the_path(tmp_path: Path) -> None:
    assert repr(FeatureStore(tmp_path)) == f"FeatureStore({str(tmp_path)!r})"
    assert repr(FeatureSet(tmp_path / "x.h5")) == f"FeatureSet({str(tmp_path / 'x.h5')!r})"
