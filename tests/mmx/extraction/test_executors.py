from __future__ import annotations

import threading

import pytest

from mmbase.process import available_cpus
from mmx.extraction.executors import LocalExecutor, WorkerPool


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
