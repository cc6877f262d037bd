"""Encoders that loading processes can import."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmx.encoders import Encoder, EncoderSpec
from mmx.encoders.decoding import memory, tell
from mmx.errors import ContentError
from mmx.extraction import disk


def burn(seconds: float) -> None:
    """Compute for so long, with the interpreter lock."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


def in_a_loading_process() -> bool:
    """Whether this process is one that only loads."""
    return "pytest" not in sys.modules and sys.argv[0] == "-c"


class Lengths(Encoder):
    """The length of each file, what it begins with, and what its batch has in common.

    A file's text says what happens when it is loaded.
    """

    concurrent = True

    def __init__(
        self, *, load_s: float = 0.0, encode_s: float = 0.0, sleep_s: float = 0.0, size: int = 300
    ) -> None:
        self.spec = EncoderSpec(
            name="lengths", modality="visual", backend="test", model_id="lengths", dim=3,
            layer="only", pooling="none", preprocessing={}, weights="none", weights_sha256=None,
            licence=None, precision="fp32",
        )  # fmt: skip
        self.load_s, self.encode_s, self.sleep_s, self.size = load_s, encode_s, sleep_s, size

    def load(self, content: Path | str) -> NDArray[np.uint8]:
        text = Path(content).read_text(encoding="utf-8")
        burn(self.load_s)
        elsewhere = in_a_loading_process()
        match text.partition(" ")[0]:
            case "bad":
                raise ContentError("cannot be read")
            case "gone":
                raise FileNotFoundError(content)
            case "fails":
                raise ZeroDivisionError("by nothing")
            case "noted":
                tell("a remark")
            case "short" if elsewhere:
                raise MemoryError
            case "odd" if elsewhere:
                raise RuntimeError("here only")
            case "large":
                memory.reserve(1 << 26)
            case "marks":
                Path(content).with_suffix(".loaded").touch()
            case "kills" if elsewhere:
                os.kill(os.getpid(), signal.SIGKILL)
            case "kills-once" if elsewhere:
                mark = Path(content).with_suffix(".killed")
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        return np.resize(data, (self.size, 3)) if self.size else data

    def encode(self, batch: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        burn(self.encode_s)
        time.sleep(self.sleep_s)
        shared = sum(int(item.sum()) for item in batch)
        return np.array([[item.sum(), item.flat[0], shared] for item in batch], dtype=np.float32)


class SlowDisk(Lengths):
    """Files whose reads take a while, in this process and in those that load."""

    def __init__(self, read_s: float) -> None:
        super().__init__()
        self.read_s = read_s

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        slow_reads(self.read_s)


def slow_reads(seconds: float) -> None:
    """Let every measured read of this process take so long, without computing.

    No file is in memory then.
    """
    read_into = disk._read_into

    def slow(file: int, buffer: bytearray) -> int:
        time.sleep(seconds)
        return read_into(file, buffer)

    disk._read_into = slow
    disk._is_in_memory = lambda file, buffer: False
