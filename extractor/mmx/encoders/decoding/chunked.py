"""Sound files in chunks (WAV, AIFF, AU, CAF, VOC, NIST and their like): the samples that are there.

One rule for all: the size in the header is compared with the file. Where they differ, libsndfile is
given the file with the right size in its header, so that it reads all samples; whether too many are
absent is for the reader to say.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mmx.encoders.decoding.layout import AS_IT_IS, Layout, joined

HEAD_BYTES = 16
_RIFF = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<"}  # byte orders
_VOC = b"Creative Voice File\x1a"
_MAX_CHUNKS = 64  # of a file, before its samples


class _Field(NamedTuple):
    """A number in a header: where it is, how `struct` packs it, and its value."""

    offset: int
    format: str
    value: int


def chunked_layout(stream: BinaryIO, head: bytes, size: int) -> Layout:
    """Return how to read a sound file; what is not understood is left to libsndfile.

    Args:
        stream: The file.
        head: Its first `HEAD_BYTES`.
        size: Its bytes.
    """
    kind = head[:4]
    if kind in _RIFF and head[8:12] == b"WAVE":
        return _wavs(stream, size)
    if head == _W64_RIFF:
        return _w64(stream, size)
    if kind == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff(stream, size)
    if kind == b"FORM" and head[8:12] in (b"8SVX", b"16SV"):
        return _svx(stream, size)
    if stream.seek(0) == 0 and stream.read(len(_VOC)) == _VOC:
        return _voc(stream, size)
    if kind == b"NIST":
        return _nist(stream, size)
    if kind in (b".snd", b"dns.") and len(head) == HEAD_BYTES:
        return _au(head, size)
    if kind == b"caff":
        return _caf(stream, size)
    return AS_IT_IS


def _resized(start: int, stop: int, promise: _Field, extra: int = 0, begin: int = 0) -> Layout:
    """Return the layout of a sound whose samples begin at `start` and go on to `stop` at most.

    Args:
        start: Offset of the first sample.
        stop: End of the file.
        promise: The field that holds the bytes of samples, plus `extra`.
        extra: What the field counts besides the samples.
        begin: Where the sound with its header begins.
    """
    there = max(0, stop - start)
    promised = promise.value - extra
    unknown = is_unknown(promise.value, struct.calcsize(promise.format))
    if not unknown and promised <= there:
        return Layout(promised=promised, there=promised)
    right = struct.pack(promise.format, there + extra)
    before, after = (begin, promise.offset), (promise.offset + len(right), stop)
    return Layout(((before, right, after),), None if unknown else promised, there)


def is_unknown(value: int, n_bytes: int = 4) -> bool:
    """Whether a size says that it was not known when it was written, as by programs in a pipe.

    They write 0, the largest number with sign or without, or something just below or above it.
    """
    top = 1 << 8 * n_bytes
    near = 1 << 16
    return value == 0 or abs(value - top // 2) <= near or value >= top - near


class _Chunk(NamedTuple):
    name: bytes
    size: int
    start: int  # of its content


def _chunks(stream: BinaryIO, start: int, size_format: str) -> Iterator[_Chunk]:
    """Yield the chunks: four letters, a size, and a content padded to an even size."""
    n_bytes = struct.calcsize(size_format)
    for _ in range(_MAX_CHUNKS):
        stream.seek(start)
        if len(head := stream.read(4 + n_bytes)) < 4 + n_bytes:
            return
        chunk = _Chunk(head[:4], struct.unpack(size_format, head[4:])[0], start + 4 + n_bytes)
        yield chunk
        start = chunk.start + chunk.size + (chunk.size % 2 if n_bytes == 4 else 0)


def _wavs(stream: BinaryIO, size: int) -> Layout:
    """Return the layout of a WAV file, or of several that were joined."""
    layouts: list[Layout] = []
    starts = [0]
    for start in starts:
        stream.seek(start)
        head = stream.read(8)
        order = _RIFF[head[:4]]
        told = start + 8 + struct.unpack(f"{order}I", head[4:])[0]
        told += told % 2
        if told < size:
            stream.seek(told)
            if (following := stream.read(12))[:4] in _RIFF and following[8:] == b"WAVE":
                starts.append(told)
        stop = starts[-1] if starts[-1] > start else size
        layouts.append(_wav(stream, start, stop, order, ends_here=abs(told - stop) <= 1))
    return joined(layouts, list(zip(starts, [*starts[1:], size], strict=True)))


def _wav(stream: BinaryIO, start: int, stop: int, order: str, ends_here: bool) -> Layout:
    """Return the layout of the WAV file from `start` to `stop`.

    What follows the samples and is no chunk belongs to them, where the file as a whole says that it
    `ends_here`; elsewhere it is left out.
    """
    long = None
    for chunk in _chunks(stream, start + 12, f"{order}I"):
        if chunk.name == b"ds64" and len(head := stream.read(16)) == 16:
            long = _Field(chunk.start + 8, "<Q", struct.unpack("<Q", head[8:])[0])
        elif chunk.name == b"data":
            promise = _Field(chunk.start - 4, f"{order}I", chunk.size)
            if long and chunk.size == 0xFFFF_FFFF:
                promise = long
            end = chunk.start + promise.value + promise.value % 2
            n_more = stop - end
            if n_more > 0 and _are_chunks(stream, end, stop, f"{order}I"):
                return AS_IT_IS
            whole = (
                promise._replace(value=0) if _is_sound(stream, end, stop, ends_here) else promise
            )
            if n_more <= 0 or whole.value == 0:
                return _resized(chunk.start, stop, whole, begin=start)
            note = f"{n_more:,} bytes behind the sound are no part of it"
            return Layout((((start, end),),), promise.value, promise.value, note=note)
    return AS_IT_IS


def _is_sound(stream: BinaryIO, start: int, stop: int, ends_here: bool) -> bool:
    """Whether the bytes after the samples, which are no chunk, can be samples."""
    if start >= stop or not ends_here:
        return False
    stream.seek(start)
    more = stream.read(64)
    return any(more) and not more[:4].isalnum()


def _are_chunks(stream: BinaryIO, start: int, stop: int, size_format: str) -> bool:
    """Whether chunks fill the file from `start` to `stop`."""
    end = start
    for chunk in _chunks(stream, start, size_format):
        if end >= stop or not all(32 <= letter < 127 for letter in chunk.name):
            break
        end = chunk.start + chunk.size + chunk.size % 2
    return stop <= end <= stop + 1


_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


def _w64(stream: BinaryIO, size: int) -> Layout:
    start = 40
    for _ in range(_MAX_CHUNKS):
        stream.seek(start)
        if len(head := stream.read(24)) < 24:
            break
        n_bytes = struct.unpack("<Q", head[16:])[0]  # of the chunk and its head
        if head[:4] == b"data":
            return _resized(start + 24, size, _Field(start + 16, "<Q", n_bytes), extra=24)
        start += max(24, n_bytes + -n_bytes % 8)
    return AS_IT_IS


def _aiff(stream: BinaryIO, size: int) -> Layout:
    for chunk in _chunks(stream, 12, ">I"):
        if chunk.name == b"SSND":
            # Two numbers precede the samples.
            return _resized(chunk.start + 8, size, _Field(chunk.start - 4, ">I", chunk.size), 8)
    return AS_IT_IS


def _svx(stream: BinaryIO, size: int) -> Layout:
    for chunk in _chunks(stream, 12, ">I"):
        if chunk.name == b"BODY":
            return _resized(chunk.start, size, _Field(chunk.start - 4, ">I", chunk.size))
    return AS_IT_IS


def _voc(stream: BinaryIO, size: int) -> Layout:
    """Add up the blocks of sound of a Creative Voice file."""
    stream.seek(len(_VOC))
    place = int.from_bytes(stream.read(2), "little")
    promised = there = 0
    while 0 < place < size:
        stream.seek(place)
        kind, *length = stream.read(4)
        if kind == 0:  # the end
            break
        n_bytes, place = int.from_bytes(bytes(length), "little"), place + 4
        if kind in (1, 2, 9):
            promised += n_bytes
            there += max(0, min(n_bytes, size - place))
        place += n_bytes
    return Layout(promised=promised, there=there)


def _nist(stream: BinaryIO, size: int) -> Layout:
    """Multiply what the text at the beginning of a NIST Sphere file says."""
    stream.seek(0)
    text = stream.read(1 << 12)
    fields = dict(re.findall(rb"^(\w+) -i (\d{1,12})$", text, re.MULTILINE))
    n_head = re.match(rb"NIST_1A\n *(\d{1,6})\n", text)
    if not n_head or b"sample_count" not in fields:
        return AS_IT_IS
    names = (b"sample_count", b"sample_n_bytes", b"channel_count")
    promised = math.prod(int(fields.get(name, 1)) for name in names)
    return Layout(promised=promised, there=min(promised, max(0, size - int(n_head[1]))))


def _au(head: bytes, size: int) -> Layout:
    order = ">" if head[:4] == b".snd" else "<"
    start, n_bytes = struct.unpack(f"{order}II", head[4:12])
    return _resized(start, size, _Field(8, f"{order}I", n_bytes))


def _caf(stream: BinaryIO, size: int) -> Layout:
    for chunk in _chunks(stream, 8, ">Q"):
        if chunk.name == b"data":
            # The number of edits precedes the samples.
            return _resized(chunk.start + 4, size, _Field(chunk.start - 8, ">Q", chunk.size), 4)
    return AS_IT_IS
