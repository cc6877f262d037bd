"""Whether two feature sets are of one encoder, so that a number means the same in both.

What tells is how the sets say they were made (mmstore's FORMAT.md, section 5): the model, the
SHA-256 of its weights, layer, pooling and preprocessing, and how contents were treated before. The
items, columns, machine, precision and versions may differ: they leave a vector's meaning alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

OF_ENCODER = (
    "backend", "model_id", "weights_sha256", "weights", "layer", "pooling", "preprocessing",
)  # fmt: skip
OF_INPUT = ("several", "background", "long_texts")
OF_FUSION = ("backend", "fusion", "scaling")


def encoder_of(provenance: Mapping[str, object]) -> dict[str, object]:
    """Return what identifies the encoder of a set, by dotted keys; empty if the set doesn't say."""
    if provenance.get("backend") == "fusion":
        parts = provenance.get("of")
        told = [
            encoder_of(part["provenance"])
            for part in (parts if isinstance(parts, list) else [])
            if isinstance(part, Mapping) and isinstance(part.get("provenance"), Mapping)
        ]
        if not (told and all(told)):
            return {}
        own = dict(_leaves({key: provenance.get(key) for key in OF_FUSION}))
        return own | {
            f"of.{n}.{key}": value for n, part in enumerate(told) for key, value in part.items()
        }
    importer, given = provenance.get("importer"), provenance.get("input")
    if isinstance(importer, Mapping):  # one file may serve two datasets, each with its own items
        return {"importer.file_sha256": one} if (one := importer.get("file_sha256")) else {}
    if not provenance.get("model_id"):
        return {}
    told_of = {key: provenance.get(key) for key in OF_ENCODER}
    if told_of["weights_sha256"] is not None:
        del told_of["weights"]  # a folder's name, say: the same bytes may be called otherwise
    treated = given if isinstance(given, Mapping) else {}
    return dict(_leaves({**told_of, "input": {key: treated.get(key) for key in OF_INPUT}}))


def difference(there: Mapping[str, object], here: Mapping[str, object]) -> str:
    """Return the first thing in which the encoders of two provenances differ, in words.

    Empty if they are the same encoder.
    """
    one, other = encoder_of(there), encoder_of(here)
    if not (one and other):
        where = " and ".join(side for side, told in (("there", one), ("here", other)) if not told)
        return f"{where}, the set's provenance names no encoder"
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            return f"{key} is {_short(one.get(key))} there and {_short(other.get(key))} here"
    return ""


def _leaves(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The dotted keys of a JSON tree with their values; lists are leaves."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
