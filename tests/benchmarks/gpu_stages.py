"""Where the time of `mmx extract` on a GPU goes: `python -m tests.benchmarks.gpu_stages`.

The cases run one after the other in one process, which imports once, with clocks around the steps
of the process that encodes. Each prints a line of JSON: pictures or titles per second of the whole
command, of the loop over the items and after the first vectors; busy shares of device, decoding and
disk; how many passes were replayed as CUDA graphs; processors that the process itself and its
loading processes keep busy; and for each step the number of calls, wall-clock seconds and CPU
seconds, of all threads together. A case that is not done when the limit is reached ends the
process. `--cases ...,alone` also measures the rates of the parts by themselves: forward passes,
decoding in all processors, nvJPEG by size of its batches.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CASES = {
    "resnet50-fp32-pil": ("visual", "resnet50", "fp32", "pil", 25_000),
    "resnet50-bf16-nvjpeg": ("visual", "resnet50", "bf16", "nvjpeg", 60_000),
    "resnet50-bf16-pil": ("visual", "resnet50", "bf16", "pil", 40_000),
    "minilm-fp32": ("textual", "minilm", "fp32", "", 200_000),
    "vit_b_32-bf16-pil": ("visual", "vit_b_32", "bf16", "pil", 40_000),
    "minilm-bf16": ("textual", "minilm", "bf16", "", 200_000),
}
"""Modality, model, precision, decoder, items. What the limit cuts off comes last."""


class Clocks:
    """Calls, wall-clock and CPU seconds of steps, of all threads together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, list[float]] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a clock around it."""

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **options)
            finally:
                self._add(name, time.perf_counter() - wall, time.thread_time() - cpu)

        return timed

    def _add(self, name: str, wall_s: float, cpu_s: float) -> None:
        with self._lock:
            found = self._found.setdefault(name, [0, 0.0, 0.0])
            for k, more in enumerate((1, wall_s, cpu_s)):
                found[k] += more

    def reset(self) -> None:
        """Begin anew."""
        with self._lock:
            self._found = {}

    def told(self) -> dict[str, dict[str, float]]:
        """Return them by name."""
        return {
            name: {"calls": int(n), "wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}
            for name, (n, wall, cpu) in sorted(self._found.items())
        }


@functools.cache
def watched() -> Clocks:
    """Put clocks around the steps of an extraction, once."""
    from mmbase.catalogue import files
    from mmstore.writer import FeatureSetWriter
    from mmx.encoders import replaying, sentence_transformers, torchvision
    from mmx.encoders.decoding import jpegs
    from mmx.extraction import executors, extract, pipeline, processes

    clocks = Clocks()
    for name, owner, attribute in (
        ("load: a span, in its thread", executors, "load"),
        ("load: find the files", files.FileContents, "fetch"),
        ("load: wait for a process", processes._Worker, "read"),
        ("load: unpickle", processes._Worker, "_unpacked"),
        ("sort into batches", executors, "batches_of"),
        ("pass: whole", executors, "encode_batch"),
        ("pass: stack and copy", torchvision, "stacked"),
        ("pass: start kernels", torchvision.TorchvisionEncoder, "_forward"),
        ("pass: nvjpeg decode", jpegs.NvJpeg, "_decoded"),
        ("pass: nvjpeg decode, resize, stack", jpegs.NvJpeg, "batch"),
        ("pass: wait for the result", torchvision, "fetched"),
        ("pass: texts, pad and copy", sentence_transformers.SentenceEncoder, "_collate"),
        ("pass: texts, start kernels", sentence_transformers.SentenceEncoder, "_embedded"),
        ("pass: capture", replaying.Replays, "_capture"),
        ("pass: called or replayed", replaying.Replays, "__call__"),
        ("pass: texts, wait for the result", sentence_transformers, "fetched"),
        ("load: tokenise", sentence_transformers.SentenceEncoder, "load_many"),
        ("before: find items and files", extract, "make_plan"),
        ("before: build the encoder", extract, "_build"),
        ("main: take results", pipeline.SetJob, "take"),
        ("main: write", FeatureSetWriter, "write"),
        ("main: flush", FeatureSetWriter, "flush"),
        ("main: finish the file", FeatureSetWriter, "finish"),
    ):
        setattr(owner, attribute, clocks.around(name, getattr(owner, attribute)))
    return clocks


def run(
    case: str, device: str, work: Path, scale: float, *, tiny: bool, workers: str | None = None
) -> dict[str, Any]:
    """Run a case in this process; return its figures. `workers` as for `--workers`."""
    began = time.perf_counter()
    from tests.benchmarks import gpu_extraction

    from mmx.cli import main

    modality, model, precision, decoder, n = CASES[case]
    n = 16 if tiny else max(64, int(n * scale))
    if device == "cpu" and decoder == "nvjpeg":
        return {"case": case, "skipped": "nvjpeg needs a GPU"}
    given = ["--limit", str(n)]
    if modality == "textual":
        data, folder, _ = gpu_extraction.titles(work, tiny=tiny)
        model = str(folder)
    else:
        data, _ = gpu_extraction.pictures(work, tiny=tiny)
        given += ["--weights", "random", "--decoder", decoder]
    given += ["--workers", workers] if workers else []
    clocks = watched()
    clocks.reset()
    imported_s = time.perf_counter() - began
    own, children = (resource.getrusage(who) for who in _BOTH)
    out = io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([
            "extract", "--json", "--restart", "--quiet", "--modality", modality,
            "--model", model, "--precision", precision, "--device", device,
            "--data", str(data), "--out", str(work / "features"), "--name", case, *given,
        ])  # fmt: skip
    wall_s = time.perf_counter() - start
    own_s, children_s = (
        _cpu_s(resource.getrusage(who)) - _cpu_s(before)
        for who, before in zip(_BOTH, (own, children), strict=True)
    )
    document = json.loads(out.getvalue())  # nothing, after an error, which is on stderr
    this, seconds = document["this_run"], document["this_run"]["seconds"]
    loop_s, first_s = seconds["loop"], seconds["first"]
    return {
        "case": case,
        "n": n,
        "imports_s": round(imported_s, 1),
        "wall_s": round(wall_s, 1),
        "before_loop_s": round(wall_s - loop_s - clocks.told().get(
            "main: finish the file", {}).get("wall_s", 0.0), 1),
        "first_s": first_s,
        "whole_command_per_s": round(n / wall_s, 1),
        "loop_per_s": this["items_per_s"],
        "after_first_per_s": round(n / max(1e-9, loop_s - first_s), 1),
        "busy": {
            part: round(seconds[f"{part}_busy"] / loop_s, 3)
            for part in ("device", "decode", "disk")
        },
        "bottleneck": this["bottleneck"],
        "batch_size": this["batch_size"],
        "loading": this["loading"],
        "graphs": this["graphs"],
        "processors_of_parent": round(own_s / wall_s, 2),
        "processors_of_loaders": round(children_s / loop_s, 2),
        "decode_per_s_of_one_process": round(n / seconds["decode_cpu"], 1)
        if seconds["decode_cpu"]
        else None,
        "seconds": seconds,
        "steps": clocks.told(),
        "digest": document["content_digest"][:16],
    }  # fmt: skip


_BOTH = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_s(usage: Any) -> float:
    return float(usage.ru_utime + usage.ru_stime)


def alone(device: str, work: Path, *, tiny: bool) -> dict[str, Any]:
    """Rates of the parts by themselves."""
    from tests.benchmarks import gpu_extraction as parts

    model = "resnet18" if tiny else "resnet50"
    told: dict[str, Any] = {"case": "alone"}
    for precision in ("fp32", "bf16"):
        told[f"forward {model} {precision}"] = parts.forward(device, tiny, model, precision)[
            "items_per_s"
        ]
        told[f"titles {precision}"] = parts.text_forward(device, tiny, work, precision)
    told["decoding"] = parts.decoding(tiny, work, model)
    if device.startswith("cuda"):
        told["nvjpeg"] = parts.nvjpeg(device, tiny, work)
    return told


def main() -> None:
    """Print a line of JSON for each case, within the limit."""
    measure(arguments(), time.monotonic())


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_stages")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds of all cases together")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of items")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--tiny", action="store_true", help="few items; `alone` in small")
    parser.add_argument("--workers", help="contents loaded at a time; none: as the command decides")
    parser.add_argument("--out", type=Path, help="a file for the lines, too")
    return parser.parse_args(given)


def measure(given: argparse.Namespace, started: float) -> None:
    """Measure the cases that are given."""
    cases: list[str] = given.cases.split(",")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        left_s = started + given.limit - time.monotonic()
        # A call that does not come back ends with the process, and its loading processes with it.
        end = threading.Timer(left_s, _give_up, (given, work))
        end.daemon = True
        end.start()
        for case in cases:
            try:
                if case == "alone":
                    found = alone(given.device, work, tiny=given.tiny)
                else:
                    found = run(
                        case, given.device, work, given.scale, tiny=given.tiny,
                        workers=given.workers,
                    )  # fmt: skip
            except Exception as error:  # noqa: BLE001 - the others are measured all the same
                found = {"case": case, "error": repr(error)[:1500]}
            _tell(given, found)
        end.cancel()


def _give_up(given: argparse.Namespace, work: Path) -> None:
    _tell(given, {"ended": f"the limit of {given.limit:g} s was reached"})
    shutil.rmtree(work, ignore_errors=True)
    os._exit(0)


def _tell(given: argparse.Namespace, found: dict[str, Any]) -> None:
    line = json.dumps(found)
    print(line, flush=True)
    if given.out:
        with given.out.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


if __name__ == "__main__":
    main()
