"""What the start of an encoder leaves out."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from mmx.encoders.base import require
models = require("torchvision.models")
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
import torch
from torchvision.ops import roi_align
box = torch.tensor([[0, 0.0, 0.0, 3.0, 3.0]])
before = roi_align(torch.arange(16.0).reshape(1, 1, 4, 4), box, 2)
from torchvision.ops.roi_align import is_compile_supported
is_compile_supported("cpu")
assert hasattr(sys.modules["torch._dynamo"], "optimize")
import mmx.encoders.base as base
assert base.require("torchvision.io") is sys.modules["torchvision.io"]
print("fine")
"""


def test_torchvision_comes_without_torchs_compiler_which_comes_once_it_is_asked() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.stdout == "fine\n", done.stderr
