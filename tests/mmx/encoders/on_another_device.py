"""Encoders on a device that is not the CPU: the same vectors, and nothing left on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from tests.elsewhere import elsewhere

from mmx.encoders import create


def same_there(
    model: str, contents: Sequence[Any], *, device: str | None = None, **options: Any
) -> None:
    """Encode contents here and on another device, and compare.

    Args:
        model: The encoder's name.
        contents: What is loaded, here, and encoded together.
        device: A device of this machine; None: that of `tests.elsewhere`.
        options: Of `create`.
    """
    here = create(model, **options)
    loaded = [here.load(content) for content in contents]
    expected = here.encode(loaded)
    with ExitStack() as stack:
        if device is None:
            there = stack.enter_context(elsewhere())
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, module in list(sys.modules.items()):
                if name.startswith("mmx.encoders.") and hasattr(module, "checked_device"):
                    patch.setattr(module, "checked_device", lambda request: there)
        encoder = create(model, device=device or "cpu", **options)
        found = encoder.encode(loaded)
    assert encoder.device == (device or str(there))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
