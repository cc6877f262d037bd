"""transformers: vision, text and audio models by hub id or folder, and both towers of CLIP-like models.

The library's own processors prepare the content and its own classes compute; weights are read from
safetensors (or as plain tensors), and no code that comes with a model is ever run. Models that join
two modalities (CLIP, SigLIP, ALIGN, AltCLIP, CLAP) give their projected vectors: the sets of both
modalities have the same weights digest and the same `space`, so that they can be seen to lie in one
space.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import (
    Encoder,
    EncoderInfo,
    EncoderSpec,
    Request,
    checked_text,
    require,
    slug,
    versions,
)
from mmx.encoders.batching import pad_rows
from mmx.encoders.compute import checked_device, forward_pass, prepared
from mmx.encoders.decoding.images import decode_rgb
from mmx.encoders.decoding.sounds import Resampler, read_mono
from mmx.encoders.listings.transformers import MODELS, PROJECTION
from mmx.encoders.pooling import every_position, pool_positions
from mmx.encoders.weights.checkpoints import file_sha256
from mmx.encoders.weights.hub import (
    NOT_A_MODEL,
    ModelFolder,
    find_model,
    go_offline,
    is_cached,
    looks_like_hub_id,
    without_bar,
)
from mmx.errors import ContentError, EncoderError, UsageError

ALL = "all"
"""The pooling that keeps every position: patches, tokens or frames, several vectors per item."""

POOLINGS = {
    "visual": ("cls", "mean", ALL),
    "textual": ("cls", "mean", "last", ALL),
    "audio": ("cls", "mean", ALL),
}
_FEATURES = {
    "visual": "get_image_features",
    "textual": "get_text_features",
    "audio": "get_audio_features",
}
_NO_CLASS_TOKEN = (
    "swin", "swinv2", "convnext", "convnextv2", "resnet", "siglip_vision_model", "pvt", "focalnet", "regnet"
)  # fmt: skip
Vectors: TypeAlias = NDArray[np.float32] | list[NDArray[np.float32]]

_LONGEST_TEXT = 8192  # tokenizers that know no limit say 10^30


class TransformersEncoder(Encoder):
    """What the three modalities share: finding, building, choosing a layer, describing."""

    modalities = frozenset({"visual", "textual", "audio"})
    concurrent = True

    def __new__(cls, request: Request) -> TransformersEncoder:
        """The class of the request's modality."""
        if cls is TransformersEncoder:
            kinds: dict[str, type[Any]] = {
                "visual": HFVisionEncoder,
                "textual": HFTextEncoder,
                "audio": HFAudioEncoder,
            }
            return cast("TransformersEncoder", object.__new__(kinds[request.modality]))
        return super().__new__(cls)

    def __init__(self, request: Request) -> None:
        device = checked_device(request)
        folder = find_model(request, request.model)
        if request.offline:
            go_offline()
        library = require("transformers")
        try:
            self._model = model = _build(library, folder)
            self._processor = self._make_processor(library, folder.path)
        except (*NOT_A_MODEL, require("safetensors").SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EncoderError(
                f"{request.model}: {folder.label} is not a transformers model of "
                f"{request.modality} ({reason})."
            ) from error
        self._modality, self._precision, self._device = request.modality, request.precision, device
        self._joint = hasattr(model, _FEATURES[request.modality])
        self._layer, self._pooling = self._choose(request, model)
        self.ragged = self._pooling == ALL
        self._model = prepared(model.float(), device, request.precision)
        self.device = str(device)
        self.spec = self._describe(request, folder)

    @classmethod
    def accepts(cls, model: str, modality: str) -> bool:
        """Whether it has the form of a hub id, or is a folder of a model."""
        return looks_like_hub_id(model) or (Path(model).expanduser() / "config.json").is_file()

    @classmethod
    def known(cls, modality: str, cache_dir: Path | None = None) -> list[EncoderInfo]:
        """Well-known models; any other hub id or folder works too."""
        return [
            EncoderInfo(
                f"transformers:{name}", modality, "transformers", dim, layer, pooling, licence, takes,
                "here" if is_cached(name, cache_dir) else "download",
            )
            for name, (dim, layer, pooling, takes, licence) in MODELS[modality].items()
        ]  # fmt: skip

    def _make_processor(self, library: Any, path: Path) -> Any:
        raise AssertionError(f"{type(self).__name__} has no processor")

    def _preprocessing(self) -> dict[str, Any]:
        return {}

    def _choose(self, request: Request, model: Any) -> tuple[str, str]:
        """Layer (`projection`, `last`, or a number from 0, the embeddings) and pooling.

        Raises:
            UsageError: The model does not have them.
        """
        layer = request.layer or (PROJECTION if self._joint else "last")
        config = _tower(model.config, request.modality)
        n_layers = next(
            (
                getattr(config, n)
                for n in ("num_hidden_layers", "encoder_layers")
                if hasattr(config, n)
            ),
            None,
        )
        if layer == PROJECTION:
            if not self._joint:
                raise UsageError(
                    f"{request.model}: --layer projection is not possible, the model joins no "
                    "modalities."
                )
            if request.pooling not in (None, "none"):
                raise UsageError(
                    f"{request.model}: --pooling {request.pooling} is not possible with --layer "
                    "projection."
                )
            return layer, "none"
        if self._joint:
            raise UsageError(
                f"{request.model}: --layer {layer} is not possible; of this model only "
                "'projection' is taken."
            )
        if layer != "last" and not (
            layer.isdigit() and (n_layers is None or int(layer) <= n_layers)
        ):
            raise UsageError(
                f"{request.model}: --layer {layer}: expected last or a number in [0, {n_layers}]."
            )
        kind = str(getattr(config, "model_type", ""))
        usual = "cls" if request.modality == "visual" and kind not in _NO_CLASS_TOKEN else "mean"
        pooling = request.pooling or usual
        if pooling not in POOLINGS[request.modality]:
            raise UsageError(
                f"{request.model}: --pooling {pooling}: choose one of: "
                f"{', '.join(POOLINGS[request.modality])}."
            )
        return layer, pooling

    def _vectors(self, inputs: dict[str, Any], mask: Any = None) -> Vectors:
        """One vector per row of the model's inputs, or with `ALL` those of its positions."""
        inputs = {name: value.to(self._device) for name, value in inputs.items()}
        with forward_pass(self._device, self._precision):
            if self._layer == PROJECTION:
                output = getattr(self._model, _FEATURES[self._modality])(**inputs)
                vectors = output if hasattr(output, "shape") else output.pooler_output
            else:
                encoder = (
                    self._model.get_encoder()
                    if getattr(self._model.config, "is_encoder_decoder", False)
                    else self._model
                )
                output = encoder(**inputs, output_hidden_states=self._layer != "last")
                states = (
                    output.last_hidden_state
                    if self._layer == "last"
                    else output.hidden_states[int(self._layer)]
                )
                if self._pooling == ALL:
                    return every_position(states, mask)
                vectors = pool_positions(states, self._pooling, mask)
            return vectors.float().cpu().numpy()  # type: ignore[no-any-return]

    def _describe(self, request: Request, folder: ModelFolder) -> EncoderSpec:
        digest = folder.sha256()
        asked = ["" if request.layer is None else f"layer-{self._layer}", request.pooling or ""]
        config = folder.path / "preprocessor_config.json"
        return EncoderSpec(
            name=slug(request.model.partition("@")[0], *asked),
            modality=request.modality,
            backend="transformers",
            model_id=folder.label,
            dim=self._probe(),
            layer=self._layer,
            pooling=self._pooling,
            preprocessing={
                **self._preprocessing(),
                "processor": type(self._processor).__name__,
                "processor_sha256": file_sha256(config) if config.is_file() else None,
                "space": digest[:16] if self._joint else None,
            },
            weights=folder.label,
            weights_sha256=digest,
            licence=folder.licence(),
            precision=request.precision,
            libraries=versions("torch", "transformers", "tokenizers", "pillow"),
        )

    def _probe(self) -> int:
        """Length of a vector."""
        raise AssertionError(f"{type(self).__name__} cannot be probed")


class HFVisionEncoder(TransformersEncoder):
    """A vision model, or the image tower of a joint one."""

    modalities = frozenset({"visual"})

    def _make_processor(self, library: Any, path: Path) -> Any:
        return library.AutoImageProcessor.from_pretrained(str(path), local_files_only=True)

    def load(self, content: Path | str) -> NDArray[np.float32]:
        """The processed picture, shape (3, height, width)."""
        pixels = self._processor(images=decode_rgb(content), return_tensors="np")["pixel_values"][0]
        return np.asarray(pixels, np.float32)

    def encode(self, batch: Sequence[NDArray[np.float32]]) -> Vectors:  # type: ignore[override]
        """Vectors, shape (len(batch), dim); with pooling `all` a list of (k, dim)."""
        import torch

        return self._vectors({"pixel_values": torch.from_numpy(np.stack(batch))})

    def _probe(self) -> int:
        image = require("PIL.Image").new("RGB", (64, 64))
        pixels = self._processor(images=image, return_tensors="np")["pixel_values"][0]
        return int(self.encode([np.asarray(pixels, np.float32)])[0].shape[-1])


class HFTextEncoder(TransformersEncoder):
    """A text model, or the text tower of a joint one."""

    modalities = frozenset({"textual"})

    def _make_processor(self, library: Any, path: Path) -> Any:
        tokenizer = library.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        config = _tower(self._model.config, "textual")
        positions = getattr(config, "max_position_embeddings", _LONGEST_TEXT)
        if str(getattr(config, "model_type", "")) in (
            "roberta",
            "xlm-roberta",
            "camembert",
            "mpnet",
        ):
            positions -= 2  # positions are counted from behind the padding index
        self._max_tokens = int(min(tokenizer.model_max_length, positions, _LONGEST_TEXT))
        # SigLIP has only ever seen texts padded to its full length, without a mask.
        self._full_length = str(getattr(config, "model_type", "")).startswith("siglip")
        # Each is used with one setting only, settled before there are threads: a fast tokenizer
        # whose settings change while another thread uses it fails, or cuts where it should not.
        self._cut = functools.partial(tokenizer, truncation=True, max_length=self._max_tokens)
        self._whole = functools.partial(copy.deepcopy(tokenizer), truncation=False, verbose=False)
        self._cut("a"), self._whole("a")
        return tokenizer

    def _preprocessing(self) -> dict[str, Any]:
        return {"max_tokens": self._max_tokens, "padded_to_max": self._full_length}

    def load(self, content: Path | str) -> dict[str, Any]:
        """The text's tokens, and under `cut` whether there were too many."""
        ids = self._whole(checked_text(content))["input_ids"]
        cut = len(ids) > self._max_tokens
        if cut:
            ids = self._cut(content)["input_ids"]
        if not ids:
            raise ContentError("the text has no tokens")
        return {"ids": np.asarray(ids, np.int64), "length": len(ids), "cut": cut}

    def encode(self, batch: Sequence[dict[str, Any]]) -> Vectors:  # type: ignore[override]
        """Vectors, shape (len(batch), dim), with pooling `all` a list of (k, dim); padding does not change them."""
        import torch

        fill = self._processor.pad_token_id or 0
        rows = [item["ids"] for item in batch]
        if self._full_length:
            rows = [
                np.pad(row, (0, self._max_tokens - row.size), constant_values=fill) for row in rows
            ]
        ids = torch.from_numpy(pad_rows(rows, fill))
        if self._full_length:
            return self._vectors({"input_ids": ids})
        lengths = torch.tensor([item["length"] for item in batch])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).to(torch.int64)
        return self._vectors({"input_ids": ids, "attention_mask": mask}, mask.to(self._device))

    def sort_key(self, loaded: dict[str, Any]) -> int:
        """Number of tokens."""
        return int(loaded["length"])

    def truncated(self, loaded: dict[str, Any]) -> bool:
        """Whether the text had more tokens than the model takes."""
        return bool(loaded["cut"])

    def _probe(self) -> int:
        return int(self.encode([self.load("a")])[0].shape[-1])


class _Clip(dict[str, NDArray[Any]]):
    """A model's inputs for one clip, the samples that they are made of, and whether there were more."""

    n_samples = 0
    cut = False

    @property
    def nbytes(self) -> int:
        """Memory of the inputs."""
        return sum(value.nbytes for value in self.values())


class HFAudioEncoder(TransformersEncoder):
    """An audio model (AST, wav2vec2, HuBERT, WavLM, Whisper's encoder), or the audio tower of a joint one."""

    modalities = frozenset({"audio"})

    def _make_processor(self, library: Any, path: Path) -> Any:
        extractor = library.AutoFeatureExtractor.from_pretrained(str(path), local_files_only=True)
        self._rate = int(extractor.sampling_rate)
        self._longest, self._from = _window(extractor)
        # Whisper's encoder sees every clip padded to 30 s: positions behind its end are left out of
        # the vector.
        self._frame = (
            2 * int(extractor.hop_length)
            if type(extractor).__name__ == "WhisperFeatureExtractor"
            else None
        )
        self._resample = Resampler(self._rate)
        return extractor

    def _preprocessing(self) -> dict[str, Any]:
        longer = (
            None if self._longest is None else f"cut to the {self._from} {self._longest} samples"
        )
        positions = (
            "all" if self._frame is None else f"one for each {self._frame} samples of the clip"
        )
        return {
            "sample_rate": self._rate,
            "channels": "mono",
            "longer": longer,
            "positions": positions,
        }

    def load(self, content: Path | str) -> _Clip:
        """The model's inputs for one clip."""
        return self._inputs(self._resample(*read_mono(content)))

    def encode(self, batch: Sequence[_Clip]) -> Vectors:  # type: ignore[override]
        """Vectors, shape (len(batch), dim); clips of different lengths go through one by one, so that padding changes nothing."""
        import torch

        shapes = {tuple(value.shape for value in item.values()) for item in batch}
        groups = (
            [batch]
            if len(shapes) == 1 and next(iter(batch[0].values())).ndim > 1
            else [[item] for item in batch]
        )
        rows = []
        for group in groups:
            inputs = {
                name: torch.from_numpy(np.stack([item[name] for item in group]))
                for name in group[0]
            }
            mask = None
            if self._frame is not None:
                position = torch.arange(inputs["input_features"].shape[-1] // 2)
                mask = position < torch.tensor(
                    [[-(-item.n_samples // self._frame)] for item in group]
                )
            rows.append(self._vectors(inputs, mask if mask is None else mask.to(self._device)))
        return [one for row in rows for one in row] if self.ragged else np.concatenate(rows)

    def sort_key(self, loaded: dict[str, NDArray[Any]]) -> int:
        """Length of the longest input."""
        return int(max(value.shape[0] for value in loaded.values()))

    def truncated(self, loaded: _Clip) -> bool:
        """Whether the clip was longer than what the model takes."""
        return loaded.cut

    def _inputs(self, samples: NDArray[np.float32]) -> _Clip:
        over = 0 if self._longest is None else max(0, len(samples) - self._longest)
        start = over // 2 if self._from == "middle" else 0
        kept = samples[start : start + self._longest] if over and self._longest else samples
        try:
            made = self._processor(kept, sampling_rate=self._rate, return_tensors="np")
        except (ValueError, RuntimeError, IndexError, AssertionError) as error:
            raise ContentError(f"too short for this model ({len(samples)} samples)") from error
        clip = _Clip({name: np.asarray(made[name])[0] for name in made if name != "attention_mask"})
        clip.cut, clip.n_samples = over > 0, len(kept)
        return clip

    def _probe(self) -> int:
        return int(self.encode([self._inputs(np.zeros(self._rate, np.float32))])[0].shape[-1])


def _window(extractor: Any) -> tuple[int | None, str]:
    """The samples of a clip that an extractor looks at, None: all; and which of a longer one are taken.

    CLAP's own choice of a longer clip's part is random; the middle makes it the same every time.
    """
    match type(extractor).__name__:
        case "ClapFeatureExtractor":
            return int(extractor.nb_max_samples), "middle"
        case "WhisperFeatureExtractor":
            return int(extractor.n_samples), "first"
        case "ASTFeatureExtractor":  # windows of 25 ms every 10 ms
            rate = extractor.sampling_rate
            return int(extractor.max_length - 1) * (rate // 100) + rate // 40, "first"
        case _:
            return None, "first"


def _build(library: Any, folder: ModelFolder) -> Any:
    """The model of a folder, complete.

    Raises:
        EncoderError: The weights lack something that is used.
    """
    with without_bar():
        model, told = library.AutoModel.from_pretrained(
            str(folder.path),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    absent = sorted(
        name
        for name in told["missing_keys"]
        if ".pooler." not in name and not name.startswith("pooler.")
    )
    if absent:
        raise EncoderError(
            f"{folder.label}: the weights lack {len(absent)} tensors, e.g. {absent[0]}; is the "
            "download complete?"
        )
    return model


def _tower(config: Any, modality: str) -> Any:
    """The part of a joint model's configuration that is about one modality."""
    name = {"visual": "vision_config", "textual": "text_config", "audio": "audio_config"}[modality]
    return getattr(config, name, config)
