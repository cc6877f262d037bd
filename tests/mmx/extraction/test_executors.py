from __future__ import annotations

import threading

import pytest

from mmx.errors import UsageError
from mmx.extraction.executors import LocalExecutor, WorkerPool, available_cpus
from mmx.extraction.plan import resolve_device


def test_results_come_in_the_order_of_the_tasks_from_other_threads() -> None:
    gate = threading.Event()

    def work(task: int) -> tuple[int, str]:
        if task == 0:
            assert gate.wait(10)
        else:
            gate.set()
        return task, threading.current_thread().name

    with WorkerPool(2) as pool:
        results = list(pool.map_ahead(work, range(20), ahead=4))
    assert [task for task, _ in results] == list(range(20))
    assert all(name.startswith("mmx-load") for _, name in results)


@pytest.mark.parametrize("ahead", [1, 3])
def test_tasks_are_taken_only_so_far_ahead(ahead: int) -> None:
    taken: list[int] = []

    def tasks() -> object:
        for task in range(100):
            taken.append(task)
            yield task

    with WorkerPool(1) as pool:
        results = pool.map_ahead(lambda task: task, tasks(), ahead=ahead)  # type: ignore[arg-type]
        assert next(results) == 0
        assert len(taken) == ahead
        assert list(results) == list(range(1, 100))


def test_an_error_comes_when_its_turn_comes_and_the_rest_is_dropped() -> None:
    done: list[int] = []

    def work(task: int) -> int:
        if task == 2:
            raise KeyError(task)
        done.append(task)
        return task

    with WorkerPool(1) as pool:
        results = pool.map_ahead(work, range(1000), ahead=5)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(KeyError):
            next(results)
    assert len(done) < 10


def test_workers_default_to_the_processors_at_hand() -> None:
    assert LocalExecutor().workers == available_cpus() >= 1


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert [resolve_device("cpu"), resolve_device("auto")] == ["cpu", "cpu"]
    for device in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UsageError, match=f"--device {device}: not on this machine"):
            resolve_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda size, device: torch.zeros(size))
    assert [resolve_device("auto"), resolve_device("cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(UsageError):
        resolve_device("cuda:2")
    for device in ("gpu", "cuda:one", "cuda:-1", "mps:0", ""):
        with pytest.raises(UsageError, match=f"--device {device}: no such device"):
            resolve_device(device)


@pytest.mark.parametrize(
    ("reason", "automatic"),
    [
        ("no kernel image is available for execution on the device", "cpu"),
        ("device(s) is/are busy", None),
    ],
)
def test_a_gpu_that_does_not_compute_is_found_out(
    monkeypatch: pytest.MonkeyPatch, reason: str, automatic: str | None
) -> None:
    import torch

    def fail(*shape: int, device: str) -> None:
        raise torch.AcceleratorError(f"CUDA error: {reason}\nCUDA kernel errors might be …")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(
        UsageError,
        match=r"--device cuda: it does not compute \(CUDA error: .{0,60}\); --device cpu",
    ):
        resolve_device("cuda")
    if automatic:
        assert resolve_device("auto") == automatic
    else:  # it would be silently slow
        with pytest.raises(UsageError, match="--device cpu does"):
            resolve_device("auto")
