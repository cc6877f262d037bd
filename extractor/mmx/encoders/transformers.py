"""transformers: vision, text and audio models, and both towers of CLIP-like ones.

By hub id or folder. The library's own processors prepare the content and its own classes compute;
weights are read as plain tensors, and no code that comes with a model is ever run. Models that join
two modalities (CLIP, SigLIP, ALIGN, AltCLIP, CLAP) give their projected vectors: the sets of both
modalities have the same weights digest and the same `space`, so that they can be seen to lie in one
space.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import (
    DECODERS,
    Encoder,
    EncoderFamily,
    EncoderInfo,
    EncoderSpec,
    Request,
    checked_text,
    each_text,
    plain_reason,
    require,
    slug,
    versions,
)
from mmx.encoders.batching import every_position, pad_rows, pool_positions
from mmx.encoders.compute import checked_device, forward_pass, prepared, stacked
from mmx.encoders.decoding import Resampler, read_mono
from mmx.encoders.decoding.jpegs import (
    EncodedJpeg,
    checked_decoder,
    decoder_told,
    decoder_versions,
    open_picture,
)
from mmx.encoders.listings import TRANSFORMERS
from mmx.encoders.weights import hub, loading
from mmx.encoders.weights.checkpoints import file_sha256
from mmx.errors import ContentError, EncoderError, UsageError

Vectors: TypeAlias = NDArray[np.float32] | list[NDArray[np.float32]]

PROJECTION = "projection"
"""The layer of models that join two modalities: one vector per item in their common space."""

ALL = "all"
"""The pooling that keeps every position: patches, tokens or frames, several vectors per item."""

_LONGEST_TEXT = 8192  # tokenizers that know no limit say 10^30
# Kinds of models without a class token.
_NO_CLASS_TOKEN = (
    "swin", "swinv2", "convnext", "convnextv2", "resnet", "siglip_vision_model", "pvt", "focalnet",
    "regnet",
)  # fmt: skip


class TransformersEncoder(Encoder):
    """The common part of the three modalities: find, build, choose a layer, describe."""

    concurrent = True

    modality: ClassVar[str]
    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean", ALL)
    projected: ClassVar[str]  # the method that models which join modalities have
    tower: ClassVar[str]  # the part of their configuration

    def __init__(self, request: Request) -> None:
        device = checked_device(request)
        self._decoder, self._nvjpeg = request.decoder, checked_decoder(request, device)
        folder = hub.find_model(request, request.model)
        if request.offline:
            hub.go_offline()
        library = require("transformers")
        try:
            self._model = model = loading.load_model(library, folder)
            self._config = getattr(model.config, self.tower, model.config)
            self._kind = str(getattr(self._config, "model_type", ""))
            self._processor = self._make_processor(library, folder.path)
            if request.modality == "textual":
                loading.refuse_foreign_tokens(folder, model, self._processor)
        except (*hub.NOT_A_MODEL, require("safetensors").SafetensorError) as error:
            reason = plain_reason(error)
            raise EncoderError(
                f"{request.model}: {folder.label} is not a transformers model of "
                f"{request.modality} ({reason})."
            ) from error
        self._precision, self._device = request.precision, device
        self._joint = hasattr(model, self.projected)
        self._layer, self._pooling = self._choose(request)
        self.ragged = self._pooling == ALL
        self._model = prepared(model.float(), device, request.precision)
        self.device = str(device)
        self.spec = self._describe(request, folder)

    def _make_processor(self, library: Any, path: Path) -> Any:
        raise NotImplementedError

    def _preprocessing(self) -> dict[str, Any]:
        return {}

    def _sample(self) -> Any:
        """A loaded item, with which the length of a vector is found out."""
        raise NotImplementedError

    def _choose(self, request: Request) -> tuple[str, str]:
        """Layer (`projection`, `last`, or a number from 0, the embeddings) and pooling.

        Raises:
            UsageError: The model does not have them.
        """
        layer = request.layer or (PROJECTION if self._joint else "last")
        has_token = self.modality == "visual" and self._kind not in _NO_CLASS_TOKEN
        pooling = request.pooling or ("cls" if has_token else "mean")
        counts = (getattr(self._config, n, None) for n in ("num_hidden_layers", "encoder_layers"))
        n_layers = next((n for n in counts if n is not None), None)
        refusal = ""
        if layer == PROJECTION:
            pooling = "none"
            if not self._joint:
                refusal = "--layer projection is not possible, the model joins no modalities."
            elif request.pooling not in (None, "none"):
                refusal = f"--pooling {request.pooling} is not possible with --layer projection."
        elif self._joint:
            refusal = f"--layer {layer} is not possible; of this model only 'projection' is taken."
        elif layer != "last" and not (
            layer.isdigit() and (n_layers is None or int(layer) <= n_layers)
        ):
            refusal = f"--layer {layer}: expected last or a number in [0, {n_layers}]."
        elif pooling not in self.poolings:
            refusal = f"--pooling {pooling}: choose one of: {', '.join(self.poolings)}."
        if refusal:
            raise UsageError(f"{request.model}: {refusal}")
        return layer, pooling

    def _vectors(self, inputs: dict[str, Any], mask: Any = None) -> Vectors:
        """One vector per row of the model's inputs, or with `ALL` those of its positions."""
        with forward_pass(self._device, self._precision):
            inputs = {name: value.to(self._device) for name, value in inputs.items()}
            return self._within_pass(inputs, mask)

    def _within_pass(self, inputs: dict[str, Any], mask: Any = None) -> Vectors:
        """The same of inputs on the device, within `forward_pass`."""
        if self._layer == PROJECTION:
            output = getattr(self._model, self.projected)(**inputs)
            vectors = output if hasattr(output, "shape") else output.pooler_output
            return vectors.float().cpu().numpy()  # type: ignore[no-any-return]
        two_parts = getattr(self._model.config, "is_encoder_decoder", False)
        encoder = self._model.get_encoder() if two_parts else self._model
        last = self._layer == "last"
        output = encoder(**inputs, output_hidden_states=not last)
        states = output.last_hidden_state if last else output.hidden_states[int(self._layer)]
        if self._pooling == ALL:
            return every_position(states, mask)
        return pool_positions(states, self._pooling, mask).float().cpu().numpy()

    def _measured(self, folder: hub.ModelFolder) -> int:
        """Length of a vector."""
        with loading.probing(folder):
            return int(self.encode([self._sample()])[0].shape[-1])

    def _describe(self, request: Request, folder: hub.ModelFolder) -> EncoderSpec:
        digest = folder.sha256(modules=False)
        asked = ["" if request.layer is None else f"layer-{self._layer}", request.pooling or ""]
        config = folder.path / "preprocessor_config.json"
        return EncoderSpec(
            name=slug(request.model.partition("@")[0], *asked),
            modality=request.modality,
            backend="transformers",
            model_id=folder.label,
            dim=self._measured(folder),
            layer=self._layer,
            pooling=self._pooling,
            preprocessing={
                **self._preprocessing(),
                "processor": type(self._processor).__name__,
                "processor_sha256": file_sha256(config) if config.is_file() else None,
                "space": digest[:16] if self._joint else None,
                **decoder_told(request.decoder),
            },
            weights=folder.label,
            weights_sha256=digest,
            licence=folder.licence(),
            precision=request.precision,
            libraries={
                **versions("torch", "transformers", "tokenizers", "pillow"),
                **decoder_versions(request.decoder),
            },
        )


class HFVisionEncoder(TransformersEncoder):
    """A vision model, or the image tower of a joint one."""

    modality, projected, tower = "visual", "get_image_features", "vision_config"

    def _make_processor(self, library: Any, path: Path) -> Any:
        processor = library.AutoImageProcessor.from_pretrained(str(path), local_files_only=True)
        self._takes_tensors = (
            getattr(processor, "backend", None) == "torchvision"
            or getattr(processor, "is_fast", False) is True  # transformers 4
        )
        if self._decoder == "nvjpeg" and not self._takes_tensors:
            raise UsageError(
                "--decoder nvjpeg is not possible with this model: its processor, "
                f"{type(processor).__name__}, takes Pillow's pictures; take --decoder torchvision"
            )
        return processor

    def load(self, content: Path | str) -> NDArray[np.float32] | EncodedJpeg:
        """Decode and process a picture, shape (3, height, width).

        With nvjpeg, a JPEG file is only read.
        """
        picture = open_picture(content, self._decoder)
        return picture if isinstance(picture, EncodedJpeg) else self._process(picture)

    def _process(self, image: Any) -> NDArray[np.float32]:
        """Of a picture of Pillow, or a tensor (3, height, width)."""
        if hasattr(image, "permute"):
            if self._takes_tensors:
                return np.ascontiguousarray(self._process_tensors(image[None])[0].numpy())
            image = require("PIL.Image").fromarray(image.permute(1, 2, 0).numpy())
        pixels = self._processor(images=image, return_tensors="np")["pixel_values"][0]
        return np.asarray(pixels, np.float32)

    def _process_tensors(self, images: Any) -> Any:
        """(k, 3, height, width) uint8 to (k, 3, new height, new width) float32."""
        return self._processor(
            images=list(images),
            return_tensors="pt",
            input_data_format="channels_first",
            device=images.device,
        )["pixel_values"]

    def encode(self, batch: Sequence[Any]) -> Vectors:  # type: ignore[override]
        """Return vectors, (len(batch), dim), or with pooling `all` a list of (k, dim)."""
        with forward_pass(self._device, self._precision):
            if self._nvjpeg is None:
                pixels = stacked(batch, self._device)
            else:
                pixels = self._nvjpeg.batch(batch, self._process_tensors, self._process)
            return self._within_pass({"pixel_values": pixels})

    def _sample(self) -> Any:
        return self._process(require("PIL.Image").new("RGB", (64, 64)))


class HFTextEncoder(TransformersEncoder):
    """A text model, or the text tower of a joint one."""

    modality, projected, tower = "textual", "get_text_features", "text_config"
    poolings = ("cls", "mean", "last", ALL)

    def _make_processor(self, library: Any, path: Path) -> Any:
        hub.tokenise_in_callers()
        tokenizer = library.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        positions = loading.n_positions(self._model)
        if positions is None:
            positions = getattr(self._config, "max_position_embeddings", _LONGEST_TEXT)
        self._max_tokens = int(min(tokenizer.model_max_length, positions, _LONGEST_TEXT))
        # SigLIP has only ever seen texts padded to its full length, without a mask.
        self._full_length = self._kind.startswith("siglip")
        # Each is used with one setting only, settled before there are threads: a fast tokenizer
        # whose settings change while another thread uses it fails, or cuts where it should not.
        self._cut = functools.partial(tokenizer, truncation=True, max_length=self._max_tokens)
        self._whole = functools.partial(copy.deepcopy(tokenizer), truncation=False, verbose=False)
        self._cut("a"), self._whole("a")
        return tokenizer

    def _preprocessing(self) -> dict[str, Any]:
        return {"max_tokens": self._max_tokens, "padded_to_max": self._full_length}

    def load(self, content: Path | str) -> dict[str, Any]:
        """Tokenise a text; `cut` tells whether it had too many tokens."""
        (loaded,) = self._tokenised([checked_text(content)])
        if isinstance(loaded, ContentError):
            raise loaded
        return loaded

    def load_many(self, contents: Sequence[Path | str]) -> list[Any]:
        """Tokenise texts in one call; a `ContentError` in place of those without tokens."""
        return each_text(contents, self._tokenised)

    def _tokenised(self, texts: list[str]) -> list[dict[str, Any] | ContentError]:
        rows = self._whole(texts)["input_ids"]
        long = [k for k, ids in enumerate(rows) if len(ids) > self._max_tokens]
        if long:
            for k, ids in zip(long, self._cut([texts[k] for k in long])["input_ids"], strict=True):
                rows[k] = ids
        loaded: list[dict[str, Any] | ContentError] = [
            {"ids": np.asarray(ids, np.int64), "length": len(ids), "cut": False}
            if ids
            else ContentError("the text has no tokens")
            for ids in rows
        ]
        for k in long:
            loaded[k]["cut"] = True  # type: ignore[index]
        return loaded

    def encode(self, batch: Sequence[dict[str, Any]]) -> Vectors:  # type: ignore[override]
        """Return vectors, (len(batch), dim), or with pooling `all` a list of (k, dim)."""
        import torch

        fill = self._processor.pad_token_id or 0
        width = self._max_tokens if self._full_length else 0
        ids = torch.from_numpy(pad_rows([item["ids"] for item in batch], fill, width=width))
        if self._full_length:
            return self._vectors({"input_ids": ids})
        lengths = torch.tensor([item["length"] for item in batch])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).to(torch.int64)
        return self._vectors({"input_ids": ids, "attention_mask": mask}, mask.to(self._device))

    def sort_key(self, loaded: dict[str, Any]) -> int:
        """Return the number of tokens."""
        return int(loaded["length"])

    def truncated(self, loaded: dict[str, Any]) -> bool:
        """Whether the text had more tokens than the model takes."""
        return bool(loaded["cut"])

    def _sample(self) -> Any:
        return self.load("a")


class _Clip(dict[str, NDArray[Any]]):
    """A model's inputs for one clip, how many samples they are made of, and whether it was cut."""

    n_samples = 0
    cut = False

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values())


class HFAudioEncoder(TransformersEncoder):
    """An audio model (AST, wav2vec2, Whisper's encoder), or the audio tower of a joint one."""

    modality, projected, tower = "audio", "get_audio_features", "audio_config"

    def _make_processor(self, library: Any, path: Path) -> Any:
        extractor = library.AutoFeatureExtractor.from_pretrained(str(path), local_files_only=True)
        self._rate = int(extractor.sampling_rate)
        self._longest, self._from = _window(extractor)
        # Whisper's encoder sees every clip padded to 30 s: positions behind its end are left out of
        # the vector.
        whisper = type(extractor).__name__ == "WhisperFeatureExtractor"
        self._frame = 2 * int(extractor.hop_length) if whisper else None
        self._resample = Resampler(self._rate)
        return extractor

    def _preprocessing(self) -> dict[str, Any]:
        cut = f"cut to the {self._from} {self._longest} samples"
        frames = f"one for each {self._frame} samples of the clip"
        return {
            "sample_rate": self._rate,
            "channels": "mono",
            "longer": None if self._longest is None else cut,
            "positions": "all" if self._frame is None else frames,
        }

    def load(self, content: Path | str) -> _Clip:
        """Read a clip as the model's inputs."""
        return self._inputs(self._resample(*read_mono(content)))

    def encode(self, batch: Sequence[_Clip]) -> Vectors:  # type: ignore[override]
        """Return vectors, (len(batch), dim), or with pooling `all` a list of (k, dim)."""
        import torch

        # Clips of different lengths go through one by one, so that padding changes nothing.
        shapes = {tuple(value.shape for value in item.values()) for item in batch}
        together = len(shapes) == 1 and next(iter(batch[0].values())).ndim > 1
        rows = []
        for group in [batch] if together else [[item] for item in batch]:
            inputs = {
                name: torch.from_numpy(np.stack([item[name] for item in group]))
                for name in group[0]
            }
            mask = None
            if self._frame is not None:
                position = torch.arange(inputs["input_features"].shape[-1] // 2)
                own = [[-(-item.n_samples // self._frame)] for item in group]
                mask = (position < torch.tensor(own)).to(self._device)
            rows.append(self._vectors(inputs, mask))
        return [one for row in rows for one in row] if self.ragged else np.concatenate(rows)

    def sort_key(self, loaded: dict[str, NDArray[Any]]) -> int:
        """Return the length of the longest input."""
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

    def _sample(self) -> Any:
        return self._inputs(np.zeros(self._rate, np.float32))


def _window(extractor: Any) -> tuple[int | None, str]:
    """How many samples of a clip an extractor takes (None: all), and which of a longer clip.

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


_KINDS: dict[str, Callable[[Request], Encoder]] = {
    "visual": HFVisionEncoder, "textual": HFTextEncoder, "audio": HFAudioEncoder
}  # fmt: skip


def _accepts(model: str, modality: str) -> bool:
    """Whether it has the form of a hub id, or is a folder of a model."""
    return hub.looks_like_hub_id(model) or (Path(model).expanduser() / "config.json").is_file()


def _known(modality: str, cache_dir: Path | None) -> list[EncoderInfo]:
    return [
        EncoderInfo(
            f"transformers:{name}", modality, "transformers", dim, layer, pooling, licence, takes,
            "here" if hub.is_cached(name, cache_dir) else "download",
        )
        for of, name, dim, layer, pooling, takes, licence in TRANSFORMERS
        if of == modality
    ]  # fmt: skip


FAMILY = EncoderFamily(
    "transformers",
    frozenset(_KINDS),
    _accepts,
    _known,
    build=lambda r: _KINDS[r.modality](r),
    decoders=frozenset(DECODERS),
)
