"""Forward passes as CUDA graphs: captured once for each shape, then replayed.

Python starts the two hundred kernels of a pass one by one, under the interpreter's lock, which the
other passes and everything that loads need as well. A replay starts all of them with one call. They
are the same kernels on the same numbers: a graph serves only if it gives the bits of the very pass
after which it was captured.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mmbase.process import out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

BEFORE = 2
"""Passes of a thread before its first capture: libraries are set up."""

OF_A_SHAPE = 1
"""Passes of each shape before its capture: its kernels are loaded."""

MAX_GRAPHS = 24
"""Of one thread."""

Tensors: TypeAlias = Mapping[str, "Tensor"]


class Passes:
    """The passes of all threads: any number at once, or one that captures alone.

    A thread whose memory runs out while another captures would find the allocator locked.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_inside, self._captures = 0, False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Begin a pass once no thread captures."""
        with self._changed:
            self._changed.wait_for(lambda: not self._captures)
            self._n_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Within a pass, wait until the others have ended; yields False if one of them captures."""
        with self._changed:
            free = not self._captures
            if free:
                self._captures = True
                self._changed.wait_for(lambda: self._n_inside == 1)
        try:
            yield free
        finally:
            if free:
                with self._changed:
                    self._captures = False
                    self._changed.notify_all()


passes = Passes()
"""Of this process."""


class _Graph(NamedTuple):
    """A captured pass: what starts it, what it reads, and what it writes."""

    replay: Callable[[], None]
    inputs: Tensors
    output: Tensor


class _Thread(threading.local):
    """Graphs of one thread, on a stream of its own. They share memory: one runs at a time."""

    def __init__(self) -> None:
        self.graphs: dict[object, _Graph] = {}
        self.pool: Any = None
        self.epoch = 0
        self.seen: Counter[object] = Counter()


class Replays:
    """Calls a pass, or replays what it did with earlier inputs of the same shapes.

    A pass that can't be captured, because it waits for the device for example, is called each time
    from then on. Safe to use from several threads, each on a stream of its own.

    Attributes:
        n_captured: Graphs, of all threads.
        n_passes: Passes.
        n_replayed: Those of them that were replayed.
        reason: Why nothing is captured any more; empty as long as nothing speaks against it.
    """

    def __init__(self) -> None:
        self.n_captured = self.n_passes = self.n_replayed = 0
        self.reason = ""
        self._epoch = 0
        self._lock = threading.Lock()
        self._thread = _Thread()

    def __reduce__(self) -> tuple[type[Replays], tuple[()]]:
        """Graphs stay in the process that captured them."""
        return Replays, ()

    def __call__(
        self, run: Callable[[Tensors], Tensor], inputs: Tensors, *, usual: bool = True
    ) -> Tensor:
        """Return what `run` makes of inputs; a tensor that the next call of this thread overwrites.

        Args:
            run: Starts kernels only. What it starts depends on shapes alone.
            inputs: Tensors on a GPU. Elsewhere `run` is called.
            usual: Whether such inputs come again, and `run` reads none of their values in Python.
        """
        first = next(iter(inputs.values()), None)
        if first is None or not _is_on_a_gpu(first):
            return run(inputs)
        mine, key = self._thread, _key(inputs)
        with self._lock:
            self.n_passes += 1
            forgotten, mine.epoch = mine.epoch != self._epoch, self._epoch
        if forgotten:
            mine.graphs, mine.pool = {}, None
        if not usual:
            return run(inputs)
        mine.seen[key] += 1
        try:
            graph = mine.graphs.get(key)
            if graph is None:
                output = run(inputs)
                early = mine.seen.total() <= BEFORE or mine.seen[key] <= OF_A_SHAPE
                if not (self.reason or early or len(mine.graphs) >= MAX_GRAPHS):
                    self._capture(run, inputs, output, key)
                return output
            for name, held in graph.inputs.items():
                held.copy_(inputs[name])
            graph.replay()
        except Exception as error:
            if out_of_memory(error):
                self._forget()
            raise
        with self._lock:
            self.n_replayed += 1
        return graph.output

    def _capture(
        self, run: Callable[[Tensors], Tensor], inputs: Tensors, expected: Tensor, key: object
    ) -> None:
        """Capture a pass, and keep it if it gives the output that it gave before."""
        mine = self._thread
        with passes.alone() as alone:
            if not alone:  # another thread captures: next time
                return
            try:
                if mine.pool is None:
                    mine.pool = _new_pool()
                held = {name: value.clone() for name, value in inputs.items()}
                replay, output = _captured(run, held, mine.pool)
                replay()
                same = bool(((output == expected) | (output.isnan() & expected.isnan())).all())
            except Exception as error:  # noqa: BLE001 - whatever keeps a pass from being captured
                self.reason = " ".join(str(error).split())[:200] or type(error).__name__
                return
        if not same:
            self.reason = "a captured pass gives other bits"
            return
        mine.graphs[key] = _Graph(replay, held, output)
        with self._lock:
            self.n_captured += 1

    def _forget(self) -> None:
        """Give back the memory of the graphs; other threads do so with their next pass."""
        with self._lock:
            self._epoch += 1
        self.reason = "memory ran out"
        self._thread.graphs, self._thread.pool = {}, None


def _key(inputs: Tensors) -> object:
    return tuple((name, tuple(x.shape), x.dtype) for name, x in inputs.items())


def _is_on_a_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _new_pool() -> Any:
    import torch

    return torch.cuda.graph_pool_handle()


def _captured(
    run: Callable[[Tensors], Tensor], inputs: Tensors, pool: Any
) -> tuple[Callable[[], None], Tensor]:
    """Capture a pass on this thread's stream; return what starts it, and the tensor it writes."""
    import torch

    graph = torch.cuda.CUDAGraph()
    torch.cuda.current_stream().synchronize()
    # Other threads go on to load, which may need page-locked memory.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        output = run(inputs)
    finally:
        graph.capture_end()
    return graph.replay, output
