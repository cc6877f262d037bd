"""Encoders on a device that is not the CPU: the same vectors, and nothing left behind on the other side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.elsewhere import elsewhere

from mmx.encoders import create


def same_there(model: str, contents: Sequence[Any], **options: Any) -> None:
    """Encode contents here and on the device of `tests.elsewhere`, and compare.

    Args:
        model: The encoder's name.
        contents: What is loaded, here, and encoded together.
        options: Of `create`.
    """
    here = create(model, **options)
    loaded = [here.load(content) for content in contents]
    expected = here.encode(loaded)
    with elsewhere() as device, pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("mmx.encoders.") and hasattr(module, "checked_device"):
                patch.setattr(module, "checked_device", lambda request: device)
        there = create(model, **options)
        found = there.encode(loaded)
    assert there.device == str(device)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
