"""The encoder registry: which families exist, who builds a model, what `mmx models` lists.

A family is one `EncoderFamily` and one line in `ENCODERS`, or an entry point of another
distribution. The paths are lazy: only the modules that a model name leads to are imported, and
libraries only when an encoder is built.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from mmx.encoders.base import (
    DECODERS,
    Encoder,
    EncoderFamily,
    EncoderInfo,
    EncoderSpec,
    Request,
)  # fmt: skip
from mmx.errors import EncoderError, UsageError, unknown_name

__all__ = [
    "ENCODERS", "Encoder", "EncoderFamily", "EncoderInfo", "EncoderSpec", "Request",
    "broken_families", "create", "describe", "families", "family", "needs_torch",
]  # fmt: skip

# Asked in this order; families that take any hub id or folder come after those of fixed names. The
# last five have one model each, of the family's name.
ENCODERS: dict[str, str] = {
    "torchvision": "mmx.encoders.torchvision:FAMILY",
    "sentence-transformers": "mmx.encoders.sentence_transformers:FAMILY",
    "torchaudio": "mmx.encoders.torchaudio:FAMILY",
    "open_clip": "mmx.encoders.open_clip:FAMILY",
    "transformers": "mmx.encoders.transformers:FAMILY",
    "colour-hog": "mmx.encoders.handcrafted:COLOUR_HOG",
    "tfidf-lsa": "mmx.encoders.handcrafted:TFIDF_LSA",
    "mfcc": "mmx.encoders.handcrafted:MFCC",
    "colour-histogram": "mmx.encoders.colour_histogram:FAMILY",
    "edge-map": "mmx.encoders.edge_map:FAMILY",
}

GROUP = "mmx.encoders"
"""Entry points of this group in other distributions are families, too: `name = "module:FAMILY"`."""


def families() -> dict[str, str]:
    """Return the paths of our families and of installed distributions'; ours can't be replaced."""
    found = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    return {**ENCODERS, **{name: path for name, path in found.items() if name not in ENCODERS}}


def family(name: str) -> EncoderFamily:
    """Import a family.

    Raises:
        UsageError: No family has that name.
        EncoderError: The registered path does not lead to a family.
    """
    known = families()
    if name not in known:
        raise unknown_name("encoder family", name, known)
    return _imported(name, known[name])


def broken_families() -> dict[str, str]:
    """Return the other distributions' families that cannot be imported, with the reason."""
    return _broken(families())


def _broken(known: Mapping[str, str]) -> dict[str, str]:
    broken = {}
    for name, path in known.items():
        try:
            if name not in ENCODERS:
                _imported(name, path)
        except EncoderError as error:
            broken[name] = str(error)
    return broken


def create(
    model: str,
    *,
    modality: str,
    layer: str | None = None,
    pooling: str | None = None,
    weights: str = "default",
    device: str = "cpu",
    precision: str = "fp32",
    offline: bool = False,
    seed: int = 0,
    cache_dir: Path | None = None,
    decoder: str = "pil",
) -> Encoder:
    """Build an encoder, ready to `load` and `encode` (after `fit`, where `needs_fit`).

    `model` is a name that `describe` lists, a hub id or a local folder; `family:name` picks the
    family explicitly. The other arguments are the attributes of `Request`.

    Raises:
        UsageError: A name or option that does not exist or does not fit.
        EncoderError: The weights can't be had, a library is missing.
    """
    found, name = _find(model, modality)
    request = Request(
        name,
        modality,
        layer,
        pooling,
        weights,
        device,
        precision,
        offline,
        seed,
        cache_dir,
        decoder,
    )
    if found is not None:
        possible = found.decoders if modality == "visual" else {"pil"}
        if decoder in DECODERS and decoder not in possible:
            raise UsageError(
                f"{name}: --decoder {decoder} is not possible; here it is "
                f"{' or '.join(each for each in DECODERS if each in possible)}."
            )
        return found.build(request)
    names = {info.name: info.modality for info in describe()}
    if name in names:
        raise UsageError(f"{name} is for --modality {names[name]} (got {modality}).")
    raise unknown_name(
        f"{modality} model", name, [known for known, of in names.items() if of == modality]
    )


def needs_torch(model: str, modality: str) -> bool:
    """Whether torch must be imported to choose the device; yes for a model that no family has."""
    found, _ = _find(model, modality)
    return found is None or found.needs_torch


def describe(modality: str | None = None, *, cache_dir: Path | None = None) -> list[EncoderInfo]:
    """List the models, those that need no weights first; imports no heavy library.

    Args:
        modality: Only this one; None for all.
        cache_dir: Where weights are looked for, as in `create`.
    """
    paths = families()  # once: to ask all distributions takes as long as to import our families
    broken = _broken(paths)
    usable = ((name, path) for name, path in paths.items() if name not in broken)
    infos = [
        info
        for found in (_imported(name, path) for name, path in usable)
        for of in sorted(found.modalities)
        if modality in (None, of)
        for info in found.known(of, cache_dir)
    ]
    return sorted(infos, key=lambda info: info.weights != "none needed")


def _imported(name: str, path: str) -> EncoderFamily:
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise EncoderError(f"encoder family {name!r}: cannot import {path} ({error})") from error
    if not isinstance(found, EncoderFamily):
        raise EncoderError(
            f"encoder family {name!r}: {path} is no EncoderFamily (got "
            f"{getattr(found, '__name__', type(found).__name__)}); docs/encoders.md has an example"
        )
    return found


def _find(model: str, modality: str) -> tuple[EncoderFamily | None, str]:
    """The first family that accepts a model, and the model's name without the family."""
    known = families()
    prefix, separator, rest = model.partition(":")
    if separator and prefix in known:
        model, names = rest, [prefix]
    else:
        # The name of one of our families needs no other family to be imported and asked.
        names = sorted(known, key=lambda name: name != model or name not in ENCODERS)
    for name in names:
        try:
            found = _imported(name, known[name])
        except EncoderError:
            if name == prefix or name in ENCODERS:
                raise
            continue  # `mmx doctor` reports it; it must not keep others from working
        if modality in found.modalities and found.accepts(model, modality):
            return found, model
    return None, model
