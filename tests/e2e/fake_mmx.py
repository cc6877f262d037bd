"""One more encoder, `slow-fake`: deterministic, tiny, and slow enough to be killed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmx.encoders import (
    ENCODERS,
    Encoder,
    EncoderFamily,
    EncoderInfo,
    EncoderSpec,
    Request,
)
from mmx.errors import ContentError
from mmx.extraction import pipeline

SECONDS_PER_BATCH = 0.004


class SlowFake(Encoder):
    """Sixteen numbers from a text's digest, and the batch's size in the last place."""

    def __init__(self, request: Request) -> None:
        self.spec = EncoderSpec(
            name="slow-fake", modality="textual", backend="test", model_id="slow-fake", dim=17,
            layer="only", pooling="none", preprocessing={}, weights="none", weights_sha256=None,
            licence=None, precision="fp32",
        )  # fmt: skip

    def load(self, content: str | Path) -> str:
        text = str(content)
        if text.startswith("bad"):
            raise ContentError("cannot be decoded")
        return text

    def sort_key(self, loaded: str) -> int:
        return len(loaded)

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        time.sleep(SECONDS_PER_BATCH)
        rows = [
            [*hashlib.blake2b(text.encode(), digest_size=16).digest(), len(batch)] for text in batch
        ]
        return np.array(rows, dtype=np.float32)


INFO = EncoderInfo(
    "slow-fake", "textual", "slow-fake", 17, "only", "none", None, "text", "none needed"
)
FAMILY = EncoderFamily(
    name="slow-fake",
    modalities=frozenset({"textual"}),
    accepts=lambda model, modality: model == "slow-fake",
    known=lambda modality, cache_dir: [INFO],
    build=SlowFake,
    needs_torch=False,
)


def prepare() -> None:
    """Make `mmx` know the encoder, in a process of a test, and write often."""
    ENCODERS["slow-fake"] = f"{__name__}:FAMILY"
    pipeline.FLUSH_S = 0.02
