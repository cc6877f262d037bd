"""How training, ranking and memory grow with the data: `make bench-scale`.

    python -m tests.benchmarks.scale --users 10000,100000,1000000 --models vbpr,bm3 --out FOLDER

Made-up data (`tests.benchmarks.large`), one process for each model and size, one thread. Prints
CPU seconds and peak memory, and the exponents of their growth; writes `scale.json`, and `scale.svg`
with the extra `report`. An epoch of more than `--seconds` is not taken to its end: then the
mean of the last half of its steps so far stands for all of them, and `steps taken` says how many.

Two ways to choose the batch: `batch`, of 1,024 pairs whatever the size, so that an epoch's steps
grow with the data; `steps`, a fixed number of steps in an epoch, so that the batch does.
`--approximate` takes what `mmbench train --approximate` does: with `ann` neighbours are searched
(through faiss), without it those of the stored vectors are random ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

BATCH, STEPS = 1_024, 100
OF_IDS = ("bpr-mf", "vbpr", "schema")
GRAPHS = ("lightgcn", "bm3", "freedom", "lattice")
RANKED = 512  # users, of whom the cost of ranking is taken
MEASURES = ("epoch_s", "ranking_s", "memory_gib")

Figures = dict[str, Any]


def load(folder: Path) -> Figures:
    """Load interactions, divide them at random, index them; keep the training pairs for others."""
    from mmbase.process import peak_memory_bytes
    from mmbench.data.dataset import load_split

    start, before = time.process_time(), peak_memory_bytes() or 0
    training = load_split(folder).training
    train = training.train
    load_s, peak = time.process_time() - start, peak_memory_bytes() or 0
    np.savez(
        folder / "train.npz",
        users=train.users,
        items=train.items,
        n_users=train.n_users,
        ids=training.item_ids[: train.n_items].astype("S"),
    )
    sizes = {"users": train.n_users, "items": train.n_items, "pairs": train.n_edges}
    return {"model": "(loading)", **sizes, "load_s": load_s, "memory_gib": (peak - before) / 2**30}


def measure(
    folder: Path, model: str, way: str, seconds: float, approximate: tuple[str, ...] = ()
) -> Figures:
    """Train one model for up to two epochs, rank some users."""
    import torch
    from tests.benchmarks.test_training import random_neighbours

    from mmbase.process import peak_memory_bytes, tune_process
    from mmbench.config import make_settings
    from mmbench.core.interactions import TrainSet
    from mmbench.data.caches import NeighbourCache
    from mmbench.data.features import load_features
    from mmbench.evaluation.ranking import rank
    from mmbench.models import model_class
    from mmbench.models.base import Content
    from mmbench.ops.tiles import InnerProducts
    from mmbench.runs.assembly import assemble
    from mmbench.trainer import Trainer

    tune_process()
    torch.set_num_threads(1)
    start, before = time.process_time(), peak_memory_bytes() or 0
    with np.load(folder / "train.npz") as kept:
        ids = kept["ids"].astype(str).tolist()
        train = TrainSet(kept["users"], kept["items"], int(kept["n_users"]), len(ids))
    find = NeighbourCache(None, approximate=True) if "ann" in approximate else random_neighbours
    content = Content({}, find)
    if model_class(model).uses_features:
        parts = {
            m: one.first(len(ids)) for m, one in load_features(folder / "features", ids).items()
        }
        content = Content(parts, find)
    load_s = time.process_time() - start
    size = BATCH if way == "batch" else -(-train.n_edges // STEPS)
    settings = make_settings(model, {"epochs": 3, "batch_size": size})
    network = assemble(model, train, content, settings, 1, approximate)
    trainer = Trainer(
        network, train, settings, lambda _: {"x": 0.0}, metric="x", every=9, patience=None, seed=1
    )
    laps: list[float] = []
    begun = 0.0

    def lap() -> None:
        laps.append(time.process_time())
        if laps[-1] - begun > seconds and len(laps) > 3:
            raise TimeoutError

    trainer.between_steps = lap
    steps, epoch_s = len(trainer.sampler), 0.0
    for epoch in (1, 2):  # the first one compiles, and fills what is deferred
        laps, begun = [], time.process_time()
        try:
            trainer._train_epoch(epoch)
            for table in trainer.optimiser.tables.values():
                table.flush()
            epoch_s = time.process_time() - begun
        except TimeoutError:
            # The last half of the steps; the first one, which may build a graph, counts once.
            half = np.diff(laps)[(len(laps) - 1) // 2 :]
            epoch_s = laps[0] - begun + float(half.mean()) * (steps - 1)
            break
    trained_gib = (peak_memory_bytes() or 0) / 2**30
    start = time.process_time()
    network.train(False)
    with torch.inference_mode():
        users, items = network.embeddings()
    made_s = time.process_time() - start
    scores, start = InnerProducts(users, items.T.contiguous()), time.process_time()
    rank(scores, train, np.arange(RANKED), k=20)
    lists_s = (time.process_time() - start) * train.n_users / RANKED
    return {
        "model": model,
        "way": way,
        "users": train.n_users,
        "items": train.n_items,
        "pairs": train.n_edges,
        "width": users.shape[1],
        "batch": size,
        "steps": steps,
        "steps taken": len(laps),
        "load_s": load_s,
        "epoch_s": epoch_s,
        "step_ms": 1e3 * epoch_s / steps,
        "ranking_s": made_s + lists_s,
        "us_per_1000_scores": 1e9 * lists_s / (train.n_users * train.n_items),
        "memory_gib": trained_gib - before / 2**30,
    }


def alone(folder: Path, model: str, way: str, asked: argparse.Namespace) -> Figures:
    """`measure` in a process of its own, which may have so much memory."""
    work = [sys.executable, "-m", "tests.benchmarks.scale", "--one", str(folder), model, way]
    work += ["--seconds", str(asked.seconds), "--limit", str(asked.limit)]
    work += ["--approximate", asked.approximate]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(work, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"model": model, "way": way, "failed": done.stderr.strip().splitlines()[-1]}
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def exponents(found: list[Figures]) -> list[Figures]:
    """Of each model and way, the slope of each measure against the size, on logarithmic axes."""
    groups = defaultdict(list)
    for one in found:
        if "epoch_s" in one:
            groups[one["model"], one["way"]].append(one)
    rows = []
    for (model, way), ones in groups.items():
        if len(ones) < 2:
            continue
        row: Figures = {"model": model, "way": way}
        for name in MEASURES:
            # Ranking everyone grows with users x items.
            size = [x["users"] * x["items"] if name == "ranking_s" else x["pairs"] for x in ones]
            row[name] = float(np.polyfit(np.log(size), np.log([x[name] for x in ones]), 1)[0])
        rows.append(row)
    return rows


def plot(found: list[Figures], path: Path) -> None:
    """One panel for each measure, a line for each model and way; nothing without the extra."""
    from mmbase.pages import has_extra, static_picture

    if not has_extra():
        print("no plot: the extra report is not installed")
        return
    import altair as alt

    rows = [
        {"pairs": one["pairs"], "line": f"{one['model']}, {one['way']}", "way": one["way"], **one}
        for one in found
        if "epoch_s" in one
    ]
    scale = alt.Scale(type="log")
    panels = [
        alt.Chart(alt.Data(values=rows), title=name, width=260, height=260)
        .mark_line(point=True)
        .encode(
            x=alt.X("pairs:Q", scale=scale, title="training pairs"),
            y=alt.Y(f"{name}:Q", scale=scale, title=None),
            color="line:N",
            strokeDash=alt.StrokeDash("way:N", legend=None),
        )
        for name in MEASURES
    ]
    path.write_bytes(static_picture(alt.hconcat(*panels), "svg"))
    print(path)


def table(rows: list[Figures], columns: list[str]) -> str:
    """Rows as a Markdown table."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.3g}"
        return f"{value:,}" if isinstance(value, int) else str(value if value is not None else "")

    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", default="10000,100000", help="sizes, as 10000,1000000")
    parser.add_argument("--models", default=",".join((*OF_IDS, *GRAPHS)))
    parser.add_argument("--ways", default="", help="batch, steps; default: what fits the model")
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of one epoch")
    parser.add_argument("--limit", type=float, default=20, help="GiB of one process")
    parser.add_argument("--approximate", default="", help="ann,half-features and the like")
    parser.add_argument("--data", type=Path, help="where the data are kept; default: nowhere")
    parser.add_argument("--out", type=Path, default=Path("report/scale"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        import resource

        size = int(asked.limit * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        folder, model, way = asked.one
        one = load(Path(folder)) if model == "load" else None
        names = tuple(filter(None, asked.approximate.split(",")))
        print(json.dumps(one or measure(Path(folder), model, way, asked.seconds, names)))
        return
    from tests.benchmarks.large import Large

    asked.out.mkdir(parents=True, exist_ok=True)
    path, found = asked.out / "scale.json", []
    columns = ["model", "way", "users", "pairs", "batch", "steps", "steps taken", "step_ms"]
    columns += ["epoch_s", "load_s", "ranking_s", "us_per_1000_scores", "memory_gib", "failed"]
    print(table([], columns), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for n_users in map(int, asked.users.split(",")):
            root = asked.data or Path(temporary)
            folder = Large(n_users).write(root / f"users-{n_users}")
            for model in ("load", *asked.models.split(",")):
                ways = asked.ways or ("batch" if model in OF_IDS else "batch,steps")
                for way in ways.split(",") if model != "load" else ("",):
                    if model == "load" and (folder / "train.npz").exists():
                        continue
                    one = alone(folder, model, way, asked)
                    found.append(one)
                    print(table([one], columns).splitlines()[-1], flush=True)
                    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\nExponents\n\n{table(exponents(found), ['model', 'way', *MEASURES])}\n")
    plot(found, asked.out / "scale.svg")


if __name__ == "__main__":
    main()
