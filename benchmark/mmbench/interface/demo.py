"""The demonstration catalogue: the dataset of a call that names none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mmbase.cli import DEFAULT_DATA
from mmbase.progress import Progress
from mmbench.errors import DataError

DEMO_FEATURES = (("visual", "colour-hog"), ("textual", "tfidf-lsa"), ("audio", "mfcc"))
"""Encoders without weights, for the demonstration catalogue when a model needs features."""


def make_demo(*, needs_features: bool, progress: Progress) -> Path:
    """Return the default dataset folder; make it, and its features, if they are absent.

    The extraction tool runs as a process of its own: the two tools meet only on disk.

    Raises:
        DataError: The demonstration catalogue cannot be made here.
    """
    if not DEFAULT_DATA.exists():
        progress.note(f"{DEFAULT_DATA} is not there yet: making the demonstration catalogue")
        _mmx("demo", "--out", str(DEFAULT_DATA))
    if needs_features and not any((DEFAULT_DATA / "features").glob("*/*.h5")):
        progress.note(f"{DEFAULT_DATA} has no features yet: extracting handcrafted ones")
        for modality, model in DEMO_FEATURES:
            encoder = ("--modality", modality, "--model", model)
            _mmx("extract", *encoder, "--data", str(DEFAULT_DATA), accept=(0, 3))
    return DEFAULT_DATA


def _mmx(*arguments: str, accept: tuple[int, ...] = (0,)) -> None:
    command = [sys.executable, "-m", "mmx", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in accept:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        told = f"mmx {' '.join(arguments)} failed: {lines[-1]}"
        raise DataError(f"{told}; or give a dataset of your own with --data DIR")
