"""The colour histogram and the edge map, against plain loops and on drawings of known content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.feature
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmx.encoders import create
from mmx.encoders.colour_histogram import enclosed
from mmx.encoders.edge_map import edge_strength


def drawing(path: Path, colour: tuple[int, int, int], *, gap: int = 0) -> Path:
    """A square of one colour, 120 of 256 pixels wide, on white; with a gap in its lower edge."""
    picture = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((60, 80, 179, 199), fill=colour)
    if gap:
        draw.rectangle((110, 190, 110 + gap, 199), fill="white")
    picture.save(path)
    return path


def encoded(name: str, path: Path) -> NDArray[np.float32]:
    encoder = create(name, modality="visual")
    vectors = encoder.encode([encoder.load(path)])
    assert vectors.shape == (1, encoder.spec.dim) and vectors.dtype == np.float32
    return vectors[0]


def test_the_histogram_is_of_the_object_alone(tmp_path: Path) -> None:
    bins = encoded("colour-histogram", drawing(tmp_path / "one.png", (200, 30, 70)))
    # 200 * 8 // 256 = 6, 30 → 0, 70 → 2; red varies slowest.
    assert bins.argmax() == (6 * 8 + 0) * 8 + 2 and bins.max() == 1.0
    white = bins[-1]  # what lies between the smoothed edge and the square
    assert white <= 0.05 and np.count_nonzero(bins) == 2


def test_an_outline_with_a_gap_still_encloses(tmp_path: Path) -> None:
    whole, broken = (
        encoded("colour-histogram", drawing(tmp_path / f"{gap}.png", (20, 30, 250), gap=gap))
        for gap in (0, 12)
    )
    assert broken.argmax() == whole.argmax() == 0 * 64 + 0 * 8 + 7


def test_a_picture_without_edges_counts_whole(tmp_path: Path) -> None:
    Image.new("RGB", (90, 40), (255, 0, 128)).save(tmp_path / "plain.png")
    bins = encoded("colour-histogram", tmp_path / "plain.png")
    assert bins.argmax() == (7 * 8 + 0) * 8 + 4 and np.count_nonzero(bins) == 1
    assert not encoded("edge-map", tmp_path / "plain.png").any()


@pytest.mark.parametrize("seed", range(3))
def test_enclosed_is_what_has_edges_on_all_sides(seed: int) -> None:
    edges = np.random.default_rng(seed).random((9, 7)) < 0.15
    found = enclosed(edges)
    for y, x in np.ndindex(9, 7):
        sides = edges[y, : x + 1], edges[y, x:], edges[: y + 1, x], edges[y:, x]
        assert found[y, x] == all(side.any() for side in sides), (y, x)


def test_the_map_shows_where_the_edges_are(tmp_path: Path) -> None:
    cells = encoded("edge-map", drawing(tmp_path / "one.png", (200, 30, 70))).reshape(64, 64)
    assert cells.min() >= 0 and cells.max() <= 1
    rows, columns = np.nonzero(cells)
    # The square's edges, at 60 and 180 across, 80 and 200 down, in cells of 4 pixels.
    assert set(rows) >= {20, 49} and rows.min() >= 19 and rows.max() <= 50
    assert set(columns) >= {15, 44} and columns.min() >= 14 and columns.max() <= 45
    assert not cells[25:45, 20:40].any()  # inside there is none


def test_the_map_is_canny_and_the_laplacian(pictures: list[Path]) -> None:
    for path in pictures[:3]:
        picture = Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
        grey = np.asarray(picture.convert("L"), np.float64)
        canny = skimage.feature.canny(grey, sigma=1.0, low_threshold=50, high_threshold=150)
        around = np.pad(grey, 1, mode="edge")
        sums = sum(around[y : y + 256, x : x + 256] for y in range(3) for x in range(3))
        expected = np.maximum(canny, np.clip((9 * grey - sums) / 255, 0, 1))
        np.testing.assert_allclose(edge_strength(grey), expected, atol=1e-12)
        cells = encoded("edge-map", path).reshape(64, 64)
        assert cells[3, 5] == pytest.approx(expected[12:16, 20:24].mean(), abs=1e-6)
