"""Image and sound files decoded: RGB pictures of every mode, mono samples at a model's rate.

Sounds are read with soundfile, because torchaudio's own loader needs torchcodec. Within
`shared_decoding` several encoders of one content decode it once.
"""

from __future__ import annotations

import functools
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import plain_reason, require
from mmx.errors import ContentError

if TYPE_CHECKING:
    from PIL.Image import Image

Decoded = TypeVar("Decoded")


class _Memory(threading.local):
    wanted = False
    last: tuple[Any, Any] | None = None


_memory = _Memory()


@contextmanager
def shared_decoding(wanted: bool = True) -> Iterator[None]:
    """Let `remembered` functions answer from memory when a thread repeats its last content."""
    _memory.wanted, _memory.last = wanted, None
    try:
        yield
    finally:
        _memory.wanted, _memory.last = False, None


def remembered(decode: Callable[..., Decoded]) -> Callable[..., Decoded]:
    """Let a decoder answer from memory within `shared_decoding`; its result must not be changed."""

    @functools.wraps(decode)
    def answer(content: Any, *more: Any) -> Decoded:
        if not _memory.wanted:
            return decode(content, *more)
        key = (decode, content, *more)
        if _memory.last is None or _memory.last[0] != key:
            try:
                _memory.last = key, decode(content, *more)
            except ContentError as error:
                _memory.last = key, error
        result: Decoded | ContentError = _memory.last[1]
        if isinstance(result, ContentError):
            raise result
        return result

    return answer


# ------------------------------------------------------------------------------------------------
# images

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO", "AVIF")
"""Formats that are looked for, whatever a file's name: some others of Pillow start programs."""

# What Pillow's decoders raise on damaged input. OSError covers "truncated" and "cannot identify".
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError,
    AssertionError, EOFError, MemoryError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip


@remembered
def decode_rgb(content: Path | str) -> Image:
    """Decode an image file to 8-bit RGB.

    As torchvision's own loader does: the EXIF orientation is not applied, an alpha channel is
    dropped, of an animation the first frame is taken. 16-bit grey is divided by 256 (Pillow's own
    conversion would clip it), float grey is taken as [0, 1], or as [0, 255] when it exceeds 1.

    Raises:
        ContentError: Not a picture, damaged, without pixels, or larger than Pillow's
            decompression-bomb limit.
        FileNotFoundError: There is no such file: absent, not corrupt.
    """
    pillow = _pillow()
    path = Path(content)
    try:
        if path.stat().st_size == 0:
            raise ContentError("the file is empty")
        with pillow.open(path, formats=_formats()) as image:
            check_pixels(*image.size)
            image.load()
            return _to_rgb(image)
    except FileNotFoundError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise ContentError(
            f"larger than the decompression-bomb limit of {pillow.MAX_IMAGE_PIXELS} pixels"
        ) from error
    except pillow.UnidentifiedImageError as error:
        raise ContentError("not an image of a known format") from error
    except _DECODE_ERRORS as error:
        raise ContentError(f"the image cannot be decoded: {plain_reason(error)}") from error


def check_pixels(width: int, height: int) -> None:
    """Refuse pictures without pixels or with more than Pillow's limit.

    Raises:
        ContentError: `width` x `height` is 0 or beyond `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    limit = _pillow().MAX_IMAGE_PIXELS
    if width < 1 or height < 1:
        raise ContentError(f"the image has no pixels ({width} x {height})")
    if limit is not None and width * height > limit:
        raise ContentError(
            f"{width} x {height} is larger than the decompression-bomb limit of {limit} pixels"
        )


def _to_rgb(image: Any) -> Image:
    mode = image.mode
    if mode == "RGB":
        return image.copy()  # type: ignore[no-any-return]
    if mode == "I" or mode.startswith("I;16"):
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        image = _pillow().fromarray(grey.astype(np.uint8))
    elif mode == "F":
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=255.0, neginf=0.0)
        scale = 255.0 if grey.max(initial=0.0) <= 1.0 else 1.0
        image = _pillow().fromarray(np.clip(np.rint(grey * scale), 0, 255).astype(np.uint8))
    elif mode in ("P", "PA"):
        image = image.convert("RGBA")  # palettes with transparency: the direct way to RGB warns
    return image.convert("RGB")  # type: ignore[no-any-return]


@functools.cache
def _formats() -> list[str]:
    pillow = _pillow()
    pillow.init()
    return [name for name in FORMATS if name in pillow.OPEN]


@functools.cache
def _pillow() -> Any:
    """`PIL.Image` without its warnings: each is an error of ours or of no consequence."""
    module = require("PIL.Image")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.simplefilter("ignore", module.DecompressionBombWarning)
    return module


# ------------------------------------------------------------------------------------------------
# sounds

RATE_RANGE = (1_000, 768_000)  # Hz; anything else is a damaged header
MAX_SAMPLES = 1 << 29
"""Longest clip, 3.4 hours at 44,100 Hz: a small file of silence can unpack to any length."""

_MAX_CHUNKS = 64  # of a WAV file, before its samples
_UNKNOWN_SIZE = 0x7FFF_0000  # programs that write to a pipe put something just below 2 or 4 GiB
_BLOCK_FRAMES = 1 << 20
_MAX_KERNEL = 1 << 24  # numbers in a resampling kernel; 44,100 → 16,000 Hz needs under 1 << 17


@remembered
def read_mono(content: Path | str) -> tuple[NDArray[np.float32], int]:
    """Read a sound file, channels averaged.

    Returns:
        Samples in [-1, 1], shape (n,), n >= 1, and the file's sample rate in Hz.

    Raises:
        ContentError: Not audio, damaged, without samples, with samples that are not finite, or with
            an impossible rate.
        FileNotFoundError: There is no such file: absent, not corrupt.
    """
    soundfile = require("soundfile")
    path = Path(content)
    blocks: list[NDArray[np.float32]] = []
    try:
        if path.stat().st_size == 0:
            raise ContentError("the file is empty")
        _check_wav_length(path)
        with soundfile.SoundFile(path) as file:
            rate = int(file.samplerate)
            n_samples = 0
            # In blocks, so that a damaged length in the header costs no memory.
            while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
                if (n_samples := n_samples + len(block)) > MAX_SAMPLES:
                    raise ContentError(f"longer than {MAX_SAMPLES:,} samples")
            if file.format == "FLAC" and n_samples < file.frames:
                raise ContentError(f"truncated: {n_samples:,} of {file.frames:,} samples are there")
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        reason = getattr(error, "error_string", None) or plain_reason(error)  # of libsndfile
        raise ContentError(f"the audio cannot be decoded: {reason}") from error
    if not blocks:
        raise ContentError("the audio has no samples")
    if not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
        raise ContentError(
            f"sample rate {rate} Hz is outside {RATE_RANGE[0]} ... {RATE_RANGE[1]} Hz"
        )
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise ContentError("the audio has samples that are not finite")
    return samples, rate


def _check_wav_length(path: Path) -> None:
    """Refuse a WAV file whose samples end early, which libsndfile would accept.

    Files that were written to a pipe say 0 or the largest number there, and are taken as they are.

    Raises:
        ContentError: The header promises more bytes of samples than the file has.
    """
    with path.open("rb") as stream:
        if (head := stream.read(12))[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        for _ in range(_MAX_CHUNKS):
            name, size = stream.read(4), int.from_bytes(stream.read(4), "little")
            if name == b"data":
                left = path.stat().st_size - stream.tell()
                if left < size < _UNKNOWN_SIZE:
                    raise ContentError(
                        f"truncated: {left:,} of {size:,} bytes of samples are there"
                    )
            if len(name) < 4 or name == b"data":
                return
            stream.seek(size + size % 2, 1)


class Resampler:
    """Bring samples to one rate with torchaudio's windowed-sinc filter, built once per rate.

    Args:
        rate: Target rate in Hz.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._transforms: dict[int, Any] = {}

    def __call__(self, samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """Resample (n,) samples at `rate` Hz, giving shape (ceil(n * target / rate),)."""
        if rate == self.rate:
            return samples
        import torch

        common = math.gcd(rate, self.rate)
        if (rate // common) * (self.rate // common) > _MAX_KERNEL:
            # Nearly coprime rates (44,099 → 16,000 Hz) would need gigabytes of filter there.
            signal = require("scipy.signal")
            resampled = signal.resample_poly(
                samples.astype(np.float64), self.rate // common, rate // common
            )
            return resampled.astype(np.float32)  # type: ignore[no-any-return]
        if rate not in self._transforms:
            self._transforms[rate] = require("torchaudio.transforms").Resample(rate, self.rate)
        with torch.inference_mode():
            resampled = self._transforms[rate](torch.from_numpy(samples)).numpy()
        return resampled  # type: ignore[no-any-return]
