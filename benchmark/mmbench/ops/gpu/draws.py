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


@triton.jit
def _dropped(x, out, key, clock, n, least, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    epoch = tl.load(clock).to(tl.uint32)
    step = tl.load(clock + 1).to(tl.uint32)
    low = place.to(tl.uint32)
    zero = low * 0
    words = tl.philox(key, low, zero, zero + step, zero + epoch)
    for word in tl.static_range(4):
        entry = place.to(tl.int64) * 4 + word
        value = tl.load(x + entry, entry < n, 0.0)
        there = words[word].to(tl.int64) >= least
        tl.store(out + entry, tl.where(there, value / FACTOR, 0.0), entry < n)


@triton.jit
def _words(out, key, clock, n, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    low = (place & 0xFFFFFFFF).to(tl.uint32)
    high = (place >> 32).to(tl.uint32)
    step = low * 0 + tl.load(clock + 1).to(tl.uint32)
    epoch = low * 0 + tl.load(clock).to(tl.uint32)
    words = tl.philox(key, low, high, step, epoch)
    for word in tl.static_range(4):
        tl.store(out + word * n + place, words[word].to(tl.int64), place < n)


def words(n: int, key: int, clock: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The words of the places 0 … n-1, see `mmbench.core.philox.Stream.words`."""
    out = clock.new_empty(4, n)
    _words[(triton.cdiv(n, 256),)](out, key, clock, n, BLOCK=256)
    first, second, third, fourth = out.unbind()
    return first, second, third, fourth


def kept(out: Tensor, key: int, clock: Tensor, least: int) -> Tensor:
    """Set each entry of `out`, bool, contiguous, fewer than 2**33, to whether its word is >= least.

    Entry e has word e mod 4 of place e // 4 of the stream (key, clock).
    """
    n, block = out.numel(), 256
    _kept[(triton.cdiv(n, 4 * block),)](out, key, clock, n, least, BLOCK=block)
    return out


def dropped(x: Tensor, key: int, clock: Tensor, least: int, factor: float) -> Tensor:
    """The entries of x that `kept` keeps, divided by `factor`, else 0. Contiguous, < 2**33."""
    n, block, out = x.numel(), 256, x.new_empty(x.shape)
    if n:
        grid = (triton.cdiv(n, 4 * block),)
        _dropped[grid](x, out, key, clock, n, least, FACTOR=factor, BLOCK=block)
    return out
