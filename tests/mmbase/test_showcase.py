"""What pages show of items: found as mmx finds it, small, and never trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmbase.catalogue import thumbnails
from mmbase.catalogue.showcase import LONGEST_TITLE, Showcase, columns_of
from mmbase.catalogue.thumbnails import thumbnail
from mmbase.errors import ContentError, UsageError


def catalogue(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "images/a.jpg").write_bytes(b"a")
    (root / "images/b.png").write_bytes(b"b")
    (root / "b.wav").write_bytes(b"b")
    rows = ["item_id\ttitle\tcategory", "a\tFirst  one\tx", "b\tNaN\ty", f"c\t{'long ' * 40}\tx"]
    (root / "items.tsv").write_text("\n".join(rows) + "\n")
    return root


def test_items_have_title_and_files(tmp_path: Path) -> None:
    root = catalogue(tmp_path)
    a, nobody, b, c = Showcase.open(root).of(["a", "nobody", "b", "c"])
    assert (a.title, a.files) == ("First one", {"visual": root / "images/a.jpg"})
    assert (nobody.name, nobody.files, nobody.problems) == ("nobody", {}, {})
    assert (b.name, b.files) == ("b", {"visual": root / "images/b.png", "audio": root / "b.wav"})
    assert len(c.title) <= LONGEST_TITLE and c.title.endswith("long…")


def test_a_file_that_is_named_and_missing_is_a_problem(tmp_path: Path) -> None:
    root = catalogue(tmp_path)
    rows = ["item_id\ttitle\tphoto\tcover", "a\tA\tnone.jpg\timages/b.png", "b\tB\t../x.jpg\t"]
    (root / "items.tsv").write_text("\n".join(rows) + "\n")
    a, b = Showcase.open(root).of(["a", "b"])
    assert a.files == {} and a.problems == {"visual": "none.jpg: no such file"}
    assert "leads out of the dataset folder" in b.problems["visual"]
    # A set that was extracted from another column is shown with that one's files.
    extracted = columns_of([("visual", {"input": {"columns": ["cover"]}})])
    (a,) = Showcase.open(root, extracted).of(["a"])
    assert a.files == {"visual": root / "images/b.png"}


def test_without_items_there_are_ids(tmp_path: Path) -> None:
    showcase = Showcase.open(tmp_path)
    assert [one.name for one in showcase.of(["7", "8"])] == ["7", "8"]
    assert "ids alone" in showcase.notes[0]
    assert showcase.texts(["7"], ["title"]) == [""] and showcase.unknown(["7"]) == 1


def test_words_and_groups(tmp_path: Path) -> None:
    showcase = Showcase.open(catalogue(tmp_path))
    assert (showcase.text_columns, showcase.group_column) == (("title", "category"), "category")
    assert showcase.texts(["b", "nobody", "a"], showcase.text_columns) == ["y", "", "First one x"]


def test_titles_may_be_of_another_column(tmp_path: Path) -> None:
    showcase = Showcase.open(catalogue(tmp_path), title="category")
    assert [one.title for one in showcase.of(["a", "b"])] == ["x", "y"]
    assert showcase.text_columns == ("category", "title")
    with pytest.raises(UsageError, match="Did you mean 'category'"):
        Showcase.open(tmp_path, title="categories")


def picture(path: Path, size: tuple[int, int], mode: str = "RGB", **how: object) -> Path:
    image = pytest.importorskip("PIL.Image").new(mode, size, 0)
    image.save(path, **how)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_thumbnails_are_small_webp(tmp_path: Path, mode: str) -> None:
    kind = "tiff" if mode == "CMYK" else "png"
    small = thumbnail(picture(tmp_path / f"a.{kind}", (400, 200), mode), 64)
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(small)) as shown:
        assert (shown.format, shown.size) == ("WEBP", (64, 32))
        # Transparent black is white: a page in dark colours shows it, too. So is no ink.
        assert (shown.convert("L").getpixel((5, 5)) > 250) == (mode in ("RGBA", "CMYK"))


def test_a_camera_held_on_its_side(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = picture(tmp_path / "a.jpg", (400, 200), exif=exif)
    from io import BytesIO

    assert Image.open(BytesIO(thumbnail(path, 64))).size == (32, 64)


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"\xff\xd8\xff\xe0 no picture"])
def test_what_is_no_picture_says_so(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ContentError, match=r"a\.jpg") as caught:
        thumbnail(tmp_path / "a.jpg", 64)
    assert str(tmp_path) not in str(caught.value)  # a page may travel


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.png", (30, 30))
    monkeypatch.setattr(thumbnails, "_MOST_PIXELS", 899)
    with pytest.raises(ContentError, match="900 pixels are too many"):
        thumbnail(path, 64)
