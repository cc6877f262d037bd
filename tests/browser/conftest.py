"""Pages in headless Chromium: they open from a file, ask nobody for anything, and fit.

The tests skip where Playwright, or a Chromium, is absent.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
Opened = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium, shared by all tests of the session."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def opened(browser: Any) -> Opened:
    """A context manager that opens a page from its file: `with opened(path, 360, dark=True)`.

    It ends with a failure if the page wrote an error or a warning to the console, or asked for
    anything but a file or data of its own.
    """

    @contextmanager
    def open_page(path: Path, width: int = 1440, *, dark: bool = False) -> Iterator[Any]:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        page = context.new_page()
        complaints: list[str] = []
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.resolve().as_uri())
        page.evaluate("window.pageReady")
        yield page
        assert not complaints
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        context.close()

    return open_page


def no_overflow(page: Any) -> None:
    """Fail if the page is wider than its window: it would scroll sideways."""
    wide = page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= width) return [];
            const inside = (one) => one.closest('.scroll, nav') === null;
            return [...document.body.querySelectorAll('*')]
                .filter((one) => inside(one) && one.getBoundingClientRect().right > width + 1)
                .map((one) => one.outerHTML.slice(0, 120)).slice(0, 5).concat('wider');
        }"""
    )
    assert wide == []


def no_violations(page: Any) -> None:
    """Fail if axe-core finds a serious or critical violation."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in grave] == []


def screenshot(page: Any, path: Path) -> Path:
    """Write a picture of the whole page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, full_page=True)
    return path
