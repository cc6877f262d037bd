"""Forward passes of torchvision's networks: as they are, as a CUDA graph, compiled; JSON lines.

    python tests/benchmarks/forward.py [--device cuda] [--models resnet50,vit_b_32] [--batch 128]

The figures that say whether a graph or `torch.compile` would pay: pictures per second of one batch
that is on the device already, the processor's time per pass (which competes with loading for the
interpreter lock), the seconds before the first pass, and how far the vectors move.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from mmbase.process import tune_process
from mmx.encoders import create
from mmx.encoders.compute import forward_pass

Forward = Callable[[], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", default="resnet50,vit_b_32")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--ways", default="eager,graph,compiled")
    given = parser.parse_args()
    tune_process(one_arena=True)
    for model in given.models.split(","):
        for precision in given.precisions.split(","):
            measure(model, precision, given)


def measure(model: str, precision: str, given: argparse.Namespace) -> None:
    encoder: Any = create(
        model, modality="visual", weights="random", device=given.device, precision=precision
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (given.batch, 224, 224, 3), dtype=torch.uint8, generator=generator
    ).to(given.device)
    device = torch.device(given.device)
    expected: torch.Tensor | None = None
    for way in given.ways.split(","):
        if way == "graph" and device.type != "cuda":
            continue
        began = time.perf_counter()
        network = encoder._network
        if way == "compiled":
            encoder._network = torch.compile(network, dynamic=False)
        with forward_pass(device, precision):
            forward = (
                captured(encoder, pixels) if way == "graph" else lambda: encoder._forward(pixels)
            )
            vectors = forward().float()
            wait(device)
            figures = {"before_the_first_pass_s": round(time.perf_counter() - began, 1)}
            figures |= rates(forward, given.batch, device)
        encoder._network = network
        expected = vectors.clone() if expected is None else expected
        apart = (vectors - expected).abs().max() / expected.abs().max()
        row = {"model": model, "precision": precision, "way": way, **figures}
        print(json.dumps({**row, "largest_difference": float(f"{apart:.3g}")}), flush=True)


def captured(encoder: Any, pixels: torch.Tensor) -> Forward:
    """The pass as a CUDA graph, replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            encoder._forward(pixels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A cache of casted weights would be filled within the graph and read outside of it.
    torch.clear_autocast_cache()
    with torch.cuda.graph(graph):
        vectors = encoder._forward(pixels)

    def replay() -> torch.Tensor:
        graph.replay()
        return vectors

    return replay


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(forward: Forward, n: int, device: torch.device) -> dict[str, float]:
    for _ in range(2):
        forward()
    wait(device)
    passes, began, began_cpu = 0, time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < 2 or passes < 3:
        for _ in range(5 if device.type == "cuda" else 1):
            forward()
            passes += 1
        cpu_s = time.thread_time() - began_cpu
        wait(device)
    seconds = time.perf_counter() - began
    return {
        "per_s": round(n * passes / seconds, 1),
        "cpu_ms_per_pass": round(cpu_s / passes * 1e3, 2),
    }


if __name__ == "__main__":
    main()
