"""Philox: the published numbers, and what is made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tests.elsewhere import elsewhere

from mmbench.core.philox import MASK, Stream, below, order, unit

KNOWN = {  # of the authors' library, philox4x32 with 10 rounds: counter, key, result
    (0, 0, 0, 0): ((0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344): (
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


@pytest.mark.parametrize("counter", KNOWN)
def test_words_are_the_published_ones(counter: tuple[int, int, int, int]) -> None:
    key, expected = KNOWN[counter]
    place, step, epoch = counter[0] | counter[1] << 32, counter[2], counter[3]
    stream = Stream(key[0] | key[1] << 32, torch.tensor([epoch, step]))
    words = stream.words_of(torch.tensor([place - (1 << 64) if place >> 63 else place]))
    assert tuple(int(word) for word in words) == expected


def test_places_do_not_depend_on_how_many_are_asked_for_or_where() -> None:
    stream = Stream(987654321987654321, torch.tensor([5, 17]))
    many, few = stream.words(40_000), stream.words(20)
    for long, short in zip(many, few, strict=True):
        assert torch.equal(long[:20], short)
        assert 0 <= int(long.min()) <= int(long.max()) <= MASK
    with elsewhere() as device:
        there = Stream(stream.key, stream.clock.to(device)).words(40_000)
        assert all(word.device == device for word in there)
        there = tuple(word.cpu() for word in there)
    assert all(torch.equal(a, b) for a, b in zip(many, there, strict=True))
    other = Stream(stream.key, torch.tensor([5, 18])).words(20)
    assert not torch.equal(other[0], few[0])


def test_compiled_words_are_those_of_plain_operations() -> None:
    import mmbench.ops.draws  # noqa: F401  # registers its kernels

    stream = Stream(2**62 + 12345, torch.tensor([3, 2**31 + 7]))
    for n in (1, 5000):
        plain = stream.words_of(torch.arange(n))
        assert all(torch.equal(a, b) for a, b in zip(stream.words(n), plain, strict=True))


def test_units_keep_53_bits_and_never_reach_one() -> None:
    most = torch.tensor([MASK])
    assert unit(most, most).item() == 1 - 2.0**-53
    assert unit(torch.tensor([32]), torch.tensor([64])).item() == 2.0**-27 + 2.0**-53
    for n in (1, 3, 39_108, 2**31):
        assert below(n, most, most).item() == n - 1
        assert below(torch.tensor([n]), most * 0, most * 0).item() == 0


def test_numbers_are_uniform_and_permutations_whole() -> None:
    words = Stream(3, torch.tensor([1, 0])).words(100_000)
    for high, low in (words[:2], words[2:]):
        assert stats.kstest(unit(high, low).numpy(), "uniform").pvalue > 1e-4
        counts = np.bincount(below(7, high, low).numpy(), minlength=7)
        assert stats.chisquare(counts).pvalue > 1e-4
    permutation = order(*words[:2])
    assert permutation.sort().values.tolist() == list(range(100_000))
    assert abs(stats.spearmanr(permutation.numpy(), np.arange(100_000))[0]) < 0.02
