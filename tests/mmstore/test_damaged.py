"""Damaged and foreign files: the documented error from the reader, one line from verify."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mmstore.hdf5 as hdf5
from mmstore import (
    DamagedFeatureSet,
    FeatureSet,
    IncompleteFeatureSet,
    NotAFeatureSet,
    StoreAccess,
    StoreError,
    StoreWarning,
    UnknownFeatureSet,
    UnsupportedVersion,
)
from mmstore.spec import RAGGED
from mmstore.testing import random_content

IDS = [f"item {row}" for row in range(12)]
CONTENT = random_content(6, IDS, absent=0.5)
RAGGED_CONTENT = random_content(6, IDS, layout=RAGGED)


def edit(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def replaced(name: str, make: Callable[[Any], Any], **options: Any) -> Callable[[Path], None]:
    """Damage that puts another dataset under the name of one."""

    def change(file: Any) -> None:
        data = file[name][:]
        del file[name]
        file.create_dataset(name, data=make(data), **options)

    return edit(change)


def cut(size: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: size(path.stat().st_size)])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def read_everything(path: Path) -> None:
    with FeatureSet(path) as found:
        if found.layout == RAGGED:
            found.ragged(IDS)
        else:
            found.matrix(IDS)


# Damage that opening or reading notices: (name, damage, error, message)
NOTICED: list[tuple[str, Callable[[Path], None], type[StoreError], str]] = [
    ("absent", lambda path: path.unlink(), UnknownFeatureSet, "no such feature set"),
    ("a folder", folder, NotAFeatureSet, "is a folder"),
    ("empty", lambda path: path.write_bytes(b""), NotAFeatureSet, "is empty"),
    (
        "not HDF5",
        lambda path: path.write_bytes(b"\x93NUMPY" + bytes(5000)),
        NotAFeatureSet,
        "not an HDF5 file",
    ),
    ("a stub", cut(lambda size: 8), DamagedFeatureSet, "truncated or damaged|unreadable"),
    ("half", cut(lambda size: size // 2), DamagedFeatureSet, "truncated"),
    ("one byte short", cut(lambda size: size - 1), DamagedFeatureSet, "truncated"),
    (
        "zeroed inside",
        lambda path: path.write_bytes(path.read_bytes()[:8] + bytes(4000)),
        DamagedFeatureSet,
        "damaged|unreadable",
    ),
    (
        "other HDF5",
        edit(lambda f: f.attrs.pop("format")),
        NotAFeatureSet,
        "no root attribute 'format'",
    ),
    (
        "wrong format",
        edit(lambda f: f.attrs.update(format="anndata")),
        NotAFeatureSet,
        "got 'anndata', expected",
    ),
    (
        "format is a number",
        edit(lambda f: f.attrs.update(format=3)),
        DamagedFeatureSet,
        "'format' has the wrong type",
    ),
    (
        "format is a list",
        edit(lambda f: f.attrs.update(format=["a", "b"])),
        DamagedFeatureSet,
        "wrong type",
    ),
    (
        "future major",
        edit(lambda f: f.attrs.update(format_version="2.0")),
        UnsupportedVersion,
        "version 2.0 .*reads 1.x.*newer",
    ),
    (
        "ancient major",
        edit(lambda f: f.attrs.update(format_version="0.9")),
        UnsupportedVersion,
        "version 0.9.*extract the set again",
    ),
    (
        "no version",
        edit(lambda f: f.attrs.update(format_version="one")),
        UnsupportedVersion,
        "got 'one'",
    ),
    (
        "no provenance",
        edit(lambda f: f.attrs.pop("provenance")),
        DamagedFeatureSet,
        "'provenance' is absent",
    ),
    (
        "text variable-length",
        edit(lambda f: f.attrs.update(provenance=[1])),
        DamagedFeatureSet,
        "wrong type",
    ),
    (
        "provenance not JSON",
        edit(lambda f: f.attrs.update(provenance="{")),
        DamagedFeatureSet,
        "not JSON",
    ),
    (
        "provenance a list",
        edit(lambda f: f.attrs.update(provenance="[]")),
        DamagedFeatureSet,
        "not a JSON object",
    ),
    (
        "complete is text",
        edit(lambda f: f.attrs.update(complete="yes")),
        DamagedFeatureSet,
        "'complete' has the wrong type",
    ),
    (
        "bad modality",
        edit(lambda f: f.attrs.update(modality="../x")),
        DamagedFeatureSet,
        "bad header: modality",
    ),
    (
        "bad source",
        edit(lambda f: f.attrs.update(source="x")),
        DamagedFeatureSet,
        "bad header: source",
    ),
    (
        "bad layout",
        edit(lambda f: f.attrs.update(layout="x")),
        DamagedFeatureSet,
        "bad header: layout",
    ),
    (
        "layout says ragged",
        edit(lambda f: f.attrs.update(layout="ragged")),
        DamagedFeatureSet,
        "/offsets: absent",
    ),
    ("no ids", edit(lambda f: f.__delitem__("ids")), DamagedFeatureSet, "/ids: absent"),
    (
        "no features",
        edit(lambda f: f.__delitem__("features")),
        DamagedFeatureSet,
        "/features: absent",
    ),
    ("no status", edit(lambda f: f.__delitem__("status")), DamagedFeatureSet, "/status: absent"),
    ("no errors", edit(lambda f: f.__delitem__("errors")), DamagedFeatureSet, "/errors: absent"),
    (
        "features float64",
        replaced("features", lambda a: a.astype("f8")),
        DamagedFeatureSet,
        "/features: wrong dtype .got <f8",
    ),
    (
        "features big-endian",
        replaced("features", lambda a: a.astype(">f4")),
        DamagedFeatureSet,
        "got >f4",
    ),
    (
        "features integer",
        replaced("features", lambda a: np.zeros(a.shape, "i4")),
        DamagedFeatureSet,
        "got <i4",
    ),
    (
        "features flat",
        replaced("features", lambda a: a.ravel()),
        DamagedFeatureSet,
        "/features: wrong shape",
    ),
    (
        "features a group",
        edit(lambda f: (f.__delitem__("features"), f.create_group("features"))),
        DamagedFeatureSet,
        "/features: absent",
    ),
    (
        "status signed",
        replaced("status", lambda a: a.astype("i8")),
        DamagedFeatureSet,
        "/status: wrong dtype",
    ),
    (
        "ids variable-length",
        replaced("ids", list, dtype=h5py.string_dtype()),
        DamagedFeatureSet,
        "/ids: wrong dtype .got variable-length text",
    ),
    (
        "ids numbers",
        replaced("ids", lambda a: np.arange(a.size)),
        DamagedFeatureSet,
        "/ids: wrong dtype",
    ),
    (
        "ids references",
        replaced("ids", lambda a: np.empty(a.size, h5py.ref_dtype), dtype=h5py.ref_dtype),
        DamagedFeatureSet,
        "/ids: wrong dtype",
    ),
    (
        "fewer ids",
        replaced("ids", lambda a: a[:-1]),
        DamagedFeatureSet,
        "unequal numbers of rows .*/ids: 11",
    ),
    (
        "fewer vectors",
        replaced("features", lambda a: a[:-1]),
        DamagedFeatureSet,
        "unequal numbers of rows .*/features: 11",
    ),
    (
        "more statuses",
        replaced("status", lambda a: np.append(a, a[:1])),
        DamagedFeatureSet,
        "unequal numbers of rows",
    ),
    (
        "fewer messages",
        replaced("errors/message", lambda a: a[:-1]),
        DamagedFeatureSet,
        "/errors: unequal lengths",
    ),
    (
        "duplicate ids",
        replaced("ids", lambda a: np.append(a[:-1], a[:1])),
        DamagedFeatureSet,
        "'item 0' occurs twice .rows 0 and 11",
    ),
    (
        "NaN in a present row",
        edit(
            lambda f: f["features"].__setitem__((np.flatnonzero(f["status"][:] == 1)[0], 1), np.nan)
        ),
        DamagedFeatureSet,
        "marked present and holds NaN",
    ),
    (
        "infinity in a present row",
        edit(
            lambda f: f["features"].__setitem__(
                (np.flatnonzero(f["status"][:] == 1)[0], 1), -np.inf
            )
        ),
        DamagedFeatureSet,
        "marked present and holds NaN",
    ),
    ("incomplete", edit(lambda f: f.attrs.update(complete=False)), IncompleteFeatureSet, "pending"),
    (
        "soft link",
        edit(
            lambda f: (
                f.move("features", "other"),
                f.__setitem__("features", h5py.SoftLink("/other")),
            )
        ),
        DamagedFeatureSet,
        "is a link",
    ),
    (
        "external link",
        edit(
            lambda f: (
                f.__delitem__("features"),
                f.__setitem__("features", h5py.ExternalLink("/etc/passwd", "/x")),
            )
        ),
        DamagedFeatureSet,
        "is a link",
    ),
    (
        "external storage",
        edit(
            lambda f: (
                f.__delitem__("features"),
                f.create_dataset("features", (12, 3), "<f4", external=[("/etc/passwd", 0, 144)]),
            )
        ),
        DamagedFeatureSet,
        "outside the file",
    ),
    (
        "plug-in filter",
        edit(
            lambda f: (
                f.__delitem__("features"),
                f.create_dataset("features", (12, 3), "<f4", compression="lzf"),
            )
        ),
        DamagedFeatureSet,
        "compression plug-in",
    ),
]

# Damage that only a look at the whole content notices: (name, damage, message)
FOUND: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "one bit",
        edit(
            lambda f: f["features"].__setitem__((np.flatnonzero(f["status"][:] == 1)[0], 0), 0.125)
        ),
        "content_digest differs",
    ),
    ("another id", edit(lambda f: f["ids"].__setitem__(0, b"item x")), "content_digest differs"),
    (
        "an id is not UTF-8",
        edit(lambda f: f["ids"].__setitem__(0, b"\xff")),
        "/ids: row 0 is not UTF-8",
    ),
    ("an id is empty", edit(lambda f: f["ids"].__setitem__(0, b"")), "/ids: row 0 is empty"),
    (
        "absent row with numbers",
        edit(lambda f: f["features"].__setitem__((np.flatnonzero(f["status"][:] == 2)[0], 0), 0.0)),
        "absent and holds numbers",
    ),
    ("unknown status", edit(lambda f: f["status"].__setitem__(3, 9)), "/status: row 3 is 9"),
    (
        "pending row",
        edit(lambda f: f["status"].__setitem__(np.flatnonzero(f["status"][:] == 2)[0], 0)),
        "1 rows are pending",
    ),
    (
        "error of another row",
        edit(lambda f: f["errors/row"].__setitem__(0, 1 - f["errors/row"][0])),
        "not the corrupt rows",
    ),
    ("chunked", replaced("features", lambda a: a, chunks=(3, 3)), "chunked"),
]

FOUND_RAGGED: list[tuple[str, Callable[[Path], None], str]] = [
    ("offsets begin late", edit(lambda f: f["offsets"].__setitem__(0, 1)), "/offsets: runs from 1"),
    (
        "offsets descend",
        edit(lambda f: f["offsets"].__setitem__(6, 10**6)),
        "/offsets: descends after row 6",
    ),
    (
        "offsets end early",
        edit(lambda f: f["features"].resize(f["features"].shape[0] + 1, axis=0)),
        "/offsets: runs from 0",
    ),
    (
        "vectors of an absent row",
        edit(lambda f: f["status"].__setitem__(int(np.flatnonzero(f["status"][:] == 1)[0]), 2)),
        "status 2",
    ),
    ("NaN", edit(lambda f: f["features"].__setitem__((0, 0), np.nan)), "present and holds NaN"),
]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [case[1:] for case in NOTICED],
    ids=[case[0] for case in NOTICED],
)
def test_the_reader_and_verify_say_what_is_wrong(
    tmp_path: Path, damage: Callable[[Path], None], error: type[StoreError], message: str
) -> None:
    path = tmp_path / "x.h5"
    CONTENT.save(path)
    damage(path)
    with pytest.raises(error, match=message) as caught:
        read_everything(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value), "where"
    assert "; " in str(caught.value), "how to fix it"
    problems = FeatureSet(path).verify()
    assert problems and all(str(path) in problem for problem in problems)


@pytest.mark.parametrize(
    ("damage", "message"), [case[1:] for case in FOUND], ids=[case[0] for case in FOUND]
)
def test_verify_finds_what_readers_do_not_look_at(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "x.h5"
    CONTENT.save(path)
    assert FeatureSet(path).verify() == []
    damage(path)
    problems = FeatureSet(path).verify()
    assert any(message in problem for problem in problems), problems
    assert all(problem.startswith(str(path)) for problem in problems)


@pytest.mark.parametrize(
    ("damage", "message"),
    [case[1:] for case in FOUND_RAGGED],
    ids=[case[0] for case in FOUND_RAGGED],
)
def test_verify_finds_damage_of_ragged_sets(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "x.h5"
    RAGGED_CONTENT.save(path)
    assert FeatureSet(path).verify() == []
    damage(path)
    problems = FeatureSet(path).verify()
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize("index", [0, 1, 2, 4])
def test_the_reader_refuses_ragged_damage_too(tmp_path: Path, index: int) -> None:
    path = tmp_path / "x.h5"
    RAGGED_CONTENT.save(path)
    FOUND_RAGGED[index][1](path)
    with pytest.raises(DamagedFeatureSet):
        read_everything(path)


def test_duplicate_pairs_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    pairs = [("u", "a"), ("u", "b")]
    random_content(1, pairs, absent=0.0).save(path)
    edit(lambda f: f["item_ids"].__setitem__(1, b"a"))(path)
    assert any("'u' and 'a' occurs twice" in problem for problem in FeatureSet(path).verify())
    with pytest.raises(DamagedFeatureSet, match="'u' and 'a' occurs twice"):
        FeatureSet(path).matrix(pairs)


def test_a_newer_minor_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    CONTENT.save(path)
    edit(
        lambda f: (
            f.attrs.update(format_version="1.7", news="x"),
            f.create_dataset("extra", data=[1]),
        )
    )(path)
    with pytest.warns(StoreWarning, match="version 1.7 is newer than 1.0"):
        _, present = FeatureSet(path).matrix(IDS)
    assert present.tolist() == (CONTENT.status == 1).tolist()
    with pytest.warns(StoreWarning, match="version 1.7"):
        assert FeatureSet(path).verify() == []


def test_compressed_ragged_sets_are_read(tmp_path: Path) -> None:
    """Filters that are part of HDF5 itself are allowed where chunks are."""
    path = tmp_path / "x.h5"
    RAGGED_CONTENT.save(path)
    replaced(
        "features", lambda a: a, chunks=(4, 3), compression="gzip", shuffle=True, fletcher32=True
    )(path)
    assert FeatureSet(path).verify() == []
    with h5py.File(path) as file:
        start = file["features"].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[start + 5] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DamagedFeatureSet, match="truncated or damaged"):
        read_everything(path)
    assert len(FeatureSet(path).verify()) == 1


def test_declared_sizes_are_compared_with_a_budget_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.h5"
    RAGGED_CONTENT.save(path)
    with h5py.File(path, "r+") as file:
        del file["features"]
        shape, options = (20_000, 100), {"compression": "gzip", "compression_opts": 9}
        data = file.create_dataset("features", shape, "<f4", chunks=(5_000, 100), **options)
        data[:] = 0.0  # 8 MB in 8 kB
    monkeypatch.setattr(hdf5, "_LARGE_BYTES", 1 << 22)
    with pytest.raises(DamagedFeatureSet, match=r"/features: 0\.0 MB would become 8 MB"):
        read_everything(path)
    monkeypatch.setattr(hdf5, "_MAX_CHUNK_BYTES", 1 << 20)
    with pytest.raises(DamagedFeatureSet, match=r"/features: a chunk takes 2 MB \(at most 1 MB"):
        read_everything(path)
    assert path.stat().st_size < 100_000


def test_a_partial_file_tells_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    for content in (CONTENT, RAGGED_CONTENT):
        with content.writer(path, restart=True) as writer:
            content.put(writer, range(5))
        found = FeatureSet(tmp_path / "x.h5.partial")
        assert (
            not found.complete
            and found.content_digest == ""
            and found.counts()[0] == 7
            and found.errors() == []
        )
        with pytest.raises(IncompleteFeatureSet, match="goes on where it stopped"):
            next(found.iter_batches())
        assert found.verify() == [
            f"{found.path}: incomplete (7 of 12 rows pending); run the extraction again"
        ]


FORBIDDEN = """
import os, pathlib, sys
import mmstore.validate, mmstore.reader, mmstore.writer, mmstore.testing
from mmstore import FeatureSet, FeatureStore, StoreAccess
path = pathlib.Path(sys.argv[1])
# whatever is imported on first use is imported while Python's own files are readable
warm = path.with_name("warm.h5")
mmstore.testing.random_content(6, ["a"]).save(warm)
FeatureSet(warm).verify(), FeatureSet(warm).matrix(["a"])
path.parent.chmod(0o555)
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    FeatureSet(path).matrix(["item 0"])
except StoreAccess as error:
    print(error)
print(*FeatureSet(path).verify())
try:
    mmstore.testing.random_content(6, ["a"]).writer(path.parent / "new.h5")
except StoreAccess as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_no_permission(tmp_path: Path) -> None:
    """Root may read everything, so the test gives its rights away in a process of its own."""
    path = tmp_path / "x.h5"
    CONTENT.save(path)
    path.chmod(0o000)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.name.startswith(("pytest", tmp_path.name)):
            parent.chmod(0o755)
    try:
        done = subprocess.run(
            [sys.executable, "-c", FORBIDDEN, str(path)], capture_output=True, text=True
        )
    finally:
        tmp_path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    reading, verifying, writing = done.stdout.splitlines()
    for line in (reading, verifying, writing):
        assert "Permission denied; check the permissions" in line
    assert "new.h5" in writing


def test_permission_errors_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    CONTENT.save(path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(StoreAccess, match="check the permissions"):
        read_everything(path)
    assert len(FeatureSet(path).verify()) == 1


def test_flipped_bits_never_give_a_traceback() -> None:
    """In a process of its own: HDF5 itself must neither crash nor hang on the damage."""
    script = Path(__file__).with_name("flip_trials.py")
    done = subprocess.run(
        [sys.executable, str(script), "100"], capture_output=True, text=True, check=True, timeout=60
    )
    noticed, unnoticed = map(int, done.stdout.split())
    assert noticed + unnoticed == 200 and noticed > 100
