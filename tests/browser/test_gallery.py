"""The gallery, and the page about a feature set, in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

for name in ("altair", "jinja2", "vl_convert", "PIL"):
    pytest.importorskip(name)

from PIL import Image

from mmbench.cli import cli as mmbench
from mmx.cli import cli as mmx
from tests.browser.conftest import Opened, no_overflow, no_violations, screenshot
from tests.mmbench.conftest import write_dataset

HOSTILE = "<script>alert(1)</script>"
LONG = "An_item_whose_title_has_no_place_where_a_line_could_end_and_goes_on_" + "x" * 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with two runs, pictures, sounds, and the two pages."""
    folder = tmp_path_factory.mktemp("pages")
    data = write_dataset(folder / "toy", users=60, reviews=False)
    rows = [f"B{item:03d}X\ta thing no{item}\tkind {item % 3}" for item in range(30)]
    rows[4], rows[6] = f"B004X\t{HOSTILE}\tkind 0", f"B006X\t{LONG}\tkind 1"
    (data / "items.tsv").write_text("\n".join(["item_id\ttitle\tcategory", *rows]) + "\n")
    (data / "images").mkdir()
    (data / "audio").mkdir()
    for item in range(1, 30):
        picture = Image.new("RGB", (90, 60), (item * 8, 90, 160))
        picture.save(data / f"images/B{item:03d}X.png")
        (data / f"audio/B{item:03d}X.wav").write_bytes(wave(item))
    options = ["--data", str(data), "--out", str(folder / "runs"), "--split", "random", "-q"]
    call(mmbench, "train", "--model", "most-popular,content-knn", *options)
    users = [f"u{user}" for user in range(8)]
    made = call(
        mmbench, "gallery", str(folder / "runs"), "--users", ",".join(users), "--json", "-q",
        "--items", "B004X,B000X,B006X,B001X", "--out", str(folder / "gallery.html"),
    )  # fmt: skip
    (folder / "made.json").write_text(made)
    out = str(folder / "set.html")
    call(mmx, "store", "info", "visual/toy", "--data", str(data), "--html", out)
    return folder


def wave(pitch: int) -> bytes:
    """A tenth of a second of sound."""
    samples = (np.sin(np.arange(800) * pitch / 20) * 100 + 128).astype(np.uint8).tobytes()
    size = len(samples)
    head = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    form = b"\1\0\1\0" + (8000).to_bytes(4, "little") * 2 + b"\1\0\x08\0data"
    return head + form + size.to_bytes(4, "little") + samples


def call(program: Any, *arguments: str) -> str:
    done = CliRunner().invoke(program, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


WIDTHS = [(360, False), (360, True), (1440, False), (1440, True)]


@pytest.mark.parametrize(("width", "dark"), WIDTHS)
@pytest.mark.parametrize("name", ["gallery", "set"])
def test_pages_fit_and_are_accessible(
    opened: Opened, place: Path, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    with opened(place / f"{name}.html", width, dark=dark) as page:
        no_overflow(page)
        no_violations(page)
        assert page.locator("h1").count() == 1
        screenshot(page, tmp_path / f"{name}.png")


def test_titles_are_text(opened: Opened, place: Path) -> None:
    dialogs: list[str] = []
    with opened(place / "gallery.html") as page:
        page.on("dialog", lambda one: dialogs.append(one.message) or one.dismiss())
        names = page.locator("#i0 .name, .item .self .name").all_inner_texts()
        assert HOSTILE in names
        assert page.locator("main script").count() == 0
    assert dialogs == []


def test_hits_are_marked(opened: Opened, place: Path) -> None:
    with opened(place / "gallery.html") as page:
        section = page.locator("section.user")
        assert section.count() == 8
        n_hits = 0
        for one in section.all():
            test = one.locator(".row").nth(1).locator(".card").all()
            wanted = [card.locator(".name").get_attribute("title") for card in test
                      if card.locator(".badge").inner_text() == "test"]  # fmt: skip
            for row in one.locator(".row").all()[2:]:
                cards = row.locator(".card").all()
                assert len(cards) == 10
                for card in cards:
                    item = card.locator(".name").get_attribute("title")
                    hit = "hit" in (card.get_attribute("class") or "").split()
                    assert hit == (item in wanted) == ("✓ hit" in card.inner_text())
                    n_hits += hit
        assert n_hits


def test_pictures_are_in_the_page(opened: Opened, place: Path) -> None:
    made = json.loads((place / "made.json").read_text())
    assert made["pictures"] == 29 and made["sounds"] == {"embedded": 29, "linked": 0}
    with opened(place / "gallery.html") as page:
        shown = page.evaluate(
            "[...document.querySelectorAll('.pic:not(.none)')].map("
            "(one) => getComputedStyle(one).backgroundImage.slice(0, 20))"
        )
        assert set(shown) == {'url("data:image/webp'}
        # Item 0 has neither a picture nor a vector.
        alone = page.locator("article.item").nth(1)
        assert "no picture" in alone.inner_text()
        assert alone.inner_text().count("no vector: missing") == 2
        link = page.locator("section.user a.more").first
        target = link.get_attribute("href")
        link.click()
        assert page.evaluate("location.hash") == target
        assert page.locator(target or "").count() == 1


def test_one_sound_plays_at_a_time(opened: Opened, place: Path) -> None:
    with opened(place / "gallery.html") as page:
        page.evaluate("HTMLMediaElement.prototype.play = function () { return Promise.resolve(); }")
        first, second = (page.locator("button.play").nth(place) for place in (0, 1))
        first.click()
        assert first.get_attribute("aria-pressed") == "true"
        second.click()
        assert first.get_attribute("aria-pressed") == "false"
        assert second.get_attribute("aria-pressed") == "true"
        second.click()
        assert second.get_attribute("aria-pressed") == "false"


def test_hovering_the_map_shows_the_item(opened: Opened, place: Path) -> None:
    with opened(place / "set.html") as page:
        marks = page.locator("figure .mark-symbol.role-mark path")
        assert marks.count() == 29
        seen = {}
        for place_of in range(29):
            mark = marks.nth(place_of)
            mark.scroll_into_view_if_needed()
            mark.hover(force=True)
            page.wait_for_selector("#vg-tooltip-element.visible")
            tip = page.locator("#vg-tooltip-element")
            seen[tip.locator("h2").inner_text()] = tip.locator("img").get_attribute("src")
            if HOSTILE in seen and len(seen) > 3:
                break
        assert HOSTILE in seen
        assert all((uri or "").startswith("data:image/webp;base64,") for uri in seen.values())


def test_the_map_has_two_layouts(opened: Opened, place: Path) -> None:
    with opened(place / "set.html") as page:
        path = page.locator("figure .mark-symbol.role-mark path").first
        before = path.get_attribute("transform")
        page.get_by_label("principal components").click()
        page.wait_for_function(
            "(before) => document.querySelector('figure .mark-symbol.role-mark path')"
            ".getAttribute('transform') !== before",
            arg=before,
        )
        assert page.get_by_text("UMAP’s graph").count() == 1  # the method is named
