"""Loading in processes: the same sets as with threads, whatever happens to a process."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.mmx.extraction.elsewhere_loaded import Lengths

from mmbase.progress import Silent
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, create
from mmx.encoders.decoding import memory
from mmx.errors import ContentError, EncoderError, Interrupted
from mmx.extraction import executors, plan, processes, tuning, window
from mmx.extraction.extract import extract
from mmx.extraction.plan import make_plan
from mmx.extraction.processes import Processes, impossible, portable
from mmx.extraction.summary import Summary

pytestmark = pytest.mark.skipif(bool(impossible()), reason="needs loading processes")

REPOSITORY = Path(__file__).resolve().parents[3]


def catalogue(root: Path, n: int = 60, **special: str) -> Path:
    """Files named 000, 001, ... and those of `special`, with their texts."""
    (root / "images").mkdir(parents=True)
    files = {f"{k:03d}": f"text {k} " * (1 + k % 7) for k in range(n)} | special
    for name, text in files.items():
        (root / "images" / f"{name}.jpg").write_text(text, encoding="utf-8")
    (root / "items.tsv").write_text(
        "item_id\n" + "".join(f"{name}\n" for name in files), encoding="utf-8"
    )
    return root


def go(root: Path, out: Path, loading: str, encoder: Encoder | None = None, **run: Any) -> Summary:
    options = {"workers": 2, "device": "cpu", **run}
    config = SetConfig(modality="visual", model="resnet18", batch_size=8, name="x")
    return extract(
        RunConfig(data=root, out=out, loading=loading, **options),  # type: ignore[arg-type]
        config,
        build=lambda *_, **__: encoder or Lengths(),
    )


def children() -> list[int]:
    """Processes that this one has started and not waited for."""
    told = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for file in told for pid in file.read_text().split()]


SPECIAL = {
    "a": "bad",
    "b": "gone",
    "c": "fails",
    "d": "noted",
    "e": "short",
    "f": "odd",
    "g": "large",
}


@pytest.mark.parametrize("size", [300, 0])
def test_sets_are_those_of_threads(tmp_path: Path, size: int) -> None:
    root = catalogue(tmp_path / "data", **SPECIAL)
    before = children()
    threads = go(root, tmp_path / "a", "threads", Lengths(size=size))
    processes = go(root, tmp_path / "b", "processes", Lengths(size=size))
    assert processes.digest == threads.digest
    assert processes.counts == threads.counts
    assert (threads.counts.missing, threads.counts.corrupt) == (1, 2)
    assert processes.errors == threads.errors == (
        ("a", "cannot be read"),
        ("c", "the encoder fails on it (ZeroDivisionError: by nothing)"),
    )  # fmt: skip
    assert processes.notes == threads.notes == (("d", "a remark"),)
    assert processes.stages.n_bytes == threads.stages.n_bytes
    assert processes.stages.decode_s > 0
    assert (processes.stages.loading.how, threads.stages.loading.how) == ("processes", "threads")
    assert "loading    processes" in processes.as_text()
    assert children() == before
    assert memory.budget._taken == 0


def test_a_torchvision_encoder_travels_without_its_weights(tmp_path: Path) -> None:
    encoder = create("resnet18", modality="visual", weights="random")
    sent = portable([encoder], None)
    assert len(sent) < 100_000
    from PIL import Image

    rng = np.random.default_rng(3)
    paths = []
    for k in range(5):
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(rng.integers(0, 256, (50 + k, 70, 3), dtype=np.uint8)).save(paths[-1])
    pool = Processes(sent, 1)
    try:
        reading = pool.read([True], [*paths, None, ContentError("before")])
    finally:
        pool.close()
    items = reading.items[0]
    assert items is not None
    for item, path in zip(items, paths, strict=False):
        assert np.array_equal(item, encoder.load(path))
    assert items[5] is None
    assert str(items[6]) == "before"
    assert reading.left == []


def test_memory_is_used_again_once_nobody_holds_it(tmp_path: Path) -> None:
    paths: list[Any] = list((catalogue(tmp_path) / "images").iterdir())[:8]
    pool = Processes(portable([Lengths()], None), 1)
    try:
        held = [pool.read([True], paths).items[0] for _ in range(3)]
        (worker,) = pool._workers
        n_arenas = len(worker._arenas)
        expected = [item.copy() for item in held[0] or []]
        for _ in range(50):
            assert pool.read([True], paths).items[0]
        assert len(worker._arenas) == n_arenas
        for item, copy in zip(held[0] or [], expected, strict=True):
            assert np.array_equal(item, copy)  # what is held is not written to
        larger = [*paths, *paths]
        assert all(
            np.array_equal(a, b)
            for a, b in zip(pool.read([True], larger).items[0] or [], expected * 2, strict=True)
        )
        del held
        gc.collect()
        pool.read([True], larger)
    finally:
        pool.close()


def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    root = catalogue(tmp_path / "data", a="kills-once")
    expected = go(root, tmp_path / "a", "threads")
    found = go(root, tmp_path / "b", "processes")
    assert found.digest == expected.digest
    assert found.stages.loading.n_replaced == 1
    assert "processes that ended and were replaced: 1" in found.as_text()


def test_contents_that_end_two_processes_end_the_run(tmp_path: Path) -> None:
    root = catalogue(tmp_path / "data", a="kills")
    before = children()
    with pytest.raises(EncoderError, match=r"two loading processes ended \(signal 9\).*--loading"):
        go(root, tmp_path / "out", "processes")
    assert children() == before
    (root / "images" / "a.jpg").write_text("text")
    found = go(root, tmp_path / "out", "processes")  # what was computed is kept
    assert 0 < found.stages.n_items < 61
    assert found.digest == go(root, tmp_path / "whole", "threads").digest


def test_processes_killed_from_outside_lose_nothing(tmp_path: Path) -> None:
    root = catalogue(tmp_path / "data", 900)
    before = set(children())
    ended = threading.Event()

    def kill_some() -> None:
        for _ in range(2):
            time.sleep(1.2)
            for pid in set(children()) - before:
                if ended.is_set():
                    return
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                break

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        found = go(root, tmp_path / "a", "processes", Lengths(load_s=0.004))
    finally:
        ended.set()
        killer.join()
    assert found.digest == go(root, tmp_path / "b", "threads").digest


def test_encoders_that_cannot_travel_are_loaded_by_threads(tmp_path: Path) -> None:
    class Local(Lengths):
        pass

    root = catalogue(tmp_path / "data")
    found = go(root, tmp_path / "a", "processes", Local())
    assert found.stages.loading.how == "threads"
    assert "cannot be sent to another process" in found.stages.loading.why
    assert found.digest == go(root, tmp_path / "b", "threads").digest


def test_encoders_that_no_process_can_make_are_loaded_by_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "portable", lambda *_: b"nothing that can be read")
    root = catalogue(tmp_path / "data")
    found = go(root, tmp_path / "a", "processes")
    assert found.stages.loading.how == "threads"
    assert "UnpicklingError" in found.stages.loading.why
    assert found.counts.ok == 60


def test_large_contents_wait_for_memory_in_processes_too(tmp_path: Path) -> None:
    paths: list[Any] = [catalogue(tmp_path, 0, a="large") / "images" / "a.jpg"]
    pool = Processes(portable([Lengths()], None), 1)
    taken = memory.budget.take(memory.DECODING_BYTES)
    try:
        answer: list[Any] = []
        reader = threading.Thread(target=lambda: answer.append(pool.read([True], paths)))
        reader.start()
        reader.join(4)
        assert not answer  # it waits for what this thread has
        memory.budget.give_back(taken)
        taken = 0
        reader.join(40)
        assert answer[0].left == []
        assert answer[0].wall_s < 1  # a wait for memory is no loading
        assert memory.budget._taken == 0
    finally:
        memory.budget.give_back(taken)
        pool.close()


def test_processes_that_are_not_needed_end(tmp_path: Path) -> None:
    paths: list[Any] = list((catalogue(tmp_path) / "images").iterdir())[:8]
    before = children()
    pool = Processes(portable([Lengths()], None), 3)
    try:
        while not pool.started:
            time.sleep(0.01)

        def n_running() -> int:
            return sum(worker.process.poll() is None for worker in pool._workers)

        assert n_running() == 3
        pool.keep(1)
        assert n_running() == 1
        assert pool.read([True], paths).left == []
        pool.keep(0)
        assert n_running() == 0
        assert children() == before
        for _ in range(3):
            assert pool.read([True, False], paths).left == list(range(8))
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "max 100000", "memory.max": "max", "memory.current": "5"}, 16),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ({"memory.max": str(7 << 30), "memory.current": str(2 << 30)}, 6),
        ({"memory.max": str(1 << 30), "memory.current": str(1 << 30)}, 1),
        ({"cpu.max": "50000 100000"}, 1),
    ],
)
def test_containers_get_the_processes_that_they_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(processes, "_GROUPS", tmp_path)
    monkeypatch.setattr(processes, "_meminfo", lambda name: 64 << 30)
    assert processes.affordable(16) == expected
    monkeypatch.setattr(processes, "_meminfo", lambda name: 2 << 30)
    assert processes.affordable(16) == min(expected, 2)


def test_several_encoders_share_what_a_process_loads(tmp_path: Path) -> None:
    root = catalogue(tmp_path / "data", **SPECIAL)
    encoders: Sequence[Encoder] = [Lengths(), Lengths(size=9)]
    planned = make_plan(
        RunConfig(data=root, device="cpu"), SetConfig(modality="visual", model="resnet18"), Silent()
    )
    rows = np.arange(67)
    pool = Processes(portable(encoders, None), 1)
    try:
        tasks = [window.Task(planned, encoder) for encoder in encoders]
        for wanted in ([rows, rows], [rows, rows[:0]]):
            span = window.Span(55, 67, wanted, last=True)
            here, there = (window.load(tasks, span, how) for how in (None, pool.read))
            assert [None if items is None else [str(item) for item in items] for items in here.items
                    ] == [None if items is None else [str(item) for item in items]
                          for items in there.items]  # fmt: skip
            assert here.held_bytes == there.held_bytes
            assert here.noted == there.noted == [(63, "a remark")]
    finally:
        pool.close()


@pytest.mark.parametrize("load_s", [0.002, 0.0])
def test_the_way_changes_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load_s: float
) -> None:
    monkeypatch.setattr(plan, "resolve_device", lambda _: "cuda")
    for name, value in {"TRIAL_S": 0.1, "START_S": 0.0, "SAVED_S": -1e9, "GAIN": 0.0}.items():
        monkeypatch.setattr(tuning, name, value)
    root, before = catalogue(tmp_path / "data", 999), children()

    def encoder() -> Encoder:
        made = Lengths(load_s=load_s, sleep_s=0.01)
        made.device = "cuda"
        return made

    found = go(root, tmp_path / "a", "auto", encoder(), device="auto", workers=None)
    report = found.stages.loading
    assert {rate.how for rate in report.rates} >= {"threads"}
    assert found.stages.workers == report.workers >= 1
    assert 0 <= report.settled_after_s < found.stages.loop_s  # 0: ended before it settled
    assert found.as_json()["this_run"]["loading"]["items_per_s"] >= 0
    assert found.counts.ok == 999
    assert found.digest == go(root, tmp_path / "b", "threads", device="auto").digest
    assert children() == before
    assert threading.active_count() < 10


PROGRAM = """
import sys
from pathlib import Path
from tests.mmx.extraction.test_processes import go
from tests.mmx.extraction.elsewhere_loaded import Lengths
from mmx.errors import Interrupted
from mmx.extraction import pipeline
pipeline.FLUSH_S = 0.1
try:
    go(Path(sys.argv[1]), Path(sys.argv[2]), "processes", Lengths(load_s=0.01))
except Interrupted:
    sys.exit(130)
"""


def start(root: Path, out: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start a run in a process of its own; return it and its loading processes, once they work."""
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(out)], cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(root.rglob("*.loaded")):
        time.sleep(0.05)
    time.sleep(1)  # some batches are written
    told = Path(f"/proc/{run.pid}/task").glob("*/children")
    loaders = [int(pid) for file in told for pid in file.read_text().split()]
    assert loaders and run.poll() is None
    return run, loaders


def named_memory() -> set[str]:
    """Shared memory that multiprocessing or this program could have left; not that of others."""
    folder = Path("/dev/shm")
    return {path.name for prefix in ("psm_", "mmx") for path in folder.glob(f"{prefix}*")}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_and_no_memory_outlives_the_run(tmp_path: Path, number: signal.Signals) -> None:
    root = catalogue(tmp_path / "data", 900, **{"020": "marks"})
    shared = named_memory()
    run, loaders = start(root, tmp_path / "out")
    try:
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does
        else:
            run.send_signal(number)
        code = run.wait(30)
    finally:
        run.kill()
    assert code == (130 if number == signal.SIGINT else -number)
    until = time.monotonic() + 20
    while any(map(is_alive, loaders)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, loaders))
    assert named_memory() <= shared
    found = go(root, tmp_path / "out", "threads")
    if number == signal.SIGINT:
        assert found.stages.n_items < 900  # a kill may come before anything is written
    assert found.digest == go(root, tmp_path / "whole", "threads").digest


def test_an_interruption_keeps_what_processes_have_loaded(tmp_path: Path) -> None:
    class Stopping(Lengths):
        """Asks the run to end after some batches; loaded elsewhere as what it inherits from."""

        n = 0

        def encode(self, batch: Sequence[Any]) -> Any:
            self.n += 1
            if self.n == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().encode(batch)

        def __reduce__(self) -> Any:
            return Lengths, ()

    root = catalogue(tmp_path / "data", 300)
    before = children()
    with pytest.raises(Interrupted):
        go(root, tmp_path / "a", "processes", Stopping())
    assert children() == before
    rest = go(root, tmp_path / "a", "processes")
    assert rest.stages.n_items < 280
    assert rest.digest == go(root, tmp_path / "b", "threads").digest
    assert json.loads(json.dumps(rest.as_json()))["this_run"]["loading"]["how"] == "processes"
