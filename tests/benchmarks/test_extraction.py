"""CPU seconds per item of `mmx extract`, its forward pass and the usual loops, at one thread.

Each test measures both sides of its ratio itself, in turns, and prints medians. Photographs, titles
and clips are the development data; networks have the published shapes and seeded weights, unless
`MMX_BENCH_MINILM` names a folder with the real all-MiniLM-L6-v2.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbase.process import tune_process
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, create
from mmx.encoders.compute import linear_kernel
from mmx.extraction.extract import extract
from mmx.extraction.summary import Summary

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

PEER_CPU_MS = 235.0
"""Ducho 2.0 at 52bcce2 on a 2-core AMD Zen 5: resnet50, its own loop in batches of 32, all CPU."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    tune_process(one_arena=True)
    torch.set_num_threads(1)


def medians(*functions: Callable[[], object], rounds: int = 3) -> list[float]:
    """CPU seconds of each function, called in turns; the first round is not counted."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, found in zip(functions, seconds, strict=True):
            start = time.process_time()
            function()
            found.append(time.process_time() - start)
    return [statistics.median(found[1:]) for found in seconds]


def run_with(
    encoder: Encoder, root: Path, out: Path, modality: str, limit: int, **config: Any
) -> Summary:
    run = RunConfig(
        data=root, out=out, device="cpu", workers=1, limit=limit, restart=True, max_failures="100%"
    )
    given = {"modality": modality, "model": encoder.spec.name, **config}
    settings = SetConfig.model_validate(given)
    return extract(run, settings, build=lambda model, **_: encoder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resnet50_from_files_beside_its_forward_pass(
    real_data: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    n = 128
    encoder = create("resnet50", modality="visual", weights="random", precision=precision)
    encoder.batch_size = 32
    paths = sorted((real_data / "images").glob("*.jpg"))[:32]
    batch = [encoder.load(path) for path in paths]

    def forward() -> None:
        for _ in range(n // 32):
            encoder.encode(batch)

    alone, whole = medians(
        forward, lambda: run_with(encoder, real_data / "images", tmp_path, "visual", n)
    )
    with capsys.disabled():
        print(
            f"\nresnet50 {precision}: {whole / n * 1e3:.1f} CPU-ms per JPEG, forward pass alone "
            f"{alone / n * 1e3:.1f} "
            f"({alone / whole:.1%} of its rate), {PEER_CPU_MS / (whole / n * 1e3):.1f} times less "
            "than the peer"
        )
    assert alone / whole >= 0.9


def test_titles_beside_the_librarys_own_loop(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n = 1000
    lines = (real_data / "titles" / "books.tsv").read_text(encoding="utf-8").splitlines()[1 : n + 1]
    texts = [" ".join(line.split("\t")[1:3]) for line in lines]
    rows = "".join(f"{k}\t{text}\n" for k, text in enumerate(texts))
    (tmp_path / "items.tsv").write_text("item_id\ttitle\n" + rows, encoding="utf-8")
    folder = os.environ.get("MMX_BENCH_MINILM") or str(minilm(tmp_path / "model", texts))
    encoder: Any = create(folder, modality="textual")
    found: dict[str, np.ndarray] = {}

    def library() -> None:
        found["library"] = encoder._model.encode(texts, batch_size=32, show_progress_bar=False)

    def ours() -> None:
        from mmstore import FeatureSet

        with FeatureSet(
            run_with(encoder, tmp_path, tmp_path / "out", "textual", n).path
        ) as features:
            found["ours"] = features.matrix([str(k) for k in range(n)])[0]

    theirs, mine = medians(library, ours)
    difference = float(np.abs(found["ours"] - found["library"]).max())
    with capsys.disabled():
        print(
            f"\nMiniLM: {mine / n * 1e3:.2f} CPU-ms per title with the kernel of "
            f"{linear_kernel()}, sentence-transformers "
            f"{theirs / n * 1e3:.2f}, largest difference {difference:.1e}"
        )
    assert difference <= 1e-6
    assert mine < theirs


def test_reading_and_resampling_is_a_small_part_of_the_work_on_sounds(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n = 48
    encoder = create("WAV2VEC2_BASE", modality="audio", weights="random")
    summaries: list[Summary] = []
    (whole,) = medians(
        lambda: summaries.append(run_with(encoder, real_data / "speech", tmp_path, "audio", n))
    )
    share = statistics.median(summary.stages.decode_s for summary in summaries[1:]) / whole
    with capsys.disabled():
        print(
            f"\nwav2vec2-base: {whole / n * 1e3:.1f} CPU-ms per clip, reading and resampling "
            f"{share:.2%} of it"
        )
    assert share < 0.01


# ------------------------------------------------------------------------------------------------
# memory


CHILD = """
import json, sys, time
from pathlib import Path
from mmbase.process import peak_memory_bytes, tune_process
tune_process(one_arena=True)
import numpy as np
from mmx.config import RunConfig, SetConfig
from mmx.encoders.base import Encoder, EncoderSpec
from mmx.errors import Interrupted
from mmx.extraction.extract import extract

class Constant(Encoder):
    concurrent = True
    def __init__(self, modality, dim):
        self.spec = EncoderSpec(
            name="constant", modality=modality, backend="none", model_id="constant", dim=dim,
            layer="only", pooling="none", preprocessing={}, weights="none", weights_sha256=None,
            licence=None, precision="fp32")
    def load(self, content):
        if isinstance(content, str):
            return content
        from mmx.encoders.decoding import decode_rgb
        return np.asarray(decode_rgb(content).resize((224, 224)))
    def encode(self, batch):
        return np.ones((len(batch), self.spec.dim), dtype=np.float32)

root, modality, dim = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for limit in json.loads(sys.argv[4]):
    wall, cpu = time.perf_counter(), time.process_time()
    run = RunConfig(data=root, device="cpu", limit=limit)
    config = SetConfig(modality=modality, model="constant")
    summary = extract(run, config, build=lambda model, **_: Constant(modality, dim))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps([summary.counts.total, wall, cpu, peak_memory_bytes()]))
"""


def child(root: Path, modality: str, dim: int, rounds: Sequence[int | None]) -> list[list[float]]:
    """For each limit: items, wall and CPU seconds, and the peak memory of the fresh process."""
    arguments = [
        sys.executable,
        "-c",
        CHILD,
        str(root),
        modality,
        str(dim),
        json.dumps(list(rounds)),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_memory_is_flat_between_a_thousand_and_fifty_thousand_photographs(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.name for path in (real_data / "images").glob("*.jpg"))
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / "images" / name).write_bytes((real_data / "images" / name).read_bytes())
    rows = "".join(f"{k}\timages/{names[k % len(names)]}\n" for k in range(50_000))
    (tmp_path / "items.tsv").write_text("item_id\timage\n" + rows, encoding="utf-8")
    (few, *_), (many, *_) = (
        child(tmp_path, "visual", 2048, [1000]),
        child(tmp_path, "visual", 2048, [None]),
    )
    with capsys.disabled():
        print(
            f"\npeak memory: {few[3] / 2**20:,.0f} MiB with {few[0]:,} photographs, "
            f"{many[3] / 2**20:,.0f} MiB with {many[0]:,} "
            f"({many[2] / many[0] * 1e3:.2f} CPU-ms each)"
        )
    assert many[3] <= 1.15 * few[3]


def test_ten_million_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = 10_000_000
    with (tmp_path / "items.tsv").open("w", encoding="utf-8") as stream:
        stream.write("item_id\ttitle\n")
        for start in range(0, n, 100_000):
            stream.writelines(
                f"item{k * 7919 % n:09d}\tthe title of {k}\n" for k in range(start, start + 100_000)
            )
    ((_, wall_s, cpu_s, peak), (_, again_s, _, _)) = child(tmp_path, "textual", 8, [None, None])
    with capsys.disabled():
        print(
            f"\n{n:,} items: {wall_s / n * 1e6:.1f} us each ({cpu_s / n * 1e6:.1f} CPU-us), peak "
            f"memory {peak / 2**30:.2f} GiB; "
            f"finding the set complete {again_s:.0f} s"
        )
    assert peak < 2 * 2**30
    assert wall_s / n < 20e-6


def minilm(folder: Path, texts: list[str], n_words: int = 8000) -> Path:
    """A model of MiniLM-L6's shape with seeded weights; its vocabulary: the texts' commonest words.

    Other words are made of letters.
    """
    from collections import Counter

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = [word for word, _ in Counter(" ".join(texts).lower().split()).most_common(n_words)]
    letters = sorted({letter for text in texts for letter in text.lower() if not letter.isspace()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bare = folder / "bare"
    bare.mkdir(parents=True)
    vocabulary = list(
        dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    )
    (bare / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(bare / "vocab.txt"), model_max_length=256).save_pretrained(bare)
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    BertModel(shape).save_pretrained(bare)
    modules: list[Any] = [Transformer(str(bare), max_seq_length=256), Pooling(384), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(
        str(folder / "minilm"), create_model_card=False
    )
    return folder / "minilm"
