"""What the Makefile's targets say; nothing is installed or trained."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY
from tests.e2e.test_docs import complaint, typed_lines

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not (REPOSITORY / "Makefile").is_file(), reason="no make here"
)


def make(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", str(REPOSITORY / "Makefile"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_demo_says_what_it_installs_and_what_comes_next(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    planned = make("-n", "demo", cwd=tmp_path).stdout
    before, _, after = planned.partition("-m pip install")
    assert re.search(r"about \d GB to download", before)
    assert "GB on disk" in before
    assert "--quiet" not in after.splitlines()[0]
    assert "three minutes" in after
    quoted = "\n".join(re.findall(r"'  (\S.*?)(?:   |')", planned.partition("What next")[2]))
    commands = typed_lines(quoted)
    assert len(commands) == 3
    assert not any(map(complaint, commands))


@pytest.mark.parametrize(("failing", "named"), [(1, "AMAZON_MIRROR="), (2, "TEXT_WEIGHTS=")])
def test_an_error_of_a_reproduction_names_its_own_variables(
    failing: int, named: str, tmp_path: Path
) -> None:
    (tmp_path / ".venv").mkdir()
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):
        (tmp_path / name).touch()
    tool = tmp_path / "mmx"
    which = ("fetch", "extract")[failing - 1]
    tool.write_text(f"#!/bin/sh\n[ $1 != {which} ] || {{ echo error: no >&2; exit 1; }}\n")
    tool.chmod(0o755)
    done = make("reproduce-amazon", f"BIN={tmp_path}", "DATASETS=office", cwd=tmp_path)
    assert done.returncode != 0
    assert re.search(rf"^error: no\nmake reproduce-amazon: {named}", done.stderr, re.MULTILINE)
