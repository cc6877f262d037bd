"""Pages of a report as Markdown, and their tables as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


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
        # Names are data: what would begin a tag, in whatever renders the page, is a text.
        return _TAG.sub("&lt;", "\n\n".join([f"# {self.title}", *texts])) + "\n"


_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_TEX = {character: f"\\{character}" for character in "_%&#${}"}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}", "±": r"$\pm$", "–": "--"}


def _tex(text: str) -> str:
    parts = re.split(r"\*\*([^*]+)\*\*", text)
    plain = ["".join(_TEX.get(character, character) for character in part) for part in parts]
    return "".join(f"\\textbf{{{part}}}" if n % 2 else part for n, part in enumerate(plain))
