"""The encoder registry: which families exist, who builds a model name, what `mmx models` lists.

A family is one class (see `mmx.encoders.base.Encoder`) and one line in `ENCODERS`, or an entry
point of another distribution. The paths are lazy: nothing heavy is imported before an encoder of
that modality is built.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import cast

from mmx.encoders.base import Encoder, EncoderInfo, EncoderSpec, Request
from mmx.errors import EncoderError, UsageError, unknown_name

__all__ = [
    "ENCODERS", "Encoder", "EncoderInfo", "EncoderSpec", "Request", "broken_families", "create", "describe", "families", "family",
    "needs_torch",
]  # fmt: skip

# Asked in this order: exact names first, families that take any hub id last.
ENCODERS: dict[str, str] = {
    "colour-hog": "mmx.encoders.handcrafted:ColourHogEncoder",
    "tfidf-lsa": "mmx.encoders.handcrafted:TfidfLsaEncoder",
    "mfcc": "mmx.encoders.handcrafted:MfccEncoder",
    "torchvision": "mmx.encoders.torchvision:TorchvisionEncoder",
    "sentence-transformers": "mmx.encoders.sentence_transformers:SentenceEncoder",
    "torchaudio": "mmx.encoders.torchaudio:TorchaudioEncoder",
    "open_clip": "mmx.encoders.open_clip:OpenClipEncoder",
    "transformers": "mmx.encoders.transformers:TransformersEncoder",
}


GROUP = "mmx.encoders"
"""Entry points of this group in other distributions are families, too: `name = "module:Class"`."""


def families() -> dict[str, str]:
    """Our families and those that installed distributions bring, by name; a name of ours cannot be taken."""
    found = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    return {**ENCODERS, **{name: path for name, path in found.items() if name not in ENCODERS}}


def broken_families() -> dict[str, str]:
    """Families of other distributions that cannot be imported or are no encoders, and why."""
    broken = {}
    for name in families().keys() - ENCODERS.keys():
        try:
            cls = family(name)
            if not (
                callable(getattr(cls, "accepts", None)) and callable(getattr(cls, "known", None))
            ):
                raise EncoderError(
                    f"encoder family {name!r}: {families()[name]} is no encoder class (accepts and "
                    "known are missing)"
                )
        except EncoderError as error:
            broken[name] = str(error)
    return broken


def family(name: str) -> type[Encoder]:
    """The class of a family.

    Raises:
        UsageError: No family has that name.
        EncoderError: The registered path leads nowhere.
    """
    known = families()
    if name not in known:
        raise unknown_name("encoder family", name, known)
    path = known[name]
    module, _, attribute = path.partition(":")
    try:
        return cast("type[Encoder]", getattr(importlib.import_module(module), attribute))
    except Exception as error:
        raise EncoderError(f"encoder family {name!r}: cannot import {path} ({error})") from error


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
) -> Encoder:
    """An encoder, ready to `load` and `encode` (after `fit`, where `needs_fit`).

    Args:
        model: A name that `describe` lists, a hub id, a local folder; `family:name` picks the
            family explicitly.
        modality: `visual`, `textual` or `audio`.
        layer: Output layer; None for the default one.
        pooling: How positions become one vector; None for the default.
        weights: `default`, `random` (seeded), a path to a checkpoint, a tag of the library, or `hub
            id[@revision]`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`. Handcrafted encoders compute on the CPU in any case.
        precision: `fp32`, `bf16` or `fp16`.
        offline: Never open a connection.
        seed: Seed of random weights and of fits.
        cache_dir: Where weights are looked for and downloaded to, instead of the libraries' own
            caches.

    Raises:
        UsageError: A name or option that does not exist or does not fit.
        EncoderError: The weights can't be had, a library is missing.
    """
    prefix, separator, rest = model.partition(":")
    known = families()
    chosen = (
        [prefix]
        if separator and prefix in known
        else [name for name in known if name not in broken_families()]
    )
    request = Request(
        model=rest if separator and prefix in known else model,
        modality=modality,
        layer=layer,
        pooling=pooling,
        weights=weights,
        device=device,
        precision=precision,
        offline=offline,
        seed=seed,
        cache_dir=cache_dir,
    )
    for name in chosen:
        cls = family(name)
        if modality in cls.modalities and cls.accepts(request.model, modality):
            return cls(request)  # type: ignore[call-arg]
    names = {info.name: info.modality for info in describe()}
    if request.model in names:
        raise UsageError(
            f"{request.model} is for --modality {names[request.model]} (got {modality})."
        )
    raise unknown_name(
        f"{modality} model", request.model, [name for name, of in names.items() if of == modality]
    )


def describe(modality: str | None = None, *, cache_dir: Path | None = None) -> list[EncoderInfo]:
    """What can be asked for, in the registry's order; builds no model and imports no heavy library.

    Args:
        modality: Only this one; None for all.
        cache_dir: Where weights are looked for, as in `create`.
    """
    infos = []
    broken = broken_families()
    for name in (name for name in families() if name not in broken):
        cls = family(name)
        for of in sorted(cls.modalities):
            if modality in (None, of):
                infos.extend(cls.known(of, cache_dir))
    return infos


def needs_torch(model: str, modality: str) -> bool:
    """Return whether an encoder computes with torch; imports no heavy library."""
    infos = describe(modality)
    return all(info.name != model or info.weights != "none needed" for info in infos)
