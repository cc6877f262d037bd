"""open_clip: both towers of its CLIP models, by architecture and the tag or file of its weights.

The vectors are the towers' projected outputs, not normalised. The sets of both modalities have the same weights digest and the
same `space`, so that they can be seen to lie in one space.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import Encoder, EncoderInfo, EncoderSpec, Request, checked_text, require, slug, versions
from mmx.encoders.checkpoints import file_sha256, fill, missing_weights, read_state_dict, state_sha256
from mmx.encoders.images import decode_rgb, plain_reason
from mmx.encoders.runtime import checked_device, forward_pass, prepared
from mmx.errors import EncoderError, UsageError

# What `mmx models` lists; any other architecture of open_clip works too. (dimension, image size, usual weights)
MODELS: dict[str, tuple[int, int, str]] = {
    "ViT-B-32": (512, 224, "laion2b_s34b_b79k"),
    "ViT-B-16": (512, 224, "laion2b_s34b_b88k"),
    "ViT-L-14": (768, 224, "laion2b_s32b_b82k"),
    "ViT-H-14": (1024, 224, "laion2b_s32b_b79k"),
}
_TRANSPORT = (OSError, RuntimeError, ValueError)


class OpenClipEncoder(Encoder):
    """One tower of an open_clip model."""

    modalities = frozenset({"visual", "textual"})
    concurrent = True

    def __init__(self, request: Request) -> None:
        import torch

        request.refuse(layer="projection", pooling="none")
        device = checked_device(request)
        library = require("open_clip")
        torch.manual_seed(request.seed)
        try:
            model, _, transform = library.create_model_and_transforms(
                request.model, pretrained=None, load_weights=False
            )
        except (*_TRANSPORT, TypeError) as error:
            raise EncoderError(f"{request.model}: open_clip cannot build it: {plain_reason(error)}") from error
        digest, label = _load(library, model, request)
        self._text = request.modality == "textual"
        self._tokenizer = library.get_tokenizer(request.model) if self._text else None
        self._transform, self._precision, self._device = transform, request.precision, device
        self._model = prepared(model.float(), device, request.precision)
        self.device = str(device)
        suffix = "" if request.weights == "default" else Path(label).stem.replace("(seed=", "-").rstrip(")")
        self.spec = EncoderSpec(
            name=slug(request.model, suffix),
            modality=request.modality,
            backend="open_clip",
            model_id=request.model,
            dim=self._probe(),
            layer="projection",
            pooling="none",
            preprocessing={
                "transform": None if self._text else " ".join(str(transform).split()),
                "max_tokens": getattr(model, "context_length", None) if self._text else None,
                "space": digest[:16],
            },
            weights=label,
            weights_sha256=digest,
            licence=None,
            precision=request.precision,
            libraries=versions("torch", "torchvision", "open_clip_torch", "pillow"),
        )

    @classmethod
    def accepts(cls, model: str, modality: str) -> bool:
        """Whether open_clip has an architecture of that name; looks at its files without importing it."""
        model = model.removeprefix("open_clip:")
        if model in MODELS:
            return True
        if "open_clip" in sys.modules:
            return model in sys.modules["open_clip"].list_models()
        found = importlib.util.find_spec("open_clip")
        places = [Path(place) for place in (found.submodule_search_locations or [])] if found else []
        return any((place / "model_configs" / f"{Path(model).name}.json").is_file() for place in places)

    @classmethod
    def known(cls, modality: str, cache_dir: Path | None = None) -> list[EncoderInfo]:
        """Common architectures; any other one of open_clip works too."""
        takes = "77 tokens" if modality == "textual" else "{0} x {0} RGB"
        return [
            EncoderInfo(
                f"open_clip:{name}",
                modality,
                "open_clip",
                dim,
                "projection",
                "none",
                None,
                takes.format(size),
                "download",
            )
            for name, (dim, size, _) in MODELS.items()
        ]

    def load(self, content: Path | str) -> Any:
        """Tokens, shape (context,), or the processed picture, shape (3, height, width)."""
        if self._tokenizer is not None:
            return np.asarray(self._tokenizer([checked_text(content)])[0])
        return np.asarray(self._transform(decode_rgb(content)), np.float32)

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Projected vectors, shape (len(batch), dim)."""
        import torch

        inputs = torch.from_numpy(np.stack(batch)).to(self._device)
        with forward_pass(self._device, self._precision):
            vectors = self._model.encode_text(inputs) if self._text else self._model.encode_image(inputs)
            return vectors.float().cpu().numpy()  # type: ignore[no-any-return]

    def truncated(self, loaded: Any) -> bool:
        """Whether a text filled all of its tokens: it was probably longer."""
        return self._text and bool(loaded[-1] != 0)

    def _probe(self) -> int:
        image = require("PIL.Image").new("RGB", (64, 64))
        loaded = self.load("a") if self._text else np.asarray(self._transform(image), np.float32)
        return int(self.encode([loaded]).shape[1])


def _load(library: Any, model: Any, request: Request) -> tuple[str, str]:
    """Fill the model; digest and name of what it was filled with."""
    if request.weights == "random":
        return state_sha256(model.state_dict()), f"random(seed={request.seed})"
    path, label = Path(request.weights).expanduser(), Path(request.weights).name
    if not path.is_file():
        path, label = _published(library, request)
    given = {name.removeprefix("module."): value for name, value in read_state_dict(path).items()}
    given.pop("position_ids", None)
    fill(model, given, what=request.model, where=path.name)
    return file_sha256(path), label


def _published(library: Any, request: Request) -> tuple[Path, str]:
    """The file of a tag's weights, downloaded if it is not here yet."""
    tags = library.list_pretrained_tags_by_model(request.model)
    tag = request.weights
    if tag == "default":
        usual = MODELS.get(request.model, (0, 0, ""))[2]
        tag = usual if usual in tags else next(iter(tags), "")
    if tag not in tags:
        raise UsageError(
            f"{request.model}: no weights {request.weights!r}: neither a file nor one of random, {', '.join(tags) or 'no tags'}."
        )
    try:
        if request.offline:
            raise OSError("working offline")
        config = library.get_pretrained_cfg(request.model, tag)
        cache = None if request.cache_dir is None else str(request.cache_dir)
        return Path(library.download_pretrained(config, cache_dir=cache)), tag
    except Exception as error:
        raise missing_weights(
            request.model,
            tag,
            plain_reason(error),
            modality=request.modality,
            place="the cache of open_clip",
            random=True,
        ) from error
