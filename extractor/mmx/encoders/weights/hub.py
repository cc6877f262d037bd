"""Models in the Hugging Face layout: a local folder, or a hub id with an optional `@revision`.

A model is always loaded from a folder that is complete on disk, so that a network problem shows up
here, once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # only the error: checkpoints are read as plain tensors

from mmx.encoders.base import Request, plain_reason, require
from mmx.encoders.weights.checkpoints import (
    CONNECT_TIMEOUT_S,
    DAMAGED,
    file_sha256,
    hub_cache,
    missing_weights,
)
from mmx.errors import EncoderError, UsageError

NOT_A_MODEL = (*DAMAGED, ImportError, UnpicklingError)
"""What the libraries raise on a folder that holds something else, or damaged files."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.md", "*.jinja")
_OTHER_RUNTIMES = ("onnx/*", "openvino/*", "coreml/*", "tf_model*", "flax_model*", "rust_model*")


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk.

    Attributes:
        path: The folder.
        label: For the provenance: `org/name@commit`, or the folder's name.
    """

    path: Path
    label: str

    def parts(self) -> list[Path]:
        """List the folders of the modules, as sentence-transformers saves them; or the folder."""
        try:
            modules = json.loads((self.path / "modules.json").read_text(encoding="utf-8"))
            named = [self.path / str(module["path"]) for module in modules]
        except (OSError, ValueError, LookupError, TypeError):
            return [self.path]
        # A module may have modules of its own, as a router does.
        inner = (below for part in named if part != self.path for below in part.rglob("*/"))
        return sorted({self.path, *named, *inner})

    def weights(self, *, modules: bool = True) -> list[Path]:
        """List the weights files that the libraries load, by their rules for names.

        What else lies in the folder (other formats, checkpoints of a training) is not loaded.

        Args:
            modules: Whether to include the files of sentence-transformers' modules.
        """
        parts = self.parts() if modules else [self.path]
        return [file for part in parts for file in _weights_of(part)]

    def lacks(self) -> list[str]:
        """List weights files that an index names and that a broken-off download lacks."""
        return [path.name for path in self.weights() if not path.is_file()]

    def sha256(self, *, modules: bool = True) -> str:
        """Return the digest of the weights files.

        Raises:
            EncoderError: There are none.
        """
        files = self.weights(modules=modules)
        if not files:
            raise EncoderError(
                f"{self.path}: no weights in this folder (model.safetensors or pytorch_model.bin)."
            )
        return file_sha256(*files)

    def licence(self) -> str | None:
        """Return the licence that the model card's header states."""
        card = self.path / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        header = re.match(r"---\s*\n(.*?)\n---", text, flags=re.DOTALL)
        line = r"^license:\s*(\S+)\s*$"
        found = re.search(line, header.group(1), flags=re.MULTILINE) if header else None
        return found.group(1).strip("'\"") if found else None


def _weights_of(folder: Path) -> list[Path]:
    """The weights files of one module, in the order in which the libraries look for them."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                return [index]  # the library says what is wrong with it
            return [folder / str(part) for part in sorted(parts)]
    return []


def go_offline() -> None:
    """Keep libraries from opening a connection, by switches that they read when imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"


def tokenise_in_callers() -> None:
    """Let tokenizers work in the threads that call them, unless the user has said otherwise.

    Many threads load; threads of the tokenizers' own would only contend with them for processors,
    and their time would be nobody's.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def without_bar() -> Iterator[None]:
    """Hide the bar of transformers for reading a file from disk."""
    logging = require("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def looks_like_hub_id(model: str) -> bool:
    """Whether a model has the form `org/name`, with an optional `@revision`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", model) is not None


def find_model(request: Request, default_id: str) -> ModelFolder:
    """Find a model's files: the user's folder, or the hub's snapshot, downloaded when missing.

    Args:
        request: `weights` is `default`, a folder, or a hub id.
        default_id: What to take for `default`: a folder or a hub id.

    Raises:
        UsageError: `weights="random"`, or something that is neither a folder nor a hub id.
        EncoderError: The files can't be had.
    """
    if request.weights == "random":
        raise UsageError(
            f"{request.model}: --weights random is not possible, the model's shape comes with its "
            "weights."
        )
    wanted = default_id if request.weights == "default" else request.weights
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return ModelFolder(folder, folder.resolve().name)
    if not looks_like_hub_id(wanted):
        raise UsageError(
            f"{request.model}: no weights {wanted!r}: neither a folder nor a hub id "
            "(org/name[@revision])."
        )
    return _snapshot(request, wanted)


def is_cached(hub_id: str, cache_dir: Path | None) -> bool:
    """Whether a snapshot of a hub id is on this machine; looks at folder names only."""
    snapshots = hub_cache(cache_dir) / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


def _snapshot(request: Request, wanted: str) -> ModelFolder:
    """A hub id's files: from the cache when they are complete, else from the network."""
    if request.offline:
        go_offline()
    hub, errors = require("huggingface_hub"), require("huggingface_hub.errors")
    # The library's transport errors are not OSErrors; their class comes from whichever HTTP client
    # it was built on.
    transport = next(cls for cls in errors.HfHubHTTPError.__mro__ if cls.__name__ == "HTTPError")
    hub_id, _, revision = wanted.partition("@")
    cache = hub_cache(request.cache_dir)

    def fetch(*patterns: str, local: bool) -> ModelFolder:
        found = hub.snapshot_download(
            hub_id,
            revision=revision or None,
            cache_dir=cache,
            allow_patterns=list(patterns),
            ignore_patterns=list(_OTHER_RUNTIMES),
            local_files_only=local,
            etag_timeout=CONNECT_TIMEOUT_S,
        )
        return ModelFolder(Path(found), f"{hub_id}@{Path(found).name}")

    problems = (OSError, ValueError, RuntimeError, transport)
    try:
        found = fetch("*", local=True)
        if found.weights() and not found.lacks():
            return found
    except problems:
        pass  # not here yet
    place = str(cache / f"models--{hub_id.replace('/', '--')}")
    try:
        if request.offline:
            raise OSError("working offline")
        found = fetch(*_SMALL_FILES, "*.safetensors", local=False)
        found = found if found.weights() else fetch("*.bin", local=False)
        if absent := found.lacks():  # without a network the hub gives what is here
            raise OSError(f"{len(absent)} files are not here yet, e.g. {absent[0]}")
        return found
    except problems as error:
        # The error's first line says what happened, the rest is advice.
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        if not request.offline:
            reason = f"download failed ({plain_reason(OSError(reason))})"
        raise missing_weights(request, wanted, reason, place=place, random=False) from error
