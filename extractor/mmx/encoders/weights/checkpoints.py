"""Weights files: caches, downloads, digests, and one error for weights that can't be had.

Files are only ever read as plain tensors (safetensors, or `torch.load` with `weights_only`).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # only the error of torch.load on a file it will not read
from typing import TYPE_CHECKING, Any

from mmx.encoders.base import Request, plain_reason
from mmx.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

CONNECT_TIMEOUT_S = 10.0
WEIGHTLESS = {"visual": "colour-hog", "textual": "tfidf-lsa", "audio": "mfcc"}
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Constants and counters that files of other versions of a library have, and nothing computes with.
_NO_WEIGHTS = (
    "position_ids", "relative_position_index", "num_batches_tracked", "inv_freq", "masked_bias",
    "mask_token",
)  # fmt: skip
_PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name

DAMAGED = (
    OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError,
    AssertionError, OverflowError, struct.error,
)  # fmt: skip
"""What torch.load raises on bytes of any kind, besides UnpicklingError."""


def torch_cache(cache_dir: Path | None) -> Path:
    """Return the folder of torch hub's checkpoints; `cache_dir` stands in for TORCH_HOME."""
    home = cache_dir or Path(os.environ.get("TORCH_HOME") or _user_cache() / "torch").expanduser()
    return home / "hub" / "checkpoints"


def hub_cache(cache_dir: Path | None) -> Path:
    """Return the folder of Hugging Face snapshots, by the variables that its library reads."""
    if cache_dir is not None:
        return cache_dir / "huggingface"
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    home = Path(os.environ.get("HF_HOME") or _user_cache() / "huggingface").expanduser()
    return home / "hub"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def missing_weights(
    request: Request, what: str, reason: str, *, place: str, random: bool = True
) -> EncoderError:
    """Return the error for weights that can't be had, with every way out.

    Args:
        request: What the user asked for.
        what: The weights' name.
        reason: Why they are not here.
        place: Where the file would be looked for.
        random: Whether `--weights random` is possible.
    """
    ways = [
        f"put the weights at {place}",
        "name a local copy: --weights PATH",
        f"use an encoder that needs none: --model {WEIGHTLESS[request.modality]}",
    ]
    if random:
        ways.append("use an untrained network, to try things out: --weights random")
    return EncoderError(
        f"{request.model}: weights {what} are not on this machine: {reason}. Ways out: "
        f"{'; or '.join(ways)}."
    )


def download(url: str, folder: Path, *, offline: bool) -> Path:
    """Return the checkpoint of `url` in `folder`, downloaded and checked when it is not there yet.

    Raises:
        OSError: It is not there and can't be downloaded; the message says why.
    """
    path = folder / url.rpartition("/")[2]
    if path.is_file():
        return path
    if offline:
        raise OSError("working offline")
    import torch

    digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(CONNECT_TIMEOUT_S):
            torch.hub.download_url_to_file(
                url, str(path), digest.group(1) if digest else None, progress=True
            )
    except OSError as error:  # URLError is one, and has a reason
        reason = plain_reason(getattr(error, "reason", None) or error)
        raise OSError(f"download from {url.split('/')[2]} failed ({reason})") from error
    except (RuntimeError, http.client.HTTPException, ValueError) as error:
        raise OSError(f"download from {url.split('/')[2]} failed ({error})") from error
    return path


def published(request: Request, url: str, tag: str) -> Path:
    """Return the file of a library's published weights, downloaded when it is not here yet.

    Raises:
        EncoderError: It can't be had; with the ways out.
    """
    cache = torch_cache(request.cache_dir)
    try:
        return download(url, cache, offline=request.offline)
    except OSError as error:
        place = str(cache / url.rpartition("/")[2])
        raise missing_weights(request, tag, str(error), place=place) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a `.safetensors` file or a torch checkpoint, unwrapped.

    A checkpoint may be the state dict itself or hold it under `state_dict`, `model_state_dict` or
    `model`; the prefixes of DataParallel and torch.compile are removed.

    Raises:
        EncoderError: Not such a file. It is never unpickled to find out.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = path.name
    if not path.is_file():
        raise EncoderError(
            f"{path}: no such weights file; --weights takes a .safetensors file or a torch state "
            "dict."
        )
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise EncoderError(
            f"{where}: holds more than tensors, and is not read for safety; save it with "
            "torch.save(model.state_dict(), path) or as .safetensors."
        ) from error
    except (*DAMAGED, SafetensorError) as error:
        reason = plain_reason(error)
        raise EncoderError(f"{where}: not a readable weights file ({reason}).") from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise EncoderError(f"{where}: expected a state dict (got {type(loaded).__name__}).")
    state = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if not state:
        raise EncoderError(f"{where}: no tensors in it; expected a state dict.")
    return state


def finetuned_from(path: Path) -> dict[str, Any]:
    """Return the provenance of the encoder that a checkpoint was fine-tuned from, {} for others."""
    return _told_by(path, "finetuned_from")


def training_of(path: Path) -> dict[str, Any]:
    """Return how `mmx finetune` trained a checkpoint (file or folder), {} for others."""
    return _told_by(path, "training")


def _told_by(path: Path, what: str) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        if path.is_dir():
            told = json.loads((path / "mmx.json").read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {}).get("mmx", "{}"))
        else:
            return {}
    except (OSError, ValueError, SafetensorError):
        return {}  # whoever reads the weights says what is wrong
    found = told.get(what) if isinstance(told, dict) else None
    return found if isinstance(found, dict) else {}


def strays(given: Iterable[str], *, known: Collection[str], used: Collection[str]) -> list[str]:
    """Return the names of tensors that are no weights of an architecture and no head of it either.

    Args:
        given: Names of a checkpoint.
        known: Names of the whole architecture.
        used: Those of the parts that compute. What lies outside of these parts is a head.
    """
    parts = {name.partition(".")[0] for name in used}
    return sorted(
        name
        for name in given
        if name not in known
        and name.partition(".")[0] in parts
        and name.rpartition(".")[2] not in _NO_WEIGHTS
        and ".pooler." not in f".{name}"
    )


def fill(
    network: Module,
    given: Mapping[str, Tensor],
    *,
    whole: Collection[str] = (),
    what: str,
    where: str,
) -> None:
    """Load a network's weights; tensors of parts that were cut off (a classifier) are ignored.

    Args:
        network: Gets the weights.
        given: Tensors by the network's own names.
        whole: Names of the tensors that it had before it was cut.
        what: The network in words, for the message.
        where: The file's name, for the message.

    Raises:
        EncoderError: A tensor is missing, has another shape, or has no place in the architecture;
            the network is unchanged then.
    """
    needed = network.state_dict()
    own = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    further = strays(given, known={*own, *needed, *whole}, used=needed)
    problems = [f"{name} has no place in it" for name in further]
    for name, like in needed.items():
        if name not in given:
            # Batch counters are absent from older files and not used at inference; constants of a
            # traced graph (index tables) are the architecture's, not the checkpoint's.
            if not name.endswith("num_batches_tracked") and not name.startswith("_tensor_constant"):
                problems.append(f"{name} is missing")
        elif given[name].shape != like.shape:
            problems.append(f"{name} has shape {tuple(given[name].shape)}, not {tuple(like.shape)}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise EncoderError(f"{where}: not a checkpoint of {what}: {'; '.join(problems[:3])}{more}.")
    network.load_state_dict({name: given[name] for name in needed if name in given}, strict=False)


def file_sha256(*paths: Path) -> str:
    """Return the SHA-256 of a file; of several files that of their digests and names in order."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(paths) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of all tensors, sorted by name."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
