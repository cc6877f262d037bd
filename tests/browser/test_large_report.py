"""A report over 200 runs: under 20 seconds and 3 MB a page."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mmbase.pages import has_extra
from mmbench.commands.report import report
from mmbench.commands.train import train
from mmbench.config import RECIPE_FILE, read_recipe, write_recipe
from mmbench.runs.folder import RunFolder
from tests.browser.conftest import Opened, no_overflow
from tests.mmbench.conftest import write_dataset

SYSTEMS, SEEDS, USERS = 40, 5, 1500


def many(runs: Path, out: Path) -> None:
    """Write runs of as many systems and seeds: copies of real ones with other settings and values.

    The copies' recipes and documents are written by the product's own functions.
    """
    import pandas as pd

    sources = sorted(path for path in runs.iterdir())
    rng = np.random.default_rng(0)
    for number in range(SYSTEMS):
        source = sources[number % len(sources)]
        recipe = read_recipe(source / RECIPE_FILE)
        for seed in range(SEEDS):
            copy = out / f"{source.name}-{number}-{seed}"
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("checkpoint*"))
            settings = recipe.settings.model_copy(update={"embedding_dim": 8 + number})
            own = recipe.model_copy(update={"seed": seed, "settings": settings})
            write_recipe(copy / RECIPE_FILE, own)
            folder = RunFolder(copy)
            record, metrics = folder.read_json("run.json"), folder.read_json("metrics.json")
            record["seeds"]["run"] = seed
            record["settings"]["embedding_dim"] = 8 + number
            shift = 1 + 0.02 * number + 0.01 * rng.standard_normal()
            metrics["test"] = {name: value * shift for name, value in metrics["test"].items()}
            folder.write_json("run.json", record)
            folder.write_json("metrics.json", metrics)
            users = pd.read_parquet(copy / "per_user.parquet")
            for name in (one for one in users.columns if "@" in one):
                users[name] = users[name] * shift
            users.to_parquet(copy / "per_user.parquet", index=False)


@pytest.mark.slow
@pytest.mark.skipif(not has_extra(), reason="needs the extra report")
def test_200_runs(opened: Opened, tmp_path: Path) -> None:
    write_dataset(tmp_path / "toy", users=USERS, items=300)
    options = ["--data", tmp_path / "toy", "--out", tmp_path / "few", "-q", "--set", "epochs=60"]
    options += ["--model", "bpr-mf,vbpr,lightgcn", "--every", "2"]
    options += ["--metrics", "Recall,nDCG,EFD,Gini,APLT,iCov", "--cutoffs", "10,20"]
    CliRunner().invoke(train, [str(one) for one in options], catch_exceptions=False)
    many(tmp_path / "few", tmp_path / "runs")
    out = tmp_path / "report"
    begun, cpu = time.monotonic(), time.process_time()
    CliRunner().invoke(report, [str(tmp_path / "runs"), "--out", str(out)], catch_exceptions=False)
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    size = (out / "toy.html").stat().st_size
    took = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}
    print(json.dumps({"runs": SYSTEMS * SEEDS, **took, "bytes": size}))
    assert size < 3_000_000
    assert cpu < 20  # wall-clock seconds depend on what else the machine does
    with opened(out / "toy.html", 360) as page:
        assert page.locator("table").first.locator("tbody tr").count() == SYSTEMS
        no_overflow(page)
