"""The installed command and kills at random instants, in processes of their own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.e2e import fake_mmx
from tests.processes import Forked

from mmstore import FeatureSet

Image = pytest.importorskip("PIL.Image", reason="needs the extra extract")

MMX = Path(sysconfig.get_path("scripts")) / "mmx"
N_ITEMS = 1500
KILLS = 5


def run(
    *arguments: str | Path, expected: int = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )
    assert done.returncode == expected, done.stderr
    return done


def texts(root: Path) -> Path:
    root.mkdir()
    rows = [f"i{n}\t{'bad' if n == 700 else 'x' * (n * 13 % 40)}\n" for n in range(N_ITEMS)]
    (root / "items.tsv").write_text("item_id\ttitle\n" + "".join(rows), encoding="utf-8")
    return root


def fake(root: Path, out: Path, *more: str) -> Forked:
    """Begin an extraction with the slow encoder, which this process does not know."""
    command = ["extract", "--modality", "textual", "--model", "slow-fake", "--data", root]
    options = ["--out", out, "--batch-size", "8", *more]
    return Forked("mmx", *command, *options, cwd=root, prepare=fake_mmx.prepare)


def finish(process: Forked, expected: int) -> Forked:
    assert process.wait() == expected, process.stderr
    return process


def _changed(out: Path) -> int:
    """When the unfinished set was last written to, in nanoseconds; 0 where there is none."""
    partial = out / "textual" / "slow-fake.h5.partial"
    try:
        return partial.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)


def digest(out: Path, modality: str, name: str) -> str:
    with FeatureSet(out / modality / f"{name}.h5") as features:
        assert features.verify() == []
        return features.content_digest


def test_killed_at_random_instants_it_goes_on_and_ends_with_the_same_digest(tmp_path: Path) -> None:
    root = texts(tmp_path / "data")
    finish(fake(root, tmp_path / "whole"), 3)
    expected = digest(tmp_path / "whole", "textual", "slow-fake")

    rng = random.Random(5)
    killed = 0
    while True:
        before = _changed(tmp_path / "parts")
        process = fake(root, tmp_path / "parts")
        if killed < KILLS:
            _wait_until(
                lambda before=before, process=process: (
                    _changed(tmp_path / "parts") != before or process.poll() is not None
                )
            )
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break
        killed += 1
    finish(process, 3)
    assert killed >= 2, "the encoder is too fast for this test"
    assert digest(tmp_path / "parts", "textual", "slow-fake") == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_130_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    root = texts(tmp_path / "data")
    process = fake(root, tmp_path / "out")
    _wait_until(lambda: _changed(tmp_path / "out") > 0)
    begun = _changed(tmp_path / "out")
    _wait_until(lambda: _changed(tmp_path / "out") > begun + 50_000_000)  # rows are written
    process.send_signal(number)
    finish(process, 130)
    assert "the same command goes on" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out" / "textual" / "slow-fake.h5").exists()
    done = finish(fake(root, tmp_path / "out", "--json"), 3)
    assert json.loads(done.stdout)["this_run"]["items"] < N_ITEMS


def test_a_second_writer_is_turned_away(tmp_path: Path) -> None:
    root = texts(tmp_path / "data")
    first = fake(root, tmp_path / "out")
    try:
        _wait_until(lambda: _changed(tmp_path / "out") > 0)
        second = fake(root, tmp_path / "out")
        assert second.wait() == 1 or first.poll() is not None, second.stderr
        assert "Traceback" not in second.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()


def pictures(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "日本"):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(
            root / "images" / f"{name}.png"
        )
    (root / "items.tsv").write_text("item_id\na\n日本\nnone\n", encoding="utf-8")
    return root


def test_the_installed_command_from_pictures_to_features(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    command = [MMX, "extract", "--modality", "visual", "--model", "colour-hog", "--data", "data"]
    done = run(*command, cwd=tmp_path)
    assert done.stdout == "data/features/visual/colour-hog.h5\n"
    assert "2 ok, 1 missing, 0 corrupt" in done.stderr
    assert "\x1b" not in done.stderr
    again = run(*command, "--json", cwd=tmp_path)
    document = json.loads(again.stdout)
    assert document["already_complete"]
    assert document["content_digest"] == digest(root / "features", "visual", "colour-hog")
    (root / "images" / "a.png").write_bytes(b"no picture")
    broken = run(*command, "--restart", expected=3, cwd=tmp_path)
    assert "1 ok, 1 missing, 1 corrupt" in broken.stderr
    assert "  a: " in broken.stderr
    assert str(tmp_path) not in broken.stderr


def test_the_module_is_the_command(tmp_path: Path) -> None:
    assert run(sys.executable, "-m", "mmx", "--version").stdout == run(MMX, "--version").stdout


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"'{MMX}' models | head -n 1", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[0] == "model"
    assert done.stderr == ""


def test_help_answers_at_once() -> None:
    run(MMX, "--help")
    times = []
    for _ in range(5):
        began = time.process_time() + _children_cpu_s()
        run(MMX, "--help")
        times.append(time.process_time() + _children_cpu_s() - began)
    assert min(times) < 0.4


def _children_cpu_s() -> float:
    """CPU time of finished children: what the machine's other work cannot change."""
    spent = os.times()
    return spent.children_user + spent.children_system


@pytest.mark.slow
@pytest.mark.real_data
def test_twenty_kills_during_an_extraction_of_a_thousand_photographs(
    real_data: Path, tmp_path: Path
) -> None:
    """After kill -9 at a random instant the same command gives the same digest, 20 of 20 times."""

    def command(out: Path) -> list[str | Path]:
        return [
            MMX,
            "extract",
            "--modality",
            "visual",
            "--model",
            "colour-hog",
            "--data",
            real_data / "images",
            "--out",
            out,
        ]

    def begin(out: Path) -> tuple[subprocess.Popen[bytes], Path]:
        process = subprocess.Popen(
            [*map(str, command(out))], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        partial = out / "visual" / "colour-hog.h5.partial"
        _wait_until(lambda: partial.exists() or process.poll() is not None)
        return process, partial

    process, _ = begin(tmp_path / "whole")
    began = time.monotonic()
    assert process.wait() == 0
    work_s = time.monotonic() - began
    expected = digest(tmp_path / "whole", "visual", "colour-hog")
    rng = random.Random(20)
    killed = 0
    for trial in range(60):
        out = tmp_path / str(trial)
        process, partial = begin(out)
        time.sleep(rng.uniform(0, 0.9) * work_s)
        process.kill()
        process.wait()
        if not partial.exists():  # it was faster than the kill
            continue
        killed += 1
        run(*command(out))
        assert digest(out, "visual", "colour-hog") == expected, trial
        if killed == 20:
            return
    pytest.fail(f"only {killed} of 60 runs could be killed before they ended")
