"""Items of several parts: several pictures, texts in pieces, several vectors per item."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mmstore import FeatureSet, Status
from mmx.cli import cli
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, EncoderSpec
from mmx.errors import ContentError, EncoderError, UsageError
from mmx.extraction.extract import extract
from mmx.extraction.multipart import Several, in_halves, mean_vector
from mmx.extraction.summary import Summary

LONGEST = 12
LONG = "a red dress for the long summer nights"


class Letters(Encoder):
    """Length of a text and the sum of its letters; takes no more than `LONGEST` letters."""

    modalities = frozenset({"textual", "visual"})
    concurrent = True

    def __init__(self, modality: str = "textual", *, unit: bool = False) -> None:
        self.spec = EncoderSpec(
            name="letters", modality=modality, backend="test", model_id="letters", dim=2,
            layer="only", pooling="none",
            preprocessing={"normalisation": "l2" if unit else "none"}, weights="none",
            weights_sha256=None, licence=None, precision="fp32",
        )  # fmt: skip
        self.batches: list[int] = []

    @classmethod
    def accepts(cls, model: str, modality: str) -> bool:
        return True

    def load(self, content: str | Path) -> str:
        text = content.read_text(encoding="utf-8") if isinstance(content, Path) else content
        if "bad" in text:
            raise ContentError("cannot be read")
        return text

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(len(batch))
        return np.array(
            [[len(text[:LONGEST]), sum(map(ord, text[:LONGEST]))] for text in batch],
            dtype=np.float32,
        )

    def sort_key(self, loaded: str) -> int:
        return len(loaded)

    def truncated(self, loaded: str) -> bool:
        return len(loaded) > LONGEST


def vector(text: str) -> list[float]:
    return [len(text), sum(map(ord, text))]


def go(
    root: Path,
    encoder: Encoder,
    modality: str,
    *,
    out: str = "out",
    batch_size: int = 3,
    **config: Any,
) -> Summary:
    given = {"modality": modality, "model": "letters", "batch_size": batch_size, **config}
    settings = SetConfig.model_validate(given)
    run = RunConfig(data=root, out=root / out, device="cpu", workers=2)
    return extract(run, settings, build=lambda model, **options: encoder)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [
        "item_id\ttitle",
        "short\tred dress",
        f"long\t{LONG}",
        "none\t",
        "word\t" + "x" * 30,
    ]
    (tmp_path / "items.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


def test_a_long_text_is_truncated_and_counted_by_default(texts: Path) -> None:
    summary = go(texts, Letters(), "textual")
    assert summary.stages.n_truncated == 2
    with FeatureSet(summary.path) as features:
        assert features.matrix(["long"])[0][0].tolist() == vector("a red dress ")


def test_a_long_text_in_pieces_is_the_mean_of_them(texts: Path) -> None:
    summary = go(texts, Letters(), "textual", long_texts="mean")
    assert (summary.name, summary.stages.n_truncated) == ("letters-chunked", 2)
    assert summary.as_json()["this_run"]["chunked"] == 2
    assert "chunked" in summary.as_text()
    with FeatureSet(summary.path) as features:
        assert features.provenance["input"]["long_texts"] == "mean"
        found, present = features.matrix(["short", "long", "none", "word"])
    assert present.tolist() == [True, True, False, True]
    assert found[0].tolist() == vector("red dress")
    for row, text in ((1, LONG), (3, "x" * 30)):
        assert found[row] == pytest.approx(
            np.mean([vector(piece) for piece in chunks(text)], axis=0)
        )


def chunks(text: str) -> list[str]:
    if len(text) <= LONGEST:
        return [text]
    halves = in_halves(text)
    assert halves is not None
    return [piece for half in halves for piece in chunks(half)]


def test_a_long_text_in_pieces_can_keep_every_vector(texts: Path) -> None:
    summary = go(texts, Letters(), "textual", long_texts="ragged")
    with FeatureSet(summary.path) as features:
        assert (features.layout, features.name) == ("ragged", "letters-chunks")
        found = features.ragged(["short", "long", "none"])
        assert features.verify() == []
    assert found[0] is not None and found[0].tolist() == [vector("red dress")]
    assert found[1] is not None and found[1].tolist() == [vector(piece) for piece in chunks(LONG)]
    assert found[2] is None


def test_a_long_text_can_be_an_error(texts: Path) -> None:
    summary = go(texts, Letters(), "textual", long_texts="error")
    assert (summary.counts.ok, summary.counts.missing, summary.counts.corrupt) == (1, 1, 2)
    assert summary.errors[0] == (
        "long",
        "the text is longer than the encoder takes (--long-texts error)",
    )


@given(
    st.text(st.characters(codec="utf-8"), min_size=2)
    .map(str.strip)
    .filter(lambda text: len(text) > 1)
)
def test_halves_hold_the_whole_text(text: str) -> None:
    halves = in_halves(text)
    if halves is not None:
        assert "".join("".join(halves).split()) == "".join(text.split())
        assert all(0 < len(half) < len(text) for half in halves)


def test_means() -> None:
    two = np.array([[3.0, 0.0], [0.0, 4.0]], dtype=np.float32)
    assert mean_vector(two, unit=False).tolist() == [1.5, 2.0]
    assert mean_vector(two, unit=True).tolist() == pytest.approx([0.6, 0.8])
    assert mean_vector(
        np.array([[1.0, 0.0], [-1.0, 0.0]], dtype=np.float32), unit=True
    ).tolist() == [0.0, 0.0]
    assert mean_vector(two[:1], unit=True) is not None


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "three").mkdir(parents=True)
    (folder / "broken").mkdir()
    (folder / "hollow").mkdir()
    (folder / "nobody").mkdir()
    for name, text in {
        "one.jpg": "one", "three.jpg": "first", "three/b.jpg": "second", "three/a.png": "third",
        "three/note.txt": "no", "broken/a.jpg": "fine", "broken/b.jpg": "bad", "cell-1.jpg": "cell",
        "cell-2.jpg": "other", "nobody/a.jpg": "x",
    }.items():  # fmt: skip
        (folder / name).write_text(text, encoding="utf-8")
    (tmp_path.parent / f"{tmp_path.name}-outside.jpg").write_text("secret", encoding="utf-8")
    rows = [
        "item_id\timage", "one\t", "three\t", "broken\t", "hollow\t", "absent\t",
        "cell\tcell-1.jpg|images/cell-2.jpg | gone.jpg",
        f"out\tcell-1.jpg|../{tmp_path.name}-outside.jpg", "gone\tx.jpg|y.jpg",
    ]  # fmt: skip
    (tmp_path / "items.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


def test_the_mean_of_several_files(pictures: Path) -> None:
    summary = go(pictures, Letters("visual"), "visual", several="mean", path_separator="|")
    assert summary.name == "letters-several"
    with FeatureSet(summary.path) as features:
        status = dict(zip(features.ids.tolist(), features.status.tolist(), strict=True))
        errors = {str(features.ids[row]): message for row, message in features.errors()}
        found = features.matrix(["one", "three", "cell"])[0]
    ok, missing, corrupt = Status.OK, Status.MISSING, Status.CORRUPT
    assert status == {
        "one": ok, "three": ok, "broken": corrupt, "hollow": missing, "absent": missing,
        "cell": ok, "out": corrupt, "gone": missing,
    }  # fmt: skip
    assert errors["broken"] == "part 2 of 2: cannot be read"
    assert "part 2 of 2" in errors["out"] and "out of the dataset folder" in errors["out"]
    for row, names in enumerate((["one"], ["first", "third", "second"], ["cell", "other"])):
        assert found[row] == pytest.approx(np.mean([vector(name) for name in names], axis=0))


def test_every_vector_of_several_files(pictures: Path) -> None:
    summary = go(pictures, Letters("visual"), "visual", several="ragged", path_separator="|")
    with FeatureSet(summary.path) as features:
        found = features.ragged(["three", "one", "absent"])
    assert found[0] is not None and found[0].tolist() == [
        vector(name) for name in ("first", "third", "second")
    ]
    assert found[1] is not None and len(found[1]) == 1
    assert found[2] is None


@pytest.mark.parametrize("several", ["mean", "ragged"])
def test_the_size_of_batches_changes_no_vector(pictures: Path, several: str) -> None:
    digests = {
        go(
            pictures,
            Letters("visual"),
            "visual",
            out=f"out-{size}",
            batch_size=size,
            several=several,
        ).digest
        for size in (1, 2, 64)
    }
    assert len(digests) == 1


def test_parts_are_encoded_in_batches_of_the_asked_size(pictures: Path) -> None:
    encoder = Letters("visual")
    go(pictures, encoder, "visual", several="mean", batch_size=2)
    assert max(encoder.batches) == 2


def test_a_ragged_encoder_of_wrong_shape(texts: Path) -> None:
    class Patches(Letters):
        ragged = True
        result: Any = None

        def encode(self, batch: Sequence[str]) -> Any:
            return (
                [np.zeros((0, 2), np.float32) for _ in batch]
                if self.result is None
                else self.result
            )

    with pytest.raises(
        EncoderError, match=r"an array of shape \(0, 2\) \(expected 3 of shape \(k, 2\)"
    ):
        go(texts, Patches(), "textual")
    wrong = Patches()
    wrong.result = [np.zeros((1, 2), np.float32)]
    with pytest.raises(EncoderError, match="1 arrays"):
        go(texts, wrong, "textual")
    with pytest.raises(UsageError, match="several vectors per content already"):
        Several(Patches(), combine="mean")


def test_a_ragged_encoder(texts: Path) -> None:
    class Patches(Letters):
        ragged = True

        def encode(self, batch: Sequence[str]) -> Any:
            return [
                np.full(
                    (len(text), 2), np.nan if text.startswith("x") else ord(text[0]), np.float32
                )
                for text in batch
            ]

    summary = go(texts, Patches(), "textual")
    assert (summary.counts.ok, summary.counts.corrupt) == (2, 1)
    with FeatureSet(summary.path) as features:
        found = features.ragged(["short"])[0]
    assert found is not None and found.shape == (9, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--modality", "textual", "--several", "mean"], "about files"),
        (["--modality", "visual", "--long-texts", "mean"], "about texts"),
        (["--modality", "visual", "--path-separator", "|"], "needs several"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["extract", "--model", "colour-hog", *options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_command_line_averages_several_pictures(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "images" / "a" / f"{colour}.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "images" / "b.png")
    (tmp_path / "items.tsv").write_text("item_id\na\nb\n", encoding="utf-8")
    line = [
        "extract",
        "--modality",
        "visual",
        "--model",
        "colour-hog",
        "--data",
        str(tmp_path),
        "--several",
    ]
    result = CliRunner().invoke(cli, [*line, "ragged"])
    assert result.exit_code == 0, result.stderr
    assert CliRunner().invoke(cli, [*line, "mean"]).exit_code == 0
    with FeatureSet(tmp_path / "features/visual/colour-hog-ragged.h5") as every:
        blue, red = every.ragged(["a"])[0]  # type: ignore[misc]
        assert np.array_equal(every.ragged(["b"])[0][0], red)  # type: ignore[index]
    with FeatureSet(tmp_path / "features/visual/colour-hog-several.h5") as mean:
        assert np.allclose(mean.matrix(["a"])[0][0], (blue + red) / 2, atol=1e-7)
