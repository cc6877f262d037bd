"""Files that get their name when they are complete."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from mmbase.errors import DataError
from mmbase.outputs import put


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "in" / ("long" * 60)
    for content in (b"one", b"two"):
        put(path, content)
        assert path.read_bytes() == content
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["folder", "file/inside", "long" * 99])
def test_what_cant_be_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(DataError, match=r"cannot be written \(.*\); choose another name"):
        put(tmp_path / name, b"new")
    assert {one.name for one in tmp_path.iterdir()} == {"folder", "file"}


def test_two_may_write_one_file(tmp_path: Path) -> None:
    path, failed = tmp_path / "page", []

    def write(letter: bytes) -> None:
        try:
            for _ in range(40):
                put(path, letter * 10_000)
        except DataError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not failed
    assert path.read_bytes() in (b"a" * 10_000, b"b" * 10_000)
    assert [one.name for one in tmp_path.iterdir()] == ["page"]


def test_names_that_are_no_utf_8_become_escapes(tmp_path: Path) -> None:
    put(tmp_path / "page", "é \udcff")
    assert (tmp_path / "page").read_bytes() == b"\xc3\xa9 \\udcff"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f"page.html.{dead.pid}-7.partial"
    kept = [
        tmp_path / f"page.html.{os.getpid()}-7.partial",  # of a process that is at it
        tmp_path / f"other.html.{dead.pid}-7.partial",
        tmp_path / "page.html.notes.partial",
    ]
    for path in (left, *kept):
        path.write_bytes(b"half")
    put(tmp_path / "page.html", b"whole")
    assert not left.exists() and all(path.exists() for path in kept)
