"""What extraction costs on a device, end to end and in its parts: `python -m tests.benchmarks.gpu`.

Made-up photographs, titles and weights: rates depend on sizes and lengths, not on what is seen.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.benchmarks.gpu_training import seconds, synchronise
from tests.benchmarks.test_extraction import minilm

from mmbase.process import available_cpus, tune_process
from mmx.config import RunConfig, SetConfig
from mmx.encoders import create
from mmx.encoders.compute import forward_pass
from mmx.extraction.plan import BATCH_SIZES

WIDTH, HEIGHT, QUALITY = 400, 533, 80
N_DISTINCT, N_TITLES, N_TITLES_OF_LIBRARY = 500, 200_000, 40_000
N_PICTURES = {"fp32": 25_000, "bf16": 40_000, "nvjpeg": 60_000}
"""Pictures per run, by precision or decoder: ten seconds or so."""
N_WORDS = 30_000
CROP = 224
_encoder: Any = None


class NotThere(Exception):
    """What this tree or this machine lacks for a measurement."""


def has_decoders() -> bool:
    """Whether `mmx extract` has a choice of decoders."""
    return any("decoder" in config.model_fields for config in (RunConfig, SetConfig))


def pictures(work: Path, *, tiny: bool) -> tuple[Path, list[Path]]:
    """A catalogue of photograph-like JPEGs, made once: its folder and the distinct files."""
    folder = work / "pictures"
    n_distinct, n = (4, 16) if tiny else (N_DISTINCT, max(N_PICTURES.values()))
    files = [folder / "images" / f"{k}.jpg" for k in range(n_distinct)]
    if not (folder / "items.tsv").is_file():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(available_cpus()) as pool:
            list(pool.map(picture, files, range(n_distinct)))
        rows = "".join(f"{k}\timages/{files[k % n_distinct].name}\n" for k in range(n))
        (folder / "items.tsv").write_text("item_id\timage\n" + rows, encoding="utf-8")
    return folder, files


def picture(path: Path, seed: int) -> None:
    """Write a JPEG of noise whose amplitude grows with its scale, as a photograph's does."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for scale in (256, 128, 64, 32, 16, 8, 4, 2):
        shape = (HEIGHT // scale + 2, WIDTH // scale + 2, 3)
        noise = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        grown = np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        pixels += (grown - 128) * (0.05 + 0.6 * scale / 256)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)


@functools.cache
def titles(work: Path, *, tiny: bool) -> tuple[Path, Path, list[str]]:
    """A catalogue of titles and a network of MiniLM's shape, made once: both folders, the titles.

    Words are made of syllables and drawn by Zipf's law; the rare ones are not in the vocabulary.
    """
    folder = work / "titles"
    n = 32 if tiny else N_TITLES
    rng = np.random.default_rng(0)
    syllables = np.array([a + b + c for a in "bcdfglmnprst" for b in "aeiou" for c in ("", *"nrs")])
    lengths = rng.integers(1, 4, 2 * N_WORDS)
    words = np.array(["".join(rng.choice(syllables, length)) for length in lengths])
    words = rng.permutation(np.unique(words))
    drawn = (words.size * rng.random(25 * n) ** 4).astype(np.int64)
    sizes = rng.integers(3, 25, n)
    bounds = np.concatenate([[0], sizes.cumsum()])
    texts = [" ".join(words[drawn[bounds[k] : bounds[k + 1]]]) for k in range(n)]
    if not (folder / "items.tsv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        minilm(work / "model", [" ".join(words), *texts[:N_TITLES_OF_LIBRARY]], N_WORDS)
        rows = "".join(f"{k}\t{text}\n" for k, text in enumerate(texts))
        (folder / "items.tsv").write_text("item_id\ttitle\n" + rows, encoding="utf-8")
    return folder, work / "model" / "minilm", texts


def extract(
    device: str, tiny: bool, work: Path, modality: str, model: str, precision: str, decoder: str
) -> dict[str, Any]:
    """Items per second of `mmx extract`, from files to the finished feature set.

    `items_per_s` is the command's own figure, from the first item to the last; `wall_s` also has
    its start, and `wall_items_per_s` comes of it; `later_items_per_s` is without the time before
    the first vectors.
    """
    if decoder not in ("pil", "") and not has_decoders():
        raise NotThere("mmx extract has no --decoder")
    given = ["--decoder", decoder] if decoder and has_decoders() else []
    if modality == "textual":
        data, folder, _ = titles(work, tiny=tiny)
        model = str(folder)
    else:
        data, _ = pictures(work, tiny=tiny)
        given += [
            "--weights",
            "random",
            "--limit",
            str(N_PICTURES.get(decoder, N_PICTURES[precision])),
        ]
    options = {
        "--modality": modality, "--model": model, "--precision": precision, "--device": device,
        "--data": data, "--out": work / "features", "--name": f"{precision}-{decoder}",
    }  # fmt: skip
    command = [sys.executable, "-m", "mmx", "extract", "--json", "--restart", "--quiet", *given]
    command += [str(word) for option in options.items() for word in option]
    start = time.perf_counter()
    code, out, err = _run(command)
    wall_s = time.perf_counter() - start
    if code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {code}: {err[-2000:]}")
    document = json.loads(out)
    n, seconds = document["items"]["total"], document["this_run"]["seconds"]
    return {
        "n": n,
        "wall_s": round(wall_s, 2),
        "wall_items_per_s": round(n / wall_s, 1),
        "later_items_per_s": round(n / (seconds["loop"] - seconds["first"]), 1),
        **document["this_run"],
    }


def _run(command: Sequence[str]) -> tuple[int, str, str]:
    """Run a command whose processes end with this one at the latest; exit code, stdout, stderr."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            out, err = process.communicate()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def rate(function: Callable[[], object], n: int, device: str, *, tiny: bool) -> float:
    """Items per second of calls that deal with `n` items each: the median of five rounds."""
    for _ in range(1 if tiny else 3):
        function()
    once = seconds(function, device)
    calls = 1 if tiny else max(1, round(0.2 / once))
    rounds = [seconds(lambda: [function() for _ in range(calls)], device) for _ in range(5)]
    return round(n * calls / statistics.median(rounds), 1)


def forward(device: str, tiny: bool, model: str, precision: str) -> dict[str, Any]:
    """Pictures per second of the forward pass alone: one batch that is on the device already.

    The network, its memory format and its arithmetic are those of `mmx extract`.
    """
    encoder: Any = create(
        model, modality="visual", weights="random", precision=precision, device=device
    )
    n = 4 if tiny else BATCH_SIZES["gpu"]["visual"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, CROP, CROP, generator=generator).to(
        device=device, memory_format=torch.channels_last
    )

    def call() -> None:
        with forward_pass(torch.device(device), precision):
            encoder.network(x)

    return {"batch_size": n, "items_per_s": rate(call, n, device, tiny=tiny)}


def text_forward(device: str, tiny: bool, work: Path, precision: str) -> dict[str, Any]:
    """Titles per second of sentence-transformers' own: `encode`, and its forward passes alone.

    The passes alone take all titles once, sorted by length, in batches that are tokenised and on
    the device already.
    """
    from sentence_transformers import SentenceTransformer

    _, folder, texts = titles(work, tiny=tiny)
    texts = texts[:N_TITLES_OF_LIBRARY]
    model = SentenceTransformer(str(folder), device=device)
    n = 16 if tiny else BATCH_SIZES["gpu"]["textual"]
    ordered = sorted(texts, key=len, reverse=True)
    start = time.perf_counter()
    tokens = [
        model.tokenizer(ordered[k : k + n], padding=True, truncation=True, return_tensors="pt")
        for k in range(0, len(ordered), n)
    ]
    tokenise_s = time.perf_counter() - start
    batches = [{name: x.to(device) for name, x in batch.items()} for batch in tokens]

    def passes() -> None:
        with forward_pass(torch.device(device), precision):
            for batch in batches:
                model({**batch})

    def encode() -> None:
        with torch.autocast(
            torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16"
        ):
            model.encode(texts, batch_size=n, show_progress_bar=False)

    passes()
    alone = statistics.median(seconds(passes, device) for _ in range(1 if tiny else 3))
    return {
        "n": len(texts),
        "batch_size": n,
        "tokens_per_title": round(
            sum(int(b["attention_mask"].sum()) for b in tokens) / len(texts), 2
        ),
        "forward_per_s": round(len(texts) / alone, 1),
        "encode_per_s": round(len(texts) / seconds(encode, device), 1),
        "tokenise_per_s": round(len(texts) / tokenise_s, 1),
    }


def decoding(tiny: bool, work: Path, model: str) -> dict[str, Any]:
    """Pictures per second of `load` alone, as the default decoder does it: one process, and all."""
    _, files = pictures(work, tiny=tiny)
    workers = 1 if tiny else available_cpus()
    todo = files if tiny else (files * 4)[: 250 * workers]
    with multiprocessing.get_context("spawn").Pool(workers, _open, (model,)) as pool:
        pool.map(_load, todo[: 8 * workers], chunksize=4)  # until all have started
        start = time.perf_counter()
        pool.map(_load, todo, chunksize=8)
        together_s = time.perf_counter() - start
        alone = todo[:100]
        alone_s = pool.apply(_timed, (alone,))
    return {
        "workers": workers,
        "n": len(todo),
        "items_per_s": round(len(todo) / together_s, 1),
        "one_process_per_s": round(len(alone) / alone_s, 1),
    }


def _open(model: str) -> None:
    global _encoder
    tune_process(one_arena=True)
    torch.set_num_threads(1)
    _encoder = create(model, modality="visual", weights="random", device="cpu")


def _load(path: Path) -> None:
    _encoder.load(path)


def _timed(paths: list[Path]) -> float:
    start = time.perf_counter()
    for path in paths:
        _load(path)
    return time.perf_counter() - start


def nvjpeg(device: str, tiny: bool, work: Path) -> dict[str, Any]:
    """Pictures per second that torchvision decodes on the device, without resizing them."""
    from torchvision.io import decode_jpeg, read_file

    if not device.startswith("cuda"):
        raise NotThere("nvJPEG decodes on NVIDIA devices alone")
    _, files = pictures(work, tiny=tiny)
    raw = [read_file(str(path)) for path in files]
    found = {}
    for n in (32, 128, 500):

        def decode(n: int = n) -> None:
            for k in range(0, len(raw), n):
                decode_jpeg(raw[k : k + n], device=device)

        decode()
        synchronise(device)
        found[n] = round(len(raw) / statistics.median(seconds(decode, device) for _ in range(3)), 1)
    return {"n": len(raw), "items_per_s": found[128], "by_batch": found}
