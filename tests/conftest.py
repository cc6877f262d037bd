"""Fixtures that all tests share."""

from __future__ import annotations

import functools
import gc
import os
import signal
from pathlib import Path
from typing import Any

# Before torch is imported: tests run beside each other, and OpenMP threads that wait for a core by
# spinning are ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Triton's kernels run in its interpreter where there is no GPU; read when Triton is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest

# A busy machine is no failure.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

# Started in the background, a shell lets the suite ignore Ctrl-C, and so would the commands that
# tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real development data; tests that ask for it skip where it is absent."""
    folder = Path(os.environ.get("MMX_TEST_DATA", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(
            "no development data here (set MMX_TEST_DATA to the folder that holds data/ and "
            "golden/)"
        )
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of expected values; tests that ask for it skip where it is absent."""
    folder = Path(os.environ.get("MMX_TEST_DATA", REPOSITORY.parent / "shared")) / "golden"
    if not folder.is_dir():
        pytest.skip(
            "no golden values here (set MMX_TEST_DATA to the folder that holds data/ and golden/)"
        )
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests keep neighbours, and notes on whole feature sets, in folders of their own."""
    for name in ("MMBENCH_CACHE", "MMSTORE_CACHE"):
        os.environ[name] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def _frozen_imports() -> None:
    """Keep imported modules out of `gc.collect`, which every training calls: 0.2 s each time.

    Some are imported by the tests alone.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than cores: several tests wait for a process that they started."""
    return (os.cpu_count() or 1) + 1


@functools.cache
def _needs_processes(file: str) -> bool:
    """Whether tests of a file start forks of a server (`tests.processes`), or wait for a fork."""
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    return "tests.processes" in text or "forked_workers" in text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, the tests that one worker does, see below."""
    files = {item.nodeid.partition("::")[0] for item in items}
    first = {file for file in files if _needs_processes(file)}
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in first)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give whole files to the workers, which share no fixtures, and one of them the processes.

    Their server imports in 5 CPU seconds what they need.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "processes" if _needs_processes(file) else file

    config.option.loadscopereorder = False
    return Files(config, log)
