"""Hook: files outside docs/ become pages, and links are written so that GitHub and the site agree.

A page in the repository links to others as files (`../CONTRIBUTING.md`, `docs/store.md`). On the
site the same links lead to the pages made of these files.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ADOPTED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "shared/mmstore/FORMAT.md": "format.md",
}
"""Files of the repository that are pages of the site, by their path and the page's."""

_ORIGINS = {page: origin for origin, page in ADOPTED.items()}
_FENCE = re.compile(r"^(```.*?^```|~~~.*?^~~~)$", re.DOTALL | re.MULTILINE)
_PIPED = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")
_LINK = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the adopted files."""
    for origin, page in ADOPTED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / origin)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn paths in the repository into paths on the site."""
    here = page.file.src_uri
    origin = _ORIGINS.get(here, f"docs/{here}")

    def target(match: re.Match[str]) -> str:
        head, path, anchor, tail = match.groups(default="")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        there = ADOPTED.get(there, there.removeprefix("docs/"))
        there = re.sub(r"^(notebooks/.*)\.py$", r"\1.md", there)
        return f"{head}{posixpath.relpath(there, posixpath.dirname(here) or '.')}{anchor}{tail}"

    return outside_fences(markdown, lambda text: _PIPED.sub(piped, _LINK.sub(target, text)))


def piped(match: re.Match[str]) -> str:
    """Write a code span of a table with `\\|` in it, which Python-Markdown would show, as HTML."""
    return f"<code>{html.escape(match[1]).replace(chr(92) + '|', '&#124;')}</code>"


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Apply a change to all that is not a code block."""
    parts = _FENCE.split(markdown)
    return "".join(part if n % 2 else change(part) for n, part in enumerate(parts))
