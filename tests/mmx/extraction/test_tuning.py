"""How the way of loading is chosen, on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmx.extraction.tuning import WARM_PASSES, Setting, Tuner, Wish


class Machine:
    """Loads as fast as a function says, in a time of its own.

    Args:
        rates: Items per second of a setting.
        cpu_s: CPU seconds of an item.
        device: Items per second that the device takes.
        n_left: Items to load.
    """

    def __init__(
        self,
        rates: Callable[[Setting], float],
        *,
        cpu_s: float = 0.0025,
        device: float = 1e9,
        n_left: int = 10**6,
    ) -> None:
        self.rates, self.cpu_s, self.device, self.n_left = rates, cpu_s, device, n_left
        self.now = 0.0

    def run(
        self, wish: Wish = "auto", workers: int | None = None, failure: str = "", **more: Any
    ) -> Tuner:
        """Load until the tuner has settled; return it."""
        tuner = Tuner(
            wish, workers, 16, **{"on_cpu": False, **more}, clock=lambda: self.now
        )  # fmt: skip
        ready_at: float | None = None
        while not tuner.settled and self.n_left > 0 and self.now < 100:
            if tuner.wanted_processes and ready_at is None:
                ready_at = self.now + 4
            if ready_at and self.now >= ready_at:
                ready_at = 1e9
                tuner.processes_started(0 if failure else tuner.wanted_processes, failure)
            setting = tuner.setting
            self.now += 10 / min(self.rates(setting), self.device)
            self.n_left -= 10
            tuner.observe_device(10 / self.device)
            busy = self.device > self.rates(setting)  # else the loaders wait for the device
            load_s = 10 * setting.workers / self.rates(setting) if busy else 10 * self.cpu_s
            if not busy and setting.how == "processes":  # each takes as long as when all are busy
                load_s = 10 * setting.workers / self.rates(setting)
            tuner.observe(setting, 10, 10 * self.cpu_s, load_s, self.n_left)
        return tuner


def locked(setting: Setting) -> float:
    """What a decoder delivers that holds the interpreter lock for a part of its time."""
    if setting.how == "processes":
        return 300.0 * setting.workers
    return {1: 348, 2: 700, 4: 1267, 8: 1653, 12: 1400, 16: 1228}[setting.workers]


def free(setting: Setting) -> float:
    """What a decoder delivers that does not hold it."""
    return 390.0 * setting.workers


def test_processes_are_chosen_where_threads_stand_in_each_others_way() -> None:
    tuner = Machine(locked).run()
    assert tuner.setting == Setting("processes", 16)
    assert tuner.settled
    rates = tuner.report().rates
    assert rates[0][:2] == ("threads", 8)
    assert rates[0].items_per_s == pytest.approx(1653, rel=0.02)
    assert rates[1][:2] == ("processes", 16)
    assert rates[1].items_per_s == pytest.approx(4800, rel=0.02)
    assert "processes 16: 4,8" in tuner.report().as_text()
    assert tuner.report().as_json()["rates"][0]["how"] == "threads"


def test_threads_stay_where_they_load_what_the_processors_can() -> None:
    tuner = Machine(free).run()
    assert tuner.setting == Setting("threads", 16)
    assert tuner.wanted_processes == 0
    assert [rate.workers for rate in tuner.report().rates] == [8, 16]


def test_the_number_of_threads_is_the_fastest_measured() -> None:
    tuner = Machine(locked).run("threads")
    assert tuner.setting == Setting("threads", 8)
    assert {rate.workers for rate in tuner.report().rates} == {4, 8, 16}


def test_processes_that_turn_out_slower_are_left() -> None:
    tuner = Machine(lambda setting: 900.0 if setting.how == "processes" else locked(setting)).run()
    assert tuner.setting == Setting("threads", 8)
    assert {rate.how for rate in tuner.report().rates} == {"threads", "processes"}


def test_nothing_is_started_for_a_small_rest_or_a_busy_device() -> None:
    assert Machine(locked, n_left=9_000).run().wanted_processes == 0
    tuner = Machine(locked, device=500).run()
    assert tuner.wanted_processes == 0
    assert "the device was busy" in tuner.report().why


def test_a_device_that_waits_for_its_threads_is_not_busy() -> None:
    ticks = iter(range(100))
    tuner = Tuner("auto", None, 16, on_cpu=False, clock=lambda: next(ticks))
    for _ in range(WARM_PASSES):
        tuner.observe_device(0.25)
    while not tuner.wanted_processes and not tuner.settled:
        tuner.observe_device(1.0)  # between its events it seems to compute all the time
        tuner.observe(tuner.setting, 1000, 2.5, 8.0, 10**6)
    assert tuner.wanted_processes == 16


def test_processes_that_cannot_start_leave_threads_and_a_reason() -> None:
    for wish in ("auto", "processes"):
        tuner = Machine(locked).run(wish, failure="no memory")  # type: ignore[arg-type]
        assert tuner.setting == Setting("threads", 8)
        assert tuner.report().why == "no memory"
    tuner = Machine(locked).run(unfit="not for processes")
    assert tuner.setting == Setting("threads", 8)
    assert tuner.wanted_processes == 0
    assert tuner.report().why == "not for processes"


def test_a_given_number_stays_and_only_the_way_is_measured() -> None:
    tuner = Machine(lambda s: 300.0 if s.how == "processes" else 100.0).run(workers=3)
    assert tuner.setting == Setting("processes", 3)
    assert {rate.workers for rate in tuner.report().rates} == {3}
    tuner = Machine(locked).run("threads", workers=2)
    assert (tuner.setting, tuner.settled) == (Setting("threads", 2), True)
    assert tuner.report().rates == ()


def test_no_process_ends_while_half_of_them_are_needed_and_no_number_is_tried() -> None:
    def processes(device: float, workers: int | None = None) -> Tuner:
        return Machine(locked, device=device).run("processes", workers)

    for device in (1e9, 4000, 2400, 1650):  # 16 processes load 4,800: 5.5 are busy
        tuner = processes(device)
        assert tuner.setting == Setting("processes", 16), device
        assert len(tuner.report().rates) == 1
    assert "5.5 of 16 processes were busy" in tuner.report().why
    tuner = processes(500)  # 1.7 are busy
    assert tuner.setting == Setting("processes", 3)
    assert tuner.report().why == "1.7 of 16 processes were busy, so 3 stay"
    assert len(tuner.report().rates) == 1
    assert processes(20).setting == Setting("processes", 1)
    assert processes(20, workers=16).setting == Setting("processes", 16)
    assert Machine(locked, device=20).run("processes", most_processes=3).setting.workers == 3


def test_no_more_processes_are_started_than_the_machine_takes() -> None:
    tuner = Machine(locked).run(most_processes=12)
    assert tuner.wanted_processes == 12
    assert tuner.setting == Setting("processes", 12)
    assert Machine(locked).run("processes", workers=16, most_processes=2).wanted_processes == 16


def test_on_a_processor_nothing_is_measured() -> None:
    for wish, how in (("auto", "threads"), ("threads", "threads"), ("processes", "processes")):
        tuner = Tuner(wish, None, 16, on_cpu=True)  # type: ignore[arg-type]
        assert (tuner.setting, tuner.settled) == ((how, 16), True)


def test_what_ends_early_says_so() -> None:
    machine = Machine(locked, n_left=100)
    assert "too short" in machine.run().report().why


def test_processes_that_start_at_once_load_from_the_first_item_on() -> None:
    machine = Machine(locked)
    tuner = machine.run(at_once=True)
    assert tuner.setting == Setting("processes", 16)
    assert {rate.how for rate in tuner.report().rates} == {"processes"}
    assert Tuner("auto", None, 16, on_cpu=False, at_once=True).wanted_processes == 16
    for more in ({"unfit": "no"}, {"on_cpu": True}, {"wish": "threads"}):
        given: dict[str, Any] = {"wish": "auto", "on_cpu": False, "at_once": True, **more}
        other = Tuner(given.pop("wish"), None, 16, **given)
        assert (other.setting.how, other.wanted_processes) == ("threads", 0)
