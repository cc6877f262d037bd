"""`--engine ray` on a cluster of this machine: the sets of the local engine, whoever is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.mmx.extraction.test_extract import dataset

from mmbase import ray_cluster
from mmstore import FeatureSet
from mmx.config import RunConfig, SetConfig
from mmx.errors import EncoderError, ToolError, UsageError
from mmx.extraction.extract import extract
from mmx.extraction.plan import make_plan
from mmx.extraction.ray_worker import Order, Worker
from mmx.extraction.shards import FOLDER
from mmx.extraction.summary import Summary

SETS = {
    "light": {"modality": "visual", "model": "colour-histogram"},
    "visual": {"model": "resnet18", "weights": "random"},
    "textual": {"model": "tfidf-lsa"},
    "audio": {"model": "mfcc"},
}


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray_cluster.connect()
    yield
    ray_cluster.disconnect()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmx.demo import write_demo

    root = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(root, items=300, users=20)
    return root


def go(root: Path, out: Path, engine: str, which: str = "light", **options: Any) -> Summary:
    executor = options.pop("executor", None)
    run = RunConfig(data=root, out=out, engine=engine, device="cpu", **options)
    return extract(run, SetConfig(**{"modality": which, **SETS[which]}), executor=executor)


def same(first: Path, second: Path) -> None:
    with FeatureSet(first) as one, FeatureSet(second) as other:
        assert one.content_digest == other.content_digest
        assert one.errors() == other.errors()
        provenance = [{**each.provenance, "created": ""} for each in (one, other)]
        assert provenance[0] == provenance[1]
    assert not (first.parent / FOLDER).exists()


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_a_cluster_makes_the_set_of_this_process(tmp_path: Path) -> None:
    from PIL import Image

    root = dataset(tmp_path, {f"i{n}": "" for n in range(600)})
    (root / "images").mkdir()
    for n in range(0, 590):
        path = root / "images" / f"i{n}.bmp"
        Image.new("RGB", (8, 8), (n % 256, n * 7 % 256, n * 31 % 256)).save(path)
    (root / "images" / "i5.bmp").write_bytes(b"BM")
    on_ray = go(root, tmp_path / "ray", "ray")
    same(on_ray.path, go(root, tmp_path / "local", "local").path)
    counts = on_ray.counts
    assert (counts.ok, counts.missing, counts.corrupt) == (589, 10, 1)
    assert on_ray.stages.n_items == 600
    assert on_ray.stages.loading.how == "ray"
    assert "worker" in on_ray.stages.loading.why
    assert on_ray.stages.bottleneck()


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("modality", "apart"),
    [("visual", False), ("visual", True), ("textual", False), ("audio", False)],
)
def test_every_modality_has_the_vectors_of_this_process(
    tmp_path: Path, demo: Path, modality: str, apart: bool
) -> None:
    from mmx.extraction.on_ray import RayExecutor

    executor = RayExecutor(apart=apart)
    on_ray = go(demo, tmp_path / "ray", "ray", modality, executor=executor)
    local = go(demo, tmp_path / "local", "local", modality)
    same(on_ray.path, local.path)
    assert on_ray.counts == local.counts
    assert on_ray.stages.n_bytes == local.stages.n_bytes
    assert on_ray.stages.sound_s == pytest.approx(local.stages.sound_s)


# ------------------------------------------------------------------------------------------------
# what can't be used


def refusal(action: Any, kind: type[Exception] = ToolError) -> str:
    with pytest.raises(kind) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_settings_that_a_cluster_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="add engine ray"):
        RunConfig(address="auto")
    with pytest.raises(ValueError, match="auto, cpu or cuda"):
        RunConfig(engine="ray", device="cuda:1")
    with pytest.raises(ValueError, match="engine local"):
        RunConfig(engine="ray", loading="threads")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "[ray]" in refusal(ray_cluster.connect)


def test_an_address_where_nothing_listens_is_one_line() -> None:
    text = refusal(lambda: ray_cluster.reachable("127.0.0.1:1"))
    assert "no Ray cluster answers at 127.0.0.1, port 1" in text
    assert "on a machine of the cluster" in refusal(
        lambda: ray_cluster.reachable("ray://host:10001"), UsageError
    )
    assert "expected auto or" in refusal(lambda: ray_cluster.reachable("host:port"), UsageError)


def order(tmp_path: Path, **options: Any) -> Order:
    config = SetConfig(modality="visual", model="colour-histogram")
    plan = make_plan(RunConfig(data=dataset(tmp_path, {"a": "one"})), config, _Quiet())
    given = {"libraries": {"numpy": np.__version__}, "provenance": {}, "encoder": None, **options}
    return Order(plan.take(np.arange(0)), **given)


class _Quiet:
    def note(self, message: str) -> None:
        pass


@pytest.mark.parametrize(
    ("libraries", "told"),
    [
        ({"numpy": "0.0.1"}, rf"has numpy {np.__version__}, and this machine 0\.0\.1"),
        ({"nobody-has-this": "1.0"}, r"lacks nobody-has-this 1\.0; run there: pip install"),
    ],
)
def test_a_worker_with_other_libraries_says_so(
    tmp_path: Path, libraries: dict[str, str], told: str
) -> None:
    import mmx

    answer = Worker().prepare([order(tmp_path, libraries=libraries)], mmx.__version__, "", 0)
    assert isinstance(answer, EncoderError)
    with pytest.raises(EncoderError, match=told):
        raise answer
    other = Worker().prepare([order(tmp_path)], "0.0", "", 0)
    assert "and this machine 0.0" in str(other)


def test_a_worker_whose_encoder_differs_says_in_what(tmp_path: Path) -> None:
    import mmx

    wanted = order(tmp_path, provenance={"weights_sha256": "0" * 64})
    answer = Worker().prepare([wanted], mmx.__version__, "", 0)
    assert "weights_sha256 differ" in str(answer)


# ------------------------------------------------------------------------------------------------
# whoever is killed


def processes(of: int, name: str) -> list[int]:
    """The descendants of a process whose command line has a name in it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, left = [], [of]
    while left:
        left += (more := children.get(left.pop(), []))
        found += more
    return [one for one in found if name in command_of(one)]


def command_of(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


NAMES = {"worker": "ray::Worker", "raylet": "/raylet", "driver": ""}
PATTERNS = ("ray::", "/raylet", "/gcs_server")


def killed(command: list[str], who: str, after_s: float) -> tuple[int, str]:
    """Run a command of which a process is killed some seconds after its workers were ready."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < until:
        if len(processes(process.pid, "ray::Worker")) >= 1:
            break
        time.sleep(0.1)
    time.sleep(after_s)
    ours = [one for name in PATTERNS for one in processes(process.pid, name)]
    victims = [process.pid] if who == "driver" else processes(process.pid, NAMES[who])
    if victims:
        with suppress(ProcessLookupError):
            os.kill(random.choice(victims), signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    until = time.monotonic() + 120  # Ray's agents look for their parent now and then
    while (left := [one for one in ours if command_of(one)]) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left, [command_of(one) for one in left]
    return process.returncode, errors


@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("who", ["worker", "driver", "raylet"])
def test_after_a_kill_the_same_command_ends_with_the_same_set(
    tmp_path: Path, demo: Path, who: str
) -> None:
    command = [
        *(sys.executable, "-m", "mmx", "extract", "-q", "--data", str(demo), "--device", "cpu"),
        *("--modality", "visual", "--model", "resnet18", "--weights", "random"),
        *("--batch-size", "8", "--out"),
    ]
    local = subprocess.run([*command, str(tmp_path / "local")], check=False)
    assert local.returncode in (0, 3)
    on_ray = [*command, str(tmp_path / "ray"), "--engine", "ray"]
    code, errors = killed(on_ray, who, random.uniform(0, 8))
    if who == "worker":
        assert code in (0, 3), errors
    elif code not in (0, 3):
        assert "Traceback" not in errors
        again = subprocess.run(on_ray, check=False, capture_output=True, text=True)
        assert again.returncode in (0, 3), again.stderr
    same(*(tmp_path / name / "visual" / "resnet18-random.h5" for name in ("ray", "local")))
    names = [
        {one.name for one in (tmp_path / name / "visual").iterdir()} for name in ("ray", "local")
    ]
    assert names[0] == names[1]
    assert not list(Path("/tmp").glob(f"mmx-ray-{os.getuid()}-*"))
