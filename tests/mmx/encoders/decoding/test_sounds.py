"""Every sample of a sound file is read, and fewer than the header promises are an error."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmx.encoders.decoding import observed, read_mono
from mmx.encoders.decoding.chunked import is_unknown
from mmx.encoders.decoding.layout import Spliced
from mmx.errors import ContentError

RATE = 22_050
N = 2 * RATE
NOISE = np.random.default_rng(5).standard_normal(N) / 50
# Loud and quiet by turns, so that variable bit rates vary.
TONE = (np.sin(np.arange(N) / 9) * (np.arange(N) // 4000 % 2) / 2 + NOISE).astype(np.float32)


def encoded(kind: str = "WAV", samples: np.ndarray = TONE, rate: int = RATE, **more: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, **more)
    return stream.getvalue()


def put(content: bytes, place: int, code: str, value: int) -> bytes:
    new = struct.pack(code, value)
    return content[:place] + new + content[place + len(new) :]


def read(folder: Path, content: bytes) -> tuple[np.ndarray, list[str]]:
    (folder / "sound").write_bytes(content)
    with observed() as seen:
        samples, rate = read_mono(folder / "sound")
    assert seen.sound_s == pytest.approx(len(samples) / rate)
    return samples, seen.notes


# ------------------------------------------------------------------------------------------------
# chunks of samples

# Kind, endian, the name before the size, from there to the size, how it is packed, what it counts
# besides the samples.
SIZES = {
    "WAV": ("WAV", "FILE", b"data", 4, "<I", 0),
    "RIFX": ("WAV", "BIG", b"data", 4, ">I", 0),
    "RF64": ("RF64", "FILE", b"ds64", 16, "<Q", 0),
    "W64": ("W64", "FILE", b"data", 16, "<Q", 24),
    "AIFF": ("AIFF", "FILE", b"SSND", 4, ">I", 8),
    "AU": ("AU", "FILE", b".snd", 8, ">I", 0),
    "AU, little": ("AU", "LITTLE", b"dns.", 8, "<I", 0),
    "CAF": ("CAF", "FILE", b"\0data\0", 5, ">Q", 4),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_size_in_the_header_against_the_bytes_of_the_file(tmp_path: Path, name: str) -> None:
    kind, endian, before, skip, code, extra = SIZES[name]
    whole = encoded(kind, endian=endian)
    place = whole.index(before) + skip
    samples, notes = read(tmp_path, whole)
    assert (len(samples), notes) == (N, [])
    assert np.abs(samples - TONE).max() < 1e-4

    largest = (1 << 8 * struct.calcsize(code)) - 1
    for unknown in (0, largest, largest // 2):
        found, notes = read(tmp_path, put(whole, place, code, unknown))
        assert np.array_equal(found, samples) and not notes, unknown
    for too_much in (1, 8, 44):
        content = put(whole, place, code, 2 * N + extra + too_much)
        assert np.array_equal(read(tmp_path, content)[0], samples), too_much
    for fewer in (len(whole) // 10, len(whole) // 2, len(whole) - 2500):
        with pytest.raises(ContentError, match=r"truncated: .* of 2.00 s are there"):
            read(tmp_path, whole[:fewer])


def test_which_sizes_mean_that_the_size_is_not_known() -> None:
    unknown = (0, 0xFFFFFFFF, 0xFFFFF000, 0x7FFFFFFF, 0x7FFFF000, 0x80000000)
    assert all(is_unknown(size) for size in unknown)
    assert not any(is_unknown(size) for size in (1, 3_000_000_000, 0x70000000))


def test_what_stands_behind_the_samples_of_a_wav(tmp_path: Path) -> None:
    whole = encoded()
    size = whole.index(b"data") + 4
    chunk = b"LIST\x04\0\0\0abcd"
    for more, n_notes in ((chunk, 0), (b"TAG" + bytes(125), 1), (b"no chunk, a text", 1)):
        samples, notes = read(tmp_path, whole + more)
        assert (len(samples), len(notes)) == (N, n_notes), more
    # The file says that it goes on to its end, the samples say that they end early.
    assert len(read(tmp_path, put(whole, size, "<I", 1000))[0]) == N
    with pytest.raises(ContentError, match="no samples"):  # and the chunk behind is not noise
        read(tmp_path, put(whole, size, "<I", 0)[: size + 4] + chunk)


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "ULAW", "GSM610", "DOUBLE"])
def test_other_samples_in_a_wav(tmp_path: Path, subtype: str) -> None:
    whole = encoded(subtype=subtype)
    n = len(read(tmp_path, whole)[0])
    assert n >= N
    assert len(read(tmp_path, put(whole, whole.index(b"data") + 4, "<I", 0))[0]) >= n - 320
    with pytest.raises(ContentError, match="truncated"):
        read(tmp_path, whole[: len(whole) // 2])


# ------------------------------------------------------------------------------------------------
# FLAC and Ogg


def with_total(content: bytes, n: int) -> bytes:
    total = (content[21] & 0xF0) << 32 | n
    return content[:21] + total.to_bytes(5, "big") + content[26:]


@pytest.mark.parametrize("n", [0, N // 2, N - 1, N + 1, N + 500])
def test_a_flac_of_any_promise_is_read_to_its_end(tmp_path: Path, n: int) -> None:
    content = with_total(encoded("FLAC"), n)
    for tags in (b"", b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)):
        samples, notes = read(tmp_path, tags + content)
        assert np.abs(samples - TONE).max() < 1e-4 and len(samples) == N
        assert len(notes) == (n > N)


def test_a_flac_that_is_cut_or_promises_twice_as_much(tmp_path: Path) -> None:
    whole = encoded("FLAC")
    with pytest.raises(ContentError, match=r"truncated: 2.00 of 4.00 s"):
        read(tmp_path, with_total(whole, 2 * N))
    for content in (whole[: len(whole) // 2], whole[:-300], with_total(whole, 0)[:-300]):
        with pytest.raises(ContentError):
            read(tmp_path, content)


def test_a_flac_of_a_few_samples(tmp_path: Path) -> None:
    for n in (1, 15, 16, 17, 100, 4096, 4097, 8192):
        content = encoded("FLAC", TONE[:n])
        for total in (0, n):
            assert len(read(tmp_path, with_total(content, total))[0]) == n


@pytest.mark.parametrize("kind", ["VORBIS", "OPUS"])
def test_an_ogg_file_that_ends_within_a_page(tmp_path: Path, kind: str) -> None:
    whole = encoded("OGG", rate=24_000, subtype=kind)
    for content in (whole[: len(whole) // 2], whole[:-1], whole[: whole.rindex(b"OggS") + 20]):
        with pytest.raises(ContentError, match="truncated"):
            read(tmp_path, content)
    # Some programs do not mark the end; tolerant decoders do not mind.
    samples, notes = read(tmp_path, whole[: whole.rindex(b"OggS")])
    assert len(samples) > 0 and notes == ["the Ogg stream has no last page"]


# ------------------------------------------------------------------------------------------------
# several sounds in a file


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_sounds_that_were_joined(tmp_path: Path, kind: str) -> None:
    one, other = encoded(kind), encoded(kind, TONE[:RATE])
    n, m = (len(read(tmp_path, content)[0]) for content in (one, other))
    samples, notes = read(tmp_path, one + other + other)
    assert (len(samples), notes) == (n + 2 * m, ["3 sounds in one file, joined"])
    assert np.array_equal(samples[n : n + m], read(tmp_path, other)[0])
    fast = encoded(kind, np.repeat(TONE[:RATE], 2), 2 * RATE)
    samples, _ = read(tmp_path, one + fast)
    assert abs(len(samples) - n - m) < 1500  # at the rate of the first
    if kind != "MP3":
        with pytest.raises(ContentError):
            read(tmp_path, one + other[: len(other) // 2])


# ------------------------------------------------------------------------------------------------
# MPEG


def mp3(mode: str = "VARIABLE", rate: int = RATE) -> tuple[bytes, int]:
    """An MP3 file and the offset of its information header."""
    stream = io.BytesIO()
    soundfile.write(stream, TONE, rate, format="MP3", bitrate_mode=mode, compression_level=0.3)
    content = stream.getvalue()
    name = b"Xing" if b"Xing" in content else b"Info"
    return content, content.index(name)


@pytest.mark.parametrize("rate", [11_025, 22_050, 44_100])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_is_read_to_its_end_whatever_its_header_says(
    tmp_path: Path, mode: str, rate: int
) -> None:
    whole, at = mp3(mode, rate)
    n = len(read(tmp_path, whole)[0])
    assert abs(n - N) < 10
    changed = {
        "blank": whole[:at] + bytes(16) + whole[at + 16 :],
        "few frames": put(whole, at + 8, ">I", 7),
        "half the frames": put(whole, at + 8, ">I", 2 * N // 1152 // 3),
        "no number of frames": put(whole, at + 4, ">I", 14),
        "few bytes": put(whole, at + 12, ">I", 900),
        "tags": b"ID3\x03\0\0\0\0\x07\x68" + b"\xff\xfb\x90\0" * 250 + whole + b"TAG" + bytes(125),
        "no header": whole[:at] + b"VBRI" + whole[at + 4 :],
    }
    for what, content in changed.items():
        assert -10 <= len(read(tmp_path, content)[0]) - n <= 4 * 1152, what


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_that_is_cut(tmp_path: Path, mode: str) -> None:
    whole, _ = mp3(mode)
    for size in (len(whole) // 10, len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises(ContentError, match=r"truncated: [01].\d\d of 2.\d\d s are there"):
            read(tmp_path, whole[:size])
    assert len(read(tmp_path, whole[:-20])[0]) > N - 2 * 1152  # one frame


def test_bytes_between_the_frames_of_an_mp3(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, _ = mp3()
    frames = [k for k in range(len(whole) // 2, len(whole)) if whole[k : k + 2] == b"\xff\xf3"]
    samples, notes = read(tmp_path, whole[: frames[0]] + b"junk" * 99 + whole[frames[0] :])
    assert abs(len(samples) - N) < 3 * 1152
    assert notes == ["bytes between the frames that are no sound"]
    assert capfd.readouterr().err == ""


def test_a_vbri_header_promises_too(tmp_path: Path) -> None:
    """Fraunhofer's encoder writes another header, at a place of its own."""
    whole, at = mp3()
    n_frames = struct.unpack(">I", whole[at + 8 : at + 12])[0]
    head = whole[: whole.index(whole[:2], 2)]  # the frame of the header

    def with_vbri(n: int) -> bytes:
        told = b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(whole), n)
        return whole[:4] + bytes(32) + told + bytes(len(head) - 36 - len(told)) + whole[len(head) :]

    assert abs(len(read(tmp_path, with_vbri(n_frames))[0]) - N) < 3 * 1152
    with pytest.raises(ContentError, match="truncated"):
        read(tmp_path, with_vbri(2 * n_frames))


# ------------------------------------------------------------------------------------------------
# a file made of pieces


def test_pieces_read_like_the_file_that_they_make(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    expected = bytes(range(10, 20)) + b"abc" + bytes(range(50, 100))
    with Spliced(tmp_path / "file", [(10, 20), b"abc", (50, 100)]) as file:
        assert file.read() == expected
        assert file.seek(-4, 2) == len(expected) - 4 and file.read(9) == expected[-4:]
        for place in range(len(expected) + 2):
            assert file.seek(place) == file.tell() == place
            assert file.read(12) == expected[place : place + 12]


@pytest.mark.parametrize("kind", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_ogg_page_that_is_damaged_ends_no_sound_early(
    tmp_path: Path, kind: str, share: float
) -> None:
    """The decoder stops or leaves out what it cannot read, without an error."""
    rate = 24_000
    whole = encoded("OGG", np.tile(TONE, 4), rate, subtype=kind)
    place = int(share * len(whole))
    flipped = whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :]
    for content in (flipped, whole[:place] + bytes(5_000) + whole[place:]):
        with pytest.raises(ContentError, match=r"truncated: \d"):
            read(tmp_path, content)
    assert len(read(tmp_path, whole)[0]) == len(read(tmp_path, whole + bytes(300))[0]) == 4 * N


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("SVX", "PCM_S8"), ("VOC", "PCM_16"), ("NIST", "PCM_16"), ("NIST", "ULAW")],
)
def test_formats_of_old_programs_cut_short(tmp_path: Path, kind: str, subtype: str) -> None:
    whole = encoded(kind, subtype=subtype)
    assert len(read(tmp_path, whole)[0]) == N
    with pytest.raises(ContentError, match="truncated: "):
        read(tmp_path, whole[: len(whole) // 3])


def test_a_length_that_is_not_checked_is_noted(tmp_path: Path) -> None:
    assert "is not checked" in read(tmp_path, encoded("MAT5", subtype="FLOAT"))[1][0]


def test_zeros_are_no_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(bytes(5_000))
    with pytest.raises(ContentError, match="Format not recognised"):
        read_mono(tmp_path / "a.mp3")
