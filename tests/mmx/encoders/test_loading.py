"""Networks whose weights, code, adapter, tokenizer or positions are not theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.mmx.encoders.tiny_models import WORDS, save, tokenizer

from mmx.encoders import create
from mmx.encoders.weights.checkpoints import fill, read_state_dict
from mmx.encoders.weights.hub import ModelFolder
from mmx.encoders.weights.loading import n_positions
from mmx.errors import EncoderError

FAMILIES = ("sentence-transformers", "transformers")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def renamed(folder: Path, name_of: Callable[[str], str | None]) -> None:
    """Give the tensors of a folder other names; None takes one away."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    told = {name_of(name): value for name, value in tensors.items()}
    kept = {name: value for name, value in told.items() if name is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name_of", "expected"),
    [
        (lambda name: f"model.{name}", r"lack \d+ tensors.*; the file has model\.embeddings"),
        (lambda name: f"module.{name}", r"lack \d+ tensors.*; the file has module\.embeddings"),
        (lambda name: None if "position" in name else name, "lack 1 tensors"),
        (lambda name: None if "layer.1." in name else name, r"lack 16 tensors"),
        (lambda name: name.replace("layer.1.", "layer.2."), r"lack 16 tensors"),
    ],
)
def test_weights_under_other_names_are_not_replaced_by_random_ones(
    copy: Path, family: str, name_of: Callable[[str], str | None], expected: str
) -> None:
    renamed(copy, name_of)
    with pytest.raises(EncoderError, match=expected):
        create(f"{family}:{copy}", modality="textual")


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_of_another_shape_are_named(copy: Path, family: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    name = "embeddings.position_embeddings.weight"
    save_file({**tensors, name: tensors[name][:-3]}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=rf"1 tensors .* another shape .*{name}: \(\d+, \d+\)"):
        create(f"{family}:{copy}", modality="textual")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("added", "fits"),
    [
        ("encoder.layer.0.mlp.gate.weight", False),  # an architecture with gates
        ("encoder.layer.2.output.dense.bias", False),  # a deeper network
        ("cls.predictions.bias", True),  # a head
        ("embeddings.position_ids", True),  # a constant of older files
    ],
)
def test_tensors_without_a_place_are_those_of_a_head_or_refused(
    copy: Path, family: str, added: str, fits: bool
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {**load_file(copy / "model.safetensors"), added: torch.ones(3)}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    if fits:
        create(f"{family}:{copy}", modality="textual")
        return
    with pytest.raises(EncoderError, match=f"no place for, e.g. {added}; they are of another"):
        create(f"{family}:{copy}", modality="textual")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_class_whose_code_comes_with_the_model_is_refused(copy: Path, family: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    named = {**config, "auto_map": {"AutoModel": "org/code--modeling.AlibiBertModel"}}
    (copy / "config.json").write_text(json.dumps(named))
    with pytest.raises(EncoderError, match=r"is a AlibiBertModel.*no such code is run"):
        create(f"{family}:{copy}", modality="textual")
    named["auto_map"] = {"AutoModel": "org/code--modeling.BertModel"}  # transformers has it by now
    (copy / "config.json").write_text(json.dumps(named))
    create(f"{family}:{copy}", modality="textual")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_not_left_out_in_silence(copy: Path, family: str, name: str) -> None:
    (copy / name).write_text("{}")
    with pytest.raises(EncoderError, match="holds an adapter.*merge it with peft"):
        create(f"{family}:{copy}", modality="textual")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_digest_is_of_the_files_that_are_loaded(copy: Path, family: str) -> None:
    before = create(f"{family}:{copy}", modality="textual").spec.weights_sha256
    for name in (
        "checkpoint-5/model.safetensors", "openvino/openvino_model.bin", "pytorch_model.bin",
        "consolidated.safetensors", "optimizer.bin",
    ):  # fmt: skip
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"not loaded")
    assert create(f"{family}:{copy}", modality="textual").spec.weights_sha256 == before


def test_the_digest_holds_the_weights_of_every_module(copy: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    model = SentenceTransformer(str(copy), device="cpu")
    model.append(Dense(32, 8))
    model.save(str(copy.with_name("dense")), create_model_card=False)
    folder = ModelFolder(copy.with_name("dense"), "dense")
    names = [path.relative_to(folder.path).as_posix() for path in folder.weights()]
    assert names == ["3_Dense/model.safetensors", "model.safetensors"] or names == [
        "model.safetensors",
        "3_Dense/model.safetensors",
    ]
    assert create(str(folder.path), modality="textual").spec.dim == 8
    network = create(f"transformers:{folder.path}", modality="textual").spec
    assert network.weights_sha256 == ModelFolder(copy, "x").sha256()


def test_a_checkpoint_of_a_deeper_network_is_not_one_of_a_shallower_one() -> None:
    from torch import nn

    def network(depth: int, head: bool) -> nn.Module:
        parts = {"body": nn.Sequential(*(nn.Linear(2, 2) for _ in range(depth)))}
        return nn.ModuleDict({**parts, "fc": nn.Linear(2, 3)} if head else parts)

    cut, deeper = network(2, head=False), network(3, head=True).state_dict()
    with pytest.raises(EncoderError, match=r"body\.2\.\w+ has no place in it; body"):
        fill(cut, deeper, what="shallow", where="deep.pt")
    fill(cut, deeper, whole=set(deeper), what="the first of three layers", where="deep.pt")
    fill(cut, network(2, head=True).state_dict(), what="shallow", where="with its head.pt")


def test_a_deeper_resnet_is_refused(tmp_path: Path) -> None:
    import torch

    models = pytest.importorskip("torchvision.models")
    state = models.resnet18().state_dict()
    state["layer1.2.conv1.weight"] = torch.ones(64, 64, 3, 3)  # as a ResNet-34 has it
    torch.save(state, tmp_path / "resnet34.pt")
    with pytest.raises(EncoderError, match=r"layer1\.2\.conv1\.weight has no place"):
        create("resnet18", modality="visual", weights=str(tmp_path / "resnet34.pt"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(copy: Path, family: str) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(str(copy))
    words.add_tokens(["sofa", "table"])
    words.save_pretrained(copy)
    with pytest.raises(EncoderError, match=r"up to number 18, and the network knows 17 \(0 to 16"):
        create(f"{family}:{copy}", modality="textual")


def test_a_stated_length_beyond_the_positions_is_refused(copy: Path) -> None:
    path = copy / "sentence_bert_config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "max_seq_length": 64}))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 64}))
    with pytest.raises(EncoderError, match="texts of 64 tokens, and the network has positions for"):
        create(str(copy), modality="textual")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", [0, 3])
def test_positions_behind_the_padding_are_counted(tmp_path: Path, family: str, pad: int) -> None:
    import transformers as t

    config = t.RobertaConfig(
        vocab_size=5 + len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=20, pad_token_id=pad,
    )  # fmt: skip
    network = t.RobertaModel(config)
    assert n_positions(network) == 20 - pad - 1
    save(network, tmp_path)
    tokenizer(tmp_path, limit=10**30)
    encoder = create(f"{family}:{tmp_path}", modality="textual")
    loaded = encoder.load("red " * 30)
    assert encoder.truncated(loaded) and encoder.sort_key(loaded) == 20 - pad - 1
    assert encoder.encode([loaded]).shape == (1, 16)


def test_a_processor_of_another_model_is_refused(models: Path, tmp_path: Path) -> None:
    import transformers as t

    folder = Path(shutil.copytree(models / "vit", tmp_path / "vit"))
    t.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)  # not 32
    with pytest.raises(EncoderError, match="fails on a sample .*doesn't match.*fit each other"):
        create(str(folder), modality="visual")


@pytest.mark.parametrize("content", [b"junk", b"c", b"(", b"X\x01", b"\x80\x02}q", b"PK\x03\x04"])
def test_any_bytes_as_weights_are_a_plain_error(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(EncoderError):
        read_state_dict(copy / "pytorch_model.bin")
    for family in FAMILIES:
        with pytest.raises(EncoderError, match="is not a"):
            create(f"{family}:{copy}", modality="textual")
