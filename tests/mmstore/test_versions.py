"""Files of every released version stay readable; the digest is the one of FORMAT.md."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings

import mmstore
from mmstore import FeatureSet, FeatureStore
from mmstore.hashing import canonical_bytes
from mmstore.spec import RAGGED
from mmstore.testing import ODD_IDS, contents, listing

DATA = Path(__file__).parents[1] / "data"
V1_0 = DATA / "mmstore-1.0"
FORMAT_MD = Path(mmstore.__file__).with_name("FORMAT.md")
IDS = [
    "097293751X",
    "007",
    "7",
    " 7",
    "7 ",
    "a/b",
    "../x",
    "日本",
    "👩‍👧",
    "é",
    "e\u0301",
    "a b",
    "\t",
    "None",
    "nan",
]

# (modality, name): digest, dtype, status, errors, vectors of some rows
EXPECTED: dict[tuple[str, str], tuple[str, str, str, list[int], dict[int, list[list[float]]]]] = {
    ("audio", "dense-f2"): (
        "eadcf3b82bacc1aa63d8abe0c9c7d851d02408cc4d008b955d7258045181b65a",
        "float16",
        "312111111111111",
        [0],
        {
            1: [[1.33984375, -0.4921875, -0.62060546875]],
            7: [[0.76220703125, -1.19921875, 0.07452392578125]],
        },
    ),
    ("textual", "reviews-f4"): (
        "8b3e4944eaa1dc2da8aed3e4a93048d0768cd0f0c3ae4e4436425182333da075",
        "float32",
        "312111111111111",
        [0],
        {10: [[-1.9924198389053345, -0.4631698727607727, -0.09728692471981049]]},
    ),
    ("visual", "dense-f4"): (
        "207090a76e213f206bb8fc6d112b96092eb1b75890ed7334172649ebe65072f8",
        "float32",
        "312111111111111",
        [0],
        {1: [[1.3402152061462402, -0.49220651388168335, -0.6204748749732971]]},
    ),
    ("visual", "ragged-f2"): (
        "5d3dc3ba22568968985332408e2372276f0b612a19b371675cee1791b07fa2e8",
        "float16",
        "112211113311113",
        [8, 9, 14],
        {
            1: [
                [65504.0, -0.048492431640625, 0.11328125],
                [-1.5302734375, -0.477783203125, -0.978515625],
                [-0.80859375, 1.060546875, -0.8076171875],
            ]
        },
    ),
}


@pytest.mark.parametrize(("modality", "name"), EXPECTED)
def test_files_of_version_1_0_are_read(modality: str, name: str) -> None:
    digest, dtype, status, corrupt, rows = EXPECTED[modality, name]
    with FeatureStore(V1_0).open(modality, name) as found:
        assert found.format_version == "1.0" and found.complete and found.verify() == []
        assert (found.modality, found.name, found.dim, found.dtype) == (modality, name, 3, dtype)
        assert found.content_digest == digest == naive_digest(found.path)
        assert "".join(map(str, found.status)) == status
        assert found.errors() == [
            (row, f"cannot decode picture {row}: números ≠ 日本") for row in corrupt
        ]
        assert found.provenance == {
            "created": "2026-01-01T00:00:00Z",
            "encoder": "random",
            "output_layer": "avgpool",
            "pooling": "mean",
            "seed": 7,
            "versions": {"numpy": "2.0.0"},
        }
        keys: list[Any] = IDS
        if modality == "textual":
            assert found.source == "interaction"
            keys = [(f"u{row % 3}", item) for row, item in enumerate(IDS)]
        assert found.ids.tolist() == [list(key) if isinstance(key, tuple) else key for key in keys]
        for row, vectors in rows.items():
            got = (
                found.ragged([keys[row]])[0]
                if found.layout == RAGGED
                else found.matrix([keys[row]])[0]
            )
            np.testing.assert_array_equal(got, vectors)


def test_every_fixture_is_checked() -> None:
    assert set(FeatureStore(V1_0).sets()) == set(EXPECTED)
    assert all(path.stat().st_size < 50_000 for path in V1_0.rglob("*.h5"))
    assert tuple(IDS) == ODD_IDS


def naive_digest(path: Path) -> str:
    """FORMAT.md's byte stream, item by item, straight from the HDF5 file."""
    stream = bytearray()
    with h5py.File(path) as file:
        source, layout = file.attrs["source"].decode(), file.attrs["layout"].decode()
        features = file["features"]
        stream += b"mmstore.content/1\n"
        for key, value in (
            ("source", source),
            ("layout", layout),
            ("dtype", features.dtype.name),
            ("rows", len(file["status"])),
            ("vectors", features.shape[0]),
            ("dim", features.shape[1]),
        ):
            stream += f"{key}={value}\n".encode()
        for name in ("ids",) if source == "item" else ("user_ids", "item_ids"):
            for text in file[name]:
                stream += struct.pack("<I", len(text))
            for text in file[name]:
                stream += text
        stream += bytes(file["status"][:].tolist())
        if layout == "ragged":
            for offset in file["offsets"]:
                stream += struct.pack("<q", offset)
        half = features.dtype.itemsize == 2
        for vector in features:
            for value in vector.tolist():
                if value != value:
                    stream += bytes.fromhex("007e" if half else "0000c07f")
                else:
                    stream += struct.pack("<e" if half else "<f", value)
    return hashlib.blake2b(stream, digest_size=32).hexdigest()


@settings(deadline=None, max_examples=40)
@given(contents())
def test_the_digest_is_the_documented_one(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    path = tmp_path_factory.mktemp("set") / "x.h5"
    assert content.save(path) == naive_digest(path)


def test_every_nan_is_the_same_in_the_digest() -> None:
    for dtype, bits, kinds in (
        ("f4", "u4", (0x7FC00000, 0xFFC00000, 0x7F800001)),
        ("f2", "u2", (0x7E00, 0xFE00, 0x7C01)),
    ):
        streams = {bytes(canonical_bytes(np.array([[kind]], bits).view(dtype))) for kind in kinds}
        assert streams == {np.array([kinds[0]], "<" + bits).tobytes()}
        values = np.array([[1.5, -0.0]], dtype)
        assert canonical_bytes(values.astype(">" + dtype)) == values.astype("<" + dtype).tobytes()


def test_the_listing_in_the_documentation_is_real() -> None:
    assert listing(V1_0 / "audio" / "dense-f2.h5") in FORMAT_MD.read_text(encoding="utf-8")


def test_the_command_lines_of_testing(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mmstore.testing", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("fixtures", str(tmp_path)).stdout.splitlines() == [
        f"{m}/{n}.h5" for m, n in sorted(EXPECTED)
    ]
    for modality, name in EXPECTED:
        assert (
            FeatureSet(tmp_path / modality / f"{name}.h5").content_digest
            == EXPECTED[modality, name][0]
        )
    for path in V1_0.rglob("*.h5"):
        assert listing(path) == listing(tmp_path / path.relative_to(V1_0))
    assert run("list", str(V1_0 / "visual" / "ragged-f2.h5")).stdout.startswith('GROUP "/" {')
    assert run().returncode == 2


def test_importing_mmstore_is_cheap() -> None:
    code = (
        "import sys, json, mmstore; mmstore.Status.OK; mmstore.StoreError; before = "
        "sorted(sys.modules); "
        "assert 'FeatureSet' in dir(mmstore); mmstore.FeatureSet; "
        "print(json.dumps([before, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert not {"numpy", "h5py"} & set(before) and "h5py" in after
    assert not {"hypothesis", "torch", "pandas", "mmstore.writer", "mmstore.testing"} & set(after)
    with pytest.raises(AttributeError, match="no attribute 'Feature'"):
        _ = mmstore.Feature


def test_public_names_exist() -> None:
    for name in mmstore.__all__:
        assert getattr(mmstore, name) is not None
