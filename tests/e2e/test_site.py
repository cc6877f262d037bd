"""The documentation site: what `make docs` builds, in files and in a browser."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
from tests.conftest import REPOSITORY

pytest.importorskip("mkdocstrings", reason="needs the extra docs")

import mmbench
import mmstore
import mmx
from mmbench.metrics import METRICS
from mmbench.models import MODELS
from mmx.encoders import ENCODERS, describe

SITE = REPOSITORY / "docs/site"


@pytest.fixture(scope="module")
def reference(monkeypatch_module: pytest.MonkeyPatch) -> Any:
    """The module that makes the reference pages."""
    monkeypatch_module.syspath_prepend(str(SITE))
    return importlib.import_module("reference")


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_the_reference_has_every_registered_name(reference: Any) -> None:
    pages = dict(reference.pages())
    for name in MODELS:
        assert f"({name}.md)" in pages["models/index.md"]
        assert f"models/{name}.md" in pages or name in reference.WRITTEN
        assert f"mmbench models {name}" in reference.settings(name) or "none" in reference.settings(
            name
        )
    for metric in METRICS.values():
        assert f"## {metric.name}\n" in pages["reference/metrics.md"]
    for family in ENCODERS:
        assert f"| {reference.escaped(family)} |" in pages["reference/encoders.md"]
    assert pages["reference/encoders.md"].count("\n| `") == len(describe(None))
    for package in (mmbench, mmx, mmstore):
        for name in package.__all__:
            known = getattr(package, name)
            if callable(known):
                assert f".{name}\n" in pages["reference/python.md"], name
    commands = pages["reference/commands/mmx-store.md"]
    assert "## mmx store ls\n" in commands
    assert "`--store" in commands
    tables = [page for page in pages.values() if "\n| --- |" in page]
    assert all(len(set(map(columns, rows))) == 1 for page in tables for rows in blocks(page))


def blocks(page: str) -> list[list[str]]:
    """The tables of a page, as lists of lines."""
    return [part.splitlines() for part in re.findall(r"(?:^\|.*\|$\n?)+", page, re.MULTILINE)]


def columns(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row))


def test_links_lead_to_pages_of_the_site(
    reference: Any, monkeypatch_module: pytest.MonkeyPatch
) -> None:
    links = importlib.import_module("links")

    class Here:
        def __init__(self, path: str) -> None:
            self.file = type("File", (), {"src_uri": path})

    def rewritten(path: str, text: str) -> str:
        result: str = links.on_page_markdown(text, Here(path), None, None)
        return result

    assert rewritten("store.md", "[a](../shared/mmstore/FORMAT.md#2-the-file)") == (
        "[a](format.md#2-the-file)"
    )
    assert rewritten("contributing.md", "[a](docs/models/vbpr.md)") == "[a](models/vbpr.md)"
    assert rewritten("models/vbpr.md", "[a](../../CONTRIBUTING.md)") == "[a](../contributing.md)"
    assert rewritten("start.md", "[a](notebooks/study.py)") == "[a](notebooks/study.md)"
    assert rewritten("a.md", "```\n[a](../CONTRIBUTING.md)\n```") == (
        "```\n[a](../CONTRIBUTING.md)\n```"
    )
    assert rewritten("a.md", r"| `x\|<y>` | b |") == "| <code>x&#124;&lt;y&gt;</code> | b |"


class Page(HTMLParser):
    """The anchors of a page, and what it links to or loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("script", "img", "source", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(values.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning, or a cell of a notebook that fails, fails it."""
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", SITE / "mkdocs.yml",
         "-d", folder],
        capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_whole_and_asks_no_other_host(site: Path) -> None:
    pages = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    assert len(pages) > 100
    for file, page in pages.items():
        for source in page.loaded:
            if source.startswith("data:"):
                continue
            assert "//" not in source, f"{file}: {source}"
            assert (file.parent / source.partition("?")[0]).exists(), f"{file}: {source}"
        for link in page.links:
            target, anchor = urldefrag(unquote(link))
            if re.match(r"\w+:", target):
                continue
            there = (file.parent / target).resolve() if target else file
            assert there.exists(), f"{file}: {link}"
            if anchor and there in pages:
                assert anchor in pages[there].anchors, f"{file}: {link}"
    python = pages[site / "reference/python.html"]
    for package in (mmbench, mmx, mmstore):
        for name in package.__all__:
            if callable(getattr(package, name)):
                assert any(one.endswith(f".{name}") for one in python.anchors), name
    for notebook in (REPOSITORY / "docs/notebooks").glob("*.py"):
        text = (site / f"notebooks/{notebook.stem}.html").read_text(encoding="utf-8")
        assert 'class="output"' in text
        assert (site / f"notebooks/{notebook.stem}.ipynb").exists()


@pytest.mark.slow
def test_the_site_in_a_browser(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    trouble: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for width in (360, 1440):
            context = browser.new_context(viewport={"width": width, "height": 900})
            page = context.new_page()
            page.on(
                "console", lambda told: trouble.append(told.text) if told.type == "error" else 0
            )
            page.on("pageerror", lambda error: trouble.append(str(error)))
            page.on(
                "request", lambda sent: trouble.append(sent.url) if sent.url[:4] == "http" else 0
            )
            for file in sorted(set(site.rglob("*.html")) - {site / "404.html"}):
                page.goto(file.as_uri())
                beyond = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
                assert beyond <= 0, f"{file} at {width}"
        page.goto((site / "index.html").as_uri())
        page.click(".md-search__input")
        page.keyboard.type("shuffled")
        page.wait_for_selector(".md-search-result__item")
        browser.close()
    assert not trouble, trouble[:3]
