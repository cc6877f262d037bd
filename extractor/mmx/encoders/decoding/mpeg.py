"""The frames of an MPEG sound file (MP3, MP2), counted one by one.

libsndfile's decoder stops after the number of samples that a header promises, or that it works out
from the size of the file and the bit rate of the first frame. Here the frames that are there are
counted, and the decoder is told.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import BinaryIO, NamedTuple

from mmx.encoders.decoding.layout import AS_IT_IS, Layout, Piece

# kbit/s by (version 1?, layer), for the indices 1 ... 14
_BIT_RATES = {
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}

_LARGEST = 1 << 13  # bytes, more than any frame has
_SEARCH = 1 << 20  # bytes that are looked at for the next frame
_SAME = 0x001E0C00  # bits of a head that all frames of a sound share: version, layer, rate
_MISCOUNT = 2  # frames by which information headers are wrong: some count themselves


class Frame(NamedTuple):
    """What the head of a frame says."""

    head: int
    size: int  # bytes
    samples: int
    rate: int  # Hz
    information: int  # offset of an information header, behind the side information
    kind: int  # what all frames of a sound have in common


class _Information(NamedTuple):
    """What an information header promises; 0 for absent entries.

    Attributes:
        is_xing: Whether libsndfile knows its format.
    """

    n_frames: int
    n_bytes: int
    is_xing: bool


@dataclass
class _Sound:
    """One sound of a file: frames that belong together.

    Attributes:
        first: Its first frame.
        told: Its information header; None without one.
        stretches: Where its frames are; an information header is the first one.
        n: Number of frames, without an information header.
        constant: Whether all frames have one bit rate.
    """

    first: Frame
    told: _Information | None
    stretches: list[tuple[int, int]]
    n: int
    constant: bool = True

    @property
    def is_told(self) -> bool:
        """Whether libsndfile finds out by itself how long this is."""
        if len(self.stretches) > 1:
            return False
        if self.told is None:
            return self.constant
        return self.told.is_xing and self.told.n_frames + _MISCOUNT >= self.n

    @property
    def promised(self) -> int:
        """Frames that there should be."""
        return max(self.n, self.told.n_frames if self.told else 0)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The sound by itself, with an information header that is right."""
        if self.is_told or self.first.head >> 17 & 3 != 1:  # the header is for layer 3 alone
            return tuple(self.stretches)
        (start, stop), *others = self.stretches
        begin = start + (self.first.size if self.told else 0)
        return _information_frame(self.first, self.n), (begin, stop), *others


def parse_frame(head: bytes) -> Frame | None:
    """Return the frame that four bytes announce; None if they are no head of a frame."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate_at, bits_at, padding = head[2] >> 2 & 3, head[2] >> 4, head[2] >> 1 & 1
    if version == 1 or layer == 4 or rate_at == 3 or bits_at in (0, 15):
        return None
    first = version == 3
    bit_rate = _BIT_RATES[first, layer][bits_at - 1] * 1000
    rate = _RATES[version][rate_at]
    samples = 384 if layer == 1 else 1152 if first or layer == 2 else 576
    size = (
        (12 * bit_rate // rate + padding) * 4
        if layer == 1
        else samples // 8 * bit_rate // rate + padding
    )
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    bits = int.from_bytes(head[:4], "big")
    return Frame(bits, size, samples, rate, 4 + side, bits & _SAME | mono)


def mpeg_layout(stream: BinaryIO, start: int) -> Layout:
    """Return how to read an MPEG sound file from its first frame on, at `start`.

    A file that libsndfile reads to its end by itself is taken as it is.
    """
    stream.seek(0)
    sounds = _sounds(stream.read(), start)
    if not sounds:
        return AS_IT_IS
    there, promised = (
        sum(n * one.first.samples / one.first.rate for one, n in zip(sounds, counts, strict=True))
        for counts in ([one.n for one in sounds], [one.promised for one in sounds])
    )
    absent = sum(one.promised - one.n for one in sounds)
    if absent > _MISCOUNT * len(sounds) or there < 0.75 * promised:
        return Layout(cut=f"{there:,.2f} of {promised:,.2f} s are there")
    if len(sounds) == 1 and sounds[0].is_told:
        return AS_IT_IS
    gaps = sum(len(one.stretches) - 1 for one in sounds)
    note = "bytes between the frames that are no sound" if gaps else ""
    return Layout(tuple(one.pieces for one in sounds), note=note)


def _sounds(data: bytes, place: int) -> list[_Sound]:
    """Go through all frames of a file from the first one on."""
    found: list[_Sound] = []
    known: dict[bytes, Frame | None] = {}  # a file has few different heads
    sizes: dict[bytes, int] = {}  # of the frames of the last sound, by their heads
    marks = _marks(data)  # where information headers may be
    mark = next(marks)
    while place < len(data):
        key = data[place : place + 4]
        if key not in known:
            known[key] = parse_frame(key)
        frame = known[key]
        if frame is None:
            place = _next_frame(data, behind_tags(io.BytesIO(data), place))
            continue
        if (stop := place + frame.size) > len(data):
            break
        while mark < place:
            mark = next(marks)
        told = _information(frame, data[place:stop]) if mark < stop else None
        last = found[-1] if found else None
        is_new = last is None or told is not None or last.first.kind != frame.kind
        if last and is_new and (there := _next_frame(data, place)) != place:
            place = there  # not one frame among others of its kind
            continue
        if last is None or is_new:
            sizes.clear()
            found.append(_Sound(frame, told, [(place, stop)], 1 if told is None else 0))
        else:
            last.n += 1
            if last.constant and not -1 <= last.first.size - frame.size <= 1:
                last.constant = False
            begin, end = last.stretches[-1]
            if end != place:
                begin = place
                last.stretches.append((place, stop))
            sizes[key] = frame.size
            # The same once more, for as long as nothing new comes: most of the time is spent here.
            within = min(len(data), mark) - _LARGEST
            while stop < within and (more := sizes.get(data[stop : stop + 4])):
                stop += more
                last.n += 1
            last.stretches[-1] = (begin, stop)
        place = stop
    return [one for one in found if one.n]


def _marks(data: bytes) -> Iterator[int]:
    """Yield the offsets of the names of information headers, and the largest number at the end."""
    found = []
    for name in (b"Xing", b"Info", b"VBRI"):
        at = -1
        while (at := data.find(name, at + 1)) >= 0:
            found.append(at)
    yield from sorted(found)
    yield from repeat(sys.maxsize)


def behind_tags(stream: BinaryIO, place: int) -> int:
    """Return the offset behind ID3 and APE tags that begin at `place`."""
    while True:
        stream.seek(place)
        head = stream.read(16)
        if len(head) < 16:
            break
        if head[:3] == b"ID3":
            n_bytes = 10 if head[5] & 0x10 else 0
            for k, byte in enumerate(reversed(head[6:10])):
                n_bytes += (byte & 0x7F) << 7 * k
            place += 10 + n_bytes
        elif head[:8] == b"APETAGEX":
            place += 32 + int.from_bytes(head[12:], "little")
        else:
            break
    return place


def _next_frame(data: bytes, place: int) -> int:
    """Return the offset of the next three frames in a row, or the end."""
    stop = place + _SEARCH
    at = place - 1
    while (at := data.find(b"\xff", at + 1, stop)) >= 0:
        there = at
        for _ in range(3):
            frame = parse_frame(data[there : there + 4])
            if frame is None:
                break
            there += frame.size
        else:
            return at
    return len(data)


def _information(frame: Frame, head: bytes) -> _Information | None:
    """Return what an information header tells; None for a frame of sound.

    The formats are those of Xing (and LAME), and of the Fraunhofer society (VBRI).
    """
    for at in (frame.information, frame.information + 2):  # behind a checksum
        if head[at : at + 4] in (b"Xing", b"Info") and len(head) >= at + 16:
            flags, *numbers = struct.unpack(">III", head[at + 4 : at + 16])
            told = iter(numbers)
            n_frames = next(told) if flags & 1 else 0
            return _Information(n_frames, next(told) if flags & 2 else 0, True)
    if head[36:40] == b"VBRI" and len(head) >= 54:
        return _Information(struct.unpack(">I", head[50:54])[0], 0, False)
    return None


def _information_frame(first: Frame, n_frames: int) -> bytes:
    """Return a frame that promises a number of frames like `first`."""
    head = (first.head & ~0x0000F200) | 0x0001E000  # no checksum, the highest bit rate, no padding
    frame = parse_frame(head.to_bytes(4, "big"))
    assert frame is not None  # it differs from a frame only in what a frame may say
    content = bytearray(frame.size)
    content[:4] = head.to_bytes(4, "big")
    struct.pack_into(">4sII", content, frame.information, b"Xing", 1, n_frames)
    return bytes(content)
