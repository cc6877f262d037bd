"""What of a machine decides the last bits of a run: recorded when it begins, and kept to its end.

On the CPU these are the kernel of dense products and the number of torch's threads. A run that goes
on elsewhere, or in workers of its own, takes what it began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch

from mmbase import gemm
from mmbench.errors import DataError, TrainingError
from mmbench.runs.folder import RunFolder


def begin(run: RunFolder) -> dict[str, Any]:
    """Return what a run began with, `gemm` and `threads`; a run that begins now records it.

    The kernel is in use from now on.

    Raises:
        TrainingError: This build of torch lacks the kernel.
        DataError: The record is damaged.
    """
    name = run.begun_path.name
    if not run.begun_path.is_file():
        gemm.use(None)
        now = {"gemm": gemm.chosen(), "threads": torch.get_num_threads()}
        run.write_json_once(name, now)  # the trials of a grid may begin side by side
    begun = run.read_json(name)
    kernel, threads = begun.get("gemm"), begun.get("threads")
    if kernel not in get_args(gemm.Kernel) or type(threads) is not int or threads < 1:
        raise DataError(
            f"{run.begun_path}: gemm = {kernel!r}, threads = {threads!r} (expected torch or "
            "onednn, and 1 or more); train anew with --restart"
        )
    try:
        gemm.use(kernel)
    except RuntimeError as error:
        raise TrainingError(
            f"{run.path}: began with oneDNN's products, which this build of torch lacks; go on "
            "where it began, or train anew with --restart"
        ) from error
    return begun


@contextmanager
def as_begun(run: RunFolder) -> Iterator[None]:
    """Inside the block, train as the run began; errors as in `begin`."""
    before = torch.get_num_threads()
    torch.set_num_threads(begin(run)["threads"])
    try:
        yield
    finally:
        torch.set_num_threads(before)
