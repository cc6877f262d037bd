"""torchaudio encoders against torchaudio called directly, one clip at a time."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from tests.mmx.encoders.on_another_device import same_there

from mmx.encoders import Encoder, create, describe
from mmx.encoders.listings import TORCHAUDIO as MODELS
from mmx.encoders.torchaudio import URL, TorchaudioEncoder
from mmx.errors import EncoderError, UsageError

LAYER = 2  # the tests need few layers; every layer takes the same path


def small(name: str, seed: int = 0) -> torch.nn.Module:
    """A pipeline's model with its own random initialisation."""
    bundle = getattr(torchaudio.pipelines, name)
    factory = (
        torchaudio.models.wavlm_model
        if name.startswith("WAVLM")
        else torchaudio.models.wav2vec2_model
    )
    torch.manual_seed(seed)
    return factory(**{**bundle._params, "aux_num_out": None}).train(False)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return small("WAV2VEC2_BASE")


@pytest.fixture(scope="module")
def encoder(wav2vec2: Encoder) -> TorchaudioEncoder:
    assert isinstance(wav2vec2, TorchaudioEncoder)
    return wav2vec2


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for i, n in enumerate((2000, 2000, 2400, 3000, 2000, 1600, 2400, 4000, 2000)):
        tone = np.sin(np.arange(n) * (0.1 + 0.05 * i)) / 2 + rng.normal(0, 0.05, n)
        soundfile.write(folder / f"{i}.wav", tone, 8000)
    return sorted(folder.iterdir())


def wave_of(path: Path) -> torch.Tensor:
    samples, rate = soundfile.read(path, dtype="float32")
    return torchaudio.transforms.Resample(rate, 16_000)(torch.from_numpy(samples))


def directly(model: torch.nn.Module, waves: list[torch.Tensor], layer: int = LAYER) -> np.ndarray:
    with torch.inference_mode():
        rows = [
            model.extract_features(wave[None], num_layers=layer)[0][-1][0].mean(dim=0)
            for wave in waves
        ]
    return torch.stack(rows).numpy()


def in_batches(encoder: Any, paths: list[Path], size: int) -> np.ndarray:
    loaded = [encoder.load(path) for path in paths]
    return np.concatenate(
        [encoder.encode(loaded[i : i + size]) for i in range(0, len(loaded), size)]
    )


@pytest.mark.parametrize("size", [1, 7, 16])
def test_equal_to_torchaudio_one_at_a_time(
    encoder: TorchaudioEncoder, model: torch.nn.Module, sounds: list[Path], size: int
) -> None:
    vectors = in_batches(encoder, sounds, size)
    assert vectors.shape == (9, 768) and vectors.dtype == np.float32
    assert np.abs(vectors - directly(model, [wave_of(path) for path in sounds])).max() <= 1e-5
    assert len(np.unique(vectors, axis=0)) == 9


def test_the_spec(encoder: TorchaudioEncoder) -> None:
    spec = encoder.spec
    assert (spec.name, spec.layer, spec.pooling) == ("wav2vec2_base-layer2-random", "2", "mean")
    assert (spec.weights, spec.licence, spec.preprocessing["sample_rate"]) == (
        "random(seed=0)",
        None,
        16_000,
    )


def test_wavlm(sounds: list[Path]) -> None:
    vectors = in_batches(
        create("WAVLM_BASE", modality="audio", weights="random", layer="1"), sounds[:4], 4
    )
    assert (
        np.abs(
            vectors - directly(small("WAVLM_BASE"), [wave_of(path) for path in sounds[:4]], layer=1)
        ).max()
        <= 1e-5
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")  # these have values
def test_other_devices_give_the_same(sounds: list[Path]) -> None:
    same_there("WAVLM_BASE", sounds[:2], modality="audio", weights="random", layer="2")


def test_waveforms_are_normalised_one_by_one(
    encoder: TorchaudioEncoder,
    model: torch.nn.Module,
    sounds: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the large models want it; the library itself would normalise over the whole batch."""
    monkeypatch.setattr(encoder, "_normalise", True)
    waves = [
        wave_of(path) * (1 + i) for i, path in enumerate(sounds[:2])
    ]  # of equal length, but not equally loud
    direct = directly(model, [torch.nn.functional.layer_norm(wave, wave.shape) for wave in waves])
    assert np.abs(encoder.encode([wave.numpy() for wave in waves]) - direct).max() <= 1e-5
    assert torchaudio.pipelines.HUBERT_LARGE._normalize_waveform


def test_published_files_have_the_former_names(
    tmp_path: Path, sounds: list[Path], model: torch.nn.Module
) -> None:
    state = small("WAV2VEC2_BASE", seed=3).state_dict()
    former = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in state.items()
    }
    assert set(former) != set(state)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({**former, "aux.weight": torch.zeros(3)}, cache / MODELS["WAV2VEC2_BASE"][2])
    encoder = create("wav2vec2_base", modality="audio", layer="1", cache_dir=tmp_path, offline=True)
    assert (encoder.spec.name, encoder.spec.licence) == ("wav2vec2_base-layer1", "MIT")
    assert encoder.spec.weights == "wav2vec2_fairseq_base_ls960.pth"
    direct = directly(
        small("WAV2VEC2_BASE", seed=3), [wave_of(path) for path in sounds[:3]], layer=1
    )
    assert np.abs(in_batches(encoder, sounds[:3], 3) - direct).max() <= 1e-5
    assert [
        info.name for info in describe("audio", cache_dir=tmp_path) if info.weights == "here"
    ] == ["WAV2VEC2_BASE"]


def test_weights_that_cannot_be_had_or_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(EncoderError) as caught:
        create("WAVLM_BASE", modality="audio", layer="1", cache_dir=tmp_path, offline=True)
    for way_out in ("--weights PATH", "--model mfcc", "--weights random", "wavlm_base.pth"):
        assert way_out in str(caught.value)
    torch.save({"something": torch.zeros(2)}, tmp_path / "other.pth")
    for weights, expected in (
        ("absent.pth", "neither a file"),
        (str(tmp_path / "other.pth"), "is missing"),
    ):
        with pytest.raises(EncoderError, match=expected):
            create("WAVLM_BASE", modality="audio", layer="1", weights=weights)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layer": "13"}, "from 1 to 12"),
        ({"layer": "0"}, "from 1 to 12"),
        ({"layer": "x"}, "from 1"),
        ({"pooling": "cls"}, "cls"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        create("WAV2VEC2_BASE", modality="audio", weights="random", **options)


def test_a_clip_of_ten_milliseconds_and_silence(encoder: TorchaudioEncoder, tmp_path: Path) -> None:
    for name, samples in (("short", np.full(160, 0.5)), ("silent", np.zeros(4000))):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
        assert np.isfinite(encoder.encode([encoder.load(tmp_path / f"{name}.wav")])).all()


def test_a_long_clip_is_encoded_in_equal_parts(
    encoder: TorchaudioEncoder, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchaudioEncoder, "MAX_SAMPLES", 3000)
    monkeypatch.setattr(TorchaudioEncoder, "SAMPLES_PER_PASS", 5000)
    clip = np.random.default_rng(0).normal(0, 0.1, 8001).astype(np.float32)
    with torch.inference_mode():
        parts = [
            model.extract_features(torch.from_numpy(clip[start:stop])[None], num_layers=LAYER)[0][
                -1
            ][0]
            for start, stop in ((0, 2667), (2667, 5334), (5334, 8001))
        ]
    expected = torch.cat(parts).mean(dim=0).numpy()
    short = clip[:2000]
    vectors = encoder.encode([short, clip, short])
    assert np.abs(vectors[1] - expected).max() <= 1e-5
    assert np.abs(vectors[[0, 2]] - encoder.encode([short])).max() <= 1e-5


def test_encoders_travel_between_processes(encoder: TorchaudioEncoder, sounds: list[Path]) -> None:
    there = pickle.loads(pickle.dumps(encoder))
    assert (
        in_batches(there, sounds[:3], 3).tobytes() == in_batches(encoder, sounds[:3], 3).tobytes()
    )
    assert encoder.sort_key(encoder.load(sounds[0])) == 4000


def test_the_table_is_torchaudios() -> None:
    kinds = ("Wav2Vec2Bundle", "Wav2Vec2ASRBundle")
    bundles = {name: getattr(torchaudio.pipelines, name) for name in dir(torchaudio.pipelines)}
    found = {name: bundle for name, bundle in bundles.items() if type(bundle).__name__ in kinds}
    assert set(found) == set(MODELS)
    for name, bundle in found.items():
        expected = (
            bundle._params["encoder_embed_dim"],
            bundle._params["encoder_num_layers"],
            bundle._path,
        )
        assert MODELS[name] == expected
        assert bundle.sample_rate == 16_000
    licences = {info.name: info.licence for info in describe("audio")}
    for name in MODELS:
        licence = licences[name]
        assert licence is not None and licence in found[name].__doc__
    assert URL.startswith("https://download.pytorch.org/torchaudio/")


@pytest.mark.real_data
def test_real_speech(real_data: Path, encoder: TorchaudioEncoder, model: torch.nn.Module) -> None:
    clips = sorted((real_data / "speech").glob("*.wav"))[:6]
    direct = directly(model, [wave_of(path) for path in clips])
    assert np.abs(in_batches(encoder, clips, 4) - direct).max() <= 1e-5
