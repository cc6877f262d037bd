"""torchvision's classification models: any name, any layer, the weights' reference transforms.

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
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import (
    DECODERS,
    Encoder,
    EncoderFamily,
    EncoderInfo,
    EncoderSpec,
    Request,
    require,
    slug,
    versions,
)
from mmx.encoders.batching import POOLINGS, pool
from mmx.encoders.compute import checked_device, fetched, forward_pass, prepared, stacked
from mmx.encoders.decoding.cropping import Cropping
from mmx.encoders.decoding.jpegs import (
    EncodedJpeg,
    checked_decoder,
    decoder_told,
    decoder_versions,
    scaled,
)
from mmx.encoders.listings import (
    TORCHVISION,
    TORCHVISION_LAYERS,
    TORCHVISION_LICENCES,
    TORCHVISION_VERSION,
)
from mmx.encoders.replaying import Replays
from mmx.encoders.weights import checkpoints
from mmx.errors import EncoderError, UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

_RESIDUAL = ("resnet", "resnext", "wide_resnet")


class TorchvisionEncoder(Encoder):
    """A torchvision model up to one layer, by default the last one before the classifier."""

    concurrent = True

    def __init__(self, request: Request) -> None:
        import torch

        models = require("torchvision.models")
        name = request.model.lower()
        device = checked_device(request)
        self._nvjpeg = checked_decoder(request, device)
        tag, path = _which_weights(request, models.get_model_weights(name))
        random = request.weights == "random"
        self._transforms = transforms = tag.transforms()
        modes = require("torchvision.transforms.functional").pil_modes_mapping
        self._cropping = Cropping(
            request.decoder,
            transforms.resize_size[0],
            transforms.crop_size[0],
            int(modes[transforms.interpolation]),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            model = models.get_model(name, weights=None, **_options(name, tag, random=random))
        default_layer, default_pooling = default_output(name)
        self._layer = layer = request.layer or default_layer
        usual = default_pooling if layer == default_layer else "mean"
        whole = set(model.state_dict())
        self._network = _cut(name, model.train(False), layer)
        self._channels_last = name.startswith("swin") and layer.startswith(("features", "norm"))
        self._pooling, dim = self._measure(request, transforms.crop_size[0], usual)
        self.ragged = self._pooling == "all"

        digest, label = self._load_weights(request, tag, path, whole)
        self._network = prepared(self._network, device, request.precision)
        self._mean = torch.tensor(transforms.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(transforms.std, device=device).view(1, 3, 1, 1)
        self._device = device
        self.device = str(device)
        self.replays = self._replays = Replays()

        # The set's name tells what differs from the defaults.
        told = request.pooling is not None and self._pooling not in ("none", usual)
        weights = request.weights if path is None else path.stem
        if weights == "default" or (path and path.name == TORCHVISION.get(name, ("",))[-1]):
            weights = ""
        self.spec = EncoderSpec(
            name=slug(
                name,
                layer if layer != default_layer else "",
                self._pooling if told else "",
                weights,
            ),
            modality="visual",
            backend="torchvision",
            model_id=name,
            dim=dim,
            layer=layer,
            pooling=self._pooling,
            preprocessing={**_preprocessing(transforms), **decoder_told(request.decoder)},
            weights=label,
            weights_sha256=digest,
            licence=None if random or path is not None else tag.meta.get("license"),
            precision=request.precision,
            libraries={
                **versions("torch", "torchvision", "pillow"),
                **decoder_versions(request.decoder),
            },
            training={} if path is None else checkpoints.training_of(path),
        )

    def load(self, content: Path | str) -> NDArray[np.uint8] | EncodedJpeg:
        """Decode, resize and centre-crop as the reference does: (height, width, 3) uint8.

        With nvjpeg, a JPEG file is only read.
        """
        return self._cropping.load(content, self._cropped_tensor)

    def loader(self) -> Any:
        """Pillow crops, and files are read, without torch."""
        return self if self._cropping.decoder == "torchvision" else self._cropping

    def _cropped_tensor(self, picture: Tensor) -> NDArray[np.uint8]:
        """(3, height, width) to (crop, crop, 3)."""
        pixels = self._cropped_tensors(picture).permute(1, 2, 0)
        return np.ascontiguousarray(pixels.numpy())

    def _cropped_tensors(self, pictures: Tensor) -> Tensor:
        """(..., 3, height, width) to (..., 3, crop, crop)."""
        functional = require("torchvision.transforms.v2.functional")
        reference = self._transforms
        pictures = scaled(
            pictures,
            reference.resize_size,
            reference.interpolation,
            antialias=reference.antialias,
        )
        return functional.center_crop(pictures, reference.crop_size)  # type: ignore[no-any-return]

    def encode(  # type: ignore[override]
        self, batch: Sequence[NDArray[np.uint8] | EncodedJpeg]
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return the layer's pooled output, shape (len(batch), dim), or all positions: (k, dim)."""
        with forward_pass(self._device, self.spec.precision):
            inputs = {"pixels": self._pixels(batch)}
            vectors = self._replays(lambda x: self._forward(x["pixels"]), inputs)
            found = fetched(vectors[: len(batch)])
        return list(found) if self.ragged else found

    def _pixels(self, batch: Sequence[Any]) -> Tensor:
        """Loaded items as one batch, filled up: (b, height, width, 3) uint8."""
        import torch

        if self._nvjpeg is None:
            return stacked(batch, self._device, self.batch_size)
        pixels = self._nvjpeg.batch(
            batch,
            prepare=lambda x: self._cropped_tensors(x).permute(0, 2, 3, 1),
            otherwise=self._cropping.cropped,
        )
        short = (self.batch_size or 0) - len(pixels)
        return torch.cat([pixels, pixels[-1:].expand(short, -1, -1, -1)]) if short > 0 else pixels

    @property
    def network(self) -> Any:
        """The network, for fine-tuning."""
        return self._network

    def differentiable(self, batch: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Encode with gradients."""
        import torch

        return self._forward(torch.from_numpy(np.stack(batch)))

    def save(self, path: Path, training: Mapping[str, Any]) -> None:
        """Write the weights and their origin as safetensors, in one step."""
        tensors = {
            name: value.detach().cpu().contiguous()
            for name, value in self._network.state_dict().items()
        }
        told = {"finetuned_from": self.spec.provenance(), "training": dict(training)}
        partial = path.with_name(path.name + ".partial")
        metadata = {"mmx": json.dumps(told, sort_keys=True)}  # see `finetuned_from`
        require("safetensors.torch").save_file(tensors, partial, metadata)
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

    def _measure(self, request: Request, crop: int, usual: str) -> tuple[str, int]:
        """Pooling and vector length, from shapes alone: on the meta device nothing is computed."""
        import torch

        network = self._network
        shapes = {
            name: tensor.to("meta")
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        }
        with torch.inference_mode():
            image = torch.zeros(1, 3, crop, crop, device="meta")
            output = torch.func.functional_call(network, shapes, (image,))[self._layer]
        if request.pooling is not None and request.pooling not in POOLINGS:
            raise unknown_name("pooling", request.pooling, POOLINGS)
        positions = 1
        if output.ndim > 2:
            channels = -1 if output.ndim == 3 or self._channels_last else 1
            positions = output[0].numel() // output.shape[channels]
        how = "none" if positions == 1 else request.pooling or usual
        try:
            return how, pool(output, how, channels_last=self._channels_last).shape[-1]
        except ValueError as error:
            raise UsageError(
                f"{request.model}, layer {self._layer}: {error}; choose another --pooling."
            ) from error

    def _load_weights(
        self, request: Request, tag: Any, path: Path | None, whole: set[str]
    ) -> tuple[str, str]:
        """Fill the network; return the digest and the name of the weights."""
        if request.weights == "random":
            digest = checkpoints.state_sha256(self._network.state_dict())
            return digest, f"random(seed={request.seed})"
        label = tag.name if path is None else path.name
        path = path or checkpoints.published(request, tag.url, tag.name)
        given = {_renamed(name): value for name, value in checkpoints.read_state_dict(path).items()}
        what = f"{request.model} up to layer {self._layer}"
        checkpoints.fill(self._network, given, whole=whole, what=what, where=path.name)
        return checkpoints.file_sha256(path), label


def default_output(name: str) -> tuple[str, str]:
    """Return a model's default layer and its pooling.

    Raises:
        UsageError: A model that our table does not know yet.
    """
    for start, layer, pooling in TORCHVISION_LAYERS:
        if name.startswith(start):
            return layer, pooling
    raise UsageError(f"{name}: no default layer is known for this model; name one with --layer.")


def _accepts(model: str, modality: str) -> bool:
    if model.lower() in TORCHVISION:
        return True
    # Only another torchvision may know more: don't import the one of our table to ask it.
    try:
        if importlib.metadata.version("torchvision").startswith(TORCHVISION_VERSION):
            return False
        models = require("torchvision.models")
    except (importlib.metadata.PackageNotFoundError, EncoderError):
        return False
    return model.lower() in models.list_models(module=models)


def _known(modality: str, cache_dir: Path | None) -> list[EncoderInfo]:
    cache = checkpoints.torch_cache(cache_dir)
    return [
        EncoderInfo(
            name,
            modality,
            "torchvision",
            dim,
            *default_output(name),
            licence=TORCHVISION_LICENCES.get(name),
            input=f"{size} x {size} RGB",
            weights="here" if (cache / file).is_file() else "download",
        )
        for name, (dim, size, file) in TORCHVISION.items()
    ]


FAMILY = EncoderFamily(
    "torchvision",
    frozenset({"visual"}),
    _accepts,
    _known,
    build=TorchvisionEncoder,
    decoders=frozenset(DECODERS),
)


def _which_weights(request: Request, tags: Any) -> tuple[Any, Path | None]:
    """The tag that gives transforms (and weights), and the user's own file if there is one."""
    if request.weights in ("default", "random"):
        return tags.DEFAULT, None
    if request.weights in tags.__members__:
        return tags[request.weights], None
    path = Path(request.weights).expanduser()
    if path.exists():
        return _tag_of(path, tags), path
    raise EncoderError(
        f"{request.model}: no weights {request.weights!r}: neither a file nor one of default, "
        f"random, {', '.join(tag.name for tag in tags)}."
    )


def _tag_of(path: Path, tags: Any) -> Any:
    """The tag whose transforms a file's weights were trained with; the default if it can't be told.

    The file tells by the name under which it is published, or as a fine-tuned checkpoint by what it
    was made from.
    """
    told = checkpoints.finetuned_from(path).get("preprocessing")
    for tag in (tags.DEFAULT, *tags):
        if tag.url.endswith(f"/{path.name}") or _preprocessing(tag.transforms()) == told:
            return tag
    return tags.DEFAULT


def _preprocessing(transforms: Any) -> dict[str, Any]:
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
    """Constructor options with which the tag's weights fit, and random weights are useful."""
    if name.startswith("vit"):
        return {"image_size": tag.meta["min_size"][0]}
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": True, "init_weights": False}
    if random and name.startswith(_RESIDUAL):
        return {"zero_init_residual": True}
    return {}


def _cut(name: str, model: Any, layer: str) -> Any:
    """The model up to a layer: a module (`layer4.2.relu`) or a node of its graph (`flatten`).

    Raises:
        UsageError: No such layer; with the closest match.
    """
    extraction = require("torchvision.models.feature_extraction")
    _, nodes = extraction.get_graph_node_names(model, suppress_diff_warning=True)
    # The nodes, and the modules that they are in.
    layers = {
        ".".join(node.split(".")[:depth])
        for node in nodes[1:]
        for depth in range(1, node.count(".") + 2)
    }
    if layer not in layers:
        close = difflib.get_close_matches(layer, layers, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        short = sorted(node for node in layers if node.count(".") < 2)
        raise UsageError(
            f"{name} has no layer {layer!r}.{hint} Layers (and what is inside them): "
            f"{', '.join(short)}."
        )
    cut = extraction.create_feature_extractor(model, [layer], suppress_diff_warning=True)
    return cut.train(False)


def _renamed(name: str) -> str:
    """A parameter's present name: DenseNet files still have the old ones (`norm.1`: `norm1`)."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
