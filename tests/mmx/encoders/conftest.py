"""Small contents and models that several tests of encoders share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.mmx.encoders.tiny_models import sentence_model, transformers_models

from mmx.encoders import Encoder, create


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = []
    for number, size in enumerate(
        [(40, 30), (32, 32), (25, 60), (64, 48), (33, 31), (80, 20), (30, 30)]
    ):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.png")
        paths.append(folder / f"{number}.png")
    return paths


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    import soundfile

    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(1)
    paths = []
    for number, seconds in enumerate([0.5, 0.8, 0.5, 1.1]):
        soundfile.write(
            folder / f"{number}.wav",
            rng.normal(0, 0.1, int(16000 * seconds)).astype(np.float32),
            16000,
        )
        paths.append(folder / f"{number}.wav")
    return paths


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return transformers_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 64,
            "heads": 1,
            "layers": 1,
        },
    }
    path = tmp_path_factory.mktemp("open_clip") / "Tiny-16.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return "Tiny-16"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def wav2vec2() -> Encoder:
    return create("WAV2VEC2_BASE", modality="audio", weights="random", layer="2")
