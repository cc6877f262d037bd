"""The registry: lazy, complete, with errors that name the ways out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from mmx.encoders import ENCODERS, Encoder, create, describe, family
from mmx.encoders.base import MODALITIES, EncoderSpec, Request, slug
from mmx.errors import EncoderError, UsageError

SPEC = EncoderSpec(
    "a",
    "visual",
    "b",
    "m",
    3,
    "l",
    "none",
    {"size": (1, 2)},
    "none",
    None,
    None,
    "fp32",
    {"z": "1", "a": "2"},
)


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_family_describes_itself_without_being_built(name: str) -> None:
    cls = family(name)
    assert cls.modalities and cls.modalities <= set(MODALITIES)
    for modality in cls.modalities:
        infos = cls.known(modality)
        assert infos
        for info in infos:
            assert info.modality == modality and info.family == name
            assert info.weights in ("none needed", "here", "download")
            assert cls.accepts(info.name.removeprefix(f"{name}:"), modality)  # as `create` asks


def test_names_are_unique_within_a_modality() -> None:
    names = [(info.modality, info.name.lower()) for info in describe()]
    assert len(names) == len(set(names))


def test_describe_filters_by_modality() -> None:
    assert {info.modality for info in describe("audio")} == {"audio"}
    assert {info.modality for info in describe()} == set(MODALITIES)


def test_listing_imports_nothing_heavy() -> None:
    heavy = "[m for m in ('torch', 'torchvision', 'torchaudio', 'transformers', 'sklearn', 'PIL') if m in sys.modules]"
    assert (
        run_python(f"import sys; from mmx.encoders import describe; describe(); print({heavy})")
        == "[]"
    )


def test_a_textual_encoder_does_not_import_vision_or_audio() -> None:
    heavy = (
        "[m for m in ('torch', 'torchvision', 'torchaudio', 'transformers') if m in sys.modules]"
    )
    code = f"import sys; from mmx.encoders import create; create('tfidf-lsa', modality='textual'); print({heavy})"
    assert run_python(code) == "[]"


@pytest.mark.parametrize(
    ("model", "modality", "expected"),
    [
        ("mfc", "audio", "Did you mean 'mfcc'"),
        ("resnet51", "visual", "Did you mean 'resnet5"),
        ("mfcc", "visual", "mfcc is for --modality audio"),
        ("mfcc", "smell", "unknown modality 'smell'"),
        ("torchvision:nope", "visual", "unknown visual model 'nope'"),
    ],
)
def test_names_that_do_not_exist(model: str, modality: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        create(model, modality=modality)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "random"},
        {"precision": "bf16"},
        {"precision": "fp64"},
        {"layer": "conv1"},
        {"pooling": "mean"},
    ],
)
def test_options_that_do_not_exist(options: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        create("colour-hog", modality="visual", **options)  # type: ignore[arg-type]


def test_the_family_can_be_named() -> None:
    encoder = create("mfcc:mfcc", modality="audio")
    assert encoder.spec.name == "mfcc"
    assert isinstance(encoder, Encoder)


def test_a_path_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "broken", "mmx.encoders.nothing:Nothing")
    with pytest.raises(EncoderError, match="broken"):
        family("broken")


def test_provenance_is_plain_json_and_complete() -> None:
    written = json.loads(json.dumps(SPEC.provenance()))
    assert written["preprocessing"] == {"size": [1, 2]}
    assert list(written["libraries"]) == ["a", "z"]
    names = {field.name for field in dataclasses.fields(EncoderSpec)} - {"name"} | {"extractor"}
    assert set(written) == names - {
        "training"
    }  # only fine-tuned weights have been trained on anything here
    tuned = dataclasses.replace(SPEC, training={"split": "s", "lr": 0.1}).provenance()
    assert set(tuned) == names
    assert tuned["training"] == {"split": "s", "lr": 0.1}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("BAAI/bge-base-en-v1.5",), "bge-base-en-v1-5"),
        (("vit_b_16", "", "random"), "vit_b_16-random"),
        (("../../etc/passwd",), "passwd"),
        (("日本",), "encoder"),
    ],
)
def test_slugs_are_safe_file_names(parts: tuple[str, ...], expected: str) -> None:
    assert slug(*parts) == expected


def test_a_request_refuses_only_what_differs() -> None:
    request = Request("m", "visual", layer="avgpool")
    request.refuse(layer="avgpool", pooling="mean")
    with pytest.raises(UsageError, match="--layer avgpool is not possible"):
        request.refuse(layer="conv1")
