"""What threads that load do: tokenise texts, many in one call, and resample sounds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmstore.reader import FeatureSet
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, EncoderSpec
from mmx.encoders.decoding import Resampler
from mmx.errors import ContentError
from mmx.extraction.executors import Executor, LocalExecutor, SerialExecutor
from mmx.extraction.extract import extract
from mmx.extraction.summary import Summary

LONGEST = 12


class OneByOne(Encoder):
    """Length of a text and the sum of its letters; takes no more than `LONGEST` letters."""

    concurrent = True

    def __init__(self) -> None:
        self.spec = EncoderSpec(
            name="letters", modality="textual", backend="test", model_id="letters", dim=2,
            layer="only", pooling="none", preprocessing={}, weights="none", weights_sha256=None,
            licence=None, precision="fp32",
        )  # fmt: skip
        self.calls: list[tuple[int, str]] = []

    def load(self, content: str | Path) -> str:
        if "bad" in str(content):
            raise ContentError("cannot be read")
        if "odd" in str(content):
            raise ZeroDivisionError("an error of the library")
        return str(content)

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        return np.array(
            [[len(text[:LONGEST]), sum(map(ord, text[:LONGEST]))] for text in batch], np.float32
        )

    def sort_key(self, loaded: str) -> int:
        return len(loaded)

    def truncated(self, loaded: str) -> bool:
        return len(loaded) > LONGEST


class Many(OneByOne):
    """The same, many in one call."""

    def load_many(self, contents: Sequence[str | Path]) -> list[Any]:
        self.calls.append((len(contents), threading.current_thread().name))
        return super().load_many(contents)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    words = ["red dress", "x" * 30, "", "a bad one", "lamp", "a much longer text of many words"]
    rows = [f"i{k:04d}\t{words[k % 6]}{k if k % 6 != 2 else ''}" for k in range(300)]
    (tmp_path / "items.tsv").write_text("item_id\ttitle\n" + "\n".join(rows) + "\n")
    return tmp_path


def go(root: Path, encoder: Encoder, executor: Executor | None = None, **config: Any) -> Summary:
    settings = SetConfig.model_validate(
        {"modality": "textual", "model": "letters", "batch_size": 4, **config}
    )
    run = RunConfig(
        data=root, out=root / type(encoder).__name__, device="cpu", max_failures="100%",
        restart=True,
    )  # fmt: skip
    return extract(run, settings, build=lambda model, **_: encoder, executor=executor)


@pytest.mark.parametrize("long_texts", ["truncate", "mean", "ragged", "error"])
def test_many_in_one_call_are_those_of_one_by_one(texts: Path, long_texts: str) -> None:
    expected = go(texts, OneByOne(), long_texts=long_texts)
    many = Many()
    found = go(texts, many, LocalExecutor(2), long_texts=long_texts)
    assert (found.digest, found.counts, found.errors) == (
        expected.digest, expected.counts, expected.errors,
    )  # fmt: skip
    assert found.stages.n_truncated == expected.stages.n_truncated
    # 256 rows to a window, of which two threads load at most half at a time.
    assert [n for n, _ in many.calls] and max(n for n, _ in many.calls) > 50
    assert sum(n for n, _ in many.calls) == 250  # 50 are blank
    assert threading.current_thread().name not in {name for _, name in many.calls}


@pytest.mark.parametrize("executor", [LocalExecutor(2), SerialExecutor()])
def test_where_a_call_fails_the_item_that_caused_it_is_found(
    texts: Path, executor: Executor
) -> None:
    table = texts / "items.tsv"
    table.write_text(table.read_text().replace("lamp4\n", "an odd one\n"))
    many = Many()
    summary = go(texts, many, executor)
    assert (summary.counts.ok, summary.counts.missing, summary.counts.corrupt) == (199, 50, 51)
    with FeatureSet(summary.path) as features:
        reasons = {features.ids[row]: why for row, why in features.errors()}
    assert "an error of the library" in reasons.pop("i0004")
    assert set(reasons.values()) == {"cannot be read"}


def test_sounds_are_resampled_where_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("torchaudio")
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    for k in range(20):
        sound = rng.normal(0, 0.1, 4000 + 100 * k).astype(np.float32)
        soundfile.write(tmp_path / "audio" / f"{k:02d}.wav", sound, 8000)
    ids = "".join(f"{k:02d}\n" for k in range(20))
    (tmp_path / "items.tsv").write_text(f"item_id\n{ids}")
    threads: list[str] = []
    resample = Resampler.__call__

    def seen(self: Resampler, samples: Any, rate: int) -> Any:
        threads.append(threading.current_thread().name)
        return resample(self, samples, rate)

    monkeypatch.setattr(Resampler, "__call__", seen)
    run = RunConfig(data=tmp_path, device="cpu", workers=2)
    summary = extract(run, SetConfig(modality="audio", model="mfcc"))
    assert summary.counts.ok == len(threads) == 20
    assert all(name.startswith("mmx-load") for name in threads)
