"""The conformance suite: what any encoder must keep to, ours or another distribution's.

For tests only. `check_encoder` raises an AssertionError that names what an encoder does wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import MODALITIES, Encoder, loaded_or_error
from mmx.errors import ContentError


def check_encoder(
    encoder: Encoder,
    contents: Sequence[Path | str],
    corrupt: Sequence[Any],
    *,
    tolerance: float = 1e-5,
) -> None:
    """Check an encoder against the contract of `Encoder`.

    Args:
        encoder: Any encoder; one that needs a fit is fitted with `contents`.
        contents: Three or more contents of its modality, of different size and with clearly
            different vectors.
        corrupt: Contents that cannot be decoded, at least one.
        tolerance: Largest difference that a batch's composition may make, relative to the largest
            number of all vectors; 0 where vectors are equal bit for bit, as those of encoders that
            pad batches to `batch_size`.

    Raises:
        AssertionError: Names the rule that is broken.
    """
    assert len(contents) >= 3 and corrupt, "the suite needs three contents and a corrupt one"
    if encoder.needs_fit:
        encoder.fit(contents)
    encoder.batch_size = len(contents)
    try:
        _check_spec(encoder, contents)
        loaded = [encoder.load(content) for content in contents]
        _check_loaded(encoder, loaded)
        _check_vectors(encoder, loaded, tolerance)
        _check_threads(encoder, contents)
        _check_failures(encoder, contents, corrupt)
        _check_many(encoder, contents, corrupt)
    finally:
        encoder.batch_size = None


def _check_spec(encoder: Encoder, contents: Sequence[Path | str]) -> None:
    spec = encoder.spec
    assert spec.modality in MODALITIES, f"modality {spec.modality!r} is none of {MODALITIES}"
    assert type(spec.dim) is int and spec.dim > 0, f"spec.dim is {spec.dim!r} (expected an int > 0)"
    told = spec.provenance()
    try:
        again = json.loads(json.dumps(told, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the provenance is not JSON ({error})") from error
    assert again == told, "the provenance changes when it is written as JSON and read again"
    places = {str(Path(content).parent) for content in contents if isinstance(content, Path)}
    for text in _texts(told):
        # Somebody else's folders mean nothing elsewhere, and tell who somebody is.
        bad = Path(text).is_absolute() or any(
            place in text for place in {*places, str(Path.home())}
        )
        assert not bad, f"the provenance holds a path: {text!r}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value


def _check_loaded(encoder: Encoder, loaded: Sequence[Any]) -> None:
    for one in loaded:
        key, cut = encoder.sort_key(one), encoder.truncated(one)
        assert isinstance(key, int | np.integer) and not isinstance(key, bool), (
            f"sort_key gives {key!r} (expected an int)"
        )
        assert isinstance(cut, bool), f"truncated gives {cut!r} (expected a bool)"


def _check_vectors(encoder: Encoder, loaded: Sequence[Any], tolerance: float) -> None:
    alone = [_encoded(encoder, [one])[0] for one in loaded]
    bound = tolerance * max(np.abs(vector).max() for vector in alone)
    everyone = list(range(len(loaded)))
    _same(_encoded(encoder, [loaded[0]])[0], alone[0], 0.0, "the same item encoded again")
    for what, order in (
        ("a batch of all items", everyone),
        ("the same batch in reverse order", everyone[::-1]),
        ("a batch without the first item", everyone[1:]),
        ("a batch that has an item twice", [0, 0, *everyone[2:]]),
    ):
        rows = _encoded(encoder, [loaded[i] for i in order])
        for row, i in zip(rows, order, strict=True):
            nearest = min(everyone, key=lambda k: _distance(row, alone[k]))
            assert _distance(row, alone[nearest]) == _distance(row, alone[i]), (
                f"{what}: item {i} has the vector of item {nearest}; row i belongs to batch[i]"
            )
            _same(row, alone[i], bound, f"{what}: item {i}")
    assert len({vector.tobytes() for vector in alone}) == len(alone), (
        "some contents have equal vectors, so that their order could not be checked"
    )


def _encoded(encoder: Encoder, batch: Sequence[Any]) -> list[NDArray[np.float32]]:
    """One vector per item, or with a ragged encoder one array (k, dim), all of them checked."""
    vectors: Any = encoder.encode(batch)
    n, dim = len(batch), encoder.spec.dim
    if not encoder.ragged:
        assert isinstance(vectors, np.ndarray), f"encode gives {type(vectors).__name__}"
        assert vectors.shape == (n, dim), f"encode gives shape {vectors.shape} (expected {n, dim})"
    assert len(vectors) == n, f"encode gives {len(vectors)} arrays (expected {n})"
    for one in vectors:
        assert one.dtype == np.float32, f"encode gives {one.dtype} (expected float32)"
        assert one.shape[-1] == dim, f"encode gives vectors of length {one.shape[-1]} (spec: {dim})"
        assert one.size and one.ndim == 1 + encoder.ragged, f"an item has vectors {one.shape}"
        assert np.isfinite(one).all(), "encode gives numbers that are not finite"
    return list(vectors)


def _distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a.astype(np.float64) - b).max()) if a.shape == b.shape else np.inf


def _same(a: NDArray[np.float32], b: NDArray[np.float32], bound: float, what: str) -> None:
    distance = _distance(a, b)
    assert distance <= bound, (
        f"{what} differs from the item encoded alone by {distance:g} (allowed: {bound:g}); a "
        "vector must not depend on its batch"
    )


def _check_threads(encoder: Encoder, contents: Sequence[Path | str]) -> None:
    """Load everything from many threads at once, and compare with one thread, bit for bit."""
    repeated = list(contents) * 4
    with _eager_switching(), ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(encoder.load, repeated))
    expected = _encoded(encoder, [encoder.load(content) for content in contents])
    for start in range(0, len(loaded), len(contents)):
        found = _encoded(encoder, loaded[start : start + len(contents)])
        for a, b in zip(found, expected, strict=True):
            _same(a, b, 0.0, "load is not safe from threads: an item loaded beside others")


@contextmanager
def _eager_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _check_many(encoder: Encoder, contents: Sequence[Path | str], corrupt: Sequence[Any]) -> None:
    """Load everything in one call, from two threads at once, and compare with one by one."""
    some = [*contents, *corrupt]
    alone = [loaded_or_error(encoder.load, content) for content in some]
    expected = _encoded(encoder, alone[: len(contents)])
    with _eager_switching(), ThreadPoolExecutor(2) as pool:
        several = list(pool.map(encoder.load_many, [some] * 2))
    for many in several:
        assert len(many) == len(some), f"load_many gives {len(many)} items (expected {len(some)})"
        for one, other in zip(many[len(contents) :], alone[len(contents) :], strict=True):
            assert isinstance(one, ContentError) and str(one) == str(other), (
                f"load_many gives {one!r} where load raises {other!r}"
            )
        for one, other in zip(many, alone[: len(contents)], strict=False):
            what = f"load_many gives {str(one)[:60]}, load {str(other)[:60]}"
            assert encoder.sort_key(one) == encoder.sort_key(other), what
            assert encoder.truncated(one) == encoder.truncated(other), what
        for k, vector in enumerate(_encoded(encoder, many[: len(contents)])):
            _same(vector, expected[k], 0.0, f"load_many: item {k}")


def _check_failures(
    encoder: Encoder, contents: Sequence[Path | str], corrupt: Sequence[Any]
) -> None:
    cases: list[tuple[Any, type[Exception], str]] = [
        (content, ContentError, "corrupt content") for content in corrupt
    ]
    if isinstance(contents[0], Path):
        vanished = contents[0].with_name("vanished" + contents[0].suffix)
        cases.append((vanished, FileNotFoundError, "a file that is not there"))
    for content, expected, what in cases:
        try:
            encoder.load(content)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            assert isinstance(error, expected), (
                f"{what} ({str(content)[:60]!r}) raises {type(error).__name__} (expected "
                f"{expected.__name__}): {error}"
            )
            named = isinstance(content, Path) and str(content) in str(error)
            assert expected is FileNotFoundError or not named, f"the reason names the path: {error}"
        else:
            raise AssertionError(f"{what} ({str(content)[:60]!r}) is loaded without an error")
