"""Ways of loading, end to end: `python -m tests.benchmarks.loading --device cuda`.

Made-up photographs of 400 x 533 go through `mmx extract` with random weights, once with threads,
once with processes, and once as the program itself finds it; on several devices with `--device
cuda:all`. A line of JSON for each: items per second of the whole loop and of what came after the
trials, what was chosen, the share of the loop in which each part was busy, and the bottleneck.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_extraction import picture

from mmbase.process import available_cpus

CASES = (
    ("resnet50", "bf16", "processes", 1.0),
    ("resnet50", "bf16", "auto", 1.0),
    ("resnet50", "bf16", "threads", 0.3),
    ("resnet50", "fp32", "auto", 0.6),
    ("vit_b_32", "bf16", "auto", 1.0),
    ("vit_b_32", "fp32", "auto", 0.6),
)
"""Model, precision, `--loading`, and the share of the pictures that the case takes."""


def catalogue(root: Path, n: int, n_distinct: int) -> Path:
    """Make `n` items that share `n_distinct` pictures."""
    (root / "images").mkdir(parents=True)
    files = [root / "images" / f"{k}.jpg" for k in range(n_distinct)]
    with ThreadPoolExecutor(available_cpus()) as pool:
        list(pool.map(picture, files, range(n_distinct)))
    rows = "".join(f"{k}\timages/{k % n_distinct}.jpg\n" for k in range(n))
    (root / "items.tsv").write_text("item_id\timage\n" + rows, encoding="utf-8")
    return root


def measure(data: Path, device: str, case: tuple[str, str, str, float], n: int) -> dict[str, Any]:
    """Run one case; return its figures, or the error."""
    model, precision, loading, share = case
    name = f"{model}-{precision}-{loading}".replace("_", "-")
    command = [
        sys.executable, "-m", "mmx", "extract", "--json", "--quiet", "--restart",
        "--modality", "visual", "--model", model, "--weights", "random",
        "--precision", precision, "--loading", loading, "--device", device,
        "--data", str(data), "--name", name, "--limit", str(max(1, int(n * share))),
    ]  # fmt: skip
    told: dict[str, Any] = {"case": name, "device": device}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told["wall_s"] = round(time.perf_counter() - began, 1)
    if done.returncode:
        return {**told, "error": done.stderr[-1000:]}
    document = json.loads(done.stdout)
    run, seconds = document["this_run"], document["this_run"]["seconds"]
    loop_s = run["items"] / run["items_per_s"]
    busy = {part: seconds[f"{part}_busy"] / loop_s for part in ("decode", "disk", "device")}
    return {
        **told,
        "items": run["items"],
        "items_per_s": run["items_per_s"],
        "loading": run["loading"],
        "busy": {part: round(value, 3) for part, value in busy.items()},
        "bottleneck": run["bottleneck"],
        "digest": document["content_digest"],
    }


def main() -> None:
    """Print a line of JSON for each case."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loading", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n", type=int, default=30_000, help="pictures, of which 500 differ")
    parser.add_argument("--only", default="", help="cases whose name holds this, as `bf16-auto`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = catalogue(Path(folder) / "data", options.n, min(500, options.n))
        for case in CASES:
            if options.only in f"{'-'.join(case[:3])}":
                print(json.dumps(measure(data, options.device, case, options.n)), flush=True)


if __name__ == "__main__":
    main()
