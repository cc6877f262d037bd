"""What is decoded at the same time is bounded, and a shortage of memory is nobody's fault."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageFile

from mmstore import FeatureSet, Status
from mmx.config import RunConfig, SetConfig
from mmx.encoders.decoding import alone, bounded, decode_rgb, memory, read_mono
from mmx.encoders.decoding.memory import ByteBudget
from mmx.errors import ContentError, DataError
from mmx.extraction import loading
from mmx.extraction.extract import extract
from mmx.extraction.summary import Summary


class Watched(ByteBudget):
    """A budget that remembers what was asked for and how much was taken at once."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.asked: list[int] = []
        self.peak = 0

    def take(self, n_bytes: int) -> int:
        taken = super().take(n_bytes)
        self.asked.append(n_bytes)
        self.peak = max(self.peak, self._taken)
        return taken


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    budget = Watched(300_000)
    monkeypatch.setattr(memory, "budget", budget)
    yield budget
    assert budget._taken == 0  # everything was given back


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for k in range(12):
        picture = Image.new("P", (200, 100))  # 9 bytes per pixel
        picture.putpalette(bytes([k]) * 768)
        picture.save(tmp_path / "images" / f"{k}.gif")
    return tmp_path


def go(root: Path, workers: int = 4, out: str = "out") -> Summary:
    run = RunConfig(data=root, out=root / out, device="cpu", workers=workers)
    return extract(run, SetConfig(modality="visual", model="colour-hog"))


def test_threads_share_a_budget_and_none_starves() -> None:
    budget, lock = ByteBudget(10), threading.Lock()
    held = peak = 0

    def work(n: int) -> int:
        nonlocal held, peak
        taken = budget.take(n)
        with lock:
            held += taken
            peak = max(peak, held)
        with lock:
            held -= taken
        budget.give_back(taken)
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(work, [3, 10, 99, 1, 7, 4] * 50))
    assert taken == [3, 10, 10, 1, 7, 4] * 50
    assert peak <= 10


@pytest.mark.parametrize("workers", [1, 8])
def test_the_memory_of_decoding_does_not_grow_with_the_workers(
    pictures: Path, watched: Watched, workers: int
) -> None:
    summary = go(pictures, workers)
    assert summary.counts.ok == 12
    assert watched.asked == [9 * 200 * 100] * 12
    assert watched.peak <= watched.limit


def test_a_content_that_is_larger_than_the_budget_is_decoded_alone(
    tmp_path: Path, watched: Watched
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(99_000, np.float32), 8000)
    Image.new("RGB", (400, 300)).save(tmp_path / "a.png")
    with bounded():
        for _ in range(2):  # what the content before had is given back first
            read_mono(tmp_path / "a.wav")
            decode_rgb(tmp_path / "a.png")
    assert min(watched.asked) > watched.limit == watched.peak


def test_without_a_bound_nothing_is_reserved(pictures: Path, watched: Watched) -> None:
    decode_rgb(pictures / "images" / "1.gif")
    assert watched.asked == []


def fails_in(monkeypatch: pytest.MonkeyPatch, name: str, times: int, error: Exception) -> None:
    """Let the decoder of a file run out of memory."""
    original, left = ImageFile.ImageFile.load, [times]

    def load(self: Any) -> Any:
        if Path(self.filename).name == name and left[0] > 0:
            left[0] -= 1
            raise error
        return original(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading")])
def test_after_a_shortage_the_item_is_read_alone(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = go(pictures).digest
    fails_in(monkeypatch, "7.gif", 1, error)
    again = go(pictures, out="again")
    assert (again.digest, again.counts.ok) == (expected, 12)


def test_an_item_that_does_not_fit_alone_ends_the_run_and_is_not_corrupt(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = go(pictures).digest
    with monkeypatch.context() as short:
        fails_in(short, "7.gif", 99, MemoryError())
        short.setattr(memory, "bytearray", out_of_memory, raising=False)
        with pytest.raises(DataError, match="item '7': not enough memory"):
            go(pictures, out="again")
    assert go(pictures, out="again").digest == expected  # it goes on once there is memory


def out_of_memory(n: int) -> bytearray:
    raise MemoryError


def test_a_decoder_that_asks_for_too_much_although_there_is_memory_says_something_of_its_file(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_in(monkeypatch, "7.gif", 99, MemoryError())
    summary = go(pictures)
    assert (summary.counts.ok, summary.counts.corrupt) == (11, 1)
    with FeatureSet(summary.path) as features:
        assert Status(features.status[features.ids.tolist().index("7")]) == Status.CORRUPT
    path = pictures / "images" / "7.gif"
    with pytest.raises(MemoryError):  # others may have had the memory
        decode_rgb(path)
    with alone(), pytest.raises(ContentError):
        decode_rgb(path)


def test_torch_runs_out_of_memory_in_its_own_words() -> None:
    class Encoder:
        def load(self, content: Path) -> int:
            self.n = getattr(self, "n", 0) + 1
            if self.n == 1:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            return self.n

    assert loading.load_here(Encoder(), Path("a")) == 2  # type: ignore[arg-type]
