"""What makes two feature sets one encoder's, and what may differ between them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from mmbench.data.encoders import difference, encoder_of

RESNET: dict[str, Any] = {
    "extractor": "resnet50", "backend": "torchvision", "model_id": "resnet50", "modality": "visual",
    "weights": "IMAGENET1K_V2", "weights_sha256": "ab" * 32, "layer": "avgpool", "pooling": "mean",
    "preprocessing": {"resize": 232, "crop": [224, 224], "fit": {"state_sha256": "cd"}},
    "precision": "fp32", "libraries": {"torch": "2.11"}, "batch_size": 32, "device": "cuda",
    "input": {"columns": [], "digest": "12", "table": "items.tsv"}, "created": "2026-01-01",
}  # fmt: skip
IMPORTED = {"extractor": "import-npy", "backend": "import", "importer": {"file_sha256": "ef"}}


def changed(path: str, value: object) -> dict[str, Any]:
    """RESNET with another value at a dotted path."""
    told: dict[str, Any] = deepcopy(RESNET)
    *parents, last = path.split(".")
    part = told
    for name in parents:
        part = part[name]
    part[last] = value
    return told


def fused(*parts: dict[str, Any], how: str = "concat") -> dict[str, Any]:
    of = [{"name": f"n{n}", "content_digest": f"{n}", "provenance": p} for n, p in enumerate(parts)]
    return {"backend": "fusion", "fusion": how, "scaling": "none", "of": of}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("precision", "bf16"), ("libraries", {"torch": "2.12"}), ("device", "cpu"),
        ("batch_size", 8), ("created", "2027-01-01"), ("weights", "a folder's name"),
        ("input.digest", "34"), ("input.table", "items.csv"), ("input.columns", ["image"]),
        ("extractor", "my-name"), ("seed", 3),
    ],
)  # fmt: skip
def test_items_and_machine_leave_an_encoder_what_it_is(path: str, value: object) -> None:
    assert not difference(RESNET, changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("backend", "timm"), ("model_id", "resnet18"), ("weights_sha256", "00" * 32),
        ("layer", "layer3"), ("pooling", "max"), ("preprocessing.crop", [225, 224]),
        ("preprocessing.fit.state_sha256", "dc"), ("input.several", "mean"),
        ("input.background", "white"), ("input.long_texts", "chunks"),
    ],
)  # fmt: skip
def test_the_first_difference_of_encoders_is_named(path: str, value: object) -> None:
    assert difference(RESNET, changed(path, value)).startswith(f"{path} is ")
    assert difference(changed(path, value), RESNET).endswith(" here")


def test_without_a_digest_of_weights_their_name_counts() -> None:
    named = changed("weights_sha256", None)
    assert not difference(named, named)
    assert "weights is" in difference(named, {**named, "weights": "random(seed=1)"})


def test_imported_sets_are_of_one_encoder_if_they_come_from_one_file() -> None:
    other = {**IMPORTED, "importer": {"file_sha256": "fe", "format": "npy"}}
    assert not difference(IMPORTED, {**IMPORTED, "tool": "newer"})
    assert difference(IMPORTED, other) == "importer.file_sha256 is ef there and fe here"
    assert "importer" in difference(RESNET, IMPORTED) or "backend" in difference(RESNET, IMPORTED)


def test_fused_sets_are_what_their_parts_are() -> None:
    both = fused(RESNET, IMPORTED)
    assert not difference(both, fused(changed("input.digest", "34"), IMPORTED))
    assert "of.0.layer" in difference(both, fused(changed("layer", "layer3"), IMPORTED))
    assert "fusion" in difference(both, fused(RESNET, IMPORTED, how="sum"))
    assert difference(fused(IMPORTED, RESNET), both)
    assert not encoder_of(fused(RESNET, {"extractor": "?"}))


@pytest.mark.parametrize(
    "nothing",
    [{}, {"extractor": "test"}, {"importer": {}}, {"backend": "fusion", "of": 3}, fused()],
)
def test_a_set_that_does_not_say_is_never_the_same(nothing: dict[str, Any]) -> None:
    assert difference(RESNET, nothing) == "here, the set's provenance names no encoder"
    assert difference(nothing, nothing).startswith("there and here")
