"""Random masks and noise, the same on every device.

They are compiled on the CPU, Triton on NVIDIA, torch elsewhere. The kernels repeat
`mmbench.core.philox`; a test holds them against it, bit by bit.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mmbench.core import philox
from mmbench.core.philox import Stream
from mmbench.ops import gpu
from mmbench.ops.kernels import run, split


def _on_gpu(n: int, key: int, clock: Tensor) -> philox.Words:
    if not gpu.serves(clock):  # without Triton
        return Stream(key, clock).words_of(torch.arange(n, device=clock.device))
    from mmbench.ops.gpu import draws as gpu_kernels

    return gpu_kernels.words(n, key, clock)


def _on_cpu(n: int, key: int, clock: Tensor) -> philox.Words:
    from mmbench.ops.kernels import draws as kernels

    out = np.empty((4, n), np.uint64)
    numbers = map(np.uint64, (key, *clock.tolist()))
    run(kernels.words, split(n, work=n * 64), *numbers, out)
    first, second, third, fourth = torch.from_numpy(out.view(np.int64)).unbind()
    return first, second, third, fourth


philox.COMPILED.update(cpu=_on_cpu, cuda=_on_gpu)


def kept(stream: Stream, shape: tuple[int, ...], rate: float) -> Tensor:
    """Which entries a dropout of `rate` keeps, bool, on the stream's device.

    Entry e of the flat mask is kept if word e mod 4 of place e // 4 is at least rate 2**32. Rows
    appended to a mask leave its other rows as they are.

    Args:
        stream: Of this step and purpose.
        shape: Of the mask.
        rate: Probability of a False, in [0, 1).
    """
    n, least = math.prod(shape), round(rate * 2**32)
    places = -(-n // 4)
    if gpu.serves(stream.clock):
        from mmbench.ops.gpu import draws as gpu_kernels

        out = torch.empty(shape, dtype=torch.bool, device=stream.clock.device)
        return gpu_kernels.kept(out, stream.key, stream.clock, least)
    if stream.clock.device.type != "cpu":
        return (torch.stack(stream.words(places), 1) >= least).flatten()[:n].view(shape)
    from mmbench.ops.kernels import draws as kernels

    words = np.empty(4 * places, np.bool_)
    numbers = (stream.key, *stream.clock.tolist(), least)
    run(kernels.kept, split(places, work=places * 64), *map(np.uint64, numbers), words)
    return torch.from_numpy(words[:n]).view(shape)


def dropped(x: Tensor, stream: Stream, rate: float) -> Tensor:
    """The entries of x that `kept` keeps, divided by 1 - rate, and zeros elsewhere; a constant.

    Args:
        x: On the stream's device.
        stream: Of this step and purpose.
        rate: Probability of a zero, in [0, 1).
    """
    x = x.detach()
    if gpu.serves(x):
        from mmbench.ops.gpu import draws as gpu_kernels

        least = round(rate * 2**32)
        return gpu_kernels.dropped(x.contiguous(), stream.key, stream.clock, least, 1 - rate)
    return x * kept(stream, tuple(x.shape), rate) / (1 - rate)


def between(stream: Stream, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in (0, 1), odd multiples of 2**-24, on the stream's device.

    Entry e of the flat array comes from the upper 23 bits of word e mod 4 of place e // 4. Rows
    appended to an array leave its other rows as they are. Neither 0 nor 1 occurs, so that both
    log(u) and log(1 - u) are finite, in single precision too.

    Args:
        stream: Of this step and purpose.
        shape: Of the array.
        dtype: float32 or float64: the same numbers.
    """
    n = math.prod(shape)
    places = -(-n // 4)
    if stream.clock.device.type == "cpu":
        from mmbench.ops.kernels import draws as kernels

        out = np.empty(4 * places, np.float32)
        numbers = map(np.uint64, (stream.key, *stream.clock.tolist()))
        run(kernels.between, split(places, work=places * 64), *numbers, out)
        return torch.from_numpy(out[:n]).view(shape).to(dtype)
    words = torch.stack(stream.words(places), 1).flatten()[:n].view(shape)
    return ((words >> 9) * 2 + 1).to(dtype) * 2.0**-24


def gumbel(stream: Stream, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gumbel noise, -log(-log u) of `between`'s u: from -2.9 to 16.7."""
    return between(stream, shape, dtype).log_().neg_().log_().neg_()


def logistic(stream: Stream, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard logistic noise, log u - log(1 - u) of `between`'s u: from -16.7 to 16.7."""
    return torch.logit(between(stream, shape, dtype))
