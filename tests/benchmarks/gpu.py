"""What training, extraction, item graphs and evaluation cost on a GPU: `make bench-gpu`.

    python -m tests.benchmarks.gpu [--only training,extraction] [--models freedom,bm3]
        [--sizes office,clothing] [--out FILE.json] [--limit SECONDS]

A line of JSON goes to `--out` as each case finishes, so that a run that is cut off keeps what it
has; tables follow at the end, and `--show FILE.json` prints those of an earlier run. Cases run one
after the other in a process beside this one, in the order of their importance. Each has a time
limit of its own; one that fails, hangs or brings the process down is recorded with the reason, and
the next one gets a new process. On a machine without a GPU there is nothing to measure: exit code
0. `--tiny --device cpu` runs every part there, to see that it does.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmbase.process import available_cpus, sigterm_as_interrupt, tune_process

PARTS = ("training", "extraction", "text", "evaluation", "knn", "decoding")
MODELS = ("freedom", "bm3", "vbpr", "lattice", "grcn", "mmgcn", "lightgcn", "bpr-mf")
CONTROLS = ("lightgcn", "bpr-mf")
WITH_TF32 = ("mmgcn", "grcn")
SIZES = ("clothing", "office")
START_S, LEAST_S = 90, 10
"""A process may take so long to start; with less time left than `LEAST_S` no case begins."""
WIDTH = 80
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        part: One of `PARTS`.
        measure: Key of `measures()`.
        limit_s: Seconds after which it is given up.
        arguments: What the measurement is given beside device and work folder.
    """

    part: str
    measure: str
    limit_s: int
    arguments: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """What all cases have in common: `device`, `tiny`, and the folder `work` for made-up files."""

    device: str
    tiny: bool
    work: Path


def cases(*, tiny: bool) -> Iterator[Case]:
    """All cases, the most important ones first; what is profiled comes after what is timed."""
    first, second = ("resnet18", "") if tiny else ("resnet50", "vit_b_32")
    published = [name for name in MODELS if name not in CONTROLS]
    fp32 = {size: [(name, size, "fp32") for name in published] for size in SIZES}
    tf32 = [(name, size, "tf32") for size in SIZES for name in WITH_TF32]
    controls = [(name, size, "fp32") for size in SIZES for name in CONTROLS]
    yield from (_training("training", *one) for one in fp32["clothing"] + tf32)
    yield Case("evaluation", "evaluation", 40)
    yield from (Case("knn", "knn", 30, {"modality": one}) for one in ("visual", "textual"))
    yield from _encoder(first)
    yield from (Case("text", "text_forward", 40, {"precision": one}) for one in ("fp32", "bf16"))
    for precision in ("fp32",) if tiny else ("fp32", "bf16"):
        yield _extraction("textual", "minilm", precision, "")
    yield from (_training("training", *one) for one in fp32["office"] + controls)
    yield from (_training("profiled_step", *one) for one in fp32["clothing"] + fp32["office"])
    if second:
        yield from _encoder(second)
    yield Case("decoding", "decoding", 45, {"model": first})
    yield Case("decoding", "nvjpeg", 30)
    if not tiny:
        yield _extraction("visual", first, "bf16", "torchvision")
    yield from (_training("profiled_step", *one) for one in tf32 + controls)


def _training(measure: str, model: str, size: str, precision: str) -> Case:
    limit_s = 60 if size == "clothing" else 30
    return Case(
        "training", measure, limit_s, {"model": model, "size": size, "precision": precision}
    )


def _extraction(modality: str, model: str, precision: str, decoder: str) -> Case:
    return Case(
        "text" if modality == "textual" else "extraction",
        "extract",
        75,
        {"modality": modality, "model": model, "precision": precision, "decoder": decoder},
    )


def _encoder(model: str) -> Iterator[Case]:
    tiny = model == "resnet18"
    for precision in ("fp32", "bf16"):
        yield Case("extraction", "forward", 30, {"model": model, "precision": precision})
        if precision == "bf16" or not tiny:
            yield _extraction("visual", model, precision, "pil")
    if not tiny:
        yield _extraction("visual", model, "bf16", "nvjpeg")


# ------------------------------------------------------------------------------------------------
# The process that measures


def measures(setup: Setup) -> dict[str, Callable[..., dict[str, Any]]]:
    """Name to measurement, with device and work folder filled in."""
    from tests.benchmarks import gpu_extraction, gpu_training

    device, tiny, work = setup.device, setup.tiny, setup.work
    return {
        "machine": lambda: machine(device),
        "training": lambda **a: gpu_training.training(device, tiny, **a),
        "profiled_step": lambda **a: gpu_training.profiled_step(device, tiny, **a),
        "knn": lambda **a: gpu_training.knn(device, tiny, **a),
        "evaluation": lambda: gpu_training.evaluation(device, tiny),
        "extract": lambda **a: gpu_extraction.extract(device, tiny, work, **a),
        "forward": lambda **a: gpu_extraction.forward(device, tiny, **a),
        "text_forward": lambda **a: gpu_extraction.text_forward(device, tiny, work, **a),
        "decoding": lambda **a: gpu_extraction.decoding(tiny, work, **a),
        "nvjpeg": lambda: gpu_extraction.nvjpeg(device, tiny, work),
    }


def machine(device: str) -> dict[str, Any]:
    """Card, driver, libraries and processors."""
    import numpy
    import torch

    found = {
        "card": platform.processor() or platform.machine(),
        "driver": None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "card": properties.name,
            "memory_mib": properties.total_memory >> 20,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return found


def serve(connection: Connection, setup: Setup) -> None:
    """Take cases as (measure, arguments) and send (kind, row) back, until there are no more."""
    # Ends the commands that a measurement has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process beside this one ends it
    tune_process()
    import torch

    known = measures(setup)
    gc.freeze()  # what is imported is no garbage
    while True:
        connection.send("ready")
        try:
            measure, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = ("done", known[measure](**arguments))
        except Exception as error:  # noqa: BLE001  # the next case is to be run all the same
            answer = (_kind(error), _told(error))
        connection.send(answer)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _kind(error: BaseException) -> str:
    return "skipped" if type(error).__name__ == "NotThere" else "failed"


def _told(error: BaseException) -> dict[str, Any]:
    if _kind(error) == "skipped":
        return {"skipped": str(error)}
    return {
        "error": f"{type(error).__name__}: {error}"[:2000],
        "traceback": "".join(traceback.format_exception(error))[-6000:],
    }


class Bench:
    """Runs cases in a process of their own; a new one after a failure."""

    def __init__(self, setup: Setup, limit_s: float) -> None:
        self.setup, self.until = setup, time.monotonic() + limit_s
        self._process: Any = None
        self._connection: Connection | None = None

    def left_s(self) -> float:
        """Seconds until the limit of the whole run."""
        return self.until - time.monotonic()

    def run(self, case: Case) -> dict[str, Any]:
        """The row of one case."""
        row = {"part": case.part, "measure": case.measure, **case.arguments}
        if self.left_s() < LEAST_S:
            return {**row, "skipped": "no time was left; --limit gives more"}
        start = time.monotonic()
        if self._connection is None:
            self._start()
        connection = self._connection
        assert connection is not None
        limit_s = min(case.limit_s, self.left_s())
        try:
            if not connection.poll(START_S):
                raise TimeoutError(f"the process had not started after {START_S} s")
            connection.recv()  # "ready"
            connection.send((case.measure, case.arguments))
            if not connection.poll(limit_s):
                raise TimeoutError(f"not finished after {limit_s:.0f} s")
            kind, found = connection.recv()
        except (EOFError, OSError, TimeoutError) as error:
            code = self._process.exitcode if self._process is not None else None
            kind, found = "failed", {"error": f"{error or 'the process ended'} (exit code {code})"}
        if kind == "failed":
            self.stop()
        return {**row, "case_s": round(time.monotonic() - start, 2), **found}

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there, self.setup))
        self._process.start()
        there.close()

    def stop(self) -> None:
        """End the process, and what it has started."""
        if self._process is not None:
            self._process.terminate()
            self._process.join(5)
            self._process.kill()
            self._process.join()
        self._process = self._connection = None


# ------------------------------------------------------------------------------------------------
# Tables


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text of at most `WIDTH` columns."""
    lines = [*_head(rows), "", *_training_table(rows), "", *_extraction_table(rows)]
    lines += ["", *_other_lines(rows)]
    return "\n".join(lines)


def _head(rows: Sequence[dict[str, Any]]) -> list[str]:
    found = next((row for row in rows if row["measure"] == "machine"), {})
    told = [
        f"{found.get('card')}, driver {found.get('driver')}, torch {found.get('torch')}, "
        f"{found.get('cpus')} processors",
        f"commit {found.get('commit')}, {found.get('date')}",
        str(found.get("command")),
    ]
    return [line for text in told for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]


def _training_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'training':<13}{'size':<9}{'s/epoch':>8}{'ms/step':>8}{'kernels':>8}{'their':>8}"
        f"{'busy':>6}{'waits':>6}{'D2H':>6}{'MiB':>7}",
        f"{'':<13}{'':<9}{'':>8}{'':>8}{'/step':>8}{'ms':>8}{'':>6}{'/step':>6}{'/step':>6}",
    ]
    timed, profiled = (
        {
            (row["size"], row["precision"], row["model"]): row
            for row in rows
            if row["measure"] == measure
        }
        for measure in ("training", "profiled_step")
    )
    for key in sorted(timed, key=lambda key: key[:2]):
        size, precision, model = key
        row, step = timed[key], profiled.get(key, {})
        start = f"{model + ('' if precision == 'fp32' else ' ' + precision):<13}{size:<9}"
        if "ms_per_step" not in row:
            lines.append(start + _why(row))
            continue
        start += f"{row['s_per_epoch']:>8.3f}{row['ms_per_step']:>8.2f}"
        if "kernels" in step:
            busy = f"{step['busy']:.0%}" if "busy" in step else "-"
            start += f"{step['kernels']:>8.0f}{step['kernel_ms']:>8.2f}{busy:>6}"
            start += f"{step['waits']:>6.2f}{step['d2h']:>6.2f}"
        else:
            start += f"{'-':>8}{'-':>8}{'-':>6}{'-':>6}{'-':>6}"
        lines.append(f"{start}{_number(row['peak_mib']):>7}")
    return lines


def _extraction_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'extraction':<12}{'':<6}{'decoder':<12}{'items/s':>9}{'forward':>9}{'share':>7}"
        f"{'workers':>8}  limited by"
    ]
    for row in rows:
        if row["measure"] != "extract":
            continue
        start = f"{row['model']:<12}{row['precision']:<6}{row['decoder']:<12}"
        if "items_per_s" not in row:
            lines.append(start + _why(row))
            continue
        alone = _forward_rate(rows, row)
        share = "-" if alone is None else f"{row['items_per_s'] / alone:.0%}"
        lines.append(
            f"{start}{row['items_per_s']:>9,.0f}{_number(alone):>9}{share:>7}"
            f"{row.get('workers', '-'):>8}  {row.get('bottleneck', '-')}"
        )
    for row in rows:
        if row["measure"] == "text_forward" and "encode_per_s" in row:
            lines.append(
                f"{'its library':<12}{row['precision']:<6}{'':<12}{row['encode_per_s']:>9,.0f}"
                f"{row['forward_per_s']:>9,.0f}{row['encode_per_s'] / row['forward_per_s']:>7.0%}"
            )
    return lines


def _forward_rate(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> float | None:
    textual = row["modality"] == "textual"
    for one in rows:
        same = one.get("precision") == row["precision"]
        if textual and one["measure"] == "text_forward" and same:
            return one.get("forward_per_s")
        if one["measure"] == "forward" and one["model"] == row["model"] and same:
            return one.get("items_per_s")
    return None


def _other_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        match row["measure"]:
            case "knn" if "s" in row:
                n, d = row["shape"]
                lines.append(f"{row['k']} nearest of {n:,} x {d:,}: {row['s']:.3f} s")
            case "evaluation" if "paper_s" in row:
                lines += [
                    f"ranking {row['users']:,} users x {row['items']:,} items: "
                    f"{row['paper_s']:.3f} s, with both masks {row['strict_s']:.3f} s;",
                    f"  six metrics of both splits {row['metrics_s']:.3f} s, products alone "
                    f"{row['products_s']:.3f} s",
                ]
            case "decoding" if "items_per_s" in row:
                lines.append(
                    f"decoding and resizing alone: {row['items_per_s']:,.0f} pictures/s in "
                    f"{row['workers']} processes, {row['one_process_per_s']:,.0f} in one"
                )
            case "nvjpeg" if "items_per_s" in row:
                lines.append(f"nvJPEG alone, no resizing: {row['items_per_s']:,.0f} pictures/s")
            case "training" | "extract" | "machine":
                pass
            case _ if "error" in row or "skipped" in row:
                lines.append(f"{_label(row)}: {_why(row)}")
    return lines


def _label(row: dict[str, Any]) -> str:
    keys = ("measure", "modality", "model", "size", "precision", "decoder")
    return " ".join(str(row[key]) for key in keys if row.get(key)).replace("_", " ")


def _why(row: dict[str, Any]) -> str:
    return (row.get("error") or f"not run: {row.get('skipped')}").splitlines()[0][:56]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


# ------------------------------------------------------------------------------------------------


def _output(*command: str) -> str | None:
    """The first line that a command prints; None where it can't be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=REPOSITORY)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def _commit() -> str | None:
    commit = _output("git", "rev-parse", "--short", "HEAD")
    return commit and commit + ("+" if _output("git", "status", "--porcelain", "-uno") else "")


def _names(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return names


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--only", default=PARTS, type=lambda text: _names(text, PARTS), metavar="PART,…",
        help=f"some of {', '.join(PARTS)}")  # fmt: skip
    add("--models", default=MODELS, type=lambda text: _names(text, MODELS), metavar="NAME,…")
    add("--sizes", default=SIZES, type=lambda text: _names(text, SIZES), metavar="SIZE,…")
    add("--out", type=Path, metavar="FILE.json", help="a line of JSON for each case")
    add("--limit", default=360.0, type=float, metavar="SECONDS", help="of the whole run (360)")
    add("--device", default="cuda", metavar="D")
    add("--tiny", action="store_true", help="small problems: to see that everything runs")
    add("--commit", metavar="ID", help="for a machine where there is no repository")
    add("--show", type=Path, metavar="FILE.json", help="print the tables of an earlier run")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; exit code 1 if a case failed, 130 if it was interrupted."""
    given = parsed(arguments)
    if given.show:
        lines = given.show.read_text(encoding="utf-8").splitlines()
        print(tables([json.loads(line) for line in lines]))
        return 0
    if given.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            print("bench-gpu: torch finds no CUDA device on this machine, so nothing is measured.")
            return 0
    words = sys.argv[1:] if arguments is None else arguments
    told = {
        "commit": given.commit or _commit(),
        "command": " ".join(["python -m tests.benchmarks.gpu", *words]),
        "limit_s": given.limit,
        "date": time.strftime("%Y-%m-%d"),
    }
    wanted = [
        case
        for case in cases(tiny=given.tiny)
        if case.part in given.only
        and (case.part != "training" or case.arguments["model"] in given.models)
        and case.arguments.get("size", given.sizes[0]) in given.sizes
    ]
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text("", encoding="utf-8")
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
    rows: list[dict[str, Any]] = []
    interrupted = False
    work = Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    bench = Bench(Setup(given.device, given.tiny, work), given.limit)
    try:
        for case in [Case("machine", "machine", 30), *wanted]:
            row = bench.run(case)
            row |= told if case.measure == "machine" else {}
            rows.append(row)
            text = json.dumps(row)
            if given.out:
                with given.out.open("a", encoding="utf-8") as stream:
                    stream.write(text + "\n")
            print(f"{_label(row)}: {_brief(row)}", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bench.stop()
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{tables(rows)}")
    if interrupted:
        return 130
    return 1 if any("error" in row for row in rows) else 0


def _brief(row: dict[str, Any]) -> str:
    """What is worth a line while the run goes on."""
    if "error" in row or "skipped" in row:
        return _why(row)
    keys = (
        "card", "ms_per_step", "s_per_epoch", "kernels", "busy", "waits", "items_per_s",
        "forward_per_s", "encode_per_s", "bottleneck", "s", "paper_s", "strict_s", "metrics_s",
        "case_s",
    )  # fmt: skip
    return ", ".join(f"{key} {row[key]}" for key in keys if row.get(key) is not None)


if __name__ == "__main__":
    sigterm_as_interrupt()
    sys.exit(main())
