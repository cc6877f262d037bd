"""Resizing and cropping with Pillow alone: torchvision's pixels, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms.functional import pil_modes_mapping

from mmx.encoders import create
from mmx.encoders.decoding.cropping import Cropping
from mmx.errors import ContentError
from mmx.extraction.multipart import Several
from mmx.extraction.processes import loaders_of

BILINEAR, BICUBIC = (
    next(mode for mode in pil_modes_mapping if mode.value == name)
    for name in ("bilinear", "bicubic")
)


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    crop=st.integers(1, 120),
    more=st.integers(0, 9),
    mode=st.sampled_from([BILINEAR, BICUBIC]),
    seed=st.integers(0, 9),
)
def test_the_pixels_are_torchvisions(
    width: int, height: int, crop: int, more: int, mode: Any, seed: int
) -> None:
    if max(width, height) > 40 * min(width, height):
        width = height  # what is enlarged to thousands of pixels only takes time
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    resized = functional.resize(picture, [crop + more], interpolation=mode, antialias=True)
    expected = np.asarray(functional.center_crop(resized, [crop]))
    cropping = Cropping("pil", crop + more, crop, int(pil_modes_mapping[mode]))
    np.testing.assert_array_equal(cropping.cropped(picture), expected)


def test_a_line_is_refused_before_it_is_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (1, 30_000)).save(tmp_path / "a.png")
    with pytest.raises(ContentError):
        Cropping("pil", 232, 224, 2).load(tmp_path / "a.png")


def test_what_loads_elsewhere_needs_no_torch(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg")
    program = (
        "import sys; import mmx.extraction.worker;"
        "from mmx.encoders.decoding.cropping import Cropping;"
        f"Cropping('pil', 9, 8, 2).load({str(tmp_path / 'a.jpg')!r});"
        f"Cropping('nvjpeg', 9, 8, 2).load({str(tmp_path / 'a.jpg')!r});"
        "large = 'torch', 'torchvision', 'transformers', 'pandas', 'scipy', 'h5py', 'pydantic';"
        "print([name for name in large if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_which_encoders_start_without_delay(tmp_path: Path) -> None:
    def encoder(decoder: str) -> Any:
        return create("resnet18", modality="visual", weights="random", decoder=decoder)

    usual, other = encoder("pil"), encoder("torchvision")
    Image.new("RGB", (300, 400), "red").save(tmp_path / "a.jpg")
    several = Several(usual, combine="mean")
    for one, light in ((usual, True), (other, False), (several, True)):
        (loader,), found = loaders_of([one])
        assert found is light
        here, there = one.load(tmp_path / "a.jpg"), loader.load(tmp_path / "a.jpg")
        np.testing.assert_array_equal(here, there)
    assert loaders_of([usual, other])[1] is False
    assert several.encoder is usual
