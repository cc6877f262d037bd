"""Pictures, words and sounds of the demonstration catalogue, drawn from knobs in (0, 1)."""

from __future__ import annotations

import colorsys
import io
import wave
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mmx.demo.latent import FloatArray
from mmx.demo.words import BRAND_SYLLABLES, FILLER, PRODUCTS, STYLES
from mmx.errors import INSTALL_EXTRA, ToolError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Colour: TypeAlias = tuple[int, int, int]

IMAGE_SIZE = 96  # pixels, both sides
SAMPLE_RATE = 16_000  # Hz
SOUND_SAMPLES = 6_400  # 0.4 s
FIGURES = 5  # shapes per picture


def require_pillow() -> None:
    """Check that pictures can be drawn at all.

    Raises:
        ToolError: Pillow is not installed; names the extra that brings it.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ToolError(
            "mmx demo: the pictures are drawn with Pillow, which is not installed; "
            f"run {INSTALL_EXTRA} (or pip install pillow)"
        ) from error


def draw_image(knobs: FloatArray, style: int, rng: np.random.Generator) -> Image.Image:
    """Draw an RGB picture of `IMAGE_SIZE` squared: striped ground, then a few shapes.

    Args:
        knobs: Shape (6,), in (0, 1): ground hue, figure hue, stripe direction, stripe density,
            brightness, size of the figures.
        style: Index of the style; decides the kind of figure.
        rng: Places, sizes and grain.
    """
    from PIL import Image, ImageDraw

    ground_hue, figure_hue, direction, density, brightness, size = (float(knob) for knob in knobs)
    ground = _rgb(0.8 * ground_hue, 0.55, 0.45 + 0.45 * brightness)
    stripe = _rgb(0.8 * ground_hue + 0.06, 0.65, 0.25 + 0.45 * brightness)
    angle = np.pi * direction
    row, column = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] / IMAGE_SIZE
    across = column * np.cos(angle) + row * np.sin(angle)
    phase = 2 * np.pi * (2 + 8 * density) * across + rng.uniform(0, 2 * np.pi)
    blend = (0.5 + 0.5 * np.sin(phase))[:, :, None]
    pixels = blend * ground + (1 - blend) * stripe + rng.normal(0, 6, (IMAGE_SIZE, IMAGE_SIZE, 3))
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(picture)
    for _ in range(FIGURES):
        hue = (0.8 * figure_hue + rng.normal(0, 0.03)) % 1.0
        red, green, blue = (int(value) for value in _rgb(hue, 0.8, 0.9))
        centre = rng.uniform(12, IMAGE_SIZE - 12, 2)
        radius = 5 + 12 * size + rng.uniform(0, 4)
        _draw_figure(canvas, style, centre, radius, (red, green, blue))
    return picture


def _rgb(hue: float, saturation: float, value: float) -> FloatArray:
    return 255.0 * np.asarray(colorsys.hsv_to_rgb(hue % 1.0, saturation, min(value, 1.0)))


def _draw_figure(
    canvas: ImageDraw.ImageDraw, style: int, centre: FloatArray, radius: float, colour: Colour
) -> None:
    """One of six shapes, filled in even rounds of the styles and outlined in odd ones."""
    x, y = (float(value) for value in centre)
    triangle = [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)]
    diamond = [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)]
    box = (x - radius, y - radius, x + radius, y + radius)
    kind, outlined = style % 6, style // 6 % 2 == 1
    fill, outline = (None, colour) if outlined else (colour, None)
    if kind == 0:
        canvas.ellipse(box, fill, outline, width=3)
    elif kind == 1:
        canvas.rectangle(box, fill, outline, width=3)
    elif kind == 2:
        canvas.polygon(triangle, fill, outline, width=3)
    elif kind == 3:
        canvas.polygon(diamond, fill, outline, width=3)
    elif kind == 4:
        canvas.line((x - radius, y, x + radius, y), fill=colour, width=5 if outlined else 3)
        canvas.line((x, y - radius, x, y + radius), fill=colour, width=5 if outlined else 3)
    else:
        canvas.arc(box, 20, 250, fill=colour, width=6 if outlined else 3)


def encode_image(picture: Image.Image) -> bytes:
    """Return the picture as JPEG bytes (quality 90)."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def write_words(shares: FloatArray, rng: np.random.Generator) -> dict[str, str]:
    """Draw title, description, brand and category of one item.

    Args:
        shares: How much of each style the item has, shape (n_styles,), sums to 1.
        rng: Draws the words. About three in five words of a description come from the item's
            styles, a tenth from any style and the rest from a filler vocabulary; brand and category
            have nothing to do with style.
    """
    category = str(rng.choice(list(PRODUCTS)))
    noun = str(rng.choice(PRODUCTS[category]))
    brand = "".join(rng.choice(BRAND_SYLLABLES, 2)).capitalize()

    def styled() -> str:
        return str(rng.choice(STYLES[int(rng.choice(len(STYLES), p=shares))]))

    def any_word() -> str:
        source = rng.random()
        if source < 0.6:
            return styled()
        return str(rng.choice(STYLES[int(rng.integers(len(STYLES)))] if source < 0.7 else FILLER))

    words = " ".join(any_word() for _ in range(int(rng.integers(8, 22))))
    return {
        "title": f"{brand} {styled().capitalize()} {noun}",
        "description": f"{words.capitalize()}. {noun.capitalize()} with {styled()} and "
        f"{rng.choice(FILLER)}.",
        "brand": brand,
        "category": category,
    }


def make_sound(knobs: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Make a short sound in [-1, 1], shape (SOUND_SAMPLES,).

    Args:
        knobs: Shape (6,), in (0, 1): pitch, share of the upper harmonics, beats, breath (noise),
            glide, odd against even harmonics.
        rng: Phases and noise.
    """
    pitch, rolloff, beats, breath, glide, odd = (float(knob) for knob in knobs)
    seconds = np.arange(SOUND_SAMPLES) / SAMPLE_RATE
    duration = SOUND_SAMPLES / SAMPLE_RATE
    frequency = 110.0 * 2.0 ** (3.0 * pitch) * 2.0 ** ((glide - 0.5) * seconds / duration)
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
    tone = np.zeros(SOUND_SAMPLES)
    for harmonic in range(1, 8):
        parity = odd if harmonic % 2 else 1.0 - odd + 0.05
        strength = (0.25 + 0.65 * rolloff) ** (harmonic - 1) * parity
        audible = harmonic * frequency < 0.45 * SAMPLE_RATE  # what lies above would fold back
        tone += strength * audible * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    tone /= np.abs(tone).max() + 1e-9
    noise = 0.3 * rng.standard_normal(SOUND_SAMPLES)
    cycle = (seconds / duration * (1 + int(6 * beats))) % 1.0
    envelope = np.minimum(1.0, 40.0 * cycle) * np.exp(-3.0 * cycle)
    sound = ((1.0 - 0.7 * breath) * tone + 0.7 * breath * noise) * envelope
    return np.asarray(0.8 * sound / (np.abs(sound).max() + 1e-9))


def encode_sound(sound: FloatArray) -> bytes:
    """Return the sound as a WAV file: mono, 16 bit, `SAMPLE_RATE`."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(32767.0 * np.clip(sound, -1.0, 1.0)).astype("<i2").tobytes())
    return buffer.getvalue()
