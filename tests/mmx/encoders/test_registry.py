"""The registry: lazy, complete, with errors that name the ways out."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmx.encoders import (
    ENCODERS,
    Encoder,
    broken_families,
    create,
    describe,
    family,
    needs_torch,
)
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


PLUGIN = """
import numpy as np
from mmx.encoders import Encoder, EncoderFamily, EncoderInfo, EncoderSpec

class Letters(Encoder):
    def __init__(self, request):
        self.spec = EncoderSpec(
            "letters", "textual", "letters", "letters", 2, "none", "none", {}, "none", None, None,
            "fp32",
        )

    def load(self, content):
        return content

    def encode(self, batch):
        return np.array([[len(text), text.count("a")] for text in batch], np.float32)

INFO = EncoderInfo("letters", "textual", "letters", 2, "none", "none", None, "text", "none needed")
FAMILY = EncoderFamily(
    name="letters",
    modalities=frozenset({"textual"}),
    accepts=lambda model, modality: model == "letters",
    known=lambda modality, cache_dir: [INFO],
    build=Letters,
    needs_torch=False,
)
"""


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_family_describes_itself_without_being_built(name: str) -> None:
    found = family(name)
    assert found.name == name
    assert found.modalities and found.modalities <= set(MODALITIES)
    for modality in found.modalities:
        infos = found.known(modality, None)
        assert infos
        for info in infos:
            assert info.modality == modality and info.family == name
            assert info.weights in ("none needed", "here", "download")
            assert (info.weights == "none needed") is not needs_torch(info.name, modality)
            assert found.accepts(info.name.removeprefix(f"{name}:"), modality)  # as `create` asks


def test_names_are_unique_within_a_modality() -> None:
    names = [(info.modality, info.name.lower()) for info in describe()]
    assert len(names) == len(set(names))


def test_encoders_without_weights_are_listed_first() -> None:
    weightless = [info.weights == "none needed" for info in describe()]
    assert weightless == sorted(weightless, reverse=True)
    assert [info.name for info in describe()][:3] == ["colour-hog", "tfidf-lsa", "mfcc"]


def test_describe_filters_by_modality() -> None:
    assert {info.modality for info in describe("audio")} == {"audio"}
    assert {info.modality for info in describe()} == set(MODALITIES)


def test_listing_imports_nothing_heavy() -> None:
    modules = ("torch", "torchvision", "torchaudio", "transformers", "sklearn", "PIL")
    heavy = f"[m for m in {modules} if m in sys.modules]"
    code = f"import sys; from mmx.encoders import describe; describe(); print({heavy})"
    assert run_python(code) == "[]"


def test_a_textual_encoder_does_not_import_vision_or_audio() -> None:
    heavy = (
        "[m for m in ('torch', 'torchvision', 'torchaudio', 'transformers') if m in sys.modules]"
    )
    create = "from mmx.encoders import create; create('tfidf-lsa', modality='textual')"
    assert run_python(f"import sys; {create}; print({heavy})") == "[]"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("needs_torch('resnet18', 'visual')", ["torchvision"]),
        (
            "needs_torch('WAVLM_BASE', 'audio')",
            ["torchvision", "sentence_transformers", "torchaudio"],
        ),
        ("needs_torch('all-MiniLM-L6-v2', 'textual')", ["torchvision", "sentence_transformers"]),
        ("needs_torch('open_clip:ViT-B-32', 'visual')", ["open_clip"]),
        ("create('colour-hog', modality='visual')", ["handcrafted"]),
        ("create('mfcc', modality='audio')", ["handcrafted"]),
    ],
)
def test_a_name_imports_no_more_families_than_it_must(call: str, expected: list[str]) -> None:
    modules = [path.partition(":")[0].rpartition(".")[2] for path in ENCODERS.values()]
    found = f"[m for m in {modules} if 'mmx.encoders.' + m in sys.modules]"
    code = f"import sys; from mmx.encoders import create, needs_torch; {call}; print({found})"
    assert set(ast.literal_eval(run_python(code))) == set(expected)


def test_which_models_need_torch() -> None:
    assert needs_torch("resnet18", "visual") and needs_torch("nobody's", "audio")
    assert not needs_torch("mfcc", "audio") and not needs_torch("tfidf-lsa:tfidf-lsa", "textual")


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


def test_other_distributions_bring_encoders_and_broken_ones_harm_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.commands.doctor import examine

    (tmp_path / "letters_plugin.py").write_text(PLUGIN)
    (tmp_path / "broken_plugin.py").write_text("raise ZeroDivisionError('oh no')")
    info = tmp_path / "letters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: letters\nVersion: 1.0\n")
    points = [
        "broken = broken_plugin:Nothing",
        "letters = letters_plugin:FAMILY",
        "class = letters_plugin:Letters",
        "mfcc = letters_plugin:FAMILY",
    ]
    (info / "entry_points.txt").write_text("\n".join(["[mmx.encoders]", *points]) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = create("letters", modality="textual")
    assert encoder.encode([encoder.load("banana")]).tolist() == [[6, 3]]
    assert not needs_torch("letters", "textual")
    assert "letters" in {info.name for info in describe("textual")}
    assert create("mfcc", modality="audio").spec.backend == "handcrafted"
    assert sorted(broken_families()) == ["broken", "class"]
    problems = "\n".join(examine(tmp_path)["problems"])
    assert "oh no" in problems and "is no EncoderFamily (got Letters)" in problems
    with pytest.raises(EncoderError, match="oh no"):
        create("broken:x", modality="textual")


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
