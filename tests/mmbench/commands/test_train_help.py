"""Help answers at once: it needs neither torch nor a model."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_imports_no_torch(command: str) -> None:
    code = (
        "import sys\n"
        "import mmbench.cli\n"
        f"code = mmbench.cli.run(['{command}', '--help'])\n"
        "sys.exit(code or int('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--data" in done.stdout
