"""What decodes JPEG files: how fast, and how far from Pillow's pixels and vectors; JSON lines.

    python tests/benchmarks/decoders.py [FOLDER] [--device cuda] [--limit N] [--models A,B]

FOLDER holds JPEG files; without it, 1,000 made-up ones of 400 x 533 are taken, which tell speeds
but no deviations of photographs. Networks (resnet50,vit_b_32) have seeded random weights. On a CUDA
device nvJPEG is measured, too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from mmbase.process import available_cpus, tune_process
from mmx.encoders import create
from mmx.encoders.decoding.jpegs import EncodedJpeg

BATCH = 128
Crops = np.ndarray[Any, np.dtype[np.uint8]]


def emit(what: str, **figures: Any) -> None:
    print(json.dumps({"what": what, **figures}), flush=True)


def made_up(folder: Path, n: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for k in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        coarse.resize((400, 533), Image.Resampling.BICUBIC).save(folder / f"{k}.jpg", quality=88)


def rate(function: Callable[[], object], n: int, *, at_least_s: float = 2.0) -> float:
    """Items per second of wall time, after one call that is not counted."""
    function()
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < at_least_s:
        function()
        done += n
    return round(done / spent, 1)


def in_batches(items: Sequence[Any], size: int = BATCH) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def crops_of(encoder: Any, loaded: Sequence[Any]) -> Crops:
    """The network's input of loaded pictures, (n, height, width, 3) uint8."""
    with torch.inference_mode():
        return np.concatenate(
            [encoder._pixels(batch)[: len(batch)].cpu().numpy() for batch in in_batches(loaded)]
        )


def deviation_of_pixels(crops: Crops, others: Crops) -> dict[str, float]:
    apart = np.abs(crops.astype(np.int16) - others)
    return {
        "share_of_values_that_differ": round(float((apart > 0).mean()), 5),
        "mean_difference": round(float(apart.mean()), 5),
        "largest_difference": int(apart.max()),
    }


def deviation_of_vectors(vectors: np.ndarray, others: np.ndarray) -> dict[str, float]:
    a, b = vectors.astype(np.float64), others.astype(np.float64)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return {
        "one_minus_cosine_mean": float(f"{(1 - cosines).mean():.3g}"),
        "one_minus_cosine_largest": float(f"{(1 - cosines).max():.3g}"),
        "largest_difference": float(f"{np.abs(a - b).max():.3g}"),
        "largest_number": float(f"{np.abs(a).max():.3g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--models", default="resnet50,vit_b_32")
    parser.add_argument("--precision", default="fp32")
    given = parser.parse_args()
    tune_process(one_arena=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if given.folder is None:
            made_up(folder, given.limit)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".jpg")
        measure(paths[: given.limit], given)


def measure(paths: Sequence[Path], given: argparse.Namespace) -> None:
    on_gpu = given.device.startswith("cuda")
    decoders = ["pil", "torchvision", *(["nvjpeg"] if on_gpu else [])]
    emit(
        "setting",
        n_files=len(paths),
        device=torch.cuda.get_device_name(given.device) if on_gpu else "cpu",
        processors=available_cpus(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        cuda=torch.version.cuda,
        kernels=torch.backends.cpu.get_cpu_capability(),
    )
    for name in given.models.split(","):
        vectors: dict[str, np.ndarray] = {}
        crops: dict[str, Crops] = {}
        for decoder in decoders:
            encoder: Any = create(
                name, modality="visual", weights="random", device=given.device, decoder=decoder,
                precision=given.precision,
            )  # fmt: skip
            encoder.batch_size = BATCH if on_gpu else 32
            loaded = [encoder.load(path) for path in paths]
            crops[decoder] = crops_of(encoder, loaded)
            vectors[decoder] = np.concatenate(
                [encoder.encode(batch) for batch in in_batches(loaded, encoder.batch_size)]
            )
            if name == given.models.split(",")[0]:
                speeds(encoder, decoder, paths, loaded, on_gpu)
            if decoder != "pil":
                emit(
                    "deviation from pil",
                    model=name,
                    precision=given.precision,
                    decoder=decoder,
                    files_of_its_own=sum(isinstance(one, EncodedJpeg) for one in loaded)
                    if decoder == "nvjpeg"
                    else None,
                    pixels=deviation_of_pixels(crops["pil"], crops[decoder]),
                    vectors=deviation_of_vectors(vectors["pil"], vectors[decoder]),
                )
            del encoder, loaded


def speeds(
    encoder: Any, decoder: str, paths: Sequence[Path], loaded: Sequence[Any], on_gpu: bool
) -> None:
    """Images per second: loading by threads, and what is left to the device."""
    torch.set_num_threads(1)
    some = list(paths[:512])
    began = time.process_time()
    for path in some:
        encoder.load(path)
    cpu_ms = (time.process_time() - began) / len(some) * 1e3
    figures: dict[str, Any] = {"load_cpu_ms": round(cpu_ms, 3)}
    for workers in sorted({1, min(4, available_cpus()), available_cpus()}):
        with ThreadPoolExecutor(workers) as pool:

            def load_all(pool: ThreadPoolExecutor = pool) -> None:
                list(pool.map(encoder.load, some))

            figures[f"load_per_s_{workers}_threads"] = rate(load_all, len(some))
    if on_gpu:
        batch = list(loaded[:BATCH])

        def prepared() -> None:
            with torch.inference_mode():
                encoder._pixels(batch)
            torch.cuda.synchronize()

        if decoder == "nvjpeg":
            contents = [one.tensor() for one in batch if isinstance(one, EncodedJpeg)]

            def decoded() -> None:
                encoder._nvjpeg._decoded(contents)
                torch.cuda.synchronize()

            figures["nvjpeg_alone_per_s"] = rate(decoded, len(contents))
        figures["pixels_on_the_device_per_s"] = rate(prepared, len(batch))
        figures["encode_per_s_1_thread"] = rate(lambda: encoder.encode(batch), len(batch))
        with ThreadPoolExecutor(2) as pool:

            def both() -> None:
                list(pool.map(encoder.encode, [batch] * 4))

            figures["encode_per_s_2_threads"] = rate(both, 4 * len(batch))
    emit("speed", decoder=decoder, model=encoder.spec.model_id, **figures)


if __name__ == "__main__":
    main()
