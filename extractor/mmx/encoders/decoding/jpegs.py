"""JPEG files decoded by torchvision, on the processor (libjpeg-turbo) or on a GPU (nvJPEG).

Only plain files take this way: 8-bit grey or YCbCr with a header that is in order from the first
byte to the first scan. All others, and those on which the decoder fails, are left to `decode_rgb`,
which alone says what is corrupt. So the same files have a vector, whichever decoder is asked for.

Pillow and torchvision decode with the same library, and of a file that is whole they give the same
pixels; what differs is the scaling. On the processor `scaled` leaves it to torchvision, which
computes with 8 bits: single pixels differ by 1 from Pillow's. On a GPU it computes in fp32, in
Pillow's two passes with Pillow's rounding after each. nvJPEG computes pixels of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmbase.process import out_of_memory
from mmx.encoders.base import Request, plain_reason, require, versions
from mmx.encoders.batching import groups_of_equal
from mmx.encoders.compute import stacked
from mmx.encoders.decoding.memory import reserve
from mmx.encoders.decoding.pictures import check_pixels, decode_rgb
from mmx.encoders.decoding.reading import remembered
from mmx.errors import ContentError, EncoderError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_LARGEST = 1 << 28  # bytes of a file that is read at once
_GPU_BYTES = 1 << 30
"""Pictures that are decoded and scaled at once on a GPU, as fp32 numbers."""

_FRAMES = (0xC0, 0xC1, 0xC2)  # SOF: baseline, extended, progressive
_SOS, _ADOBE, _APP2 = 0xDA, 0xEE, 0xE2
_OTHERS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # DHT, DQT, DRI, COM, APP0 ... APP15
_END = b"\xff\xd9"


class Frame(NamedTuple):
    """What the header of a JPEG file says about its picture."""

    width: int
    height: int
    progressive: bool


@dataclass(frozen=True)
class EncodedJpeg:
    """A plain JPEG file that is yet to be decoded.

    Attributes:
        path: Where it was read.
        content: All of it, (n_bytes,).
        frame: What its header says.
    """

    path: Path
    content: NDArray[np.uint8]
    frame: Frame

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.content.nbytes

    def tensor(self) -> Tensor:
        """Return the content as (n_bytes,) uint8, which shares its memory."""
        import torch

        return torch.from_numpy(self.content)


def plain_frame(content: bytes | bytearray) -> Frame | None:
    """Return the frame of a JPEG file that all decoders read alike; None for any other file.

    Its segments follow each other without a gap, and it ends with the end-of-image marker; it has
    8 bits, and one component or three, of which nothing says that they are not YCbCr; no further
    picture follows (MPF).
    """
    if content[:2] != b"\xff\xd8" or content[-2:] != _END:
        return None
    frame: Frame | None = None
    place, end = 2, len(content)
    while place + 4 <= end:
        marker, length = content[place + 1], content[place + 2] << 8 | content[place + 3]
        following = place + 2 + length
        if content[place] != 0xFF or length < 2 or following > end:
            return None
        data = content[place + 4 : min(following, place + 24)]
        if marker == _SOS:
            return frame
        if marker in _FRAMES:
            if frame is not None or length < 8 or length != 8 + 3 * data[5] or data[0] != 8:
                return None
            n_components, names = data[5], bytes(data[6::3])
            if n_components not in (1, 3) or names == b"RGB":
                return None
            height, width = data[1] << 8 | data[2], data[3] << 8 | data[4]
            frame = Frame(width, height, progressive=marker == 0xC2)
        elif marker not in _OTHERS or _is_special(marker, data):
            return None
        place = following
    return None


def _is_special(marker: int, data: bytes | bytearray) -> bool:
    """Whether a segment says that colours are not YCbCr, or that further pictures follow."""
    if marker == _ADOBE:
        return data[:5] == b"Adobe" and data[11:12] != b"\1"
    return marker == _APP2 and data[:4] == b"MPF\0"


@remembered
def read_jpeg(content: Path | str) -> EncodedJpeg | None:
    """Read a plain JPEG file; None for any other, and for what cannot be read.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(content)
    try:
        data = _content_of(path)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    frame = plain_frame(data)
    if frame is None:
        return None
    with suppress(ContentError):
        check_pixels(frame.width, frame.height)
        return EncodedJpeg(path, np.frombuffer(data, np.uint8), frame)
    return None


def _content_of(path: Path) -> bytearray:
    """All of a file that begins as a JPEG file; of others nothing."""
    with path.open("rb", buffering=0) as stream:
        size, start = os.fstat(stream.fileno()).st_size, stream.read(2)
        if start != b"\xff\xd8" or size > _LARGEST:
            return bytearray()
        data = bytearray(size)
        data[:2], place = start, 2
        with memoryview(data) as view:
            while place < size and (n_bytes := stream.readinto(view[place:])):
                place += n_bytes
    return data


@remembered
def decode_jpeg(content: Path | str) -> Tensor | None:
    """Decode a plain JPEG file to RGB, (3, height, width) uint8, channels last in memory.

    None for any other file, and for one that `decode_rgb` has to judge. The result must not be
    changed.

    Raises:
        FileNotFoundError: There is no such file.
    """
    encoded = read_jpeg.__wrapped__(content)  # type: ignore[attr-defined]
    if encoded is None:
        return None
    io, frame = require("torchvision.io"), encoded.frame
    # One byte per colour and, of a progressive picture, two per coefficient.
    reserve(frame.width * frame.height * (9 if frame.progressive else 3) + encoded.nbytes)
    try:
        pixels: Tensor = io.decode_jpeg(encoded.tensor(), mode=io.ImageReadMode.RGB)
    except RuntimeError:
        return None
    return pixels


def open_picture(content: Path | str, decoder: str) -> Image | Tensor | EncodedJpeg:
    """Return a picture as far as a decoder takes it before the GPU.

    Pillow's picture where the decoder is `pil` or the file is not plain; else of `torchvision` the
    pixels, (3, height, width) uint8, of `nvjpeg` the file.

    Raises:
        ContentError: As `decode_rgb`.
        FileNotFoundError: There is no such file.
    """
    found: Tensor | EncodedJpeg | None = None
    if decoder == "torchvision":
        found = decode_jpeg(content)
    elif decoder == "nvjpeg":
        found = read_jpeg(content)
    return decode_rgb(content) if found is None else found


def size_of(picture: Image | Tensor | EncodedJpeg) -> tuple[int, int]:
    """Return width and height."""
    if isinstance(picture, EncodedJpeg):
        return picture.frame.width, picture.frame.height
    if hasattr(picture, "shape"):
        height, width = picture.shape[-2:]
        return int(width), int(height)
    return picture.size


def scaled(
    pixels: Tensor, size: int | Sequence[int], interpolation: Any, *, antialias: bool = True
) -> Tensor:
    """Return pictures scaled to `size`, (..., 3, height, width) uint8, as torchvision does it.

    Args:
        pixels: Shape (..., 3, height, width), uint8.
        size: Of the shorter side, or height and width.
        interpolation: An `InterpolationMode` of torchvision.
        antialias: As torchvision's `resize`.
    """
    import torch

    functional = require("torchvision.transforms.v2.functional")
    sides = [size] if isinstance(size, int) else list(size)
    smooth = interpolation.value in ("bilinear", "bicubic")
    if _leave_to_torchvision(pixels) or not (antialias and smooth):
        resized: Tensor = functional.resize(pixels, sides, interpolation, antialias=antialias)
        return resized
    height, width = sides if len(sides) == 2 else _sides(pixels.shape[-2:], sides[0])
    shape = pixels.shape
    x = pixels.reshape(-1, *shape[-3:])
    for new in ((shape[-2], width), (height, width)):
        if x.shape[-2:] != new:
            x = torch.nn.functional.interpolate(
                x.float(), new, mode=interpolation.value, antialias=True, align_corners=False
            )
            x = x.round_().clamp_(0, 255)
    return x.to(torch.uint8).reshape(*shape[:-2], height, width)


def _leave_to_torchvision(pixels: Tensor) -> bool:
    """Whether torchvision scales these pixels in 8-bit arithmetic."""
    return pixels.device.type == "cpu"


def _sides(shape: Sequence[int], shorter: int) -> tuple[int, int]:
    """Height and width of a picture whose shorter side is scaled, as torchvision rounds them."""
    height, width = shape
    longer = int(shorter * max(height, width) / min(height, width))
    return (shorter, longer) if height <= width else (longer, shorter)


class NvJpeg:
    """Decodes plain JPEG files in batches on a GPU.

    Args:
        device: The GPU.

    Raises:
        EncoderError: This torchvision is built without nvJPEG, or it does not work.
    """

    def __init__(self, device: Any) -> None:
        self.device = device
        self._sample = _sample()
        try:
            self._decoded([self._sample])
        except RuntimeError as error:
            raise EncoderError(
                f"--decoder nvjpeg does not work here ({plain_reason(error).split('. ')[0]}); take "
                "--decoder torchvision"
            ) from error

    def batch(
        self,
        loaded: Sequence[Any],
        prepare: Callable[[Tensor], Tensor],
        otherwise: Callable[[Image], Any],
    ) -> Tensor:
        """Return the network's input of loaded items, (len(loaded), ...), on the GPU.

        Args:
            loaded: Files that are yet to be decoded, and arrays of others that are prepared.
            prepare: Makes (k, 3, height, width), uint8, of pictures of one size on the GPU what the
                network takes, row by row.
            otherwise: Prepares a picture that nvJPEG cannot decode and Pillow can: an array.

        Raises:
            RuntimeError: A picture that neither can decode.
        """
        import torch

        encoded = [k for k, one in enumerate(loaded) if isinstance(one, EncodedJpeg)]
        rows = dict(enumerate(loaded))
        order: list[int] = []
        ready: list[Tensor] = []
        for part in self._parts([loaded[k] for k in encoded]):
            places = [encoded[p] for p in part]
            pictures = self._decode([loaded[k] for k in places])
            there = [(k, one) for k, one in zip(places, pictures, strict=True) if one is not None]
            # Pictures of one size are scaled together: launches cost more than pixels.
            for group in groups_of_equal([one.shape[-2] << 16 | one.shape[-1] for _, one in there]):
                made = prepare(torch.stack([there[g][1] for g in group]))
                ready.append(made.contiguous())  # one layout, whoever shares the batch
                order += [there[g][0] for g in group]
        for k in order:
            del rows[k]
        if rows:
            arrays = [
                otherwise(_decoded_instead(row)) if isinstance(row, EncodedJpeg) else row
                for row in rows.values()
            ]
            ready.append(stacked(arrays, self.device))
            order += rows
        whole = ready[0] if len(ready) == 1 else torch.cat(ready)
        if order == sorted(order):
            return whole
        return whole[torch.from_numpy(np.argsort(order)).to(self.device)]

    def _parts(self, encoded: Sequence[EncodedJpeg]) -> list[list[int]]:
        """Places of files that together fit into `_GPU_BYTES`, at least one each."""
        parts: list[list[int]] = []
        n_bytes = 0
        for place, one in enumerate(encoded):
            size = one.frame.width * one.frame.height * 3 * 4
            if not parts or n_bytes + size > _GPU_BYTES:
                parts.append([])
                n_bytes = 0
            parts[-1].append(place)
            n_bytes += size
        return parts

    def _decode(self, encoded: Sequence[EncodedJpeg]) -> list[Tensor | None]:
        """The pictures; None for files on which nvJPEG fails and goes on to work for others."""
        try:
            return list(self._decoded([one.tensor() for one in encoded]))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
        if len(encoded) > 1:
            return [self._decode([one])[0] for one in encoded]  # which of them is it?
        self._decoded([self._sample])
        return [None]

    def _decoded(self, contents: list[Tensor]) -> list[Tensor]:
        """The pictures, (3, height, width) uint8 each."""
        import torch

        io = require("torchvision.io")
        # nvJPEG has a stream of its own, which waits for nobody: it may get memory that kernels of
        # this thread's stream are still to read.
        torch.cuda.current_stream(self.device).synchronize()
        return io.decode_jpeg(  # type: ignore[no-any-return]
            contents, mode=io.ImageReadMode.RGB, device=self.device
        )


def _decoded_instead(encoded: EncodedJpeg) -> Image:
    """The picture of a file on which nvJPEG fails.

    Raises:
        RuntimeError: Pillow fails, too. (A `ContentError` would say that there is nothing to
            encode; here the batch has to find out whose fault it is.)
    """
    try:
        return decode_rgb(encoded.path)
    except (ContentError, OSError) as error:
        raise RuntimeError(plain_reason(error)) from error


def _sample() -> Tensor:
    import torch

    io = require("torchvision.io")
    encoded: Tensor = io.encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))
    return encoded


def checked_decoder(request: Request, device: Any) -> NvJpeg | None:
    """Return what decodes on the GPU, where that is asked for.

    Raises:
        UsageError: nvjpeg without a CUDA device.
        EncoderError: It does not work.
    """
    if request.decoder != "nvjpeg":
        return None
    if device.type != "cuda":
        raise UsageError(
            f"--decoder nvjpeg needs a GPU of NVIDIA (the device is {device}); take --decoder "
            "torchvision, or --device cuda where there is one"
        )
    return NvJpeg(device)


def decoder_told(decoder: str) -> dict[str, str]:
    """Return what the description of an encoder's preprocessing says about its decoder.

    Nothing about `pil`, which every set had before there were others.
    """
    return {} if decoder == "pil" else {"decoder": decoder}


def decoder_versions(decoder: str) -> dict[str, str]:
    """Return the versions of what decodes instead of Pillow; of nvJPEG that of CUDA."""
    if decoder == "pil":
        return {}
    import torch

    cuda = {"cuda": str(torch.version.cuda)} if decoder == "nvjpeg" else {}
    return {"torchvision": versions("torchvision")["torchvision"], **cuda}
