"""A loading process: receives contents, loads them, and leaves them in shared memory.

Started by `mmx.extraction.processes`, with one end of a pair of sockets. It ends when the other end
is closed, so it never outlives the run, however that ends. It never sees a GPU and writes no file.
"""

from __future__ import annotations

import mmap
import os
import pickle
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NamedTuple

from mmbase.process import tune_process
from mmx.encoders import Encoder
from mmx.encoders.base import plain_reason
from mmx.encoders.decoding import memory
from mmx.extraction.loading import Reading, load_or_leave, read

UNASKED_BYTES = 1 << 24
"""What a process decodes without asking for memory: a picture of 4 million pixels."""

NICENESS = 5
"""Of a loading process, beside that of the run."""

ALIGNMENT = 64
"""Bytes; arrays begin at multiples of it."""


class Block(NamedTuple):
    """A piece of shared memory for the loaded items of one request."""

    arena: int  # number of the mapping, in the order of their arrival
    start: int  # bytes from its beginning
    size: int  # bytes


class Request(NamedTuple):
    """Contents to load, for those encoders that take them; and where the items may go."""

    takes: Sequence[bool]
    contents: Sequence[Any]
    block: Block | None


class Room(NamedTuple):
    """Asks for a block of at least that many bytes; answered by a `Block`, or by None."""

    n_bytes: int


class Memory(NamedTuple):
    """Asks for memory to decode a content; answered when it is there. 0 gives it back."""

    n_bytes: int


class Arena(NamedTuple):
    """Announces another mapping of that many bytes, whose file descriptor follows."""

    n_bytes: int


class Loaded(NamedTuple):
    """A pickled `Reading`, and where its arrays are in the block: starts and lengths in bytes."""

    reading: bytes
    arrays: list[tuple[int, int]]


class Ready(NamedTuple):
    """Says that requests can come, or why none can."""

    failure: str = ""


class _AskingBudget(memory.ByteBudget):
    """Memory for decoding that is taken from the budget of the process that loads for the run."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(memory.DECODING_BYTES)
        self._connection = connection

    def take(self, n_bytes: int) -> int:
        if n_bytes <= UNASKED_BYTES:
            return 0
        self._connection.send(Memory(n_bytes))
        self._connection.recv()
        return n_bytes

    def give_back(self, n_bytes: int) -> None:
        self._connection.send(Memory(0))


def main(descriptor: int) -> None:
    """Serve requests until the other end is closed."""
    tune_process(one_arena=True)
    # The threads that keep the device busy come first: what is loaded late is only loaded late.
    os.nice(NICENESS)
    connection = Connection(descriptor)
    try:
        _serve(connection)
    except (EOFError, OSError):  # the run has ended
        os._exit(0)


def _serve(connection: Connection) -> None:
    try:
        # Bytes of the process that started this one, and of nobody else.
        encoders, background = pickle.loads(connection.recv_bytes())  # noqa: S301
    except (EOFError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - told to the other end, which then loads itself
        connection.send(Ready(f"{type(error).__name__}: {plain_reason(error)}"))
        return
    memory.budget = _AskingBudget(connection)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # as in the threads that load
    connection.send(Ready())
    arenas: list[mmap.mmap] = []
    while True:
        request: Request = connection.recv()
        reading = _read(encoders, background, request)
        _reply(connection, arenas, request, reading)


def _read(encoders: Sequence[Encoder], background: str | None, request: Request) -> Reading:
    takers = [
        encoder if takes else None for encoder, takes in zip(encoders, request.takes, strict=True)
    ]
    busy_s = time.process_time()
    reading = read(takers, request.contents, background, load_or_leave)
    reading.cpu_s = time.process_time() - busy_s  # with that of the decoders' own threads
    return reading


def _reply(
    connection: Connection, arenas: list[mmap.mmap], request: Request, reading: Reading
) -> None:
    """Put the arrays of a reading into the block, and send the rest."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(reading, protocol=5, buffer_callback=buffers.append)
    arrays: list[tuple[int, int]] = []
    end = 0
    raw = [buffer.raw() for buffer in buffers]
    for array in raw:
        arrays.append((end, array.nbytes))
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    block = request.block
    if end > (block.size if block is not None else 0):
        connection.send(Room(end))
        answer: Arena | Block | None = connection.recv()
        if isinstance(answer, Arena):
            descriptor = recv_handle(connection)
            arenas.append(mmap.mmap(descriptor, answer.n_bytes))
            os.close(descriptor)
            answer = connection.recv()
        assert not isinstance(answer, Arena)
        block = answer
    if end and block is None:  # no memory there: the other end loads them itself
        taken = range(len(request.contents))
        nothing = [None if items is None else [None] * len(items) for items in reading.items]
        lost = Reading(nothing, reading.n_bytes, own_s=[0.0] * len(nothing), left=[*taken])
        connection.send(Loaded(pickle.dumps(lost, protocol=5), []))
        return
    for (start, length), array in zip(arrays, raw, strict=True):
        assert block is not None  # it is None only where there is no array
        begin = block.start + start
        arenas[block.arena][begin : begin + length] = array
    connection.send(Loaded(pickled, arrays))
