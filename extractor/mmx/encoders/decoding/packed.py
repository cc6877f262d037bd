"""FLAC and Ogg files: where each sound ends, and whether it is whole."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import BinaryIO

from mmx.encoders.decoding.layout import AS_IT_IS, Layout, joined

_MAX_FLAC = (1 << 36) - 1  # samples that a FLAC header can promise
_FLAC_START = b"fLaC\0\0\0\x22"
_BLOCK = 1 << 20
_FLAC_TAIL = 1 << 17  # a frame is seldom longer than 16 kB
# Samples of a block by its code; codes 6 and 7 give the number in the header.
_FLAC_BLOCKS = (
    0, 192, 576, 1152, 2304, 4608, 0, 0, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768,
)  # fmt: skip


def flac_layout(stream: BinaryIO, start: int, size: int) -> Layout:
    """Return the layout of a FLAC file, or of several that were joined."""
    starts = [start, *_places_of(stream, _FLAC_START, start + 1)]
    bounds = list(zip(starts, [*starts[1:], size], strict=True))
    layouts = [_one_flac(stream, *bound) for bound in bounds]
    return joined(layouts, bounds)


def _places_of(stream: BinaryIO, pattern: bytes, start: int) -> Iterator[int]:
    """Yield the offsets of a pattern, which must not overlap with itself."""
    stream.seek(start)
    before, done = b"", start
    while block := stream.read(_BLOCK):
        both = before + block
        at = -1
        while (at := both.find(pattern, at + 1)) >= 0:
            yield done - len(before) + at
        done += len(block)
        before = both[1 - len(pattern) :]


def _one_flac(stream: BinaryIO, start: int, stop: int) -> Layout:
    """Compare the promised number of samples with what the last frame says about its place."""
    stream.seek(start + 8)
    if len(info := stream.read(18)) < 18:
        return AS_IT_IS
    promised = int.from_bytes(info[13:], "big") & _MAX_FLAC
    # The last two frames; their size is 0 where it is not known.
    tail = 2 * int.from_bytes(info[7:10], "big") + 256
    stream.seek(max(start + 42, stop - (_FLAC_TAIL if tail == 256 else tail)))
    ends = _flac_frame_ends(stream.read(stop - stream.tell()), int.from_bytes(info[:2], "big"))
    if promised and promised in ends.values():
        return Layout(promised=promised, there=promised, unit="samples")
    # A pattern that looks like a frame by chance has no neighbour.
    neighbours = {0, *ends.values()}
    there = max((end for begin, end in ends.items() if begin in neighbours), default=0)
    if there == 0:
        return AS_IT_IS
    right = (info[13] & 0xF0) << 32 | there
    pieces = (start, start + 21), right.to_bytes(5, "big"), (start + 26, stop)
    return Layout((pieces,), promised or None, there, "samples")


def _flac_frame_ends(tail: bytes, block: int) -> dict[int, int]:
    """Return the first sample of each frame that begins in these bytes, and that after its last.

    `block` is the number of samples of all frames but the last, where it is the same.
    """
    ends: dict[int, int] = {}
    for match in re.finditer(b"\xff[\xf8\xf9]", tail):
        head = tail[match.start() : match.start() + 16]
        if len(head) < 6 or head[3] & 1:
            continue
        number, at = _coded_number(head)
        kind, rate = head[2] >> 4, head[2] & 15
        if number is None or kind == 0 or rate == 15:
            continue
        if kind in (6, 7):
            count = int.from_bytes(head[at : at + kind - 5], "big") + 1
            at += kind - 5
        else:
            count = _FLAC_BLOCKS[kind]
        at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
        if at < len(head) and _crc8(head[:at]) == head[at]:
            begin = number if head[1] == 0xF9 else number * block
            ends[begin] = begin + count
    return ends


def _coded_number(head: bytes) -> tuple[int | None, int]:
    """Return the number at offset 4, coded as UTF-8 codes letters, and the offset behind it."""
    first, more = head[4], 0
    while more < 8 and first & 0x80 >> more:
        more += 1
    if more == 0:
        return first, 5
    rest = head[5 : 4 + more]
    if more in (1, 8) or any(byte & 0xC0 != 0x80 for byte in rest):
        return None, 0
    number = first & 0x7F >> more
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, 4 + more


def _crc8(data: bytes) -> int:
    """Return FLAC's CRC-8, of the polynomial x^8 + x^2 + x + 1."""
    table, crc = _crc8_table(), 0
    for byte in data:
        crc = table[crc ^ byte]
    return crc


@functools.cache
def _crc8_table() -> bytes:
    """Return the CRC-8 of each byte."""
    table = bytearray(range(256))
    for _ in range(8):
        table = bytearray((byte << 1 ^ (0x107 if byte & 0x80 else 0)) & 0xFF for byte in table)
    return bytes(table)


class _Clock:
    """What the pages of one stream of an Ogg file say of its length."""

    def __init__(self, packet: bytes) -> None:
        self._rate, self._skipped = _ogg_rate(packet)
        self._first: int | None = None
        self._last = 0

    def page(self, position: int) -> None:
        """Take the position that a page ends at; none ends there if it is -1."""
        if position > 0:
            self._first = position if self._first is None else self._first
            self._last = position

    def seconds(self) -> float:
        """Return how long the stream says it is; 0 where it does not say."""
        if not self._rate or self._first is None:
            return 0.0
        # A stream that was recorded from its middle counts from there.
        late = self._first > _LATE_S * self._rate
        begin = self._first if late else self._skipped
        return max(0, self._last - begin) / self._rate


_LATE_S = 10  # longer than any first page


def _ogg_rate(packet: bytes) -> tuple[int, int]:
    """Return what one second is in page positions, 0 if unknown, and what is skipped at first."""
    if packet[:7] == b"\x01vorbis" and len(packet) >= 16:
        return int.from_bytes(packet[12:16], "little"), 0
    if packet[:8] == b"OpusHead" and len(packet) >= 12:
        return 48_000, int.from_bytes(packet[10:12], "little")
    if packet[:5] == b"\x7fFLAC" and len(packet) >= 30:
        return int.from_bytes(packet[27:30], "big") >> 4, 0
    if packet[:8] == b"Speex   " and len(packet) >= 40:
        return int.from_bytes(packet[36:40], "little"), 0
    return 0, 0


def ogg_layout(stream: BinaryIO, start: int, size: int) -> Layout:
    """Find the streams that follow each other, their length, and whether the last one is cut.

    Bytes between two pages that are no page are stepped over; whether the decoder comes over them,
    too, the length shows.
    """
    links: list[int] = []  # where they begin
    clocks: list[dict[int, _Clock]] = []  # by link and number of the stream
    place, page, opening, ended = start, start, False, False
    while place + 27 <= size:
        stream.seek(place)
        head = stream.read(27)
        if head[:4] != b"OggS":
            following = next(_places_of(stream, b"OggS\0", page + 4), None)
            if following is None:
                break
            place = following
            continue
        page = place
        lengths = stream.read(head[26])
        serial, n_bytes = int.from_bytes(head[14:18], "little"), sum(lengths)
        if head[5] & 2:  # a stream begins; those of one link begin together
            if not opening:
                links.append(place)
                clocks.append({})
            opening = True
            clocks[-1][serial] = _Clock(stream.read(min(n_bytes, 64)))
        else:
            opening = False
            if clocks and serial in clocks[-1]:
                clocks[-1][serial].page(int.from_bytes(head[6:14], "little", signed=True))
        ended = bool(head[5] & 4)
        place += 27 + len(lengths) + n_bytes
    is_cut = place > size or (not ended and size - 27 < place < size)
    cut = "the Ogg stream ends within a page" if is_cut else None
    note = "" if ended else "the Ogg stream has no last page"
    stretches = zip(links, [*links[1:], size], strict=True)
    parts = tuple((stretch,) for stretch in stretches) if len(links) > 1 else None
    seconds = sum(max((one.seconds() for one in link.values()), default=0.0) for link in clocks)
    return Layout(parts, cut=cut, note=note, seconds=seconds or None)
