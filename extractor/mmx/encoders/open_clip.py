"""open_clip: both towers of its CLIP models, by architecture and the tag or file of its weights.

Pictures are prepared, and the activation chosen, as the weights' tag says. The vectors are the
towers' projected outputs, not normalised. The sets of both modalities have the same weights digest
and the same `space`, so that they can be seen to lie in one space.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from mmx.encoders.compute import checked_device, forward_pass, prepared, stacked
from mmx.encoders.decoding.jpegs import (
    EncodedJpeg,
    checked_decoder,
    decoder_told,
    decoder_versions,
    open_picture,
    scaled,
)
from mmx.encoders.weights.checkpoints import (
    file_sha256,
    fill,
    missing_weights,
    read_state_dict,
    state_sha256,
)
from mmx.errors import EncoderError, UsageError

# Listed; any other architecture of open_clip works too. (dimension, image size, usual weights)
MODELS: dict[str, tuple[int, int, str]] = {
    "ViT-B-32": (512, 224, "laion2b_s34b_b79k"),
    "ViT-B-16": (512, 224, "laion2b_s34b_b88k"),
    "ViT-L-14": (768, 224, "laion2b_s32b_b82k"),
    "ViT-H-14": (1024, 224, "laion2b_s32b_b79k"),
}
_TRANSFORM = ("mean", "std", "interpolation", "resize_mode")


class _Loaded(NamedTuple):
    """A model's input, (context,) tokens or a (3, height, width) picture; whether it was cut."""

    values: NDArray[Any]
    cut: bool = False

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


class _Size(NamedTuple):
    """What open_clip asks a picture for."""

    size: tuple[int, int]


class OpenClipEncoder(Encoder):
    """One tower of an open_clip model."""

    concurrent = True

    def __init__(self, request: Request) -> None:
        import torch

        request.refuse(layer="projection", pooling="none")
        device = checked_device(request)
        self._decoder, self._nvjpeg = request.decoder, checked_decoder(request, device)
        library = require("open_clip")
        tag, path = _which_weights(library, request)
        told = library.get_pretrained_cfg(request.model, tag) if tag else {}
        # An activation belongs to the weights of a tag; the user's own file is taken to be what the
        # architecture says.
        quick_gelu = request.weights != "random" and path is None and bool(told.get("quick_gelu"))
        torch.manual_seed(request.seed)
        try:
            model, _, transform = library.create_model_and_transforms(
                request.model,
                pretrained=None,
                load_weights=False,
                force_quick_gelu=quick_gelu,
                **{f"image_{name}": told.get(name) for name in _TRANSFORM},
            )
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise EncoderError(
                f"{request.model}: open_clip cannot build it: {plain_reason(error)}"
            ) from error
        digest, label = _load(library, model, request, tag, path)
        self._text = request.modality == "textual"
        if self._text:
            self._tokenizer = library.get_tokenizer(request.model)
            # A copy, because a tokenizer whose settings change while another thread uses it fails.
            self._longer = copy.deepcopy(self._tokenizer)
            self._padding = int(self._tokenizer([""])[0][-1])
        self._transform, self._precision, self._device = transform, request.precision, device
        self._model = prepared(model.float(), device, request.precision)
        self.device = str(device)
        weights = Path(label).stem.replace("(seed=", "-").rstrip(")")
        self.spec = EncoderSpec(
            name=slug(request.model, "" if request.weights == "default" else weights),
            modality=request.modality,
            backend="open_clip",
            model_id=request.model,
            dim=self._probe(),
            layer="projection",
            pooling="none",
            preprocessing={
                "transform": None if self._text else " ".join(str(transform).split()),
                "max_tokens": getattr(model, "context_length", None) if self._text else None,
                "quick_gelu": quick_gelu
                or bool(library.get_model_config(request.model).get("quick_gelu")),
                "space": digest[:16],
                **decoder_told(request.decoder),
            },
            weights=label,
            weights_sha256=digest,
            licence=None,
            precision=request.precision,
            libraries={
                **versions("torch", "torchvision", "open_clip_torch", "pillow"),
                **decoder_versions(request.decoder),
            },
        )

    def load(self, content: Path | str) -> _Loaded | EncodedJpeg:
        """Tokenise a text, or prepare a picture (with nvjpeg, a JPEG file is only read)."""
        if not self._text:
            picture = open_picture(content, self._decoder)
            return picture if isinstance(picture, EncodedJpeg) else self._prepared(picture)
        text = checked_text(content)
        tokens = np.asarray(self._tokenizer([text])[0])
        return _Loaded(tokens, self._is_cut(text, tokens))

    def load_many(self, contents: Sequence[Path | str]) -> list[Any]:
        """Load each; texts are tokenised in one call."""
        if not self._text:
            return super().load_many(contents)
        return each_text(contents, self._tokenised)

    def _tokenised(self, texts: list[str]) -> list[_Loaded]:
        tokens = np.asarray(self._tokenizer(texts))  # (len(texts), context)
        return [
            _Loaded(row, self._is_cut(text, row)) for text, row in zip(texts, tokens, strict=True)
        ]

    def _prepared(self, picture: Any) -> _Loaded:
        """Of a picture of Pillow, or a tensor (3, height, width)."""
        if hasattr(picture, "permute"):
            return _Loaded(np.ascontiguousarray(self._transformed(picture).numpy()))
        return _Loaded(np.asarray(self._transform(picture), np.float32))

    def _transformed(self, pictures: Any) -> Any:
        """Tensors (..., 3, height, width), uint8, to (..., 3, size, size), float32.

        The steps of open_clip's transform for pictures of Pillow, on tensors.
        """
        functional = require("torchvision.transforms.v2.functional")
        for step in self._transform.transforms:
            match type(step).__name__:
                case "Resize":
                    pictures = scaled(pictures, step.size, step.interpolation)
                case "ResizeKeepRatio":
                    height, width = pictures.shape[-2:]
                    shape = step.get_params(_Size((width, height)), step.size, step.longest)
                    pictures = scaled(pictures, shape, step.interpolation)
                case "CenterCrop":
                    pictures = functional.center_crop(pictures, list(step.size))
                case "MaybeToTensor":
                    pictures = pictures.float().div(255)
                case "MaybeConvertMode":
                    pass
                case _:  # CenterCropOrPad, Normalize
                    pictures = step(pictures)
        return pictures

    def encode(self, batch: Sequence[_Loaded | EncodedJpeg]) -> NDArray[np.float32]:
        """Return projected vectors, shape (len(batch), dim)."""
        values: list[Any] = [getattr(one, "values", one) for one in batch]
        with forward_pass(self._device, self._precision):
            if self._nvjpeg is None:
                inputs = stacked(values, self._device)
            else:
                inputs = self._nvjpeg.batch(
                    values, self._transformed, lambda picture: self._prepared(picture).values
                )
            encode = self._model.encode_text if self._text else self._model.encode_image
            return encode(inputs).float().cpu().numpy()  # type: ignore[no-any-return]

    def truncated(self, loaded: _Loaded | EncodedJpeg) -> bool:
        """Whether a text had more tokens than the model takes."""
        return isinstance(loaded, _Loaded) and loaded.cut

    def _is_cut(self, text: str, tokens: NDArray[Any]) -> bool:
        """Whether a context that is longer by one holds more of the text."""
        if (tokens[-2:] == self._padding).all():
            return False
        longer = np.asarray(self._longer([text], context_length=len(tokens) + 1)[0])
        return bool(longer[-1] != self._padding or (longer[:-1] != tokens).any())

    def _probe(self) -> int:
        """Length of a vector."""
        if self._text:
            loaded = self.load("a")
        else:
            image = require("PIL.Image").new("RGB", (64, 64))
            loaded = _Loaded(np.asarray(self._transform(image), np.float32))
        return int(self.encode([loaded]).shape[1])


def _accepts(model: str, modality: str) -> bool:
    """Whether open_clip has the architecture; looks at its files without importing it."""
    if model in MODELS:
        return True
    if "open_clip" in sys.modules:
        return model in sys.modules["open_clip"].list_models()
    found = importlib.util.find_spec("open_clip")
    places = (found.submodule_search_locations or []) if found else []
    file = f"{Path(model).name}.json"
    return any((Path(place) / "model_configs" / file).is_file() for place in places)


def _known(modality: str, cache_dir: Path | None) -> list[EncoderInfo]:
    return [
        EncoderInfo(
            f"open_clip:{name}",
            modality,
            "open_clip",
            dim,
            "projection",
            "none",
            licence=None,
            input="77 tokens" if modality == "textual" else f"{size} x {size} RGB",
            weights="download",
        )
        for name, (dim, size, _) in MODELS.items()
    ]


FAMILY = EncoderFamily(
    "open_clip",
    frozenset({"visual", "textual"}),
    _accepts,
    _known,
    build=OpenClipEncoder,
    decoders=frozenset(DECODERS),
)


def _which_weights(library: Any, request: Request) -> tuple[str, Path | None]:
    """The tag whose preprocessing is taken, and the user's own file if there is one.

    For random weights and a file it is the default tag, or "" where an architecture has none.

    Raises:
        UsageError: Neither a tag nor a file.
    """
    tags = library.list_pretrained_tags_by_model(request.model)
    usual = MODELS.get(request.model, (0, 0, ""))[2]
    default = usual if usual in tags else next(iter(tags), "")
    if request.weights == "random" or (request.weights == "default" and default):
        return default, None
    if request.weights in tags:
        return request.weights, None
    path = Path(request.weights).expanduser()
    if path.is_file():
        return default, path
    raise UsageError(
        f"{request.model}: no weights {request.weights!r}: neither a file nor one of random, "
        f"{', '.join(tags) or 'no tags'}."
    )


def _load(
    library: Any, model: Any, request: Request, tag: str, path: Path | None
) -> tuple[str, str]:
    """Fill the model; return the digest and the name of the weights."""
    if request.weights == "random":
        return state_sha256(model.state_dict()), f"random(seed={request.seed})"
    label = tag if path is None else path.name
    path = path or _published(library, request, tag)
    given = {name.removeprefix("module."): value for name, value in read_state_dict(path).items()}
    given.pop("position_ids", None)
    fill(model, given, what=request.model, where=path.name)
    return file_sha256(path), label


def _published(library: Any, request: Request, tag: str) -> Path:
    """The file of a tag's weights, downloaded if it is not here yet."""
    config = library.get_pretrained_cfg(request.model, tag)
    try:
        if request.offline:
            return _cached(config, request.cache_dir)
        cache = None if request.cache_dir is None else str(request.cache_dir)
        return Path(library.download_pretrained(config, cache_dir=cache))
    except Exception as error:
        raise missing_weights(
            request, tag, plain_reason(error), place="the cache of open_clip"
        ) from error


def _cached(config: dict[str, Any], cache: Path | None) -> Path:
    """The file of a tag's weights on this machine.

    Raises:
        OSError: It is not here.
    """
    repository, _, name = str(config.get("hf_hub", "")).rpartition("/")
    name = name or "open_clip_pytorch_model.bin"
    usual = name == "open_clip_pytorch_model.bin"
    safe = f"{'open_clip_model' if usual else Path(name).stem}.safetensors"
    for each in (safe, name) if repository else ():
        found = require("huggingface_hub").try_to_load_from_cache(repository, each, cache_dir=cache)
        if isinstance(found, str):
            return Path(found)
    raise OSError("working offline")
