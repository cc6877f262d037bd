"""Titles per second of a network of the size of all-MiniLM-L6-v2, here and in the library; JSON.

    python tests/benchmarks/titles.py [--device cuda] [--titles FILE] [--n 20000] [--precision fp32]

FILE has one text per line; without it titles are made up of words of a seeded vocabulary. The
network has seeded random weights, or those of the folder `--model`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmbase.process import available_cpus, tune_process
from mmstore.reader import FeatureSet
from mmx.config import RunConfig, SetConfig
from mmx.encoders import create
from mmx.extraction.extract import extract

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def made_up(n: int) -> list[str]:
    """Titles of 2 to 16 words, of which half are split into two tokens."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list(LETTERS), rng.integers(3, 9))) for _ in range(8000)]
    return [" ".join(rng.choice(words, rng.integers(2, 17))) for _ in range(n)]


def minilm(folder: Path, texts: Sequence[str]) -> Path:
    """A network of all-MiniLM-L6-v2's shape, with a vocabulary of the words of some texts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    bare = folder / "bare"
    bare.mkdir(parents=True)
    words = sorted({word.lower() for text in texts for word in text.split()})[::2][:20_000]
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *words]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (bare / "vocab.txt").write_text("\n".join([*special, *pieces]), encoding="utf-8")
    BertTokenizerFast(str(bare / "vocab.txt"), model_max_length=256).save_pretrained(bare)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30_522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=512,
    )  # fmt: skip
    BertModel(config).save_pretrained(bare)
    modules: list[Any] = [
        Transformer(str(bare), max_seq_length=256), Pooling(384, pooling_mode="mean"), Normalize(),
    ]  # fmt: skip
    SentenceTransformer(modules=modules, device="cpu").save(
        str(folder / "minilm"), create_model_card=False
    )
    return folder / "minilm"


def emit(what: str, n: int, seconds: float, **figures: Any) -> None:
    print(json.dumps({"what": what, "per_s": round(n / seconds, 1), **figures}), flush=True)


def timed(function: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--titles", type=Path)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--precision", default="fp32")
    given = parser.parse_args()
    tune_process(one_arena=True)
    texts = made_up(given.n)
    if given.titles is not None:
        lines = given.titles.read_text(encoding="utf-8").splitlines()
        texts = [lines[k % len(lines)] for k in range(given.n)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.model or minilm(Path(scratch), texts)
        measure(texts, folder, Path(scratch), given)


def measure(texts: list[str], folder: Path, scratch: Path, given: argparse.Namespace) -> None:
    n, device, batch = len(texts), given.device, 256 if given.device.startswith("cuda") else 32
    on_gpu = device.startswith("cuda")
    setting = {
        "what": "setting",
        "n": n,
        "batch": batch,
        "precision": given.precision,
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "processors": available_cpus(),
        "torch": torch.__version__,
    }
    print(json.dumps(setting), flush=True)
    encoder: Any = create(
        f"sentence-transformers:{folder}", modality="textual", device=device,
        precision=given.precision,
    )  # fmt: skip
    library = encoder._model
    some = texts[: min(n, 4096)]
    encoder.load_many(some[:batch])
    began = time.process_time()
    loaded = [
        one for k in range(0, len(some), batch) for one in encoder.load_many(some[k : k + batch])
    ]
    cpu_s = time.process_time() - began
    emit("tokenised in one thread", len(some), cpu_s, cpu_us_each=round(cpu_s / len(some) * 1e6, 1))

    # The rate of the device: everything tokenised, sorted by length and on its way in batches.
    loaded.sort(key=encoder.sort_key)

    def forward() -> None:
        for k in range(0, len(loaded), batch):
            encoder.encode(loaded[k : k + batch])

    forward()
    emit("forward, batches one after the other", len(loaded), timed(forward, device))

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(given.precision)
    found: dict[str, Any] = {}

    def of_the_library() -> None:
        with torch.autocast(device.split(":")[0], dtype=dtype, enabled=dtype is not None):
            found["library"] = library.encode(texts, batch_size=batch, show_progress_bar=False)

    library.encode(texts[:batch], batch_size=batch, show_progress_bar=False)
    seconds = timed(of_the_library, device)
    emit("sentence-transformers' own encode", n, seconds)

    data = scratch / "data"
    data.mkdir()
    rows = "".join(f"{k}\t{text}\n" for k, text in enumerate(texts))
    (data / "items.tsv").write_text("item_id\ttitle\n" + rows, encoding="utf-8")
    encoder.load_many(some[:batch])  # the library has changed the tokenizer's settings
    run = RunConfig(data=data, device=device, restart=True)
    config = SetConfig.model_validate(
        {"modality": "textual", "model": "minilm", "precision": given.precision, "name": "minilm"}
    )
    summary = extract(run, config, build=lambda model, **_: encoder)
    with FeatureSet(summary.path) as features:
        ours = features.matrix([str(k) for k in range(n)])[0]
    difference = np.abs(ours - np.asarray(found["library"], np.float32)).max()
    emit(
        "mmx extract, its loop",
        n,
        summary.stages.loop_s,
        of_the_library=round(seconds / summary.stages.loop_s, 3),
        largest_difference=float(f"{difference:.3g}"),
        bottleneck=summary.stages.bottleneck(),
    )


if __name__ == "__main__":
    main()
