"""Random masks and noise on the CPU, see `mmbench.ops.draws`; Philox: `mmbench.core.philox`."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmbench.ops.kernels import kernel

Array = Any

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_A, _B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_NINE, _ONE, _UNIT = np.uint64(9), np.uint64(1), np.float32(2.0**-24)
_WEYL_A, _WEYL_B = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@kernel
def words(lo: int, hi: int, key: Array, epoch: Array, step: Array, out: Array) -> None:
    """out[w, p] = word w of place p, for the places lo … hi-1; `out` is (4, n) uint64."""
    for place in range(lo, hi):
        x0, x1 = np.uint64(place) & _LOW, np.uint64(place) >> _HALF
        x2, x3 = step, epoch
        key0, key1 = key & _LOW, key >> _HALF
        for _ in range(10):
            left, right = x0 * _A, x2 * _B
            x0, x1 = (right >> _HALF) ^ x1 ^ key0, right & _LOW
            x2, x3 = (left >> _HALF) ^ x3 ^ key1, left & _LOW
            key0, key1 = (key0 + _WEYL_A) & _LOW, (key1 + _WEYL_B) & _LOW
        out[0, place] = x0
        out[1, place] = x1
        out[2, place] = x2
        out[3, place] = x3


@kernel
def kept(lo: int, hi: int, key: Array, epoch: Array, step: Array, least: Array, out: Array) -> None:
    """out[4 p + w] = word w of place p is at least `least`, for the places lo … hi-1."""
    for place in range(lo, hi):
        x0, x1 = np.uint64(place) & _LOW, np.uint64(place) >> _HALF
        x2, x3 = step, epoch
        key0, key1 = key & _LOW, key >> _HALF
        for _ in range(10):
            left, right = x0 * _A, x2 * _B
            x0, x1 = (right >> _HALF) ^ x1 ^ key0, right & _LOW
            x2, x3 = (left >> _HALF) ^ x3 ^ key1, left & _LOW
            key0, key1 = (key0 + _WEYL_A) & _LOW, (key1 + _WEYL_B) & _LOW
        at = 4 * place
        out[at] = x0 >= least
        out[at + 1] = x1 >= least
        out[at + 2] = x2 >= least
        out[at + 3] = x3 >= least


@kernel
def between(lo: int, hi: int, key: Array, epoch: Array, step: Array, out: Array) -> None:
    """out[4 p + w] = (2 k + 1) / 2**24, k the upper 23 bits of word w of place p; float32."""
    for place in range(lo, hi):
        x0, x1 = np.uint64(place) & _LOW, np.uint64(place) >> _HALF
        x2, x3 = step, epoch
        key0, key1 = key & _LOW, key >> _HALF
        for _ in range(10):
            left, right = x0 * _A, x2 * _B
            x0, x1 = (right >> _HALF) ^ x1 ^ key0, right & _LOW
            x2, x3 = (left >> _HALF) ^ x3 ^ key1, left & _LOW
            key0, key1 = (key0 + _WEYL_A) & _LOW, (key1 + _WEYL_B) & _LOW
        at = 4 * place
        out[at] = np.float32(x0 >> _NINE << _ONE | _ONE) * _UNIT
        out[at + 1] = np.float32(x1 >> _NINE << _ONE | _ONE) * _UNIT
        out[at + 2] = np.float32(x2 >> _NINE << _ONE | _ONE) * _UNIT
        out[at + 3] = np.float32(x3 >> _NINE << _ONE | _ONE) * _UNIT
