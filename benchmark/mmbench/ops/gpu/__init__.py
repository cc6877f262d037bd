"""Triton kernels: what an NVIDIA GPU runs in place of the compiled loops of `ops/kernels`.

A kernel is one program per row of its result, and sums a row in a fixed order: the same bits at
every call. Kernels read what changes from step to step (the number of a step, say) from tensors, so
that a captured step can be replayed. The modules of this folder are imported when first needed, and
Triton with them; each function has a plain torch path beside its caller, which serves other devices
and GPUs without Triton. With `TRITON_INTERPRET=1` the kernels run on a CPU, for tests.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor


def serves(x: Tensor) -> bool:
    """Whether these kernels compute with a tensor: it is on an NVIDIA GPU, and Triton is here."""
    return x.device.type == "cuda" and _triton()


def static(x: Tensor) -> bool:
    """Whether shapes must not depend on the data, lest the host wait: not on the CPU."""
    return x.device.type != "cpu" or serves(x)


@cache
def _triton() -> bool:
    return find_spec("triton") is not None
