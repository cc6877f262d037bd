"""The contract of encoders: a family finds, lists and builds them; an encoder loads and encodes.

A new family is one file with one `Encoder` class and one `EncoderFamily`, and one line in
`mmx.encoders.ENCODERS`; `mmx.encoders.testing.check_encoder` checks it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.replaying import Replays
from mmx.errors import INSTALL_EXTRA, ContentError, EncoderError, UsageError

MODALITIES = ("visual", "textual", "audio")
PRECISIONS = ("fp32", "bf16", "fp16")
DECODERS = ("pil", "torchvision", "nvjpeg")
"""What decodes JPEG files, and scales them to the network's size; see `decoding.jpegs`."""


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that determines an encoder's vectors; the provenance of its feature sets.

    Attributes:
        name: Slug for the set's file name, made from the model id; choices other than the default
            ones are appended (`resnet50`, `resnet50-layer3`, `resnet50-random`), so that two
            different sets never share a file.
        modality: `visual`, `textual` or `audio`.
        backend: The library that computes: `handcrafted`, `torchvision`, `open_clip`,
            `transformers` and so on.
        model_id: The model as that library names it.
        dim: Length of a vector. Of an encoder that has to be fitted: an upper bound until `fit`.
        layer: The output that is taken.
        pooling: How positions (pixels, tokens, frames) become one vector; `none` when there is only
            one.
        preprocessing: Steps with their numbers (sizes, means, sample rate, maximum tokens, ...).
        weights: `none`, `random(seed=0)`, a tag such as `IMAGENET1K_V2`, `hub id@revision`, or a
            file's name.
        weights_sha256: SHA-256 of the weights file(s), or of the state dict's canonical bytes; None
            without weights.
        licence: Licence of the weights as their publisher states it; None when unknown.
        precision: Arithmetic of the forward pass: `fp32`, `bf16`, `fp16`.
        libraries: Versions of what computes the vectors.
        training: Of fine-tuned weights: split, SHA-256 of its training part and settings, as the
            checkpoint tells them.
    """

    name: str
    modality: str
    backend: str
    model_id: str
    dim: int
    layer: str
    pooling: str
    preprocessing: Mapping[str, Any]
    weights: str
    weights_sha256: str | None
    licence: str | None
    precision: str
    libraries: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def provenance(self) -> dict[str, Any]:
        """The whole description with JSON types only; two equal descriptions give equal JSON."""
        told = {each.name: _plain(getattr(self, each.name)) for each in fields(self)}
        told = {"extractor": told.pop("name"), **told}
        if not self.training:
            del told["training"]
        return told


@dataclass(frozen=True)
class EncoderInfo:
    """One line of `mmx models`.

    Attributes:
        name: What to type after `--model`.
        modality: `visual`, `textual` or `audio`.
        family: The registry's name of the encoder family.
        dim: Length of a vector; None when it is only known once the model is loaded.
        layer: Default output layer.
        pooling: Default pooling.
        licence: Licence of the default weights; None when unknown.
        input: Plain words: `224 x 224 RGB`, `16 kHz mono`, `256 tokens`.
        weights: `none needed`, `here` (on this machine) or `download`.
    """

    name: str
    modality: str
    family: str
    dim: int | None
    layer: str
    pooling: str
    licence: str | None
    input: str
    weights: str


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked for impossible values: the one argument of `build`.

    Attributes:
        model: Model name, hub id or local folder, without the family prefix.
        modality: `visual`, `textual` or `audio`.
        layer: Output layer, or None for the family's default.
        pooling: Pooling, or None for the family's default.
        weights: `default`, `random`, a path, a tag, or `hub id[@revision]`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: `fp32`, `bf16` or `fp16`.
        offline: Never open a connection.
        seed: Seed of `weights="random"` and of a fit.
        cache_dir: Where weights are looked for and downloaded to, instead of the libraries' own
            caches.
        decoder: `pil`, `torchvision` or `nvjpeg`; `mmx.encoders.create` refuses one that the family
            does not have.
    """

    model: str
    modality: str
    layer: str | None = None
    pooling: str | None = None
    weights: str = "default"
    device: str = "cpu"
    precision: str = "fp32"
    offline: bool = False
    seed: int = 0
    cache_dir: Path | None = None
    decoder: str = "pil"

    def __post_init__(self) -> None:
        for option, choices in (
            ("modality", MODALITIES), ("precision", PRECISIONS), ("decoder", DECODERS)
        ):  # fmt: skip
            given = getattr(self, option)
            if given not in choices:
                raise UsageError(
                    f"unknown {option} {given!r}; choose one of: {', '.join(choices)}."
                )

    def refuse(self, **fixed: str) -> None:
        """Refuse options that an encoder does not have.

        Args:
            **fixed: The only value that an option may have, e.g. `precision="fp32"`; None is
                always fine.

        Raises:
            UsageError: An option has another value.
        """
        for option, only in fixed.items():
            given = getattr(self, option)
            if given not in (None, only):
                raise UsageError(
                    f"{self.model}: --{option} {given} is not possible; it is always {only!r} here."
                )


@runtime_checkable
class Encoder(Protocol):
    """Turn the contents of one modality into vectors.

    An encoder inherits from this protocol and is built from a `Request`. Only `load` and `encode`
    have no default.

    Attributes:
        spec: The description; complete after construction, or after `fit` where `needs_fit`.
        concurrent: `encode` may be called from several threads at once. On the CPU the pipeline
            then runs one forward pass per processor, each on one thread, which is faster than one
            pass on all of them and immune to busy neighbours.
        ragged: `encode` gives several vectors per item (patches, tokens, frames): a list with one
            array of shape (k, dim), k >= 1, for each item.
        needs_fit: `fit` must be called with the whole corpus before `load`.
        device: Where `encode` computes.
        batch_size: Set by the pipeline. Where bits depend on the batch's size, `encode` pads a
            shorter batch to this size, so that the last batch and a resumed run give the same bits.
            None: no padding.
        replays: Forward passes that are replayed as CUDA graphs, for the summary; None: none are.
        proven: Set by the pipeline to a loaded item that was encoded: where all items of a batch
            fail, it tells whether the encoder still works.
    """

    concurrent: bool = False
    spec: EncoderSpec
    ragged: bool = False
    needs_fit: bool = False
    device: str = "cpu"
    batch_size: int | None = None
    replays: Replays | None = None
    proven: Any = None

    def load(self, content: Path | str) -> Any:
        """Decode and preprocess one item; safe to call from several threads.

        Args:
            content: A file's path (visual, audio) or the text itself (textual).

        Raises:
            ContentError: The content cannot be decoded, with a plain reason and without the path.
            FileNotFoundError: The file is not there (any more): the content is missing, not
                corrupt.
        """
        ...

    def load_many(self, contents: Sequence[Path | str]) -> list[Any]:
        """Load several items, with a `ContentError` in place of one that cannot be decoded.

        The same as `load` of each; for encoders that are faster on many at once. Where it raises
        anything, the caller loads the items one by one.
        """
        return [loaded_or_error(self.load, content) for content in contents]

    def loader(self) -> Any:
        """Return what loads in another process as this encoder does: an object with `load`.

        Something other than the encoder says that it starts in a fraction of a second, because it
        imports no large library. Processes then load from the first item on.
        """
        return self

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Return the vectors of loaded items, (len(batch), dim) float32; row i is of batch[i]."""
        ...

    def fit(self, contents: Iterable[Path | str]) -> None:
        """Learn from the whole corpus, deterministically; nothing by default."""
        return

    def sort_key(self, loaded: Any) -> int:
        """Return the size of a loaded item (tokens, samples): equal sizes share a batch."""
        return 0

    def truncated(self, loaded: Any) -> bool:
        """Whether the content was longer than the encoder takes, and was cut."""
        return False


@dataclass(frozen=True)
class EncoderFamily:
    """The encoders of one library: how the registry finds, lists and builds them.

    Attributes:
        name: The registry's name, as in `--model name:model`.
        modalities: The modalities that the family serves.
        accepts: Whether the family can build a model for a modality: (model, modality) -> bool.
            Families are asked in the registry's order, so this must be quick.
        known: The lines of `mmx models` for a modality: (modality, cache_dir) -> list, also offered
            in error messages; quick, builds nothing.
        build: The encoder of a request.
        needs_torch: Whether the encoders compute with torch on the requested device; others run on
            the CPU, and torch need not be imported to choose a device.
        decoders: The decoders of pictures that a request may name, of `DECODERS`.
    """

    name: str
    modalities: frozenset[str]
    accepts: Callable[[str, str], bool]
    known: Callable[[str, Path | None], list[EncoderInfo]]
    build: Callable[[Request], Encoder]
    needs_torch: bool = True
    decoders: frozenset[str] = frozenset({"pil"})


def loaded_or_error(load: Callable[[Path | str], Any], content: Path | str) -> Any:
    """Return the loaded item, or the `ContentError` that says why it cannot be decoded."""
    try:
        return load(content)
    except ContentError as error:
        return error


class _OwnWork(threading.local):
    cpu_s = 0.0


_own_work = _OwnWork()


@contextmanager
def own_work() -> Iterator[None]:
    """Count the block, part of `load`, as encoding and not as decoding."""
    began = time.thread_time()
    try:
        yield
    finally:
        _own_work.cpu_s += time.thread_time() - began


def own_work_s() -> float:
    """Return the CPU seconds that this thread has spent on `own_work` so far."""
    return _own_work.cpu_s


def require(module: str) -> Any:
    """Import an optional library.

    Raises:
        EncoderError: It is not installed or does not fit the others; names the extra.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: built for another torch
        package = module.partition(".")[0]
        raise EncoderError(
            f"this encoder needs {package}, which cannot be imported ({error}); run: "
            f"{INSTALL_EXTRA}"
        ) from error


def plain_reason(error: BaseException) -> str:
    """Return a foreign exception in one line, without the path that an OSError carries."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())[:300]
    if isinstance(error, KeyError):  # says the key alone
        return f"{text} is not there, or not known"
    return text or type(error).__name__


def versions(*distributions: str) -> dict[str, str]:
    """Return the installed versions of distributions, numpy's always among them."""
    found = {}
    for name in ("numpy", *distributions):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def slug(*parts: str) -> str:
    """Return a safe file name made of names: `BAAI/bge-base-en-v1.5` → `bge-base-en-v1-5`."""
    cleaned = (re.sub(r"[^a-z0-9_]+", "-", Path(part).name.lower()).strip("-") for part in parts)
    return "-".join(part for part in cleaned if part) or "encoder"


def checked_text(content: Path | str) -> str:
    """Return the content if it is a text.

    Raises:
        ContentError: Not a string, blank, or with bytes that were not UTF-8 (lone surrogates).
    """
    if not isinstance(content, str):
        raise ContentError(f"not a text (got {type(content).__name__})")
    if not content.strip():
        raise ContentError("the text is empty")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ContentError(f"the text is not valid UTF-8 at character {error.start}") from error
    return content


def each_text(contents: Sequence[Any], load: Callable[[list[str]], list[Any]]) -> list[Any]:
    """Return what `load` makes of the texts, all in one call, and a `ContentError` for others."""
    loaded: list[Any] = [loaded_or_error(checked_text, content) for content in contents]
    texts = [k for k, one in enumerate(loaded) if not isinstance(one, ContentError)]
    if texts:
        for k, one in zip(texts, load([loaded[k] for k in texts]), strict=True):
            loaded[k] = one
    return loaded


def _plain(value: Any) -> Any:
    """Return the value with JSON types only."""
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    return value
