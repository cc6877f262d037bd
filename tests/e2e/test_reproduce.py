"""`make reproduce-amazon` from download to report on an offline mirror, and killed midway."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY
from tests.mmx.download.amazon_mirror import write_mirror

from mmstore import FeatureSet

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def command(place: Path, *options: str) -> list[str]:
    """`make reproduce-amazon` that writes below `place`; `-o` because the environment exists."""
    folders = (f"DATA={place}/data", f"RUNS={place}/runs", f"REPORT={place}/report")
    return [
        "make",
        "-C",
        str(REPOSITORY),
        "-o",
        "setup",
        "reproduce-amazon",
        f"BIN={BIN}",
        *folders,
        *options,
    ]


def call(place: Path, *options: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(place, *options),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=280,
    )
    assert (done.returncode == 0) == (expect == 0), (
        f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    assert "Traceback" not in done.stderr
    return done


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


def test_from_download_to_report(mirror: Path, encoder: Path, tmp_path: Path) -> None:
    options = (f"AMAZON_MIRROR={mirror}", f"TEXT_WEIGHTS={encoder}", "EPOCHS=2")
    done = call(tmp_path, "DATASETS=office", *options)
    page = (tmp_path / "report/amazon/amazon-office.md").read_text()
    for text in (
        "| vbpr |",
        "| mmgcn |",
        "| grcn |",
        "| lattice |",
        "| bm3 |",
        "| freedom |",
        "published",
        "Kendall",
    ):
        assert text in page
    assert "amazon-office, test @20" in done.stdout
    assert "LATTICE, BM3 and FREEDOM lead" in (tmp_path / "report/amazon/index.md").read_text()
    with FeatureSet(
        tmp_path / "data/amazon-office/features/textual/stsb-roberta-large.h5"
    ) as features:
        assert features.provenance["input"]["template"] == "lattice"
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}
    assert len(stamps) == 6
    # A second dataset, split by the other rule; what is finished is read.
    call(tmp_path, "DATASETS=office,clothing", "MODELS=vbpr", *options)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}
    assert len(after) == 7
    assert stamps.items() <= after.items()
    split = tmp_path / "data/amazon-clothing/splits/paper"
    assert {path.name for path in split.iterdir()} >= {"train.tsv", "valid.tsv", "test.tsv"}
    # Another feature file is another run.
    visual = "features/visual/amazon-cnn.h5"
    shutil.copy(
        tmp_path / "data/amazon-clothing" / visual, tmp_path / "data/amazon-office" / visual
    )
    again = [str(BIN / "mmbench"), "reproduce", str(REPOSITORY / "recipes/amazon/office.yaml")]
    again += ["--models", "vbpr", "--epochs", "2", "--data-root", str(tmp_path / "data")]
    again += ["--out", str(tmp_path / "runs/amazon"), "--report", str(tmp_path / "again"), "-q"]
    subprocess.run(again, check=True, env=ENVIRONMENT)  # the last step of the target alone
    assert len(list(tmp_path.rglob("metrics.json"))) == 8


def test_a_broken_mirror_converts_nothing_and_the_next_call_goes_on(
    mirror: Path, encoder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(mirror, broken)
    path = broken / "categoryFiles/meta_Office_Products.json.gz"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    options = (
        "DATASETS=office",
        f"AMAZON_MIRROR={broken}",
        f"TEXT_WEIGHTS={encoder}",
        "EPOCHS=1",
        "MODELS=vbpr",
    )
    assert "cut off or damaged" in call(tmp_path, *options, expect=2).stderr
    assert not (tmp_path / "data/amazon-office").exists()
    path.write_bytes(content)
    call(tmp_path, *options)
    assert (tmp_path / "report/amazon/index.md").is_file()


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_called_again_repeats_nothing(mirror: Path, tmp_path: Path, kills: int) -> None:
    split = tmp_path / "split"
    fetch = [
        str(BIN / "mmx"),
        "fetch",
        "amazon-2014/office",
        "--mirror",
        str(mirror),
        "--out",
        str(tmp_path / "given"),
        "-q",
    ]
    subprocess.run(fetch, check=True, env=ENVIRONMENT)
    from mmbench.data.dataset import make_random_split, write_split

    write_split(split, make_random_split(tmp_path / "given", 0.2, 0.2, 42))
    options = (
        "DATASETS=office",
        f"SPLIT_DIR={split}",
        "STAND_IN=1",
        "EPOCHS=6",
        "MODELS=vbpr,bm3,freedom,lattice",
    )
    start = time.monotonic()
    call(tmp_path / "whole", *options)
    whole_s = time.monotonic() - start
    rng, finished = random.Random(kills), {}
    for _ in range(kills):
        process = subprocess.Popen(
            command(tmp_path / "killed", *options),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(rng.uniform(0.3, 0.9) * whole_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {
            path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("metrics.json")
        }
        assert finished.items() <= now.items()
        finished = now
    call(tmp_path / "killed", *options)
    assert (
        finished.items()
        <= {
            path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("metrics.json")
        }.items()
    )
    values = [
        {
            path.parent.name: json.loads(path.read_text())
            for path in (tmp_path / name).rglob("metrics.json")
        }
        for name in ("whole", "killed")
    ]
    assert values[0] == values[1]
    assert len(values[0]) == 4
