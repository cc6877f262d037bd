"""What a call changes in the process that it is called from, and gives back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_found() -> Iterator[None]:
    """Give the switches of torch back that a run sets: the caller's own computations go on as ever.

    A run refuses operations whose result depends on the order of threads, computes products in full
    precision, and chooses their kernel.
    """
    import torch

    from mmbase import gemm

    deterministic = torch.get_deterministic_debug_mode()
    precision = torch.get_float32_matmul_precision()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        with gemm.kept():
            yield
    finally:
        torch.set_deterministic_debug_mode(deterministic)
        torch.set_float32_matmul_precision(precision)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
