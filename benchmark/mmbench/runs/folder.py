"""The run folder: its files while a model trains and when it is done, written and read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmbench.errors import DataError, TrainingError, validation_in_words
from mmbench.models.base import Recommender
from mmbench.runs.documents import CURE, DOCUMENTS, HistoryLine
from mmbench.trainer import EpochRecord, TrainingProgress
from mmstore.filesystem import replace_synced

FORMAT, FORMAT_VERSION = "mmbench.run", "1.0"
FAILED = "failed.json"
SHARED, TRAINS = ".shared-", ".trains"  # while a Ray cluster trains: see `runs.on_ray`
_DIGEST = "digest"  # key of the metadata of files of tensors


class RunFolder:
    """One run on disk.

    Files:
        recipe.yaml: The resolved recipe.
        begun.json: What of the machine decides the last bits; see `runs.fit.begin`.
        run.json: What ran on what: versions, digests, seeds, masks, timings, memory.
        metrics.json: Unrounded values, validation and test; exists only when the run is complete.
        history.jsonl: A line per epoch.
        per_user.parquet: Per-user values of the chosen model.
        failed.json: Why a training diverged, in the place of all that follows.
        checkpoint.safetensors: The chosen model.
        state.safetensors: Where an unfinished training stands; removed when it is done.
        checkpoint-of-state.safetensors: The best model as of that state, if there has been a better
            one since: what a training that goes on from there does not repeat to the last bit (on a
            GPU, say) may end without another better one.

    Every file but the history appears under its name in one step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_path = path / "recipe.yaml"
        self.begun_path = path / "begun.json"
        self.metrics_path = path / "metrics.json"
        self.history_path = path / "history.jsonl"
        self.checkpoint_path = path / "checkpoint.safetensors"
        self.state_path = path / "state.safetensors"
        self.checkpoint_of_state_path = path / "checkpoint-of-state.safetensors"

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self.metrics_path.is_file()

    def trial(self, number: int) -> RunFolder:
        """The folder of one trial of a grid or search."""
        return RunFolder(self.path / "trials" / f"{number:03d}")

    @property
    def trained(self) -> bool:
        """Whether the training in this very folder came to its end."""
        return self.path.joinpath("trained.json").is_file()

    @property
    def failure(self) -> str:
        """Why the training in this very folder diverged; empty if it did not."""
        if not self.path.joinpath(FAILED).is_file():
            return ""
        return str(self.read_json(FAILED)["reason"])

    def fail(self, reason: str) -> None:
        """Record that the training in this very folder diverged."""
        self.write_json(FAILED, {"reason": reason})
        self.drop_state()

    def clear(self) -> None:
        """Remove what an earlier run left, and nothing else; `metrics.json` first of all."""
        others = [
            self.path / name for name in ("run.json", "trained.json", "per_user.parquet", FAILED)
        ]
        tensors = (self.checkpoint_path, self.checkpoint_of_state_path, self.state_path)
        for path in (self.metrics_path, self.begun_path, *others, self.history_path, *tensors):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "trials", ignore_errors=True)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one JSON document atomically; NaN is refused."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        _replace(
            self.path / name, lambda partial: partial.write_text(text + "\n", encoding="utf-8")
        )

    def write_json_once(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a document that several processes may write at once; the last one wins."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{name}.{os.getpid()}-{threading.get_ident()}.partial")
        own.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        own.replace(path)

    def remove_leavings(self) -> None:
        """Remove what killed processes left: partial files, and those of a cluster's trainings."""
        for pattern in ("*.json.*.partial", f"{SHARED}*", TRAINS, f"trials/*/{TRAINS}"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the run's JSON documents.

        Raises:
            DataError: It is absent or damaged, or of a later format.
        """
        path = self.path / name
        try:
            content = _parse(path.read_bytes(), DOCUMENTS[name], path)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); is {self.path} a finished run?"
            ) from error
        version = str(content.get("format_version", FORMAT_VERSION))
        if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise DataError(
                f"{path}: run format {version}, this mmbench reads {FORMAT_VERSION}; use a newer "
                "mmbench"
            )
        return content

    def append_history(self, record: EpochRecord) -> None:
        """Add one epoch's line."""
        with self.history_path.open("a", encoding="utf-8") as history:
            history.write(json.dumps(asdict(record)) + "\n")

    def truncate_history(self, last_epoch: int) -> None:
        """Drop the lines after an epoch: those that a resumed training will write again."""
        if not self.history_path.is_file():
            return
        kept = []
        with contextlib.suppress(DataError):  # the line that was being written at a kill
            for epoch, line in self._history():
                if epoch["epoch"] <= last_epoch:
                    kept.append(line + "\n")
        _replace(
            self.history_path, lambda partial: partial.write_text("".join(kept), encoding="utf-8")
        )

    def history(self) -> list[dict[str, Any]]:
        """Return the epochs so far.

        Raises:
            DataError: A line is damaged.
        """
        return [epoch for epoch, _ in self._history()] if self.history_path.is_file() else []

    def _history(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield each epoch with its line."""
        lines = self.history_path.read_text(encoding="utf-8", errors="backslashreplace")
        for number, line in enumerate(lines.splitlines(), 1):
            yield _parse(line, HistoryLine, f"{self.history_path}, line {number}"), line

    def save_checkpoint(self, tensors: Mapping[str, torch.Tensor], epoch: int) -> None:
        """Save the model of one epoch as the best so far."""
        if self.checkpoint_path.is_file() and not self.checkpoint_of_state_path.exists():
            self.checkpoint_path.replace(self.checkpoint_of_state_path)
        _save_tensors(self.checkpoint_path, tensors, {"epoch": str(epoch)})

    def load_checkpoint(self, epoch: int) -> dict[str, torch.Tensor]:
        """Load the model of the chosen epoch.

        Raises:
            TrainingError: The file is absent, damaged or of another epoch.
        """
        tensors, metadata = _load_tensors(self.checkpoint_path)
        if metadata.get("epoch") != str(epoch):
            raise TrainingError(
                f"{self.checkpoint_path}: holds epoch {metadata.get('epoch')}, the best one is "
                f"{epoch}: the run was continued on a machine that computes differently; train "
                "anew with --restart"
            )
        return tensors

    def load_model(self, model: Recommender, epoch: int) -> None:
        """Give a model the weights of the chosen epoch; errors as in `load_checkpoint`."""
        weights = self.load_checkpoint(epoch)
        try:
            model.load_weights(weights)
        except RuntimeError as error:
            what = f"{self.checkpoint_path}: is not of the model in {self.recipe_path}"
            told = str(error).splitlines()[-1].strip()
            raise TrainingError(f"{what} ({told}); train anew with --restart") from error

    def keep_checkpoint(self, epoch: int) -> None:
        """Keep the checkpoint of the chosen epoch, and no other."""
        former = self.checkpoint_of_state_path
        if former.is_file() and (
            not self.checkpoint_path.is_file()
            or _load_tensors(self.checkpoint_path)[1].get("epoch") != str(epoch)
        ):
            former.replace(self.checkpoint_path)
        former.unlink(missing_ok=True)

    def save_state(self, tensors: Mapping[str, torch.Tensor], progress: TrainingProgress) -> None:
        """Save where the training stands."""
        _save_tensors(self.state_path, tensors, {"progress": json.dumps(asdict(progress))})
        self.checkpoint_of_state_path.unlink(missing_ok=True)

    def load_state(self) -> tuple[dict[str, torch.Tensor], TrainingProgress] | None:
        """Load where the training stood; None if nothing was saved yet.

        Raises:
            TrainingError: The file is damaged.
        """
        if not self.state_path.is_file():
            return None
        tensors, metadata = _load_tensors(self.state_path)
        try:
            return tensors, _progress(metadata["progress"])
        except (KeyError, ValueError) as error:
            raise TrainingError(
                f"{self.state_path}: no state of a training; train anew with --restart"
            ) from error

    def drop_state(self) -> None:
        """Remove what a training that is recorded as finished, or as failed, no longer needs.

        A kill may come between the record and this.
        """
        paths = [self.state_path, self.checkpoint_of_state_path]
        for path in [*paths, self.checkpoint_path] if self.failure else paths:
            path.unlink(missing_ok=True)


def _parse(text: str | bytes, schema: type[BaseModel], where: Path | str) -> dict[str, Any]:
    """Parse a JSON object and check it against a schema.

    Raises:
        DataError: It isn't one; names `where`, the key, what it got and expected.
    """
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8 and huge numbers as well
        raise DataError(f"{where}: damaged: {error}; {CURE}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: damaged: not a JSON object; {CURE}")
    try:
        schema.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{where}: damaged: {validation_in_words(error)}; {CURE}") from error
    return content


def _progress(text: str) -> TrainingProgress:
    """Return the progress of a training; raise ValueError for text that is none."""
    try:
        return TypeAdapter(TrainingProgress).validate_python(json.loads(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, _DIGEST: digest_of(plain, metadata)}
    try:
        _replace(path, lambda partial: _save_file(plain, partial, metadata))
    except SafetensorError as error:
        raise TrainingError(
            f"{path}: cannot be written: {error}; make room or choose another --out, then the same "
            "command goes on"
        ) from error


def _save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Save tensors so that equal ones make equal bytes."""
    save_file(tensors, path, metadata=metadata)
    with path.open("r+b") as file:  # safetensors writes the metadata in an order of the moment
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(metadata.items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(length))


def _load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            tensors, metadata = {n: file.get_tensor(n) for n in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path}: cannot be read: {error}; train anew with --restart"
        ) from error
    digest = metadata.pop(_DIGEST, None)  # older files have none
    if digest is not None and digest != digest_of(tensors, metadata):
        raise TrainingError(
            f"{path}: its content differs from the digest it was written with; train anew with "
            "--restart"
        )
    return tensors, metadata


def digest_of(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Return a digest of names, shapes, types and bytes: safetensors has none of its own."""
    digest = hashlib.blake2b(json.dumps(sorted(metadata.items())).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file durably beside its final name, then rename it."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    replace_synced(partial, path)
