"""The header of a feature set in memory: checked names, JSON provenance and versions."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmstore import spec
from mmstore.errors import InvalidInput, UnsupportedVersion
from mmstore.spec import CREATED, FORMAT_VERSION, MAJOR, NEWEST_MINOR, SUFFIX, Status

_MAX_NAME = 200  # file systems allow 255 bytes, and the writer's side files add a suffix


@dataclass(frozen=True, slots=True)
class Header:
    """All metadata of a feature set."""

    modality: str  # `visual`, `textual`, `audio`, or any lower-case name
    name: str  # as in the file name
    source: str  # `item` or `interaction`
    layout: str  # `dense` or `ragged`
    dim: int  # length of a vector, >= 1
    dtype: str  # `float16` or `float32`, how vectors are stored
    rows: int
    provenance: dict[str, Any]  # how the vectors were made; JSON values only
    complete: bool = False  # False while rows are pending
    content_digest: str = ""  # 64 hexadecimal digits, or empty while the set is incomplete
    format_version: str = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_modality(self.modality)
        check_name(self.name)
        choices = {"source": spec.SOURCES, "layout": spec.LAYOUTS, "dtype": spec.DTYPES}
        for key, known in choices.items():
            if (value := getattr(self, key)) not in known:
                raise InvalidInput(f"{key}: got {value!r}, expected one of {', '.join(known)}")
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 1:
            raise InvalidInput(f"dim: got {self.dim!r}, expected an int >= 1")

    @property
    def vector_dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def vector_bytes(self) -> int:
        """Bytes of one stored vector."""
        return self.dim * self.vector_dtype.itemsize


def count_statuses(status: NDArray[np.uint8]) -> dict[Status, int]:
    """Return the number of rows of each status."""
    counts = np.bincount(status, minlength=len(Status))
    return {state: int(counts[state]) for state in Status}


def check_name(name: object) -> str:
    """Return `name` if it is a safe file name stem, never a path; else raise `InvalidInput`."""
    if _is_safe(name, "A-Za-z0-9"):
        return str(name)
    wanted = f"at most {_MAX_NAME} letters, digits, '.', '_' and '-', such as 'clip-vit-b-32'"
    raise InvalidInput(f"name: got {name!r}, expected {wanted}")


def check_modality(modality: object) -> str:
    """Return `modality` if it is a safe lower-case folder name; else raise `InvalidInput`."""
    if _is_safe(modality, "a-z0-9"):
        return str(modality)
    wanted = "lower-case letters, digits, '.', '_' and '-' only, such as 'visual'"
    raise InvalidInput(f"modality: got {modality!r}, expected {wanted}")


def _is_safe(name: object, letters: str) -> bool:
    pattern = f"[{letters}][{letters}._-]*"
    return isinstance(name, str) and len(name) <= _MAX_NAME and bool(re.fullmatch(pattern, name))


def name_of(path: Path) -> str:
    """Return the set's name according to its final path, `<root>/<modality>/<name>.h5`.

    Raises:
        InvalidInput: The file name does not end in `.h5`, or its stem is no valid name.
    """
    if path.suffix != SUFFIX:
        what = f"{path}: a feature set's file name ends in '{SUFFIX}'"
        raise InvalidInput(f"{what}; write to {path.name + SUFFIX!r}, say")
    return check_name(path.name.removesuffix(SUFFIX))


def check_version(where: str, version: str) -> str | None:
    """Return None for a version that is fully known, a warning for a newer minor of a known major.

    Raises:
        UnsupportedVersion: The major is unknown, or `version` is not `major.minor`.
    """
    match = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", version)
    if match is None:
        raise UnsupportedVersion(
            f"{where}: unreadable format version (got {version!r}, expected 'major.minor' such as "
            f"{FORMAT_VERSION!r}); extract the set again"
        )
    major, minor = int(match[1]), int(match[2])
    if major != MAJOR:
        cure = "install a newer mmx-mmbench" if major > MAJOR else "extract the set again"
        known = f"this library reads {MAJOR}.x and writes {FORMAT_VERSION}"
        raise UnsupportedVersion(f"{where}: format version {version} ({known}); {cure}")
    if minor <= NEWEST_MINOR:
        return None
    return (
        f"{where}: format version {version} is newer than {MAJOR}.{NEWEST_MINOR}, the newest that "
        "this library knows; what it adds is ignored. Install a newer mmx-mmbench to be sure"
    )


def canonical_json(value: object) -> str:
    """Return the one JSON text of `value` that mmstore writes: sorted keys, no spaces, UTF-8 kept.

    Raises:
        InvalidInput: `value` has something that JSON can't hold (NaN, a Path, a lone surrogate).
    """
    try:
        text = json.dumps(
            value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        cure = "use str, int, finite float, bool, None, lists and dicts with str keys"
        raise InvalidInput(f"provenance: not JSON ({error}); {cure}") from error
    if "\\u0000" in text:
        raise InvalidInput("provenance: holds a NUL character, which HDF5 can't; remove it")
    return text


def with_creation_time(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return `provenance` as plain JSON values, with `created` set where the caller left it out.

    The time is UTC, ISO 8601 in whole seconds, from `SOURCE_DATE_EPOCH` where that is set.

    Raises:
        InvalidInput: `provenance` is no JSON object or too long, or `SOURCE_DATE_EPOCH` is not a
            whole number of seconds.
    """
    if not isinstance(provenance, Mapping):
        raise InvalidInput(f"provenance: got {type(provenance).__name__}, expected a mapping")
    plain: dict[str, Any] = json.loads(canonical_json(dict(provenance)))
    plain.setdefault(CREATED, _now().isoformat(timespec="seconds").replace("+00:00", "Z"))
    size = len(canonical_json(plain).encode("utf-8"))
    if size > spec.MAX_PROVENANCE_BYTES:
        raise InvalidInput(
            f"provenance: {size} bytes of JSON (at most {spec.MAX_PROVENANCE_BYTES}); "
            "put what is long into a file and its digest into the provenance"
        )
    return plain


def _now() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        what = f"SOURCE_DATE_EPOCH: got {epoch!r}, expected whole seconds since 1970"
        raise InvalidInput(what) from error
