"""How contents are loaded: in threads or in processes and how many at a time, found by measuring.

Where a loading process starts in a fraction of a second, because it needs no large library, as many
as there are processors load from the first item on. Otherwise, on a GPU, the first seconds of a run
are trials of threads. Each number of them gets a second, and the one by which most items came
through stays. Processes cost seconds to start, so they are started only where the processors could
load far more than what the threads were measured to load, and where so much is left to do that the
start pays. How many processes are busy is then measured while all of them load; those that are not
needed end. With fewer nothing is tried, for a trial of too few holds up the device. On a processor
nothing is tried at all: the threads that load also encode, one on each processor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from mmx.extraction.summary import LoadingReport, Rate

How: TypeAlias = Literal["threads", "processes"]
Wish: TypeAlias = Literal["auto", "threads", "processes"]

TRIAL_S = 1.0
"""Seconds of a trial, at least; and twice as many spans as there are workers."""

START_S = 5.0
"""Seconds that processes may take to start: they import torch. The decision supposes so many."""

SAVED_S = 2.0
"""Processes are started where they are expected to save at least so many seconds."""

GAIN = 1.3
"""Processes are started where the processors could load so many times what threads load."""

BUSY = 0.9
"""Share of the time that a device computes, above which nothing is to be gained by loading."""

FREE = 0.75
"""Share of its time that a load computes, above which threads don't stand in each other's way."""

FIRST_THREADS = 8
"""The first trial, where there are so many processors."""

WARM_PASSES = 4
"""Forward passes before the first trial: a device takes its time with the first ones."""

FEW_PROCESSES = 4
"""So many loading processes stay, whether they are needed or not."""

SPARE = 1.5
"""Processes that stay, by those that were busy; all do where that is half of them or more."""

_BETTER = 1.03  # a rate that counts as better than another one


class Setting(NamedTuple):
    """A way of loading.

    Attributes:
        how: `threads` or `processes`.
        workers: Contents that are loaded at a time.
    """

    how: How
    workers: int


class Tuner:
    """Decides on the way of loading from what is observed; knows no threads and no processes.

    Args:
        wish: What the user asked for.
        workers: Contents to load at a time; None: found by measuring.
        processors: Number of processors.
        on_cpu: Whether the encoder computes on them, too.
        most_processes: How many processes are started where no number is given; None: one for each
            processor.
        unfit: Why processes cannot load these contents; empty if they can.
        at_once: Whether processes start in a fraction of a second. They then load from the first
            item on.
        clock: Seconds.

    Attributes:
        setting: The way of loading from now on.
        wanted_processes: How many processes the caller should start; it then reports
            `processes_started`.
        settled: Whether the setting stays.
        n_ahead: How many loaded spans may be waiting; so many are let pass before the first trial.
    """

    n_ahead = 0

    def __init__(
        self,
        wish: Wish,
        workers: int | None,
        processors: int,
        *,
        on_cpu: bool,
        most_processes: int | None = None,
        unfit: str = "",
        at_once: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._given, self._processors, self._clock = workers, processors, clock
        self._unfit = unfit
        if wish == "auto" and at_once and not (on_cpu or unfit):
            wish = "processes"
        self._count = workers or most_processes or processors
        self._rates: list[Rate] = []
        self._why = ""
        self._tried_processes = wish == "threads" or bool(unfit)
        self.wanted_processes = 0
        first = workers or (processors if on_cpu else min(FIRST_THREADS, processors))
        self.setting = Setting("threads", first)
        self.settled = workers is not None and (wish == "threads" or self._tried_processes)
        self._waits_for_processes = False
        self._n_passes = self._n_passed = 0
        self._began: float | None = None
        self._n_items = self._n_spans = 0
        self._cpu_s = self._load_s = self._busy_s = 0.0
        if wish == "processes" and unfit:
            self._why = unfit
        elif wish == "processes":
            self._tried_processes = self._waits_for_processes = True
            self.wanted_processes = self._count
            self.setting = Setting("processes", self._count)
            self.settled = workers is not None or on_cpu
        if on_cpu and wish != "processes":
            self.settled, self._why = True, "the threads that load also encode"
        if wish == "auto" and unfit and not on_cpu:
            self._why = unfit

    @property
    def most_workers(self) -> int:
        """The most contents that any setting to come loads at a time."""
        return self._given or self._processors

    def report(self, n_replaced: int = 0) -> LoadingReport:
        """Return what was found so far."""
        why = self._why
        if not self.settled and not why:
            why = "the run was too short to measure more"
        return LoadingReport(*self.setting, why, tuple(self._rates), n_replaced)

    def observe(
        self, setting: Setting, n_items: int, cpu_s: float, load_s: float, n_left: int
    ) -> None:
        """Take note of a loaded span that has come through.

        Args:
            setting: With which it was loaded.
            n_items: Its rows.
            cpu_s: CPU seconds of loading them.
            load_s: Seconds that loading them took, without waits for a disk; in a process, those
                for which it was in use.
            n_left: Rows that are still to come, at most.
        """
        if self.settled or self._waits_for_processes or setting != self.setting:
            return
        if self._n_passes < WARM_PASSES or self._n_passed < self.n_ahead:
            self._n_passed += self._n_passes >= WARM_PASSES
            return
        now = self._clock()
        if self._began is None:  # the first one waited for others of before the change
            self._began, self._busy_s = now, 0.0
            return
        self._n_items += n_items
        self._n_spans += 1
        self._cpu_s += cpu_s
        self._load_s += load_s
        taken_s = now - self._began
        if taken_s >= TRIAL_S and self._n_spans >= 2 * setting.workers:
            self._end(taken_s, n_left)

    def observe_device(self, busy_s: float) -> None:
        """Take note of a pass: the seconds for which the device has computed."""
        self._busy_s += busy_s
        self._n_passes += 1

    def processes_started(self, n_ready: int, failure: str) -> None:
        """Take note that the wanted processes are ready, or that none of them is, and why."""
        if not n_ready:
            self._unfit = self._why = failure
            if self.setting.how == "processes":
                first = min(FIRST_THREADS, self._processors)
                self.setting = Setting("threads", self._given or first)
        else:
            self.setting = Setting("processes", n_ready)
        self._waits_for_processes = False
        self._begin()

    def _begin(self) -> None:
        self._began = None
        self._n_items = self._n_spans = 0
        self._cpu_s = self._load_s = self._busy_s = 0.0

    def _end(self, taken_s: float, n_left: int) -> None:
        """Note a rate, and choose what comes next."""
        rate, busy = self._n_items / taken_s, self._busy_s / taken_s
        cpu_s = self._cpu_s / max(1, self._n_items)
        free = self._cpu_s >= FREE * self._load_s
        self._rates.append(Rate(*self.setting, rate))
        if self.setting.how == "processes":
            self._settle_processes(self._load_s / taken_s)
            return
        # Where threads are in each other's way, they are in that of those that start kernels, too,
        # and a device that waits for these looks busy.
        if busy >= BUSY and free:
            self._settle(self.setting, f"the device was busy for {min(1.0, busy):.0%} of the time")
        else:
            # Threads that hardly wait for each other: more of them may do.
            following = self._following() if free or self._tried_processes else None
            if following is None and not self._tried_processes:
                self._tried_processes = True
                fastest = max(rate.items_per_s for rate in self._rates)
                if self._would_pay(fastest, cpu_s, n_left):
                    self._waits_for_processes = True
                    self.wanted_processes = self._count
                    self.setting = self._best()  # until they are ready
                else:
                    following = self._following()
            if following is not None:
                self.setting = following
            elif not self._waits_for_processes:
                self._settle(self._best(), "")
        self._begin()

    def _would_pay(self, rate: float, cpu_s: float, n_left: int) -> bool:
        """Whether processes are worth their start: an estimate, which is measured afterwards."""
        possible = self._count / cpu_s if cpu_s > 0 else 0.0
        if possible < GAIN * rate:
            return False
        return (n_left - rate * START_S) * (1 / rate - 1 / possible) > SAVED_S

    def _settle_processes(self, n_busy: float) -> None:
        """Keep the processes that are needed, or the threads where those were faster.

        Args:
            n_busy: Processes that were loading at a time, on average.
        """
        fastest, n_now = self._best(), self.setting.workers
        if fastest.how == "threads":
            self._settle(fastest, "")
            return
        why = f"{n_busy:.1f} of {n_now} processes were busy"
        n_kept = max(1, math.ceil(SPARE * n_busy))
        if self._given is not None or n_now < FEW_PROCESSES or 2 * n_kept >= n_now:
            n_kept = n_now
        else:
            why += f", so {n_kept} stay"
        self._settle(Setting("processes", n_kept), why)

    def _following(self) -> Setting | None:
        """Return the number of threads to try next; None where all that promise something were."""
        tried = {rate.workers: rate.items_per_s for rate in self._rates}
        best = max(tried, key=lambda workers: tried[workers])
        last = self.setting.workers
        candidates: list[int] = []
        if self._given is None:
            if best == last:  # on in this direction
                candidates = [best * 2, best // 2] if last >= max(tried) else [best // 2]
            elif len(tried) == 2 and last > best:
                candidates = [best // 2]
        for workers in candidates:
            workers = min(workers, self._processors)
            if workers >= 1 and workers not in tried:
                return Setting("threads", workers)
        return None

    def _best(self) -> Setting:
        """Return the fastest setting that was measured; of two alike the one with fewer workers."""
        top = max(rate.items_per_s for rate in self._rates)
        good = [rate for rate in self._rates if rate.items_per_s * _BETTER >= top]
        how, workers, _ = min(good, key=lambda rate: (rate.how != "threads", rate.workers))
        return Setting("threads" if how == "threads" else "processes", workers)

    def _settle(self, setting: Setting, why: str) -> None:
        self.setting, self.settled = setting, True
        self._why = why or self._why
