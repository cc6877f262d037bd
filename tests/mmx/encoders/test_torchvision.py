"""torchvision encoders against torchvision's own models and transforms, one picture at a time."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from tests.mmx.encoders.on_another_device import same_there
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import get_graph_node_names

from mmx.encoders import Encoder, create, describe, listings
from mmx.encoders.listings import TORCHVISION as MODELS
from mmx.encoders.torchvision import TorchvisionEncoder, default_output
from mmx.errors import ContentError, EncoderError, UsageError

SMALL = "resnet18"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    sizes = [
        (400, 533),
        (300, 200),
        (256, 256),
        (50, 70),
        (224, 224),
        (640, 480),
        (231, 500),
        (99, 100),
        (257, 260),
    ]
    for i, size in enumerate(sizes):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=92)
    return sorted(folder.iterdir())


def trained(name: str = SMALL, seed: int = 1, **options: object) -> torch.nn.Module:
    """A model with statistics of its own, as after training."""
    torch.manual_seed(seed)
    model = get_model(name, weights=None, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.1, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
    return model.train(False)


def directly(
    model: torch.nn.Module, name: str, pictures: list[Path], weights: str = "DEFAULT"
) -> np.ndarray:
    """Inputs of the last linear layer of a residual network, one picture at a time."""
    model.fc = torch.nn.Identity()
    transforms = get_model_weights(name)[weights].transforms()
    with torch.inference_mode():
        rows = [model(transforms(Image.open(path).convert("RGB"))[None])[0] for path in pictures]
    return torch.stack(rows).numpy()


def in_batches(encoder: Encoder, pictures: list[Path], size: int) -> np.ndarray:
    loaded = [encoder.load(path) for path in pictures]
    parts = [encoder.encode(loaded[i : i + size]) for i in range(0, len(loaded), size)]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def state_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(trained().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def expected(pictures: list[Path]) -> np.ndarray:
    """The vectors of the weights in `state_file`, of one picture at a time."""
    return directly(trained(), SMALL, pictures)


@pytest.mark.parametrize(("size", "pad_to"), [(1, None), (7, None), (16, None), (7, 8)])
def test_equal_to_torchvision_one_at_a_time(
    pictures: list[Path], state_file: Path, expected: np.ndarray, size: int, pad_to: int | None
) -> None:
    encoder = create(SMALL, modality="visual", weights=str(state_file))
    encoder.batch_size = pad_to
    vectors = in_batches(encoder, pictures, size)
    assert vectors.shape == (9, 512) and vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() <= 1e-5


def test_the_input_is_equal_bit_for_bit(
    pictures: list[Path], state_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = create(SMALL, modality="visual", weights=str(state_file))
    assert isinstance(encoder, TorchvisionEncoder)
    seen: list[torch.Tensor] = []
    network = encoder._network

    def record(x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(x.clone())
        return network(x)

    monkeypatch.setattr(encoder, "_network", record)
    in_batches(encoder, pictures, 16)
    transforms = get_model_weights(SMALL).DEFAULT.transforms()
    expected = torch.stack([transforms(Image.open(path).convert("RGB")) for path in pictures])
    assert torch.equal(seen[0], expected)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_padded_tail_has_the_bits_of_a_full_batch(
    pictures: list[Path], state_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = create(SMALL, modality="visual", weights=str(state_file))
    assert isinstance(encoder, TorchvisionEncoder)
    encoder.batch_size = 4
    loaded = [encoder.load(path) for path in pictures[:4]]
    whole = encoder.encode(loaded)
    sizes: list[int] = []
    network = encoder._network
    monkeypatch.setattr(encoder, "_network", lambda x: (sizes.append(len(x)), network(x))[1])
    assert encoder.encode(loaded[:1]).tobytes() == whole[:1].tobytes()
    assert sizes == [4]


def test_random_weights_are_torchvisions_with_that_seed(pictures: list[Path]) -> None:
    encoders = [create(SMALL, modality="visual", weights="random", seed=seed) for seed in (0, 0, 1)]
    vectors = [in_batches(encoder, pictures[:3], 3) for encoder in encoders]
    torch.manual_seed(0)
    direct = directly(get_model(SMALL, zero_init_residual=True).train(False), SMALL, pictures[:3])
    assert np.abs(vectors[0] - direct).max() <= 1e-5
    assert vectors[0].tobytes() == vectors[1].tobytes()
    first, same, other = (encoder.spec for encoder in encoders)
    assert first == same and first.weights_sha256 != other.weights_sha256
    assert (first.name, first.weights, first.dim) == ("resnet18-random", "random(seed=0)", 512)
    assert first.licence is None


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("alexnet", "features", (36, 256)),
        ("vgg11", "features", (49, 512)),
        ("resnet18", "layer4", (49, 512)),
        ("swin_t", "norm", (49, 768)),
    ],
)
def test_all_positions_of_a_layer_are_a_ragged_set(
    name: str, layer: str, shape: tuple[int, int], pictures: list[Path]
) -> None:
    """The maps that attentive models take, one row per place of the picture."""
    every, mean = (
        create(name, modality="visual", layer=layer, pooling=how, weights="random")
        for how in ("all", "mean")
    )
    assert (every.ragged, mean.ragged) == (True, False)
    assert (every.spec.name, every.spec.dim) == (f"{name}-{layer}-all-random", shape[1])
    loaded = [every.load(path) for path in pictures[:2]]
    maps, means = every.encode(loaded), mean.encode(loaded)
    assert [one.shape for one in maps] == [shape, shape]
    for one, vector in zip(maps, means, strict=True):
        np.testing.assert_allclose(one.mean(0), vector, rtol=1e-4, atol=1e-5)
    inputs = get_model_weights(name).DEFAULT.transforms()(Image.open(pictures[0]).convert("RGB"))
    assert isinstance(every, TorchvisionEncoder)
    output = every.network(inputs[None])[layer][0].detach().numpy()
    if output.shape[0] == shape[1]:  # channels first
        np.testing.assert_allclose(maps[0], output.reshape(shape[1], -1).T, atol=1e-5)


def test_random_weights_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    create("squeezenet1_1", modality="visual", weights="random")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"]
)
def test_random_features_tell_pictures_apart(name: str, pictures: list[Path]) -> None:
    vectors = in_batches(create(name, modality="visual", weights="random"), pictures, 9).astype(
        np.float64
    )
    spread = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).min()
    assert spread > 1e-4 * np.linalg.norm(vectors, axis=1).max()


def test_default_weights_come_from_torch_hubs_cache(
    tmp_path: Path, pictures: list[Path], state_file: Path, expected: np.ndarray
) -> None:
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / MODELS[SMALL][2]).symlink_to(state_file)
    encoder = create("ResNet18", modality="visual", cache_dir=tmp_path, offline=True)
    assert (encoder.spec.name, encoder.spec.weights) == ("resnet18", "IMAGENET1K_V1")
    assert encoder.spec.weights_sha256 is not None and len(encoder.spec.weights_sha256) == 64
    assert encoder.spec.preprocessing["resize"] == [256] and encoder.spec.preprocessing["crop"] == [
        224
    ]
    assert np.abs(in_batches(encoder, pictures[:2], 2) - expected[:2]).max() <= 1e-5
    assert {
        info.name for info in describe("visual", cache_dir=tmp_path) if info.weights == "here"
    } == {"resnet18"}


def test_a_tag_brings_its_own_transforms(tmp_path: Path, pictures: list[Path]) -> None:
    weights = get_model_weights("mobilenet_v3_large")
    for tag, resize in (("IMAGENET1K_V1", 256), ("IMAGENET1K_V2", 232)):
        with pytest.raises(EncoderError, match=Path(weights[tag].url).name):
            create(
                "mobilenet_v3_large",
                modality="visual",
                weights=tag,
                offline=True,
                cache_dir=tmp_path,
            )
        cache = tmp_path / "hub" / "checkpoints"
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(trained("mobilenet_v3_large").state_dict(), cache / Path(weights[tag].url).name)
        encoder = create(
            "mobilenet_v3_large", modality="visual", weights=tag, offline=True, cache_dir=tmp_path
        )
        assert encoder.spec.preprocessing["resize"] == [resize]
        assert (
            encoder.spec.weights == tag and encoder.spec.name == f"mobilenet_v3_large-{tag.lower()}"
        )


def test_a_file_of_a_tag_and_what_is_trained_from_it_keep_the_tags_transforms(
    tmp_path: Path, pictures: list[Path]
) -> None:
    name = "mobilenet_v3_large"
    published = tmp_path / Path(get_model_weights(name)["IMAGENET1K_V1"].url).name
    torch.save(trained(name).state_dict(), published)
    first = create(name, modality="visual", weights=str(published))
    assert first.spec.preprocessing["resize"] == [256]
    for file in ("mine.safetensors", "mine-again.safetensors"):
        first.save(tmp_path / file, {})  # type: ignore[attr-defined]
        again = create(name, modality="visual", weights=str(tmp_path / file))
        assert again.spec.preprocessing == first.spec.preprocessing
        np.testing.assert_array_equal(again.load(pictures[0]), first.load(pictures[0]))
        first = again
    published.rename(tmp_path / "unknown.pth")
    unknown = create(name, modality="visual", weights=str(tmp_path / "unknown.pth"))
    assert unknown.spec.preprocessing["resize"] == [232]


@pytest.mark.parametrize("offline", [True, False])
def test_weights_that_cannot_be_had(
    tmp_path: Path, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(url: str, *args: object, **kwargs: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(EncoderError) as caught:
        create("resnet50", modality="visual", cache_dir=tmp_path, offline=offline)
    message = str(caught.value)
    place = tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    for way_out in ("--weights PATH", "--model colour-hog", "--weights random", str(place)):
        assert way_out in message
    assert ("offline" if offline else "Connection refused") in message
    assert not place.exists()


@pytest.mark.parametrize(
    "kind", ["safetensors", "wrapped", "parallel", "other head", "no head", "no counters"]
)
def test_checkpoints_as_people_have_them(
    tmp_path: Path, pictures: list[Path], state_file: Path, expected: np.ndarray, kind: str
) -> None:
    state = torch.load(state_file, weights_only=True)
    if kind == "other head":
        model = trained(num_classes=17)
        state = model.state_dict()
        expected = directly(model, SMALL, pictures[:3])
    path = tmp_path / ("fashion.safetensors" if kind == "safetensors" else "fashion.pt")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "wrapped":
        torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, path)
    elif kind == "parallel":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    elif kind in ("no head", "no counters"):
        cut = "fc." if kind == "no head" else "num_batches_tracked"
        torch.save({name: value for name, value in state.items() if cut not in name}, path)
    else:
        torch.save(state, path)
    encoder = create(SMALL, modality="visual", weights=str(path))
    assert np.abs(in_batches(encoder, pictures[:3], 3) - expected[:3]).max() <= 1e-5
    assert (encoder.spec.name, encoder.spec.weights) == ("resnet18-fashion", path.name)
    assert str(tmp_path) not in str(encoder.spec.provenance())


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("trap"),))


def test_checkpoints_that_are_none(
    tmp_path: Path, state_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({}, tmp_path / "nothing.pth")
    (tmp_path / "folder").mkdir()
    for name in (
        "trap.pth",
        "text.pth",
        "text.safetensors",
        "empty.pth",
        "list.pth",
        "nothing.pth",
        "folder",
        "absent",
    ):
        with pytest.raises(EncoderError, match=name.partition(".")[0]):
            create(SMALL, modality="visual", weights=name)
    assert not (tmp_path / "trap").exists()
    with pytest.raises(EncoderError, match=r"conv1\.weight|is missing|has shape"):
        create("resnet50", modality="visual", weights=str(state_file))


@pytest.mark.parametrize(
    ("options", "name", "dim"),
    [
        ({"layer": "layer4"}, "resnet18-layer4", 512),
        ({"layer": "layer2.1.relu_1", "pooling": "max"}, "resnet18-layer2-1-relu_1-max", 128),
        ({"layer": "layer4", "pooling": "flatten"}, "resnet18-layer4-flatten", 512 * 49),
        ({"layer": "fc"}, "resnet18-fc", 1000),
        ({"layer": "avgpool", "pooling": "mean"}, "resnet18", 512),
    ],
)
def test_layers_and_poolings(
    pictures: list[Path], options: dict[str, Any], name: str, dim: int
) -> None:
    encoder = create(SMALL, modality="visual", weights="random", **options)
    assert (encoder.spec.name, encoder.spec.dim) == (f"{name}-random", dim)
    assert in_batches(encoder, pictures[:2], 2).shape == (2, dim)


def test_a_spatial_layer_is_averaged_over_its_pixels(
    pictures: list[Path], state_file: Path, expected: np.ndarray
) -> None:
    encoder = create(SMALL, modality="visual", layer="layer4", weights=str(state_file))
    # After layer4 comes only the average, so the two must agree.
    assert np.abs(in_batches(encoder, pictures, 9) - expected).max() <= 1e-5


def test_the_class_token_of_a_vision_transformer(pictures: list[Path]) -> None:
    encoder = create("vit_b_32", modality="visual", weights="random")
    torch.manual_seed(0)
    model = get_model("vit_b_32").train(False)
    model.heads = torch.nn.Identity()
    transforms = get_model_weights("vit_b_32").DEFAULT.transforms()
    with torch.inference_mode():
        direct = model(transforms(Image.open(pictures[0]).convert("RGB"))[None]).numpy()
    assert (encoder.spec.layer, encoder.spec.pooling, encoder.spec.dim) == (
        "encoder.ln",
        "cls",
        768,
    )
    assert np.abs(encoder.encode([encoder.load(pictures[0])]) - direct).max() <= 1e-5


def test_swin_layers_have_their_channels_last(pictures: list[Path]) -> None:
    whole = create("swin_t", modality="visual", weights="random")
    norm = create("swin_t", modality="visual", weights="random", layer="norm")
    assert whole.spec.dim == norm.spec.dim == 768
    loaded = [whole.load(pictures[0])]
    assert np.abs(whole.encode(loaded) - norm.encode(loaded)).max() <= 1e-5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layer": "avgpoo"}, "Did you mean 'avgpool'"),
        ({"layer": "layer4", "pooling": "cls"}, "does not fit"),
        ({"layer": "layer4", "pooling": "median"}, "unknown pooling"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"device": "abacus"}, "no such device"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        create(SMALL, modality="visual", weights="random", **options)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")  # these have values
@pytest.mark.parametrize(
    "name",
    [SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in ("swin_v2_t", "maxvit_t"))],
)
def test_other_devices_give_the_same(pictures: list[Path], name: str) -> None:
    same_there(name, pictures[:2], modality="visual", weights="random")


@pytest.mark.gpu
@pytest.mark.parametrize("name", [SMALL, "vit_b_16", "swin_t"])
def test_the_gpu_gives_the_same(pictures: list[Path], name: str) -> None:
    same_there(name, pictures[:4], modality="visual", weights="random", device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pictures_are_channels_last_on_the_gpu(
    pictures: list[Path], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = create(SMALL, modality="visual", weights="random", device="cuda", precision=precision)
    assert isinstance(encoder, TorchvisionEncoder)
    encoder.batch_size = 8
    seen: list[bool] = []

    def note(module: Any, inputs: Any, output: torch.Tensor) -> None:
        x = inputs[0]
        last = torch.channels_last
        seen.extend(one.is_contiguous(memory_format=last) for one in (x, module.weight, output))

    hooks = [
        module.register_forward_hook(note)
        for module in encoder.network.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    loaded = [encoder.load(path) for path in pictures[:8]]
    vectors = encoder.encode(loaded)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 3 * len(hooks) and all(seen)
    # The last batch is filled up, so that the device meets one shape and an item one vector.
    assert np.array_equal(encoder.encode(loaded[:3]), vectors[:3])


def test_bf16_is_close_but_not_equal(pictures: list[Path], state_file: Path) -> None:
    full, half = (
        in_batches(
            create(SMALL, modality="visual", weights=str(state_file), precision=precision),
            pictures,
            9,
        )
        for precision in ("fp32", "bf16")
    )
    assert half.dtype == np.float32
    assert 0 < np.linalg.norm(full - half) < 0.05 * np.linalg.norm(full)


def test_encoders_travel_between_processes(pictures: list[Path], state_file: Path) -> None:
    encoder = create(SMALL, modality="visual", weights=str(state_file))
    there = pickle.loads(pickle.dumps(encoder))
    assert (
        in_batches(there, pictures[:3], 3).tobytes()
        == in_batches(encoder, pictures[:3], 3).tobytes()
    )


def test_a_line_of_pixels_is_refused_before_it_is_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (1, 30_000)).save(tmp_path / "a.png")
    with pytest.raises(ContentError, match="limit"):
        create(SMALL, modality="visual", weights="random").load(tmp_path / "a.png")


def test_densenet_files_with_the_former_names(tmp_path: Path, pictures: list[Path]) -> None:
    state = trained("densenet121").state_dict()
    former = {
        re.sub(r"(norm|conv)([12]\.)", r"\1.\2", name) if "denselayer" in name else name: value
        for name, value in state.items()
    }
    assert set(former) != set(state)
    torch.save(former, tmp_path / "old.pth")
    torch.save(state, tmp_path / "new.pth")
    old, new = (
        create("densenet121", modality="visual", weights=str(tmp_path / f"{age}.pth"))
        for age in ("old", "new")
    )
    assert (
        old.encode([old.load(pictures[0])]).tobytes()
        == new.encode([new.load(pictures[0])]).tobytes()
    )


def test_the_table_is_torchvisions_registry() -> None:
    names = list_models(module=torchvision.models)
    assert sorted(MODELS) == names
    assert torchvision.__version__.startswith(listings.TORCHVISION_VERSION)
    for name in names:
        weights = get_model_weights(name).DEFAULT
        assert MODELS[name][1:] == (weights.transforms().crop_size[0], Path(weights.url).name)
        assert all(default_output(name))
        assert listings.TORCHVISION_LICENCES.get(name) == weights.meta.get("license")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_table_agrees_with_the_models(name: str) -> None:
    if MODELS[name][0] > 4096:
        pytest.skip("needs several GB of memory")
    encoder = create(name, modality="visual", weights="random")
    assert isinstance(encoder, TorchvisionEncoder)
    assert encoder.spec.dim == MODELS[name][0]
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    own = set(get_model(name, weights=None, **options).state_dict())
    needed = {
        key for key in encoder._network.state_dict() if not key.startswith("_tensor_constant")
    }
    assert needed <= own  # so that published files fit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("maxvit_t", "classifier.5"), ("swin_v2_t", "head"), ("convnext_tiny", "classifier.2"),
        ("vgg11_bn", None), ("inception_v3", "fc"), ("googlenet", "fc"),
        ("efficientnet_b0", "classifier"), ("regnet_x_400mf", "fc"), ("mobilenet_v2", "classifier"),
        ("shufflenet_v2_x0_5", "fc"), ("densenet121", "classifier"),
    ],
)  # fmt: skip
def test_every_architecture_from_a_checkpoint(
    name: str, head: str | None, tmp_path: Path, pictures: list[Path]
) -> None:
    """What enters the whole model's last linear layer, relative to its size."""
    options = (
        {"init_weights": False, "transform_input": True}
        if name in ("googlenet", "inception_v3")
        else {}
    )
    model = trained(name, **options)
    for parameter_name, parameter in model.named_parameters():
        if "relative_position_bias_table" in parameter_name or "layer_scale" in parameter_name:
            torch.nn.init.normal_(
                parameter, 0.0, 0.5
            )  # something that a table left unloaded would not have
    torch.save(model.state_dict(), tmp_path / "a.pth")
    encoder = create(name, modality="visual", weights=str(tmp_path / "a.pth"))
    if head is None:
        model.classifier = model.classifier[:4]
    else:
        parent, _, last = head.rpartition(".")
        setattr(model.get_submodule(parent), last, torch.nn.Identity())
    transforms = get_model_weights(name).DEFAULT.transforms()
    with torch.inference_mode():
        direct = model(transforms(Image.open(pictures[0]).convert("RGB"))[None]).numpy()
    vector = encoder.encode([encoder.load(pictures[0])])
    assert vector.shape == direct.shape
    assert np.abs(vector - direct).max() <= 1e-5 * max(1.0, np.abs(direct).max())


def test_the_default_layer_of_a_graph_exists() -> None:
    model = get_model("shufflenet_v2_x0_5")
    assert "mean" in get_graph_node_names(model, suppress_diff_warning=True)[1]


@pytest.mark.real_data
def test_real_photographs(real_data: Path) -> None:
    photographs = sorted((real_data / "images").glob("*.jpg"))[:5]
    encoder = create("resnet50", modality="visual", weights="random")
    torch.manual_seed(0)
    direct = directly(
        get_model("resnet50", zero_init_residual=True).train(False), "resnet50", photographs
    )
    assert np.abs(in_batches(encoder, photographs, 7) - direct).max() <= 1e-5
