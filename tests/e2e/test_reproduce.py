"""`make reproduce-amazon` from download to report on an offline mirror, and killed midway."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.conftest import REPOSITORY
from tests.mmx.download.amazon_mirror import write_mirror
from tests.processes import IMPORTED, Served

from mmbench.commands.reproduce import reproduce
from mmbench.data.files import make_random_split
from mmbench.data.splits import write_split
from mmstore import FeatureSet
from mmx.commands.fetch import fetch

IMPORTED.append("sentence_transformers")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def command(served: Served, place: Path, *options: str) -> list[str]:
    """`make reproduce-amazon` that writes below `place`; `-o` because the environment exists."""
    folders = (f"DATA={place}/data", f"RUNS={place}/runs", f"REPORT={place}/report")
    return [
        "make",
        "-C",
        str(REPOSITORY),
        "-o",
        "setup",
        "reproduce-amazon",
        f"BIN={served.bin}",
        *folders,
        *options,
    ]


def call(
    served: Served, place: Path, *options: str, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    done = served.call(command(served, place, *options), ENVIRONMENT)
    assert (done.returncode == 0) == (expect == 0), (
        f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    commands = Served(tmp_path / "bin")
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    folder = tmp_path_factory.mktemp("mirror")
    write_mirror(folder, "Office_Products", users=60)
    return write_mirror(folder, "Clothing_Shoes_and_Jewelry", users=50, seed=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentence_transformers")
    from tests.mmx.encoders.tiny_models import sentence_model as build

    return build(tmp_path_factory.mktemp("encoder"))


def metrics_files(folder: Path) -> dict[Path, int]:
    """Return the time of writing of every finished run's metrics."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}


def test_from_download_to_report(
    served: Served, mirror: Path, encoder: Path, tmp_path: Path
) -> None:
    # A mirror with a damaged file converts nothing, and the next call goes on.
    broken = tmp_path / "mirror"
    shutil.copytree(mirror, broken)
    path = broken / "categoryFiles/meta_Office_Products.json.gz"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    options = (f"AMAZON_MIRROR={broken}", f"TEXT_WEIGHTS={encoder}", "EPOCHS=2")
    done = call(served, tmp_path, "DATASETS=office", *options, expect=2)
    assert "cut off or damaged" in done.stderr
    assert not (tmp_path / "data/amazon-office").exists()
    path.write_bytes(content)

    done = call(served, tmp_path, "DATASETS=office", *options)
    page = (tmp_path / "report/amazon/amazon-office.md").read_text()
    for name in ("vbpr", "mmgcn", "grcn", "lattice", "bm3", "freedom"):
        assert f"| {name} |" in page
    assert "published" in page
    assert "Kendall" in page
    assert "amazon-office, test @20" in done.stdout
    assert "LATTICE, BM3 and FREEDOM lead" in (tmp_path / "report/amazon/index.md").read_text()
    textual = tmp_path / "data/amazon-office/features/textual/stsb-roberta-large.h5"
    with FeatureSet(textual) as features:
        assert features.provenance["input"]["template"] == "lattice"
    stamps = metrics_files(tmp_path)
    assert len(stamps) == 6

    # A second dataset, split by the other rule; what is finished is read.
    call(served, tmp_path, "DATASETS=office,clothing", "MODELS=vbpr", *options)
    after = metrics_files(tmp_path)
    assert len(after) == 7
    assert stamps.items() <= after.items()
    split = tmp_path / "data/amazon-clothing/splits/paper"
    assert {path.name for path in split.iterdir()} >= {"train.tsv", "valid.tsv", "test.tsv"}

    # Another feature file is another run. This is the last step of the target alone.
    visual = "features/visual/amazon-cnn.h5"
    shutil.copy(
        tmp_path / "data/amazon-clothing" / visual, tmp_path / "data/amazon-office" / visual
    )
    again = [str(REPOSITORY / "recipes/amazon/office.yaml"), "--models", "vbpr", "--epochs", "2"]
    again += ["--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "runs/amazon")]
    again += ["--report", str(tmp_path / "again"), "-q"]
    assert CliRunner().invoke(reproduce, again, catch_exceptions=False).exit_code == 0
    assert len(metrics_files(tmp_path)) == 8


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_called_again_repeats_nothing(
    served: Served, mirror: Path, tmp_path: Path, kills: int
) -> None:
    given, split = tmp_path / "given", tmp_path / "split"
    fetched = ["amazon-2014/office", "--mirror", str(mirror), "--out", str(given), "-q"]
    assert CliRunner().invoke(fetch, fetched, catch_exceptions=False).exit_code == 0
    write_split(split, make_random_split(given, 0.2, 0.2, 42))
    options = ("DATASETS=office", f"SPLIT_DIR={split}", "STAND_IN=1", "EPOCHS=6")
    options += (f"MODELS={'vbpr,bm3' if kills == 1 else 'vbpr,bm3,freedom,lattice'}",)
    start = time.monotonic()
    call(served, tmp_path / "whole", *options)
    whole_s = time.monotonic() - start
    rng, finished = random.Random(kills), {}
    for _ in range(kills):
        after_s = rng.uniform(0.3, 0.9) * whole_s
        served.call(command(served, tmp_path / "killed", *options), ENVIRONMENT, after_s)
        now = metrics_files(tmp_path / "killed")
        assert finished.items() <= now.items()
        finished = now
    call(served, tmp_path / "killed", *options)
    assert finished.items() <= metrics_files(tmp_path / "killed").items()
    whole, killed = (
        {path.parent.name: json.loads(path.read_text()) for path in metrics_files(tmp_path / name)}
        for name in ("whole", "killed")
    )
    assert whole == killed
    assert len(whole) == (2 if kills == 1 else 4)
