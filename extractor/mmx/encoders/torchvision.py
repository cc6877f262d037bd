"""torchvision's classification models: any name, any layer, the weights' own reference transforms.

A picture takes the reference's path up to the 8-bit crop (Pillow decode, resize, centre crop);
scaling and normalising are done once per batch, in the same order of operations as `ToTensor` and
`Normalize`, so the network's input is equal bit for bit. The EXIF orientation is not applied,
because the reference does not.

Random weights are torchvision's own initialisation after `torch.manual_seed`. Residual networks are
asked for `zero_init_residual`, torchvision's option: initialised otherwise, with batch-norm
statistics that were never learnt, every block doubles the variance, and the vectors of different
pictures become nearly parallel.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import Encoder, EncoderInfo, EncoderSpec, Request, require, slug, versions
from mmx.encoders.batching import pad_batch
from mmx.encoders.compute import checked_device, forward_pass, prepared
from mmx.encoders.decoding.images import check_pixels, decode_rgb
from mmx.encoders.listings.torchvision import LICENCES, MODELS, default_layer
from mmx.encoders.pooling import POOLINGS, pool
from mmx.encoders.weights.checkpoints import (
    file_sha256,
    fill,
    finetuned_from,
    published,
    read_state_dict,
    state_sha256,
    torch_cache,
    training_of,
)
from mmx.errors import EncoderError, UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

_RESIDUAL = ("resnet", "resnext", "wide_resnet")


class TorchvisionEncoder(Encoder):
    """A torchvision model up to one layer, by default the last one before the classifier."""

    modalities = frozenset({"visual"})
    concurrent = True

    def __init__(self, request: Request) -> None:
        import torch

        models = require("torchvision.models")
        name = request.model.lower()
        device = checked_device(request)
        tag, path = _which_weights(request, models.get_model_weights(name))
        transforms = tag.transforms()
        crop = transforms.crop_size[0]

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            model = models.get_model(
                name, weights=None, **_options(name, tag, random=request.weights == "random")
            )
        layer = request.layer or _default(name)[0]
        self._network = _cut(name, model.train(False), layer)
        self._layer = layer
        self._channels_last = name.startswith("swin") and layer.startswith(("features", "norm"))
        self._pooling, dim = self._measure(request, crop)

        digest, label = self._load_weights(request, tag, path)
        self._network = prepared(self._network, device, request.precision)
        self._mean = torch.tensor(transforms.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(transforms.std, device=device).view(1, 3, 1, 1)
        self._device = device
        self._reference = transforms
        self.device = str(device)

        asked = [
            layer if layer != _default(name)[0] else "",
            _pooling_slug(request, layer, name, self._pooling),
        ]
        self.spec = EncoderSpec(
            name=slug(name, *asked, _weights_slug(request, path)),
            modality="visual",
            backend="torchvision",
            model_id=name,
            dim=dim,
            layer=layer,
            pooling=self._pooling,
            preprocessing=_preprocessing(transforms),
            weights=label,
            weights_sha256=digest,
            licence=tag.meta.get("license")
            if request.weights != "random" and path is None
            else None,
            precision=request.precision,
            libraries=versions("torch", "torchvision", "pillow"),
            training={} if path is None else training_of(path),
        )

    @classmethod
    def accepts(cls, model: str, modality: str) -> bool:
        """Whether torchvision has a classification model of that name (in any case)."""
        if model.lower() in MODELS:
            return True
        # Only a newer torchvision may know more: ask it, but don't pay for the import when it is
        # not installed.
        try:
            models = require("torchvision.models")
        except EncoderError:
            return False
        return model.lower() in models.list_models(module=models)

    @classmethod
    def known(cls, modality: str, cache_dir: Path | None = None) -> list[EncoderInfo]:
        """The models of our table, with the state of their default weights."""
        cache = torch_cache(cache_dir)
        infos = []
        for name, (dim, size, file) in MODELS.items():
            layer, pooling = _default(name)
            weights = "here" if (cache / file).is_file() else "download"
            infos.append(
                EncoderInfo(
                    name,
                    modality,
                    "torchvision",
                    dim,
                    layer,
                    pooling,
                    LICENCES.get(name),
                    f"{size} x {size} RGB",
                    weights,
                )
            )
        return infos

    def load(self, content: Path | str) -> NDArray[np.uint8]:
        """The picture after the reference's resize and centre crop, shape (height, width, 3), uint8."""
        functional = require("torchvision.transforms.functional")
        reference = self._reference
        image = decode_rgb(content)
        shorter = min(image.size)
        scale = reference.resize_size[0] / shorter
        check_pixels(
            *(max(1, int(side * scale)) for side in image.size)
        )  # a line of 1 x 30,000 becomes enormous
        image = functional.resize(
            image,
            reference.resize_size,
            interpolation=reference.interpolation,
            antialias=reference.antialias,
        )
        image = functional.center_crop(image, reference.crop_size)
        return np.asarray(image)

    def encode(self, batch: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The layer's pooled output, shape (len(batch), dim)."""
        import torch

        pixels = pad_batch(np.stack(batch), self.batch_size)  # (b, height, width, 3)
        with forward_pass(self._device, self.spec.precision):
            return self._forward(torch.from_numpy(pixels))[: len(batch)].float().cpu().numpy()

    @property
    def network(self) -> Any:
        """The network, for fine-tuning."""
        return self._network

    def differentiable(self, batch: Sequence[NDArray[np.uint8]]) -> Tensor:
        """As `encode`, with gradients."""
        import torch

        return self._forward(torch.from_numpy(np.stack(batch)))

    def save(self, path: Path, training: Mapping[str, Any]) -> None:
        """Write the weights as safetensors, with what they were made of and how; in one step."""
        tensors = {
            name: value.detach().cpu().contiguous()
            for name, value in self._network.state_dict().items()
        }
        partial = path.with_name(path.name + ".partial")
        told = {
            "mmx": json.dumps(
                {"finetuned_from": self.spec.provenance(), "training": dict(training)},
                sort_keys=True,
            )
        }  # see `finetuned_from`
        require("safetensors.torch").save_file(tensors, partial, told)
        partial.replace(path)

    def _forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, height, width, 3), uint8, to pooled vectors (b, dim)."""
        import torch

        # Channels come last in memory already, as the network wants them.
        x = pixels.to(self._device).permute(0, 3, 1, 2).to(torch.float32)
        x.div_(255).sub_(self._mean).div_(self._std)  # (b, 3, height, width)
        return pool(self._network(x)[self._layer], self._pooling, channels_last=self._channels_last)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; a network cut by torch.fx comes back in training mode."""
        self.__dict__.update(state)
        self._network.train(False)

    def _measure(self, request: Request, crop: int) -> tuple[str, int]:
        """Pooling and vector length, from shapes alone (nothing is computed)."""
        import torch

        shapes = {
            name: tensor.to("meta")
            for name, tensor in [*self._network.named_parameters(), *self._network.named_buffers()]
        }
        with torch.inference_mode():
            image = torch.zeros(1, 3, crop, crop, device="meta")
            output = torch.func.functional_call(self._network, shapes, (image,))[self._layer]
        if request.pooling is not None and request.pooling not in POOLINGS:
            raise unknown_name("pooling", request.pooling, POOLINGS)
        positions = _n_positions(output, self._channels_last)
        usual = _usual_pooling(request.model.lower(), self._layer)
        how = "none" if positions == 1 else request.pooling or usual
        try:
            return how, pool(output, how, channels_last=self._channels_last).shape[1]
        except ValueError as error:
            raise UsageError(
                f"{request.model}, layer {self._layer}: {error}; choose another --pooling."
            ) from error

    def _load_weights(self, request: Request, tag: Any, path: Path | None) -> tuple[str, str]:
        """Fill the network; the digest and the name of what it was filled with."""
        if request.weights == "random":
            return state_sha256(self._network.state_dict()), f"random(seed={request.seed})"
        label = tag.name if path is None else path.name
        path = path or published(request, tag.url, tag.name)
        given = {_renamed(name): value for name, value in read_state_dict(path).items()}
        fill(
            self._network, given, what=f"{request.model} up to layer {self._layer}", where=path.name
        )
        return file_sha256(path), label


def _which_weights(request: Request, tags: Any) -> tuple[Any, Path | None]:
    """The registry's entry that gives the transforms (and the weights), and the user's own file if there is one."""
    default = tags.DEFAULT
    if request.weights in ("default", "random"):
        return default, None
    if request.weights in tags.__members__:
        return tags[request.weights], None
    path = Path(request.weights).expanduser()
    if path.exists():
        return _tag_of(path, tags), path
    raise EncoderError(
        f"{request.model}: no weights {request.weights!r}: neither a file nor one of default, "
        "random, "
        f"{', '.join(tag.name for tag in tags)}."
    )


def _tag_of(path: Path, tags: Any) -> Any:
    """The tag whose transforms a file's weights were trained with, as far as the file tells; else the default.

    It tells by the name under which it is published, or as a fine-tuned checkpoint by what it was
    made from.
    """
    in_order = [tags.DEFAULT, *tags]
    told = finetuned_from(path).get("preprocessing")
    return next(
        (
            tag
            for tag in in_order
            if tag.url.endswith(f"/{path.name}") or _preprocessing(tag.transforms()) == told
        ),
        tags.DEFAULT,
    )


def _preprocessing(transforms: Any) -> dict[str, Any]:
    """The numbers of a tag's transforms, for the record."""
    return {
        "colour": "RGB",
        "exif_orientation": "ignored",
        "alpha": "dropped",
        "resize": list(transforms.resize_size),
        "crop": list(transforms.crop_size),
        "interpolation": transforms.interpolation.value,
        "antialias": bool(transforms.antialias),
        "mean": list(transforms.mean),
        "std": list(transforms.std),
    }


def _options(name: str, tag: Any, *, random: bool) -> dict[str, Any]:
    """What the constructor needs so that the tag's weights fit, and so that random weights are useful."""
    if name.startswith("vit"):
        return {"image_size": tag.meta["min_size"][0]}
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": True, "init_weights": False}
    if random and name.startswith(_RESIDUAL):
        return {"zero_init_residual": True}
    return {}


def _default(name: str) -> tuple[str, str]:
    """Default layer and pooling.

    Raises:
        UsageError: A model that our table does not know yet.
    """
    found = default_layer(name)
    if found is None:
        raise UsageError(
            f"{name}: no default layer is known for this model; name one with --layer."
        )
    return found


def _cut(name: str, model: Any, layer: str) -> Any:
    """The model up to a layer: a module's name (`layer4`, `layer4.2.relu`) or a node of its graph (`flatten`).

    Raises:
        UsageError: No such layer; with the closest match.
    """
    extraction = require("torchvision.models.feature_extraction")
    _, nodes = extraction.get_graph_node_names(model, suppress_diff_warning=True)
    modules = {
        ".".join(node.split(".")[:depth])
        for node in nodes[1:]
        for depth in range(1, node.count(".") + 2)
    }
    if layer not in modules:
        close = difflib.get_close_matches(layer, modules, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        short = sorted(node for node in modules if node.count(".") < 2)
        raise UsageError(
            f"{name} has no layer {layer!r}.{hint} Layers (and what is inside them): "
            f"{', '.join(short)}."
        )
    return extraction.create_feature_extractor(model, [layer], suppress_diff_warning=True).train(
        False
    )


def _n_positions(output: Tensor, channels_last: bool) -> int:
    """How many vectors per item an output holds."""
    if output.ndim == 4:
        height, width = output.shape[1:3] if channels_last else output.shape[2:4]
        return int(height * width)
    return int(output.shape[1]) if output.ndim == 3 else 1


def _usual_pooling(name: str, layer: str) -> str:
    """The pooling when none is asked for."""
    default, pooling = _default(name)
    return pooling if layer == default else "mean"


def _pooling_slug(request: Request, layer: str, name: str, pooling: str) -> str:
    """The pooling, when it was asked for and makes a difference."""
    return (
        pooling
        if request.pooling is not None and pooling not in ("none", _usual_pooling(name, layer))
        else ""
    )


def _weights_slug(request: Request, path: Path | None) -> str:
    """What the weights add to the set's name: nothing for the default ones."""
    if request.weights == "default" or (
        path is not None and path.name == MODELS.get(request.model.lower(), ("",))[-1]
    ):
        return ""
    return request.weights if path is None else path.stem


def _renamed(name: str) -> str:
    """A parameter's present name; torchvision's DenseNet files still have the old ones (`norm.1` for `norm1`)."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
