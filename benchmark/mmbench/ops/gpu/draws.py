"""Random masks on a GPU: see `mmbench.ops.draws`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kept(out, key, clock, n, least, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    epoch = tl.load(clock).to(tl.uint32)
    step = tl.load(clock + 1).to(tl.uint32)
    low = place.to(tl.uint32)
    zero = low * 0
    words = tl.philox(key, low, zero, zero + step, zero + epoch)
    for word in tl.static_range(4):
        entry = place.to(tl.int64) * 4 + word
        tl.store(out + entry, words[word].to(tl.int64) >= least, entry < n)


def kept(out: Tensor, key: int, clock: Tensor, least: int) -> Tensor:
    """Set each entry of `out`, bool, contiguous, fewer than 2**33, to whether its word is >= least.

    Entry e has word e mod 4 of place e // 4 of the stream (key, clock).
    """
    n, block = out.numel(), 256
    _kept[(triton.cdiv(n, 4 * block),)](out, key, clock, n, least, BLOCK=block)
    return out
