"""Loading in processes of their own, beyond the reach of this one's interpreter lock.

A decoder that holds the lock for a part of its time keeps all threads waiting, those that start
forward passes among them. So processes load: they are started anew, never forked, know nothing of
the program that calls this one, and get the encoders without their weights. Loaded arrays come back
in anonymous shared memory: no pixel is pickled, and since the memory has no name, nothing is left
when a process is killed.
"""

from __future__ import annotations

import copy
import io
import json
import mmap
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

import numpy as np

from mmbase.catalogue.files import Content
from mmx.encoders import Encoder
from mmx.encoders.base import plain_reason
from mmx.encoders.decoding import memory
from mmx.errors import EncoderError
from mmx.extraction.loading import Reading
from mmx.extraction.worker import Arena, Block, Loaded, Memory, Ready, Request, Room

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from mmx.extraction.worker import main; main(int(sys.argv[1]))"
)
PROCESS_BYTES = 400 << 20
"""Memory of a loading process that has imported torch and torchvision; 368 MB were measured."""
LIGHT_PROCESS_BYTES = 100 << 20
"""The same of one that has imported NumPy and Pillow only."""

_GROUPS = Path("/sys/fs/cgroup")
_ARENA_BYTES = 1 << 23  # of several blocks; a larger block has a mapping of its own
_BLOCKS_PER_ARENA = 8
_PAGE = 4096
_TRIES = 2  # to load the same contents
_STARTS = 3  # to replace a process


def loaders_of(encoders: Sequence[Encoder]) -> tuple[list[Any], bool]:
    """Return what loads for encoders elsewhere, and whether all of it starts without delay."""
    loaders = [getattr(encoder, "loader", lambda one=encoder: one)() for encoder in encoders]
    light = all(one is not encoder for one, encoder in zip(loaders, encoders, strict=True))
    return loaders, light


def portable(encoders: Sequence[Any], background: str | None) -> bytes:
    """Return what a loading process needs of encoders, or of what loads for them.

    That is all but weights and compiled networks.

    Raises:
        ValueError: An encoder cannot be sent to another process, or is of a program that no other
            process can import; the reason in a few words.
    """
    light = []
    for encoder in encoders:
        if type(encoder).__module__ == "__main__":
            raise ValueError("the encoder belongs to the program itself")
        one = copy.copy(encoder)
        if getattr(one, "proven", None) is not None:
            one.proven = None
        light.append(one)
    stream = io.BytesIO()
    try:
        _WithoutWeights(stream, protocol=5).dump((light, background))
    except Exception as error:
        raise ValueError(
            f"the encoder cannot be sent to another process ({plain_reason(error)})"
        ) from error
    return stream.getvalue()


class _WithoutWeights(pickle.Pickler):
    """Replaces parameters, and tensors on other devices, by tensors without values."""

    def reducer_override(self, value: Any) -> Any:
        torch, fx = sys.modules.get("torch"), sys.modules.get("torch.fx")
        if torch is None:
            return NotImplemented
        if fx is not None and isinstance(value, fx.GraphModule):
            return torch.nn.Module, ()
        if isinstance(value, torch.Tensor):
            trained = isinstance(value, torch.nn.Parameter)
            if trained or value.device.type != "cpu":
                return _without_values, (tuple(value.shape), value.dtype, trained)
        return NotImplemented


def _without_values(shape: tuple[int, ...], dtype: Any, trained: bool) -> Any:
    import torch

    values = torch.empty(shape, dtype=dtype, device="meta")
    return torch.nn.Parameter(values, requires_grad=False) if trained else values


def impossible() -> str:
    """Return why this system has no loading processes; an empty text where it has them."""
    if os.name != "posix":
        return "loading processes need a POSIX system"
    if not sys.executable or getattr(sys, "frozen", False):
        return "there is no interpreter that could be started"
    return ""


def affordable(processors: int, each_bytes: int = PROCESS_BYTES) -> int:
    """Return how many loading processes this machine takes: at least 1.

    Half of the free memory is enough for them, and a container may have less processor time than
    it has processors.
    """
    memory_bytes = [_meminfo("MemAvailable")]
    limit, used = _number("memory.max"), _number("memory.current")
    if limit is not None and used is not None:
        memory_bytes.append(limit - used)
    free = min((one for one in memory_bytes if one is not None), default=None)
    most = processors if free is None else min(processors, free // 2 // each_bytes)
    quota, period = _numbers("cpu.max")
    if quota is None:
        quota, period = _number("cpu/cpu.cfs_quota_us"), _number("cpu/cpu.cfs_period_us")
    if quota is not None and period and quota > 0:
        most = min(most, quota // period)
    return max(1, most)


def _numbers(name: str) -> tuple[int | None, int | None]:
    """Return the two numbers in a file of the control group; None for what is no number."""
    try:
        first, _, second = (_GROUPS / name).read_text(encoding="ascii").strip().partition(" ")
    except (OSError, UnicodeDecodeError):
        return None, None
    return int(first) if first.isdecimal() else None, int(second) if second.isdecimal() else None


def _number(name: str) -> int | None:
    return _numbers(name)[0]


def _meminfo(name: str) -> int | None:
    """Return bytes of memory as the kernel counts them."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


class Processes:
    """Processes that load contents for encoders. They start while the caller goes on.

    Args:
        loader: What `portable` returned.
        count: Number of processes.
    """

    def __init__(self, loader: bytes, count: int) -> None:
        self._loader = loader
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._closed = False
        self._n_pending = count
        self.n_ready = self.n_replaced = 0
        self.failure = ""
        self._starters = [
            threading.Thread(target=self._start_one, name="mmx-start", daemon=True)
            for _ in range(count)
        ]
        for starter in self._starters:
            starter.start()

    @property
    def started(self) -> bool:
        """Whether all processes are ready, or have failed to start."""
        return self._n_pending == 0

    def read(self, takes: Sequence[bool], contents: Sequence[Content]) -> Reading:
        """Load contents in the next idle process; safe to call from any thread.

        Where no process could be started, everything is left to the caller.

        Args:
            takes: Whether each encoder takes them.
            contents: Of consecutive rows.

        Raises:
            EncoderError: The process ended, and so did another one with the same contents.
        """
        worker = self._idle.get()
        if worker is None:
            self._idle.put(None)
            nothing: list[Any] = [[None] * len(contents) if one else None for one in takes]
            left = list(range(len(contents)))
            return Reading(nothing, own_s=[0.0] * len(takes), left=left)
        try:
            for n_left in reversed(range(_TRIES)):
                try:
                    return worker.read(takes, contents)
                except (EOFError, OSError) as error:
                    how = worker.how_it_ended()
                    if not n_left or self._closed:
                        first = next((one for one in contents if one is not None), "")
                        raise EncoderError(
                            f"two loading processes ended ({how}) with the same {len(contents)} "
                            f"contents, the first of which is {str(first)[:200]}. What was "
                            "computed is kept. If memory ran out, fewer --workers need less; "
                            "--loading threads uses no processes"
                        ) from error
                    worker = self._replaced(worker)
            raise AssertionError("unreachable")
        finally:
            self._idle.put(worker)

    def keep(self, count: int) -> None:
        """End the processes beyond `count` as they become idle; returns once they have ended.

        With none left, `read` leaves everything to its caller.
        """
        while self.n_ready > count and not self._closed:
            try:
                worker = self._idle.get(timeout=0.1)
            except queue.Empty:
                continue
            if worker is None:
                self._idle.put(None)
                return
            worker.close()
            self.n_ready -= 1
        if count == 0:
            self._idle.put(None)

    def close(self) -> None:
        """End all processes; none of them may be in use."""
        with self._lock:
            self._closed = True
            workers = list(self._workers)
        for worker in workers:
            worker.process.kill()
        for starter in self._starters:
            starter.join()
        for worker in self._workers:
            worker.close()

    def _start_one(self) -> None:
        worker = None
        try:
            worker = self._new_worker()
            reason = worker.start(self._loader)
        except (EOFError, OSError) as error:
            reason = f"a loading process cannot be started ({plain_reason(error)})"
        with self._lock:
            self._n_pending -= 1
            if reason:
                self.failure = self.failure or reason
            else:
                self.n_ready += 1
            none_is_left = self._n_pending == 0 and self.n_ready == 0
        if worker is not None and not reason:
            self._idle.put(worker)
        elif worker is not None:
            worker.close()
        if none_is_left:
            self._idle.put(None)

    def _new_worker(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise EOFError("the run has ended")
            worker = _Worker()
            self._workers.append(worker)
            return worker

    def _replaced(self, worker: _Worker) -> _Worker:
        reason = ""
        for _ in range(_STARTS):
            worker.close()
            worker = self._new_worker()
            with self._lock:
                self.n_replaced += 1
            try:
                reason = worker.start(self._loader)
            except (EOFError, OSError):
                reason = f"the next one ended at once, {worker.how_it_ended()}"
            if not reason:
                return worker
        raise EncoderError(
            f"a loading process ended and cannot be replaced ({reason}); --loading threads uses "
            "none"
        )


class _Worker:
    """One process, its connection, and the shared memory into which it loads."""

    def __init__(self) -> None:
        mine, its = Pipe()
        self._connection: Connection = mine
        arguments = (sys.executable, "-W", "ignore", "-c", _PROGRAM)
        paths = json.dumps([str(path) for path in sys.path])
        with its:
            self.process = subprocess.Popen(
                [*arguments, str(its.fileno()), paths],
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C is for the process that closes the files. No loading needs a GPU.
                start_new_session=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        self._arenas: list[mmap.mmap] = []
        self._free: list[Block] = []
        self._given_back: queue.SimpleQueue[Block] = queue.SimpleQueue()
        self._usual_bytes = 0

    def start(self, loader: bytes) -> str:
        """Wait until the process is ready; return why it is not, or an empty text."""
        self._connection.send_bytes(loader)
        ready: Ready = self._connection.recv()
        return ready.failure

    def read(self, takes: Sequence[bool], contents: Sequence[Content]) -> Reading:
        """Load contents.

        Raises:
            EOFError, OSError: The process has ended.
        """
        block = self._block(self._usual_bytes)
        self._connection.send(Request(takes, contents, block))
        taken = 0
        try:
            while True:
                match self._connection.recv():
                    case Memory(0):
                        memory.budget.give_back(taken)
                        taken = 0
                    case Memory(n_bytes):
                        taken = memory.budget.take(n_bytes)
                        self._connection.send(None)
                    case Room(n_bytes):
                        self._usual_bytes = n_bytes
                        if block is not None:
                            self._free.append(block)
                        block = self._block(n_bytes) or self._new_blocks(n_bytes)
                        self._connection.send(block)
                    case Loaded(pickled, arrays):
                        return self._unpacked(pickled, arrays, block)
        finally:
            if taken:
                memory.budget.give_back(taken)

    def how_it_ended(self) -> str:
        """Return the exit code or signal of the process, which has closed its connection."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self._connection.close()

    def _unpacked(
        self, pickled: bytes, arrays: Sequence[tuple[int, int]], block: Block | None
    ) -> Reading:
        """Return a reading whose arrays lie in the block, which is free once they are not used."""
        buffers: list[memoryview] = []
        if block is not None and arrays:
            base = np.frombuffer(
                self._arenas[block.arena], np.uint8, count=block.size, offset=block.start
            )
            # The arrays hold views of `base`, so that it goes when the last of them does.
            weakref.finalize(base, self._given_back.put, block).atexit = False
            view = memoryview(base)  # type: ignore[arg-type]
            buffers = [view[start : start + length] for start, length in arrays]
            self._usual_bytes = max(start + length for start, length in arrays)
        elif block is not None:
            self._free.append(block)
        # Bytes of the process that this one has started.
        reading: Reading = pickle.loads(pickled, buffers=buffers)  # noqa: S301
        return reading

    def _block(self, n_bytes: int) -> Block | None:
        """Return the smallest free block of that size."""
        with suppress(queue.Empty):
            while True:
                self._free.append(self._given_back.get_nowait())
        fitting = [block for block in self._free if block.size >= n_bytes]
        if not fitting:
            return None
        best = min(fitting, key=lambda block: block.size)
        self._free.remove(best)
        return best

    def _new_blocks(self, n_bytes: int) -> Block | None:
        """Share another mapping with the process; return a block of it, None without memory."""
        size = -(-(n_bytes + n_bytes // 4) // _PAGE) * _PAGE
        count = max(1, min(_BLOCKS_PER_ARENA, _ARENA_BYTES // size))
        try:
            descriptor = _anonymous_file(size * count)
        except OSError:
            return None
        try:
            arena = mmap.mmap(descriptor, size * count)
            self._connection.send(Arena(size * count))
            send_handle(self._connection, descriptor, self.process.pid)
        finally:
            os.close(descriptor)
        first, *others = (Block(len(self._arenas), k * size, size) for k in range(count))
        self._arenas.append(arena)
        self._free += others
        return first


def _anonymous_file(n_bytes: int) -> int:
    """Return the descriptor of a file in memory that has no name, with all its bytes reserved.

    Raises:
        OSError: There is no room for it.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mmx", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as stream:
            descriptor = os.dup(stream.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, n_bytes)
        else:
            os.ftruncate(descriptor, n_bytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
