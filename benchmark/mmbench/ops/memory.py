"""How large the blocks of a computation may be that never holds its whole result.

On the CPU a block has a fixed size, small beside the model. A GPU needs larger ones: 64 MiB keep a
fast card busy for less time than it takes to launch the kernels of the next block. (Ranking
everyone in Amazon Clothing on an H200, when each block was still waited for, took 0.34 s with
blocks of 64 MiB and 0.083 s with 1 GiB.) How much is free there depends on what is trained, and on
who else uses the card.
"""

from __future__ import annotations

import torch

LARGEST = 256 << 20
"""Bytes of the largest block: little beside what a training holds."""

SHARE = 16
"""A block takes this part of the free memory at most: its temporaries can be seven times as large,
and trainings beside this one take blocks at the same time."""


def block_bytes(device: torch.device, on_cpu: int) -> int:
    """Return the size of a block in bytes: `on_cpu`, or what suits the CUDA device now, >= 1."""
    if device.type != "cuda":
        return on_cpu
    return max(1, min(LARGEST, free_bytes(device) // SHARE))


def free_bytes(device: torch.device) -> int:
    """Return how much this process can still allocate on a CUDA device, in bytes.

    That is what the driver has left and what torch keeps for reuse, within the process's share.
    """
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    available = free + torch.cuda.memory_reserved(device) - allocated
    # From torch 2.7 on; it wants a number, or None for the current device.
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    if fraction is not None:
        available = min(available, int(fraction(device.index) * total) - allocated)
    return max(0, available)
