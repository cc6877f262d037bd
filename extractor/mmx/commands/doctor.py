"""`mmx doctor`: what this machine has and lacks, and the mistakes of a dataset folder."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from mmbase.checks import CHECKS, kit
from mmbase.checks.reading import read_dataset
from mmbase.cli import (
    DEFAULT_DATA,
    PATH,
    Command,
    echo_json,
    json_option,
    quiet_option,
    verbose_option,
)
from mmbase.layout import hanging
from mmbase.process import available_cpus
from mmx import __version__
from mmx.errors import INSTALL_EXTRA

_PACKAGES = {
    # distribution: (module, extra that brings it, what it is for)
    "numpy": ("numpy", "", "everything"),
    "h5py": ("h5py", "", "feature sets"),
    "pyarrow": ("pyarrow", "", "items tables"),
    "torch": ("torch", "", "encoders"),
    "pillow": ("PIL", "extract", "pictures"),
    "scikit-image": ("skimage", "extract", "colour-hog"),
    "scikit-learn": ("sklearn", "extract", "tfidf-lsa"),
    "soundfile": ("soundfile", "extract", "sounds"),
    "torchvision": ("torchvision", "extract", "torchvision models"),
    "torchaudio": ("torchaudio", "extract", "mfcc and torchaudio models"),
    "transformers": ("transformers", "extract", "transformers models"),
    "sentence-transformers": ("sentence_transformers", "extract", "sentence encoders"),
    "open_clip_torch": ("open_clip", "extract", "open_clip models"),
}
_IMPORTED = ("torch", "torchvision", "torchaudio", "PIL", "soundfile")
"""Modules that the check imports: their binaries must fit each other."""


@click.command(cls=Command)
@click.option(
    "--data",
    metavar="DIR",
    type=PATH,
    default=DEFAULT_DATA,
    help="Dataset folder to check, with its disk; if it doesn't exist, only the disk is checked.",
)
@json_option
@quiet_option
@verbose_option
@click.pass_context
def doctor(ctx: click.Context, *, data: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Check this machine, and a dataset's items, pictures and feature sets, before a long run.

    For the machine, report versions, devices, codecs, caches and disk space, and how to install
    what is missing. For the dataset, report mistakes, each with its name and its fix (docs/data.md
    lists them); `mmbench data validate` also checks interactions and splits.

    Exit code 0: no problem; 3: warnings about the dataset; 1: errors, or something is missing.

    \b
    EXAMPLES
      mmx doctor
      mmx doctor --data /mnt/catalogue --json
    """
    findings, mistakes = examine(data), mistakes_of(data)
    if as_json:
        echo_json({**findings, "data": kit.as_json(mistakes)}, "mmx.doctor 1.1")
    else:
        click.echo(as_text(findings))
        if data.exists():
            click.echo(f"\ndataset {data.as_posix()}")
            click.echo(kit.as_text(mistakes, len(CHECKS)))
    ctx.exit(1 if findings["problems"] else kit.exit_code(mistakes))


def mistakes_of(data: Path) -> list[kit.Finding]:
    """Return what is wrong with a dataset folder; nothing where it is empty or not there yet."""
    if not data.exists() or (data.is_dir() and not any(data.iterdir())):
        return []
    return kit.examine(CHECKS, read_dataset(data))


def examine(data: Path) -> dict[str, Any]:
    """Return all that `mmx doctor` reports, with JSON types only."""
    from mmx.encoders import broken_families

    packages, problems = _packages()
    devices, unusable = _devices()
    problems += unusable
    problems += [
        f"{error}; update or remove that distribution" for error in broken_families().values()
    ]
    return {
        "mmx": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "devices": devices,
        "codecs": _codecs(),
        "caches": _caches(),
        "disk_free_bytes": shutil.disk_usage(_existing(data)).free,
        "problems": problems,
    }


def as_text(findings: dict[str, Any]) -> str:
    """Return the findings as lines of text, problems last."""
    lines = [
        f"mmx {findings['mmx']}, Python {findings['python']}, {findings['system']}",
        "",
        "packages",
    ]
    lines += [
        hanging(str(info["for"]), f"  {name:<22} {info['version'] or 'missing':<14} ")
        for name, info in findings["packages"].items()
    ]
    lines += ["", "devices", *(f"  {line}" for line in findings["devices"])]
    lines += [
        "",
        "codecs",
        *(
            hanging(", ".join(names) or "none", f"  {kind:<8} ")
            for kind, names in findings["codecs"].items()
        ),
    ]
    lines += ["", "caches of weights"]
    lines += [
        f"  {name:<12} {info['path']} ({'there' if info['exists'] else 'not there yet'})"
        for name, info in findings["caches"].items()
    ]
    lines += ["", f"free disk space {findings['disk_free_bytes'] / 2**30:,.1f} GiB", ""]
    lines += [f"problem: {problem}" for problem in findings["problems"]] or ["no problems found"]
    return "\n".join(lines)


def _packages() -> tuple[dict[str, dict[str, str | None]], list[str]]:
    found: dict[str, dict[str, str | None]] = {}
    problems, missing = [], []
    for name, (module, extra, purpose) in _PACKAGES.items():
        try:
            version: str | None = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
            missing.append(name)
            if not extra:
                problems.append(f"{name} is missing; run: pip install {name}")
        found[name] = {"version": version, "for": purpose}
        if version is not None and module in _IMPORTED and (error := _import_error(module)):
            problems.append(f"{name} {version} cannot be imported: {error}; run: {INSTALL_EXTRA}")
    if absent := [name for name in missing if _PACKAGES[name][1]]:
        problems.append(f"{', '.join(absent)} missing; run: {INSTALL_EXTRA}")
    return found, problems


def _import_error(module: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # absent, or its binary does not fit
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _devices() -> tuple[list[str], list[str]]:
    devices, problems = [f"cpu: {available_cpus()} processors"], []
    if _import_error("torch") is None:
        import torch

        # The driver counts, whatever torch makes of driver and GPU.
        for i in range(torch.cuda.device_count()):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    name = torch.cuda.get_device_name(i)
                    torch.ones(1, device=f"cuda:{i}").item()
            except (RuntimeError, AssertionError) as error:
                reason = str(error).splitlines()[0].rstrip(".")
                problems.append(
                    f"cuda:{i} cannot be used by torch {torch.__version__}: {reason}; until then "
                    "--device cpu"
                )
            else:
                devices.append(f"cuda:{i}: {name}")
        if torch.backends.mps.is_available():
            devices.append("mps")
    return devices, problems


def _codecs() -> dict[str, list[str]]:
    codecs: dict[str, list[str]] = {"images": [], "sounds": []}
    if _import_error("PIL") is None:
        from PIL import features

        names = ("jpg", "zlib", "webp", "libtiff", "avif")
        codecs["images"] = [name for name in names if name in features.get_supported()]
        if features.check_feature("libjpeg_turbo"):
            codecs["images"].append("libjpeg_turbo")
        extra = {"pillow_heif": "heic", "pillow_jxl": "jxl"}
        codecs["images"] += [name for module, name in extra.items() if find_spec(module)]
    if _import_error("soundfile") is None:
        import soundfile

        codecs["sounds"] = [
            name.lower()
            for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF")
            if name in soundfile.available_formats()
        ]
        if find_spec("av"):
            codecs["sounds"] += ["m4a", "aac", "webm", "wavpack"]
    return codecs


def _caches() -> dict[str, dict[str, Any]]:
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folders = {
        "torch": Path(os.environ.get("TORCH_HOME", base / "torch")),
        "huggingface": Path(os.environ.get("HF_HOME", base / "huggingface")),
    }
    return {name: {"path": str(path), "exists": path.is_dir()} for name, path in folders.items()}


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
