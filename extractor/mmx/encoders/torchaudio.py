"""torchaudio's wav2vec 2.0, HuBERT and WavLM pipelines: one transformer layer, averaged over time.

Only clips of equal length share a forward pass: padding changes the vectors of the models with a
group norm over time (wav2vec 2.0 and HuBERT base), and so does the library's own waveform
normalisation, which takes a whole batch as one signal. A clip's vector therefore doesn't depend on
its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import (
    Encoder,
    EncoderFamily,
    EncoderInfo,
    EncoderSpec,
    Request,
    require,
    slug,
    versions,
)
from mmx.encoders.batching import equal_parts, groups_of_equal, pool
from mmx.encoders.compute import checked_device, forward_pass, prepared
from mmx.encoders.decoding import Resampler, read_mono
from mmx.encoders.listings import TORCHAUDIO
from mmx.encoders.weights.checkpoints import (
    file_sha256,
    fill,
    published,
    read_state_dict,
    state_sha256,
    torch_cache,
)
from mmx.errors import EncoderError, UsageError, unknown_name

URL = "https://download.pytorch.org/torchaudio/models/"
RATE = 16_000  # of every pipeline
POOLINGS = ("mean", "max")


class TorchaudioEncoder(Encoder):
    """A self-supervised speech model up to one transformer layer, by default the last."""

    concurrent = True

    MIN_SAMPLES: ClassVar[int] = 400  # receptive field of the convolutions: one frame
    # Longer clips are cut into equal parts, because attention grows with the square.
    MAX_SAMPLES: ClassVar[int] = 30 * RATE
    SAMPLES_PER_PASS: ClassVar[int] = 120 * RATE

    def __init__(self, request: Request) -> None:
        import torch

        name = request.model.upper()
        bundle = getattr(require("torchaudio.pipelines"), name)
        device = checked_device(request)
        n_layers = TORCHAUDIO[name][1]
        self._n_layers = _layer_number(request, n_layers)
        self._pooling = request.pooling or "mean"
        if self._pooling not in POOLINGS:
            raise unknown_name("pooling", self._pooling, POOLINGS)
        path = _weights_path(request)

        models = require("torchaudio.models")
        build = models.wavlm_model if bundle._model_type == "WavLM" else models.wav2vec2_model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            network = build(**{**bundle._params, "aux_num_out": None})
        whole = set(network.state_dict())
        network.encoder.transformer.layers = network.encoder.transformer.layers[: self._n_layers]
        if request.weights == "random":
            label, digest = f"random(seed={request.seed})", state_sha256(network.state_dict())
        else:
            label = bundle._path if path is None else path.name
            path = path or published(request, URL + bundle._path, name)
            given = {_renamed(key): value for key, value in read_state_dict(path).items()}
            fill(network, given, whole=whole, what=name, where=path.name)
            digest = file_sha256(path)
        _bake_weight_norm(network.encoder.transformer.pos_conv_embed)
        self._network = prepared(network, device, request.precision)
        self._normalise = bool(bundle._normalize_waveform)
        self._resample = Resampler(RATE)
        self._device = device
        self.device = str(device)

        layer = f"layer{self._n_layers}" if self._n_layers != n_layers else ""
        pooling = self._pooling if self._pooling != "mean" else ""
        weights = (
            ""
            if request.weights == "default" or label == bundle._path
            else Path(request.weights).stem
        )
        self.spec = EncoderSpec(
            name=slug(name, layer, pooling, weights),
            modality="audio",
            backend="torchaudio",
            model_id=name,
            dim=TORCHAUDIO[name][0],
            layer=str(self._n_layers),
            pooling=self._pooling,
            preprocessing={
                "sample_rate": RATE,
                "channels": "mean",
                "waveform_normalisation": "layer_norm" if self._normalise else "none",
                "min_samples": self.MIN_SAMPLES,
                "max_samples": self.MAX_SAMPLES,
                "longer": "equal parts, pooled over all their frames",
            },
            weights=label,
            weights_sha256=digest,
            licence=_licence(name) if label == bundle._path else None,
            precision=request.precision,
            libraries=versions("torch", "torchaudio", "soundfile"),
        )

    def load(self, content: Path | str) -> NDArray[np.float32]:
        """Read samples at 16 kHz, mono, shape (n,), n >= 400: zeros fill a shorter clip."""
        samples = self._resample(*read_mono(content))
        return np.pad(samples, (0, max(0, self.MIN_SAMPLES - len(samples))))

    def encode(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the layer's output pooled over all frames of a clip, shape (len(batch), dim)."""
        import torch

        # Long clips go through in parts; only parts of equal length share a forward pass.
        parts = [
            (owner, clip[start:stop])
            for owner, clip in enumerate(batch)
            for start, stop in equal_parts(len(clip), self.MAX_SAMPLES)
        ]
        frames: list[Any] = [None] * len(parts)
        with forward_pass(self._device, self.spec.precision):
            for group in groups_of_equal([len(part) for _, part in parts]):
                per_pass = max(1, self.SAMPLES_PER_PASS // len(parts[group[0]][1]))
                for begin in range(0, len(group), per_pass):
                    chosen = group[begin : begin + per_pass]
                    clips = torch.from_numpy(np.stack([parts[k][1] for k in chosen]))
                    for k, output in zip(chosen, self._forward(clips), strict=True):
                        frames[k] = output  # (n_frames, dim)
            vectors = []
            for i in range(len(batch)):
                own = torch.cat([frames[k] for k, (owner, _) in enumerate(parts) if owner == i])
                vectors.append(pool(own[None], self._pooling)[0])
            return torch.stack(vectors).float().cpu().numpy()

    def sort_key(self, loaded: NDArray[np.float32]) -> int:
        """Return the number of samples: clips of equal length share a forward pass."""
        return len(loaded)

    def _forward(self, clips: Any) -> Any:
        """Clips of equal length (b, n_samples) to frames (b, n_frames, dim)."""
        import torch

        x = clips.to(self._device)
        if self._normalise:
            x = torch.nn.functional.layer_norm(x, x.shape[1:])  # per clip
        outputs, _ = self._network.extract_features(x, num_layers=self._n_layers)
        return outputs[-1]


def _accepts(model: str, modality: str) -> bool:
    return model.upper() in TORCHAUDIO


def _known(modality: str, cache_dir: Path | None) -> list[EncoderInfo]:
    cache = torch_cache(cache_dir)
    return [
        EncoderInfo(
            name,
            modality,
            "torchaudio",
            dim,
            str(n_layers),
            "mean",
            licence=_licence(name),
            input="16 kHz mono",
            weights="here" if (cache / file).is_file() else "download",
        )
        for name, (dim, n_layers, file) in TORCHAUDIO.items()
    ]


FAMILY = EncoderFamily(
    "torchaudio", frozenset({"audio"}), _accepts, _known, build=TorchaudioEncoder
)


def _layer_number(request: Request, n_layers: int) -> int:
    """The wanted layer, counted from 1."""
    if request.layer is None:
        return n_layers
    if not request.layer.isdecimal() or not 1 <= int(request.layer) <= n_layers:
        raise UsageError(
            f"{request.model}: --layer is a number from 1 to {n_layers} (got {request.layer!r})."
        )
    return int(request.layer)


def _weights_path(request: Request) -> Path | None:
    """The user's own file, if one is named."""
    if request.weights in ("default", "random"):
        return None
    path = Path(request.weights).expanduser()
    if not path.is_file():
        raise EncoderError(
            f"{request.model}: no weights {request.weights!r}: neither a file nor default or "
            "random."
        )
    return path


def _bake_weight_norm(embedding: Any) -> None:
    """Replace the weight-normalised convolution by a plain one, which can be pickled."""
    import torch

    conv = embedding.conv
    plain = torch.nn.Conv1d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        padding=conv.padding,
        groups=conv.groups,
    )
    plain.load_state_dict({"weight": conv.weight, "bias": conv.bias})
    embedding.conv = plain


def _renamed(name: str) -> str:
    """A parameter's present name: files have those of torch's former weight normalisation."""
    for former, present in ((".weight_g", "original0"), (".weight_v", "original1")):
        if name.endswith(former):
            return f"{name.removesuffix(former)}.parametrizations.weight.{present}"
    return name


def _licence(name: str) -> str:
    """As torchaudio's documentation of each pipeline states it."""
    return "CC BY-NC 4.0" if name.startswith("VOXPOPULI") else "MIT"
