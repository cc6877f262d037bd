"""Pages of a report as Markdown, HTML and LaTeX."""

from __future__ import annotations

import html as markup
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """A table of texts; `**bold**` and `` `code` `` are understood in its cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)

    def html(self) -> str:
        """As HTML."""
        head = "".join(f"<th>{_inline(cell)}</th>" for cell in self.header)
        rows = ("".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in self.rows)
        body = "\n".join(f"<tr>{cells}</tr>" for cells in rows)
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def latex(self) -> str:
        """As a LaTeX tabular with booktabs rules."""
        head, *rows = (" & ".join(map(_tex, row)) + " \\\\" for row in [self.header, *self.rows])
        start = [f"\\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}", "\\toprule", head]
        lines = [*start, "\\midrule", *rows, "\\bottomrule", "\\end{tabular}"]
        return "\n".join(lines) + "\n"


Block = str | Table
"""A table, or text: heading (`## …`), list (`- …`), note (`> …`), fenced code, image, paragraph."""


@dataclass(frozen=True)
class Page:
    """A page of a report; its title is also its first heading."""

    title: str
    blocks: Sequence[Block]

    def markdown(self) -> str:
        """As Markdown."""
        texts = [block.markdown() if isinstance(block, Table) else block for block in self.blocks]
        return "\n\n".join([f"# {self.title}", *texts]) + "\n"

    def html(self) -> str:
        """As a HTML document of its own."""
        texts = (one.html() if isinstance(one, Table) else _block(one) for one in self.blocks)
        body = "\n".join(texts)
        title = markup.escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
            f"<title>{title}</title>\n<style>{_STYLE}</style></head>\n"
            f"<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
        )


def put(path: Path, text: str) -> None:
    """Write a text file in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}"
    "td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ccc}"
    "td:first-child,th:first-child{text-align:left}pre,code{background:#f4f4f4}"
    "pre{padding:.7rem;overflow-x:auto}img{max-width:100%}"
    "blockquote{border-left:4px solid #e69f00;margin-left:0;padding-left:1rem}"
)


def _block(text: str) -> str:
    if text.startswith("#"):
        level = len(text) - len(text.lstrip("#"))
        return f"<h{level}>{_inline(text.lstrip('# '))}</h{level}>"
    if text.startswith("```"):
        return f"<pre>{markup.escape(text.strip('`').strip())}</pre>"
    if text.startswith("- "):
        items = "\n".join(f"<li>{_inline(line[2:])}</li>" for line in text.splitlines())
        return f"<ul>\n{items}\n</ul>"
    if text.startswith("> "):
        lines = "<br>".join(_inline(line[1:].strip()) for line in text.splitlines())
        return f"<blockquote>{lines}</blockquote>"
    return f"<p>{_inline(text)}</p>"


def _inline(text: str) -> str:
    out = markup.escape(text)
    out = re.sub(r"!\[([^\]]*)\]\(([^)]+)\)", r'<img src="\2" alt="\1">', out)
    out = re.sub(r"\[([^\]]*)\]\(([^)]+?)(?:\.md)?\)", r'<a href="\2.html">\1</a>', out)
    out = re.sub(r"`([^`]+)`", r"<code>\1</code>", out)
    out = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", out)
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", out)


_TEX = {character: f"\\{character}" for character in "_%&#${}"}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}", "±": r"$\pm$", "–": "--"}


def _tex(text: str) -> str:
    parts = re.split(r"\*\*([^*]+)\*\*", text)
    plain = ["".join(_TEX.get(character, character) for character in part) for part in parts]
    return "".join(f"\\textbf{{{part}}}" if n % 2 else part for n, part in enumerate(plain))
