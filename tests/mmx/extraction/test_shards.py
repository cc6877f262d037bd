"""Shards: sets of some windows, computed by whoever is there, and joined into the set of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.mmx.extraction.test_extract import FakeEncoder, dataset

from mmstore import FeatureSet, FeatureSetWriter, StoreError
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder
from mmx.extraction.executors import (
    Condition,
    LocalExecutor,
    Results,
    SerialExecutor,
    Windows,
)
from mmx.extraction.extract import extract, extract_together
from mmx.extraction.shards import (
    FOLDER,
    Committed,
    Shard,
    commit,
    folder_of,
    shard_rows,
    shards,
    taken,
)
from mmx.extraction.summary import LoadingReport, Summary
from mmx.extraction.window import Task

TEXTS = {f"i{n:04d}": ("bad " * (n % 97 == 5) + "x" * (n * 7 % 23))[:40] for n in range(1200)}
# Batches of 2 and windows of 128 rows: shards of one window.
CONFIG = SetConfig(modality="textual", model="fake", batch_size=2)


class Sharding(SerialExecutor):
    """Computes shards one after the other, and may be killed before or after one is taken."""

    report = LoadingReport("threads", 1)

    def __init__(self, killed_at: int = -1, *, before_taking: bool = True) -> None:
        self.killed_at, self.before_taking = killed_at, before_taking
        self.starts: list[int] = []

    def run(self, tasks: Sequence[Task], windows: Windows, stopping: Condition) -> Results:
        encoders = [task.encoder for task in tasks]
        for number, (shard, wanted) in enumerate(shards(tasks, windows)):
            self.starts.append(shard.start)
            committed = commit(shard, encoders, LocalExecutor(1, "threads"))
            if number == self.killed_at and self.before_taking:
                raise KeyboardInterrupt
            for part, one in zip(shard.parts, committed, strict=True):
                yield part.task, taken(part, shard.start, wanted[part.task], one)
            if number == self.killed_at or stopping():
                raise KeyboardInterrupt


class Ragged(FakeEncoder):
    ragged = True

    def encode(self, batch: Sequence[str]) -> Any:
        dense = super().encode(batch)
        return [
            row[None].repeat(1 + len(text) % 3, 0) for row, text in zip(dense, batch, strict=True)
        ]


def go(root: Path, executor: Any = None, encoder: Encoder | None = None, **options: Any) -> Summary:
    config = CONFIG.model_copy(update={"store_dtype": options.pop("store_dtype", "float32")})
    built = encoder or FakeEncoder()
    options.setdefault("max_failures", "100%")
    return extract(
        RunConfig(data=root, device="cpu", **options),
        config,
        build=lambda model, **_: built,
        executor=executor,
    )


def same(first: Summary, second: Summary) -> None:
    assert (first.digest, first.counts, first.errors) == (
        second.digest,
        second.counts,
        second.errors,
    )
    with FeatureSet(first.path) as one, FeatureSet(second.path) as other:
        assert one.errors() == other.errors()
        provenance = [{**each.provenance, "created": ""} for each in (one, other)]
        assert provenance[0] == provenance[1]
        assert one.verify() == []
    assert not (first.path.parent / FOLDER).exists()


@pytest.mark.parametrize("encoder", [FakeEncoder, Ragged])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shards_give_the_set_of_a_local_run(
    tmp_path: Path, encoder: type[FakeEncoder], dtype: str
) -> None:
    root = dataset(tmp_path, {**TEXTS, "nan": "nan"})
    local = go(root, out=tmp_path / "local", encoder=encoder(), store_dtype=dtype)
    sharded = go(root, Sharding(), out=tmp_path / "sharded", encoder=encoder(), store_dtype=dtype)
    same(sharded, local)
    assert sharded.stages.n_truncated == local.stages.n_truncated
    assert sharded.stages.n_bytes == local.stages.n_bytes


@pytest.mark.parametrize("before_taking", [True, False])
def test_what_was_committed_is_not_computed_again(tmp_path: Path, before_taking: bool) -> None:
    root = dataset(tmp_path, TEXTS)
    with pytest.raises(KeyboardInterrupt):
        go(root, Sharding(4, before_taking=before_taking))
    again = FakeEncoder()
    summary = go(root, executor := Sharding(), encoder=again)
    # Four shards were taken before; the fifth is complete, whether its rows were taken or not.
    assert executor.starts[0] == (512 if before_taking else 640)
    assert len(again.loaded) == sum(map(bool, list(TEXTS.values())[640:]))
    same(summary, go(root, out=tmp_path / "local"))


def test_a_shard_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = dataset(tmp_path, TEXTS)
    monkeypatch.setattr("mmx.extraction.shards.FLUSH_S", 0.0)
    monkeypatch.setattr("mmx.extraction.shards.SHARD_ROWS", {"cpu": 512})

    def killed(n: int) -> None:
        if n > 200:
            raise KeyboardInterrupt

    encoder = FakeEncoder()
    encoder.on_encode = killed
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureSetWriter, "close", FeatureSetWriter._release)  # as a kill: no flush
        go(root, Sharding(), encoder=encoder)
    again = FakeEncoder()
    summary = go(root, Sharding(), encoder=again)
    assert len(again.loaded) < len(TEXTS) - 300
    same(summary, go(root, out=tmp_path / "local"))


def test_a_set_that_was_begun_locally_goes_on_in_shards_and_the_other_way_round(
    tmp_path: Path,
) -> None:
    root = dataset(tmp_path, TEXTS)
    local = go(root, out=tmp_path / "local")

    def killed(n: int) -> None:
        if n > 300:
            raise KeyboardInterrupt

    encoder = FakeEncoder()
    encoder.on_encode = killed
    with pytest.raises(KeyboardInterrupt):
        go(root, encoder=encoder, out=tmp_path / "first", workers=1)
    same(go(root, Sharding(), out=tmp_path / "first"), local)
    with pytest.raises(KeyboardInterrupt):
        go(root, Sharding(4), out=tmp_path / "second")
    same(go(root, out=tmp_path / "second"), local)


def test_failed_rows_alone_are_tried_again(tmp_path: Path) -> None:
    root = dataset(tmp_path, TEXTS)
    go(root, Sharding())
    encoder = FakeEncoder()
    summary = go(root, Sharding(), encoder=encoder, retry_failed=True)
    same(summary, go(root, out=tmp_path / "local"))


def test_shards_of_another_plan_and_damaged_ones_are_computed_anew(tmp_path: Path) -> None:
    root = dataset(tmp_path, TEXTS)
    with pytest.raises(KeyboardInterrupt):
        go(root, Sharding(2))
    dataset(tmp_path, {item: text + "y" for item, text in TEXTS.items()})
    summary = go(root, Sharding(), restart=True)
    same(summary, go(root, out=tmp_path / "local"))


def test_a_shard_that_is_not_the_one_that_was_committed_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path, TEXTS)

    class Changed(Sharding):
        def run(self, tasks: Any, windows: Any, stopping: Any) -> Results:
            shard, wanted = next(shards(tasks, windows))
            (one,) = commit(shard, [tasks[0].encoder], SerialExecutor())
            yield 0, taken(shard.parts[0], 0, wanted[0], Committed("0" * 64, one.costs))

    with pytest.raises(StoreError, match="not the shard that was committed"):
        go(root, Changed())


def test_sets_that_share_contents_share_shards(tmp_path: Path) -> None:
    root = dataset(tmp_path, TEXTS)
    configs = [
        CONFIG.model_copy(update={"name": name, "store_dtype": dtype})
        for name, dtype in (("one", "float32"), ("two", "float16"))
    ]

    def made(out: str, executor: Any) -> list[Summary]:
        run = RunConfig(data=root, out=tmp_path / out, device="cpu", max_failures="100%")
        return extract_together(
            run, configs, build=lambda model, **_: FakeEncoder(), executor=executor
        )

    for first, second in zip(made("a", Sharding()), made("b", None), strict=True):
        same(first, second)


def test_a_large_catalogue_has_no_more_shards_than_a_folder_takes(tmp_path: Path) -> None:
    plans: list[Any] = []

    class Looking(Sharding):
        def run(self, tasks: Any, windows: Any, stopping: Any) -> Iterator[Any]:  # type: ignore[override]
            plans.append(tasks[0].plan)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(dataset(tmp_path, TEXTS), Looking())
    plan = plans[0]

    class Many:
        window, device, items = 128, "cpu", range(100_000_000)

    assert shard_rows(plan) == 128
    assert shard_rows(Many()) == 10_112  # type: ignore[arg-type]  # whole windows, 9,890 of them
    assert folder_of(Path("st/textual/a.h5")) == Path("st/textual/.shards/a")
    assert Shard(0, ()).parts == ()
