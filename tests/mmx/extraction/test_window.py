"""The pure steps from rows to vectors, and executors that agree on them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbase.progress import Silent
from mmstore import FeatureSet
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, EncoderSpec
from mmx.errors import ContentError, DataError
from mmx.extraction import window
from mmx.extraction.executors import Executor, LocalExecutor, SerialExecutor
from mmx.extraction.extract import extract, extract_together
from mmx.extraction.plan import Plan, make_plan
from mmx.extraction.window import LoadedSpan, Segments, Span, Task, batches_of, encode_window


class Shared(Encoder):
    """Length of a file's text, the length of all texts of its batch, and one number of its own."""

    modalities = frozenset({"audio"})

    def __init__(
        self, name: str, *, concurrent: bool = True, ragged: bool = False, room: int = 1000
    ) -> None:
        self.spec = EncoderSpec(
            name=name, modality="audio", backend="test", model_id=name, dim=3, layer="only",
            pooling="none", preprocessing={}, weights="none", weights_sha256=None, licence=None,
            precision="fp32",
        )  # fmt: skip
        self.concurrent = concurrent
        self.ragged = ragged
        self.room = room
        self.batches: list[list[int]] = []

    def load(self, content: Path | str) -> Any:
        text = Path(content).read_text(encoding="utf-8")
        if text == "bad":
            raise ContentError("cannot be read")
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def encode(self, batch: Sequence[Any]) -> Any:
        if len(batch) > self.room:
            raise MemoryError
        self.batches.append([len(item) for item in batch])
        shared = sum(map(len, batch)) if self.room == 1000 else 0
        rows = [[len(item), shared, item[0] if item[0] != 63 else np.nan] for item in batch]
        vectors = np.array(rows, dtype=np.float32)
        return [np.stack([row, row + 1]) for row in vectors] if self.ragged else vectors

    def sort_key(self, loaded: Any) -> int:
        return len(loaded)

    def truncated(self, loaded: Any) -> bool:
        return len(loaded) > 15


N = 150


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 clips of several lengths; one is absent, one corrupt, one gives NaN."""
    root = tmp_path_factory.mktemp("clips")
    (root / "audio").mkdir()
    for k in range(N):
        text = {20: "bad", 90: "?"}.get(k, chr(65 + k % 50) * (1 + k * 7 % 19))
        if k != 40:
            (root / "audio" / f"{k:03d}.wav").write_text(text, encoding="utf-8")
    ids = "".join(f"{k:03d}\n" for k in range(N))
    (root / "items.tsv").write_text(f"item_id\n{ids}", encoding="utf-8")
    return root


def config(name: str) -> SetConfig:
    return SetConfig(modality="audio", model=name, batch_size=4)


@pytest.fixture
def plan(clips: Path) -> Plan:
    return make_plan(RunConfig(data=clips, device="cpu"), config("a"), Silent())


def rows_of(*rows: int) -> Any:
    return np.array(rows, dtype=np.int64)


def test_a_window_gives_the_wanted_rows_alone_and_as_in_the_whole_window(plan: Plan) -> None:
    assert plan.window == 32
    encoder = Shared("a")
    encoder.batch_size = 4
    whole = encode_window(plan, encoder, np.arange(32, 64))
    assert sorted(whole.rows.tolist()) == [k for k in range(32, 64) if k != 40]
    assert (whole.missing, whole.corrupt) == ([40], [])
    assert encoder.batches == [sorted(batch) for batch in encoder.batches]
    assert whole.costs.n_truncated == sum(k * 7 % 19 >= 15 for k in range(32, 64) if k != 40)

    n_batches = len(encoder.batches)
    part = encode_window(plan, encoder, rows_of(33, 40, 63))
    assert sorted(part.rows.tolist()) == [33, 63]
    assert part.missing == [40]
    assert len(encoder.batches) - n_batches <= 2  # batches without a wanted row are left out
    vectors = dict(zip(whole.rows.tolist(), whole.vectors, strict=True))
    for row, vector in zip(part.rows.tolist(), part.vectors, strict=True):
        assert np.array_equal(vector, vectors[row])

    assert encode_window(plan, encoder, rows_of(20)).corrupt == [(20, "cannot be read")]
    assert encode_window(plan, encoder, rows_of(149)).rows.tolist() == [149]  # a shorter window


def test_equal_sizes_keep_the_order_of_the_rows(plan: Plan) -> None:
    items = [np.zeros(1 + row % 2) for row in range(400)]
    _, batches = batches_of(Task(plan, Shared("a")), 32, items, np.arange(32, 432))
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert rows == [*range(32, 432, 2), *range(33, 432, 2)]
    assert [len(batch.items) for batch in batches] == [4] * 100


def test_a_file_that_is_gone_by_now_is_missing(clips: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(clips, root)
    run = RunConfig(data=root, device="cpu")
    plan = make_plan(run, config("a"), Silent())
    (root / "audio" / "033.wav").unlink()
    assert encode_window(plan, Shared("a"), rows_of(33)).missing == [33]


@pytest.mark.parametrize("span_rows", [1, 2, 3, 10])
def test_segments_end_with_the_item_that_exceeds_the_bound(
    monkeypatch: pytest.MonkeyPatch, span_rows: int
) -> None:
    monkeypatch.setattr(window, "WINDOW_BYTES", 20)
    sizes = [8, 8, 8, 30, 20, 1, 8, 8, 2, 2]
    items = [np.zeros(size, dtype=np.uint8) for size in sizes]
    segments, found = Segments(), []
    for start in range(0, 10, span_rows):
        part = items[start : start + span_rows]
        span = Span(start, start + len(part), [], last=start + span_rows >= 10)
        loaded = LoadedSpan(span, [part], [sum(map(len, part))], 0, 0.0, 0.0)
        found += [(first, list(map(len, segment))) for first, segment in segments.take(loaded, 0)]
    assert found == [(0, [8, 8, 8]), (3, [30]), (4, [20, 1]), (6, [8, 8, 2, 2])]


@pytest.mark.parametrize("executor", [LocalExecutor(1), LocalExecutor(3), SerialExecutor()])
def test_every_executor_gives_the_same_sets(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    monkeypatch.setattr(window, "WINDOW_BYTES", 120)

    def encoders() -> dict[str, Encoder]:
        return {
            "a": Shared("a"),
            "b": Shared("b", concurrent=False),
            "c": Shared("c", ragged=True),
            "d": Shared("d", room=2),
        }

    def go(out: str, executor: Executor) -> Any:
        built = encoders()
        run = RunConfig(data=clips, out=tmp_path / out, device="cpu")
        return extract_together(
            run,
            [config(name) for name in built],
            build=lambda model, **_: built[model],
            executor=executor,
        )

    expected, found = go("expected", LocalExecutor(2)), go("found", executor)
    assert [summary.digest for summary in found] == [summary.digest for summary in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.counts == other.counts
        assert (one.counts.ok, one.counts.missing, one.counts.corrupt) == (N - 3, 1, 2)
        assert one.errors == other.errors
        assert one.stages.n_items == N
        assert one.stages.n_truncated == other.stages.n_truncated > 0
        assert one.stages.n_bytes == other.stages.n_bytes > 0
    assert [summary.stages.batch_size for summary in found] == [4, 4, 4, 2]


@pytest.mark.parametrize("first", [LocalExecutor(2), SerialExecutor()])
def test_one_executor_continues_what_another_began(
    clips: Path, tmp_path: Path, first: Executor
) -> None:
    class Failing(Shared):
        def encode(self, batch: Sequence[Any]) -> Any:
            if len(self.batches) == 20:
                raise ZeroDivisionError
            return super().encode(batch)

    def go(out: str, encoder: Encoder, executor: Executor) -> Any:
        run = RunConfig(data=clips, out=tmp_path / out, device="cpu")
        return extract(run, config("a"), build=lambda *_, **__: encoder, executor=executor)

    with pytest.raises(ZeroDivisionError):
        go("parts", Failing("a"), first)
    rest = Shared("a")
    summary = go("parts", rest, SerialExecutor())
    assert summary.digest == go("whole", Shared("a"), SerialExecutor()).digest
    assert len(rest.batches) < 30  # of 38


def test_an_executor_is_told_to_stop_when_too_many_items_are_corrupt(
    clips: Path, tmp_path: Path
) -> None:
    encoder = Shared("a")
    run = RunConfig(data=clips, out=tmp_path, device="cpu", max_failures="0")
    with pytest.raises(DataError, match=r"1 of 150 items are corrupt .* 020: cannot be read"):
        extract(run, config("a"), build=lambda *_, **__: encoder, executor=SerialExecutor())
    assert len(encoder.batches) == 8  # the first window, which holds it, and no other
    partial = next(tmp_path.rglob("*.partial"))
    assert partial.exists()
    assert not list(tmp_path.rglob("a.h5"))
    run = run.model_copy(update={"max_failures": "2"})
    summary = extract(run, config("a"), build=lambda *_, **__: encoder)
    assert summary.stages.n_items == N - 32
    with FeatureSet(summary.path) as features:
        assert features.verify() == []
