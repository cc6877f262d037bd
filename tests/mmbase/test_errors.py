"""What the messages of both tools share."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.conftest import REPOSITORY

import mmbase.errors
from mmbase.errors import install_extra


@pytest.mark.skipif(
    not Path(mmbase.errors.__file__).is_relative_to(REPOSITORY / "shared"),
    reason="here an installed wheel is tested",
)
def test_an_extra_is_installed_from_the_checkout() -> None:
    assert install_extra("tune") == f"pip install -e '{REPOSITORY}[tune]'"


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        (json.dumps({"url": "file:///a/x.whl"}), "'mmx-mmbench[tune] @ file:///a/x.whl'"),
        (None, "'mmx-mmbench[tune]'"),
        ("[]", "'mmx-mmbench[tune]'"),
    ],
)
def test_or_from_the_file_that_was_installed(
    noted: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmbase.errors, "__file__", str(tmp_path / "lib" / "mmbase" / "errors.py"))
    found = SimpleNamespace(read_text=lambda name: noted)
    monkeypatch.setattr(metadata, "distribution", lambda name: found)
    assert install_extra("tune") == f"pip install {expected}"
