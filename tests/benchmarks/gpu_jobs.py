"""Several trainings at once on one GPU: a small grid, one, two and four at a time.

    python -m tests.benchmarks.gpu_jobs [--device cuda] [--jobs 1,2,4] [--tiny]

prints a line of JSON per number of jobs. The grid is four learning rates of FREEDOM on made-up data
of the size of Amazon Office; each number of jobs is a command of its own, as a user gives it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.test_training import SIZES, Size, interactions

from mmstore import FeatureSetWriter

RATES = (0.0005, 0.001, 0.002, 0.005)
TINY = Size(60, 40, 600, {"visual": 16, "textual": 8})
_HELD_OUT = 5  # validation and test have a fifth as many pairs as training


def jobs(device: str, tiny: bool, work: Path, at_once: str) -> dict[str, Any]:
    """Train the grid with `--jobs at_once`, anew.

    Args:
        device: As for `--device`.
        tiny: A few users and epochs, to see that it runs.
        work: A folder for the data, made on first use, and for the runs.
        at_once: Trainings at once.

    Returns:
        `jobs`; `wall_s` of the whole command, the processes' start included; `s_per_epoch`, the
        median over all trainings; `epochs_per_s` of all processes together; and, on a GPU,
        `peak_gpu_mib`, the largest of one training.

    Raises:
        RuntimeError: The command failed; with what it said.
    """
    data = work / f"jobs-data-{'tiny' if tiny else 'office'}"
    if not (data / "features").is_dir():
        write_data(data, TINY if tiny else SIZES["office"])
    with tempfile.TemporaryDirectory(dir=work) as out:
        command = [
            *(sys.executable, "-m", "mmbench", "train", "--model", "freedom", "--quiet"),
            *("--data", str(data), "--out", out, "--device", device, "--jobs", at_once),
            *("--grid", "lr=" + ",".join(map(str, RATES))),
            *("--set", f"epochs={4 if tiny else 60}", "--every", "1000"),
        ]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall_s = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return {"jobs": int(at_once), "wall_s": wall_s, **_measured(Path(out), int(at_once))}


def _measured(out: Path, at_once: int) -> dict[str, Any]:
    """What the trials of the only run in a folder have recorded."""
    epochs = [
        json.loads(line)["seconds"]
        for path in out.glob("*/trials/*/history.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()[1:]  # the first one warms up
    ]
    peaks = [
        json.loads(path.read_text(encoding="utf-8"))["peak_gpu_memory_bytes"]
        for path in out.glob("*/trials/*/trained.json")
    ]
    s_per_epoch = statistics.median(epochs)
    found = {
        "trainings": len(peaks),
        "s_per_epoch": s_per_epoch,
        "epochs_per_s": min(at_once, len(peaks)) / s_per_epoch,
    }
    known = [peak for peak in peaks if peak is not None]
    return found | ({"peak_gpu_mib": max(known) / 2**20} if known else {})


def write_data(folder: Path, size: Size) -> None:
    """Write a dataset of a size: a split whose training part has so many pairs, and vectors."""
    rng = np.random.default_rng(0)
    train = interactions(size, rng)
    split = folder / "splits" / "made-up"
    split.mkdir(parents=True)
    rows = [f"u{u}\ti{i}" for u, i in zip(train.users, train.items, strict=True)]
    # Held-out pairs are of users and items that training knows.
    for part, taken in (("train", rows), ("valid", []), ("test", [])):
        for _ in range(0 if taken else train.n_edges // _HELD_OUT):
            user, item = rng.choice(train.users), rng.choice(train.items)
            if not train.contains(user, item):
                taken.append(f"u{user}\ti{item}")
        lines = ["user_id\titem_id", *dict.fromkeys(taken)]
        (split / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ids = [f"i{item}" for item in np.unique(train.items)]
    for modality, dim in size.dims.items():
        vectors = rng.random((len(ids), dim), np.float32)
        path = folder / "features" / modality / "made-up.h5"
        with FeatureSetWriter(
            path, modality=modality, dim=dim, ids=ids, provenance={"extractor": "made up"}
        ) as writer:
            writer.write(np.arange(len(ids)), vectors)
            writer.finish()


def main() -> None:
    """Print a line per number of jobs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", default="1,2,4")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for at_once in asked.jobs.split(","):
            found = jobs(asked.device, asked.tiny, Path(work), at_once)
            print(json.dumps({"measure": "jobs", "device": asked.device, **found}), flush=True)


if __name__ == "__main__":
    main()
