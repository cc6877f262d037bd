"""Readers notice content that was altered after it was written, and pay for that once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import mmstore.hashing as trust
import mmstore.validate as validate
from mmstore import DamagedFeatureSet, FeatureSet
from mmstore.testing import Content, random_content

IDS = [f"item {row}" for row in range(12)]
CONTENT = random_content(6, IDS, absent=0.4)
TRIALS = Path(__file__).with_name("mutation_trials.py")


def flip(path: Path, value: bytes) -> None:
    """Change one bit of the only place that holds `value`, in place."""
    data = bytearray(path.read_bytes())
    assert data.count(value) == 1
    data[data.index(value)] ^= 1
    with path.open("r+b") as stream:
        stream.write(data)


def flip_vector(path: Path, content: Content = CONTENT) -> None:
    row = next(vectors for vectors in content.vectors if vectors is not None)
    flip(path, row.tobytes())


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set that was written long enough ago to be noted, and an empty folder for notes."""
    monkeypatch.setenv("MMSTORE_CACHE", str(tmp_path / "notes"))
    monkeypatch.setattr(trust, "_SETTLED_NS", 0)
    path = tmp_path / "x.h5"
    CONTENT.save(path)
    return path


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a content digest is computed."""
    calls: list[int] = []
    compute = trust.content_digest

    def counted(*arguments: object) -> str:
        calls.append(1)
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trust, "content_digest", counted)
    return calls


READS: dict[str, Callable[[FeatureSet], object]] = {
    "matrix": lambda found: found.matrix(IDS[:1]),
    "ids": lambda found: found.ids,
    "raw_ids": lambda found: found.raw_ids,
    "status": lambda found: found.status,
    "errors": lambda found: found.errors(),
    "iter_batches": lambda found: next(found.iter_batches(2)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_no_reader_accepts_another_number(
    read: Callable[[FeatureSet], object], tmp_path: Path
) -> None:
    path = tmp_path / "x.h5"
    CONTENT.save(path)
    read(FeatureSet(path))
    flip_vector(path)
    with pytest.raises(DamagedFeatureSet, match=r"x\.h5: content_digest differs .* was altered"):
        read(FeatureSet(path))


def test_an_id_that_became_another_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    CONTENT.save(path)
    flip(path, b"item 7")
    with pytest.raises(DamagedFeatureSet, match="content_digest differs"):
        FeatureSet(path).matrix(IDS)


def test_a_damaged_set_is_not_the_start_of_another_attempt(tmp_path: Path) -> None:
    """A retry copies the rows, and the copy would get a digest of its own."""
    path = tmp_path / "x.h5"
    CONTENT.save(path)
    flip_vector(path)
    with pytest.raises(DamagedFeatureSet, match="content_digest differs"):
        CONTENT.writer(path, retry_failed=True)
    with CONTENT.writer(path) as writer:  # nothing is read
        assert writer.finished


def test_the_second_process_pays_nothing(settled: Path, checks: list[int]) -> None:
    for _ in range(3):
        FeatureSet(settled).matrix(IDS)
    assert len(checks) == 1
    flip_vector(settled)
    with pytest.raises(DamagedFeatureSet):
        FeatureSet(settled).matrix(IDS)


def test_a_change_that_sets_the_time_back_is_noticed(settled: Path) -> None:
    FeatureSet(settled).matrix(IDS)
    before = settled.stat()
    time.sleep(0.02)  # longer than a step of the clock of the file system
    flip_vector(settled)
    os.utime(settled, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert settled.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DamagedFeatureSet):
        FeatureSet(settled).matrix(IDS)


def test_what_was_written_just_now_is_not_noted(
    settled: Path, checks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the clock counts again
    notes = settled.parent / "others"
    monkeypatch.setenv("MMSTORE_CACHE", str(notes))
    FeatureSet(settled).matrix(IDS)
    assert not notes.exists()


@pytest.mark.parametrize("note", ["", "[", "[" * 5000, "3", "{}", '{"size": 1}', "x" * 20_000])
def test_a_damaged_note_only_costs_time(note: str, settled: Path, checks: list[int]) -> None:
    FeatureSet(settled).matrix(IDS)
    (found,) = (settled.parent / "notes").iterdir()
    found.write_text(note)
    FeatureSet(settled).matrix(IDS)
    assert len(checks) == 2
    assert json.loads(found.read_text())["size"] == settled.stat().st_size


def test_no_folder_for_notes(
    settled: Path, checks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (settled.parent / "file").write_text("")
    for folder in ("off", str(settled.parent / "file" / "x")):
        monkeypatch.setenv("MMSTORE_CACHE", folder)
        FeatureSet(settled).matrix(IDS)
    assert len(checks) == 2
    monkeypatch.delenv("MMSTORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert trust.notes_folder() == Path("cache/mmstore")


def run_trials(first: int, last: int) -> dict[str, int]:
    """In a process of its own: HDF5 must neither crash nor hang on the damage."""
    done = subprocess.run(
        [sys.executable, str(TRIALS), str(first), str(last)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


def test_mutated_files_are_refused_or_unharmed() -> None:
    counts = run_trials(0, 150)
    assert sum(counts.values()) == 150 and counts["refused"] > 50


@pytest.mark.slow
def test_3000_mutated_files_are_refused_or_unharmed() -> None:
    counts = run_trials(0, 3000)
    assert sum(counts.values()) == 3000 and counts["refused"] > 1500


def test_a_check_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    CONTENT.save(path)
    assert validate.verify_apart(path) == []
    flip_vector(path)
    (problem,) = validate.verify_apart(path)
    assert problem == validate.verify_file(path)[0]
    (absent,) = validate.verify_apart(tmp_path / "y.h5")
    assert "no such feature set" in absent


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of processes")
def test_a_check_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a structure on which HDF5 loops: such files are rare, and each version differs."""
    loop = tmp_path / "python"
    loop.write_text(f"#!{sys.executable}\nwhile True: pass\n")
    loop.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(loop))
    (problem,) = validate.verify_apart(tmp_path / "x.h5", limit_s=0.05)
    assert "x.h5: can't be read to its end" in problem
