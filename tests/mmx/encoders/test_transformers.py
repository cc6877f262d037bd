"""transformers and open_clip models against the libraries, one item at a time."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.mmx.encoders.on_another_device import same_there

from mmx.encoders import create, describe
from mmx.errors import ContentError, EncoderError, UsageError

TEXTS = [
    "red silk dress",
    "the lamp",
    "blue",
    "the chair of the blue lamp",
    "unheard-of 日本",
    "red " * 60,
]


def batches(encoder: Any, contents: list[Any]) -> Iterator[np.ndarray]:
    """Vectors at batch 1, 7 and 64; the items are repeated to fill the large batch."""
    loaded = [encoder.load(content) for content in contents]
    n = len(loaded)
    yield np.concatenate([encoder.encode([one]) for one in loaded])
    seven = [loaded[k % n] for k in range(7)]
    yield encoder.encode(seven)[: min(n, 7)] if n <= 7 else encoder.encode(loaded)
    yield encoder.encode([loaded[k % n] for k in range(64)])[:n]


def check(encoder: Any, contents: list[Any], expected: np.ndarray) -> None:
    assert encoder.spec.dim == expected.shape[1]
    for vectors in batches(encoder, contents):
        np.testing.assert_allclose(vectors, expected[: len(vectors)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit", {}),
        ("vit", {"pooling": "mean"}),
        ("vit", {"layer": "1"}),
        ("dinov2", {}),
        ("convnext", {}),
        ("clip", {}),
        ("siglip", {}),
    ],
)
def test_vision(models: Path, pictures: list[Path], name: str, options: dict[str, str]) -> None:
    import torch
    import transformers as t
    from PIL import Image

    folder = str(models / name)
    model, processor = (
        t.AutoModel.from_pretrained(folder).train(False),
        t.AutoImageProcessor.from_pretrained(folder),
    )
    rows = []
    for path in pictures:
        pixels = torch.from_numpy(
            np.asarray(
                processor(images=Image.open(path).convert("RGB"), return_tensors="np")[
                    "pixel_values"
                ]
            )
        )
        with torch.inference_mode():
            if name in ("clip", "siglip"):
                out = model.get_image_features(pixel_values=pixels)
                rows.append((out if hasattr(out, "shape") else out.pooler_output)[0])
                continue
            out = model(pixel_values=pixels, output_hidden_states=True)
        states = out.hidden_states[1] if "layer" in options else out.last_hidden_state
        if name == "convnext":
            rows.append(states[0].mean((1, 2)))
        else:
            rows.append(states[0].mean(0) if options.get("pooling") == "mean" else states[0, 0])
    encoder = create(folder, modality="visual", **options)  # type: ignore[arg-type]
    assert encoder.spec.backend == "transformers"
    assert encoder.spec.pooling == (
        "none"
        if name in ("clip", "siglip")
        else options.get("pooling", "mean" if name == "convnext" else "cls")
    )
    check(encoder, pictures, torch.stack(rows).numpy())


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("layer", ["last", "1"])
def test_text(models: Path, pooling: str, layer: str) -> None:
    import torch
    import transformers as t

    folder = str(models / "bert")
    model, words = (
        t.AutoModel.from_pretrained(folder).train(False),
        t.AutoTokenizer.from_pretrained(folder),
    )
    rows = []
    for text in TEXTS:
        with torch.inference_mode():
            out = model(
                **words(text, return_tensors="pt", truncation=True, max_length=16),
                output_hidden_states=True,
            )
        states = (out.last_hidden_state if layer == "last" else out.hidden_states[1])[0]
        rows.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
    encoder = create(f"transformers:{folder}", modality="textual", pooling=pooling, layer=layer)
    check(encoder, TEXTS, torch.stack(rows).numpy())
    assert [encoder.truncated(encoder.load(text)) for text in TEXTS] == [False] * 5 + [True]


@pytest.mark.parametrize("name", ["bert", "clip", "siglip"])
def test_a_text_one_token_too_long_is_truncated_and_one_that_just_fits_is_not(
    models: Path, name: str
) -> None:
    encoder = create(f"transformers:{models / name}", modality="textual")
    fits, too_long = (encoder.load("red " * n) for n in (14, 15))  # 16 with [CLS] and [SEP]
    assert (encoder.truncated(fits), encoder.truncated(too_long)) == (False, True)
    assert fits["ids"].tolist() == too_long["ids"].tolist() == [2, *[5] * 14, 3]


@pytest.mark.parametrize("name", ["bert", "clip", "siglip"])
def test_many_texts_are_tokenised_in_one_call(
    models: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = create(f"transformers:{models / name}", modality="textual")
    alone = [encoder.load(text) for text in TEXTS]
    calls: list[int] = []
    for method in ("_whole", "_cut"):
        tokenise = getattr(encoder, method)
        monkeypatch.setattr(
            encoder, method, lambda x, tokenise=tokenise: calls.append(len(x)) or tokenise(x)
        )
    loaded = encoder.load_many(["", *TEXTS])
    assert calls == [len(TEXTS), 1] and isinstance(loaded[0], ContentError)
    for one, other in zip(loaded[1:], alone, strict=True):
        assert one["ids"].tolist() == other["ids"].tolist()
        assert (one["length"], one["cut"]) == (other["length"], other["cut"])


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_texts_of_any_length_can_be_loaded_from_several_threads(models: Path, name: str) -> None:
    encoder = create(f"transformers:{models / name}", modality="textual")
    texts = [" ".join(["red"] * (3 + 40 * (k % 2))) for k in range(600)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            loaded = list(pool.map(encoder.load, texts))
    finally:
        sys.setswitchinterval(before)
    assert [item["length"] for item in loaded] == [5, 16] * 300
    assert [encoder.truncated(item) for item in loaded] == [False, True] * 300


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_both_towers_are_one_space(models: Path, name: str) -> None:
    import torch
    import transformers as t

    folder = str(models / name)
    model, words = (
        t.AutoModel.from_pretrained(folder).train(False),
        t.AutoTokenizer.from_pretrained(folder),
    )
    rows = []
    for text in TEXTS:
        padding = {"padding": "max_length"} if name == "siglip" else {}
        tokens = words(text, return_tensors="pt", truncation=True, max_length=16, **padding)
        inputs = {"input_ids": tokens["input_ids"]}
        if name == "clip":
            inputs["attention_mask"] = tokens["attention_mask"]
        with torch.inference_mode():
            out = model.get_text_features(**inputs)
            rows.append((out if hasattr(out, "shape") else out.pooler_output)[0])
    texts = create(f"transformers:{folder}", modality="textual")
    images = create(f"transformers:{folder}", modality="visual")
    check(texts, TEXTS, torch.stack(rows).numpy())
    assert texts.spec.dim == images.spec.dim
    assert texts.spec.preprocessing["space"] == images.spec.preprocessing["space"] is not None
    with pytest.raises(UsageError, match="projection"):
        create(f"transformers:{folder}", modality="visual", layer="1")


@pytest.mark.parametrize("name", ["wav2vec2", "ast", "whisper"])
def test_audio(models: Path, clips: list[Path], name: str) -> None:
    import soundfile
    import torch
    import transformers as t

    folder = str(models / name)
    model, extractor = (
        t.AutoModel.from_pretrained(folder).train(False),
        t.AutoFeatureExtractor.from_pretrained(folder),
    )
    rows = []
    for path in clips:
        inputs = extractor(
            soundfile.read(path, dtype="float32")[0], sampling_rate=16000, return_tensors="pt"
        )
        inputs.pop("attention_mask", None)
        with torch.inference_mode():
            out = (model.get_encoder() if name == "whisper" else model)(**inputs)
        states = out.last_hidden_state[0]
        if name == "whisper":  # 50 positions a second; the others are padding up to the window
            states = states[: math.ceil(soundfile.info(path).frames / 320)]
        rows.append(states.mean(0))
    check(create(f"transformers:{folder}", modality="audio"), clips, torch.stack(rows).numpy())


@pytest.mark.parametrize(
    ("name", "taken"),
    [("ast", slice(10_480)), ("whisper", slice(32_000)), ("clap", slice(8_000, 24_000))],
)
def test_a_longer_clip_is_cut_the_same_way_every_time_and_counted(
    models: Path, tmp_path: Path, name: str, taken: slice
) -> None:
    import soundfile

    samples = (
        np.random.default_rng(2)
        .normal(0, 0.1, 64_000 if name == "whisper" else 32_000)
        .astype(np.float32)
    )
    encoder = create(f"transformers:{models / name}", modality="audio")
    loaded = {}
    for part, kept in {
        "all": slice(None),
        "taken": taken,
        "fewer": slice(taken.start, taken.stop - 2000),
    }.items():
        soundfile.write(tmp_path / f"{part}.wav", samples[kept], 16_000, subtype="FLOAT")
        loaded[part] = encoder.load(tmp_path / f"{part}.wav")
    vectors = {part: encoder.encode([clip]) for part, clip in loaded.items()}
    np.testing.assert_array_equal(vectors["all"], vectors["taken"])
    assert (vectors["fewer"] != vectors["taken"]).any()
    assert {part: encoder.truncated(clip) for part, clip in loaded.items()} == {
        "all": True, "taken": False, "fewer": False,
    }  # fmt: skip
    assert loaded["all"].nbytes == sum(value.nbytes for value in loaded["all"].values()) > 0


def test_every_position_as_a_ragged_set(
    models: Path, pictures: list[Path], clips: list[Path], tmp_path: Path
) -> None:
    import torch
    import transformers as t
    from click.testing import CliRunner

    from mmstore import FeatureSet
    from mmx.cli import cli

    folder = str(models / "bert")
    model, words = (
        t.AutoModel.from_pretrained(folder).train(False),
        t.AutoTokenizer.from_pretrained(folder),
    )
    encoder = create(f"transformers:{folder}", modality="textual", pooling="all")
    assert encoder.ragged
    vectors = encoder.encode([encoder.load(text) for text in TEXTS])
    for text, own in zip(TEXTS, vectors, strict=True):
        with torch.inference_mode():
            states = model(
                **words(text, return_tensors="pt", truncation=True, max_length=16)
            ).last_hidden_state[0]
        np.testing.assert_allclose(own, states.numpy(), rtol=1e-5, atol=1e-5)
    patches = create(str(models / "vit"), modality="visual", pooling="all")
    assert [one.shape for one in patches.encode([patches.load(path) for path in pictures[:2]])] == [
        (17, 16)
    ] * 2
    frames = create(str(models / "wav2vec2"), modality="audio", pooling="all")
    lengths = [len(one) for one in frames.encode([frames.load(path) for path in clips])]
    assert lengths[0] == lengths[2] < lengths[1] < lengths[3]
    heard = create(str(models / "whisper"), modality="audio", pooling="all")
    assert [len(one) for one in heard.encode([heard.load(path) for path in clips])] == [
        25,
        40,
        25,
        55,
    ]
    (tmp_path / "items.tsv").write_text(
        "item_id\ttitle\n" + "".join(f"i{k}\t{text}\n" for k, text in enumerate(TEXTS))
    )
    arguments = [
        "extract",
        "--modality",
        "textual",
        "--model",
        f"transformers:{folder}",
        "--pooling",
        "all",
        "-q",
    ]
    CliRunner().invoke(cli, [*arguments, "--data", str(tmp_path), "--name", "tokens"])
    with FeatureSet(tmp_path / "features/textual/tokens.h5") as features:
        assert features.layout == "ragged"
        for own, stored in zip(
            vectors, features.ragged([f"i{k}" for k in range(len(TEXTS))]), strict=True
        ):
            np.testing.assert_allclose(stored, own, rtol=1e-5, atol=1e-5)


def test_what_is_no_model_and_what_a_model_has_not(models: Path, tmp_path: Path) -> None:
    folder = str(models / "vit")
    for options in ({"layer": "9"}, {"layer": "x"}, {"pooling": "last"}, {"layer": "projection"}):
        with pytest.raises(UsageError):
            create(folder, modality="visual", **options)  # type: ignore[arg-type]
    with pytest.raises(EncoderError):
        create(f"transformers:{models / 'bert'}", modality="visual")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(EncoderError, match="not a transformers model"):
        create(str(tmp_path), modality="visual")
    with pytest.raises(ContentError, match="empty"):
        create(f"transformers:{models / 'bert'}", modality="textual").load(" ")


def test_weights_that_lack_something_are_refused(models: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(models / "vit", tmp_path / "vit"))
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if "layer.1." not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(EncoderError, match="lack"):
        create(str(folder), modality="visual")


def test_the_registry_lists_them() -> None:
    names = {(info.name, info.modality): info for info in describe()}
    assert names["transformers:openai/clip-vit-base-patch32", "textual"].dim == 512
    assert names["open_clip:ViT-B-32", "visual"].layer == "projection"
    assert ("transformers:MIT/ast-finetuned-audioset-10-10-0.4593", "audio") in names


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")  # these have values
@pytest.mark.parametrize(
    ("name", "modality", "pooling"),
    [
        ("vit", "visual", None), ("convnext", "visual", None), ("clip", "visual", None),
        ("siglip", "visual", None), ("bert", "textual", None), ("bert", "textual", "last"),
        ("bert", "textual", "all"), ("clip", "textual", None), ("siglip", "textual", None),
        ("wav2vec2", "audio", None), ("whisper", "audio", None), ("whisper", "audio", "all"),
        ("clap", "audio", None),
    ],
)  # fmt: skip
def test_other_devices_give_the_same(
    models: Path,
    pictures: list[Path],
    clips: list[Path],
    name: str,
    modality: str,
    pooling: str | None,
) -> None:
    of: dict[str, Any] = {"visual": pictures[:3], "textual": TEXTS[:3], "audio": clips}
    same_there(f"transformers:{models / name}", of[modality], modality=modality, pooling=pooling)


def test_open_clip(tiny_clip: str, pictures: list[Path], tmp_path: Path) -> None:
    import open_clip
    import torch
    from PIL import Image

    torch.manual_seed(3)
    model, _, transform = open_clip.create_model_and_transforms(tiny_clip)
    model.train(False)
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    words = open_clip.get_tokenizer(tiny_clip)
    images = create(f"open_clip:{tiny_clip}", modality="visual", weights=str(tmp_path / "mine.pt"))
    texts = create(tiny_clip, modality="textual", weights=str(tmp_path / "mine.pt"))
    with torch.inference_mode():
        seen = torch.cat(
            [
                model.encode_image(transform(Image.open(path).convert("RGB"))[None])
                for path in pictures
            ]
        )
        read = torch.cat([model.encode_text(words([text])) for text in TEXTS])
    check(images, pictures, seen.numpy())
    check(texts, TEXTS, read.numpy())
    assert images.spec.preprocessing["space"] == texts.spec.preprocessing["space"]
    assert images.spec.weights == "mine.pt"
    assert images.spec.name != create(tiny_clip, modality="visual", weights="random").spec.name
    with pytest.raises(UsageError, match="neither a file"):
        create(tiny_clip, modality="visual", weights="laion9b")
    broken = {name: value for name, value in model.state_dict().items() if "visual" not in name}
    torch.save(broken, tmp_path / "half.pt")
    with pytest.raises(EncoderError, match="missing"):
        create(tiny_clip, modality="visual", weights=str(tmp_path / "half.pt"))
    with pytest.raises(EncoderError, match="Ways out"):
        create("ViT-B-32", modality="visual", offline=True)


def test_open_clip_truncates_a_text_one_token_too_long_and_not_one_that_just_fits(
    tiny_clip: str,
) -> None:
    encoder = create(tiny_clip, modality="textual", weights="random")
    texts = {n: encoder.load("red " * n) for n in (1, 74, 75, 76, 300)}  # start and end come on top
    assert {n: encoder.truncated(loaded) for n, loaded in texts.items()} == {
        1: False, 74: False, 75: False, 76: True, 300: True,
    }  # fmt: skip
    assert (texts[75].values == texts[76].values).all()


@pytest.mark.parametrize(("pad", "end"), [(1, 2), (2, 2), (0, None)])
def test_open_clip_tokenizers_of_any_padding_tell_what_they_cut(
    tiny_clip: str, monkeypatch: pytest.MonkeyPatch, pad: int, end: int | None
) -> None:
    import open_clip
    import torch

    class Words:
        """One token per word; pads as BERT's (1), CLIP's (its end) or T5's (no end) do."""

        def __call__(self, texts: list[str], context_length: int = 77) -> torch.Tensor:
            ending = [] if end is None else [end]
            (words,) = ([7] * len(text.split()) for text in texts)
            tokens = [*words[: context_length - len(ending)], *ending]
            return torch.tensor([tokens + [pad] * (context_length - len(tokens))])

    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: Words())
    encoder = create(tiny_clip, modality="textual", weights="random")
    most = 77 if end is None else 76
    counts = (1, most - 1, most, most + 1, 300)
    cut = [encoder.truncated(encoder.load("red " * n)) for n in counts]
    assert cut == [False, False, False, True, True]


def test_open_clip_prepares_pictures_and_chooses_the_activation_as_the_tag_says(
    tiny_clip: str, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    import torch
    from huggingface_hub import constants
    from PIL import Image

    told = {
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "quick_gelu": True,
    }
    tags = {"usual": {"hf_hub": "org/tiny/", **told}, "other": {"hf_hub": "org/tiny/x.bin"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny_clip, tags)
    torch.manual_seed(4)
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text("1234")
    weights = snapshot / "open_clip_pytorch_model.bin"
    torch.save(open_clip.create_model(tiny_clip).state_dict(), weights)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(weights))
    model, _, transform = open_clip.create_model_and_transforms(
        tiny_clip, pretrained="usual", force_quick_gelu=True
    )
    model.train(False)
    words = open_clip.get_tokenizer(tiny_clip)
    with torch.inference_mode():
        seen = torch.cat(
            [
                model.encode_image(transform(Image.open(path).convert("RGB"))[None])
                for path in pictures
            ]
        )
        read = torch.cat([model.encode_text(words([text])) for text in TEXTS])
    images, texts = (
        create(tiny_clip, modality=kind, offline=True) for kind in ("visual", "textual")
    )
    check(images, pictures, seen.numpy())
    check(texts, TEXTS, read.numpy())
    assert images.spec.weights == "usual" and texts.spec.preprocessing["quick_gelu"]
    with pytest.raises(EncoderError, match="offline"):
        create(tiny_clip, modality="visual", weights="other", offline=True)
    (snapshot / "x.bin").write_bytes(weights.read_bytes())
    other = create(tiny_clip, modality="textual", weights="other", offline=True)
    assert not other.spec.preprocessing["quick_gelu"]
    own = create(tiny_clip, modality="visual", weights=str(weights))
    assert not own.spec.preprocessing["quick_gelu"]
    assert own.spec.preprocessing["transform"] == images.spec.preprocessing["transform"]
