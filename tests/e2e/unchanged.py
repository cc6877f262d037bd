"""A fixed set of runs, to show that a change of the code changes no number.

The data follows from a seed: 60 users, 50 items, two modalities with some vectors missing. Run as a
script this module prints the fixture list of `tests/data/unchanged/runs.json`:

    python tests/e2e/unchanged.py FOLDER > tests/data/unchanged/runs.json

Names and the digests of models without training are those of before the modules were moved into
rooms, but for the names of BM3's and FREEDOM's runs, whose setting `preset` went. The digests of
trained models changed once more, when batches, dropout masks and pruned edges came to be drawn by
`mmbench.core.philox`.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from mmbase import cli as shell
from mmbench.cli import cli as mmbench
from mmx.cli import cli as mmx

TOOLS = {"mmx": mmx, "mmbench": mmbench}
MODELS = "most-popular,item-knn,content-knn,bpr-mf,lightgcn,vbpr,mmgcn,grcn,lattice,bm3,freedom"
COMMANDS = {
    "paper": f"--model {MODELS} --protocol paper --set epochs=4 --set batch_size=64 --every 2",
    "strict": f"--model {MODELS} --set epochs=2 --set batch_size=128 --every 1 --metrics all",
    "treatment": "--model vbpr,lattice,freedom --set epochs=2 --missing zero --scaling standard",
    "search": "--model vbpr,bpr-mf --set epochs=3 --grid lr=0.001,0.01 --seed 1,2 --scaling l2",
}


def write_catalogue(folder: Path) -> None:
    """Write the dataset folder and the two `.npy` files that become its feature sets."""
    rng = np.random.default_rng(20240711)
    folder.mkdir(parents=True)
    taste, style = rng.normal(size=(60, 4)), rng.normal(size=(50, 4))
    scores = taste @ style.T + rng.gumbel(size=(60, 50))
    rows = [
        f"u{user}\ti{item}\t{1 + int(rng.integers(5))}\t{int(rng.integers(10**9))}"
        for user in range(60)
        for item in np.argsort(-scores[user])[: 8 + user % 7]
    ]
    table = "\n".join(["user_id\titem_id\trating\ttimestamp", *rows, ""])
    (folder / "interactions.tsv").write_text(table, encoding="utf-8")
    items = "\n".join(["item_id\ttitle", *(f"i{item}\ttitle {item}" for item in range(52)), ""])
    (folder / "items.tsv").write_text(items, encoding="utf-8")
    for modality, width in (("visual", 24), ("textual", 12)):
        vectors = np.round(style @ rng.normal(size=(4, width)), 3).astype(np.float32)
        present = rng.random(50) > 0.1
        np.save(folder.parent / f"{modality}.npy", vectors[present])
        ids = "\n".join(f"i{item}" for item in np.flatnonzero(present))
        (folder.parent / f"{modality}.txt").write_text(ids + "\n", encoding="utf-8")


def run(tool: str, *arguments: str, cwd: Path) -> None:
    """Run one command of a tool in this process; its output is shown when it fails."""
    out = io.StringIO()
    with chdir(cwd), redirect_stdout(out), redirect_stderr(out):
        code = shell.run(TOOLS[tool], arguments, prog_name=tool)
    if code:
        raise AssertionError(f"{tool} {' '.join(arguments)}: {out.getvalue()}")


def fixed_runs(folder: Path) -> dict[str, Any]:
    """Run everything in `folder`; run names, and digest and values of each metrics.json."""
    write_catalogue(folder / "fixed")
    for modality in ("visual", "textual"):
        source = ["--format", "npy", f"{modality}.npy", "--ids", f"{modality}.txt"]
        target = ["--modality", modality, "--name", "given", "--out", "fixed/features"]
        run("mmx", "store", "import", *source, *target, cwd=folder)
    found: dict[str, Any] = {}
    for name, options in COMMANDS.items():
        run(
            "mmbench",
            "train",
            "--data",
            "fixed",
            "--quiet",
            "--out",
            name,
            *options.split(),
            cwd=folder,
        )
        for path in sorted((folder / name).iterdir()):
            data = (path / "metrics.json").read_bytes()
            metrics = json.loads(data)
            found[f"{name}/{path.name}"] = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "test": {key: metrics["test"][key] for key in ("Recall@20", "nDCG@20", "Gini@20")},
            }
    return found


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True)
    sys.stdout.write(json.dumps(fixed_runs(where), indent=1) + "\n")
