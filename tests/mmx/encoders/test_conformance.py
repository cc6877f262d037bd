"""Every family of the registry keeps to the contract, and the suite notices who does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmx.encoders import ENCODERS, Encoder, EncoderSpec, create, family
from mmx.encoders.testing import check_encoder
from mmx.errors import ContentError

TEXTS = ["red silk dress", "the blue lamp of the chair", "blue", "a lamp, red or blue", "red " * 60]

# Encoder by family: (model, modality, options, tolerance). A fixture's name stands for the folder
# or the name of a small model that it makes.
CASES: dict[str, list[tuple[str, str, dict[str, str], float]]] = {
    "torchvision": [("shufflenet_v2_x0_5", "visual", {"weights": "random"}, 0.0)],
    "sentence-transformers": [("{tiny}", "textual", {}, 1e-5)],
    "torchaudio": [("wav2vec2", "audio", {}, 1e-5)],
    "open_clip": [
        ("{tiny_clip}", "visual", {"weights": "random"}, 1e-5),
        ("{tiny_clip}", "textual", {"weights": "random"}, 1e-5),
    ],
    "transformers": [
        ("transformers:{models}/vit", "visual", {}, 1e-5),
        ("transformers:{models}/clip", "visual", {}, 1e-5),
        ("transformers:{models}/bert", "textual", {}, 1e-5),
        ("transformers:{models}/bert", "textual", {"pooling": "all"}, 1e-5),
        ("transformers:{models}/siglip", "textual", {}, 1e-5),
        ("transformers:{models}/wav2vec2", "audio", {}, 1e-5),
        ("transformers:{models}/whisper", "audio", {}, 1e-5),
    ],
    "colour-hog": [("colour-hog", "visual", {}, 0.0)],
    "tfidf-lsa": [("tfidf-lsa", "textual", {}, 0.0)],
    "mfcc": [("mfcc", "audio", {}, 0.0)],
}


def cases(name: str) -> list[tuple[str, str, dict[str, str], float]]:
    """A family's own line of `CASES`, or else all its models that need no weights."""
    if name in CASES:
        return CASES[name]
    found = family(name)
    infos = [info for of in sorted(found.modalities) for info in found.known(of, None)]
    return [(one.name, one.modality, {}, 1e-5) for one in infos if one.weights == "none needed"]


def test_every_family_is_checked() -> None:
    assert set(CASES) <= set(ENCODERS)
    assert [name for name in ENCODERS if not cases(name)] == []


@pytest.fixture(scope="module")
def corrupt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("corrupt")
    contents = {"visual": b"\x89PNG\r\n\x1a\nnothing", "audio": b"RIFF" + bytes(64)}
    found: dict[str, list[Any]] = {"textual": ["", " \n", "\udcff"]}
    for modality, content in contents.items():
        (folder / f"{modality}.empty").touch()
        (folder / f"{modality}.broken").write_bytes(content)
        found[modality] = [folder / f"{modality}.empty", folder / f"{modality}.broken"]
    return found


@pytest.mark.parametrize(
    ("model", "modality", "options", "tolerance"),
    [case for name in ENCODERS for case in cases(name)],
)
def test_an_encoder_keeps_to_the_contract(
    model: str,
    modality: str,
    options: dict[str, str],
    tolerance: float,
    pictures: list[Path],
    clips: list[Path],
    corrupt: dict[str, list[Any]],
    request: pytest.FixtureRequest,
) -> None:
    contents: Sequence[Any] = {"visual": pictures, "textual": TEXTS, "audio": clips}[modality]
    if model == "wav2vec2":
        encoder = request.getfixturevalue("wav2vec2")
    else:
        for name in ("tiny_clip", "tiny", "models"):
            if f"{{{name}}}" in model:
                model = model.replace(f"{{{name}}}", str(request.getfixturevalue(name)))
        encoder = create(model, modality=modality, **options)  # type: ignore[arg-type]
    check_encoder(encoder, contents, corrupt[modality], tolerance=tolerance)


class Toy(Encoder):
    """Three numbers of a text; what a subclass does wrong has to be noticed."""

    def __init__(self, preprocessing: dict[str, Any] | None = None) -> None:
        self.spec = EncoderSpec(
            name="toy", modality="textual", backend="toy", model_id="toy", dim=3, layer="none",
            pooling="none", preprocessing=preprocessing or {}, weights="none", weights_sha256=None,
            licence=None, precision="fp32",
        )  # fmt: skip

    def load(self, content: Any) -> Any:
        if not content.strip():
            raise ContentError("the text is empty")
        return content

    def encode(self, batch: Sequence[Any]) -> Any:
        rows = [[len(text), text.count("e"), text.count(" ")] for text in batch]
        return np.array(rows, np.float32)


class Reversed(Toy):
    def encode(self, batch: Sequence[Any]) -> Any:
        return super().encode(batch)[::-1]


class Double(Toy):
    def encode(self, batch: Sequence[Any]) -> Any:
        return super().encode(batch).astype(np.float64)


class Wide(Toy):
    def encode(self, batch: Sequence[Any]) -> Any:
        return np.pad(super().encode(batch), ((0, 0), (0, 1)))


class Short(Toy):
    def encode(self, batch: Sequence[Any]) -> Any:
        return super().encode(batch)[:1]


class BatchDependent(Toy):
    def encode(self, batch: Sequence[Any]) -> Any:
        vectors = super().encode(batch)
        return vectors - 0.01 * vectors.mean(axis=0)


class Forgetful(Toy):
    calls = 0

    def encode(self, batch: Sequence[Any]) -> Any:
        self.calls += 1
        return super().encode(batch) + np.float32(1e-3 * self.calls)


class WrongError(Toy):
    def load(self, content: Any) -> Any:
        if not content.strip():
            raise ValueError("empty")
        return content


class NoError(Toy):
    def load(self, content: Any) -> Any:
        return content


class BadKey(Toy):
    def sort_key(self, loaded: Any) -> Any:
        return float(len(loaded))


class BadFlag(Toy):
    def truncated(self, loaded: Any) -> Any:
        return None


class SharedState(Toy):
    """Loads through an attribute, as a tokenizer whose settings are changed for each text."""

    def load(self, content: Any) -> Any:
        self.now = super().load(content)
        time.sleep(1e-3)
        return self.now


class ManyReversed(Toy):
    def load_many(self, contents: Sequence[Any]) -> list[Any]:
        return super().load_many(contents[:-1])[::-1] + super().load_many(contents[-1:])


class ManyShort(Toy):
    def load_many(self, contents: Sequence[Any]) -> list[Any]:
        return super().load_many(contents)[1:]


class ManyTolerant(Toy):
    def load_many(self, contents: Sequence[Any]) -> list[Any]:
        return list(contents)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (ManyReversed, "load_many: item"),
        (ManyShort, r"load_many gives \d items"),
        (ManyTolerant, "load_many gives ' ' where load raises"),
        (Reversed, "row i belongs to batch"),
        (Double, "float64"),
        (Wide, r"shape \(1, 4\)"),
        (Short, r"shape \(1, 3\)"),
        (BatchDependent, "must not depend on its batch"),
        (Forgetful, "the same item encoded again"),
        (WrongError, "raises ValueError"),
        (NoError, "loaded without an error"),
        (BadKey, "sort_key"),
        (BadFlag, "truncated"),
        (SharedState, "threads"),
        (lambda: Toy({"table": Path("a")}), "not JSON"),
        (lambda: Toy({"scale": float("nan")}), "not JSON"),
        (lambda: Toy({"table": "/home/me/words.txt"}), "holds a path"),
    ],
)
def test_the_suite_notices_what_is_wrong(make: Callable[[], Encoder], expected: str) -> None:
    with pytest.raises(AssertionError, match=expected):
        check_encoder(make(), TEXTS, [" "])


def test_the_suite_accepts_a_correct_encoder_and_wants_telling_contents() -> None:
    check_encoder(Toy(), TEXTS, [" "], tolerance=0.0)
    for contents, corrupt in ((TEXTS[:2], [" "]), (TEXTS, []), ([*TEXTS, TEXTS[0]], [" "])):
        with pytest.raises(AssertionError, match=r"needs three|equal vectors"):
            check_encoder(Toy(), contents, corrupt)
