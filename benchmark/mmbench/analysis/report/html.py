"""The pages of a report: a document for each part that opens from a file, and an overview."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbase import pages
from mmbase.pages import Cell, Column
from mmbench.analysis.controls import HEADER
from mmbench.analysis.report import checks, reproduction, setup
from mmbench.analysis.report.board import Standing, differences, leaderboard, ordered
from mmbench.analysis.report.figures import Figures, look_of, slice_rows
from mmbench.analysis.report.pages import Table
from mmbench.analysis.report.results import Reproduction
from mmbench.analysis.report.tables import number
from mmbench.analysis.report.variants import Variants
from mmbench.metrics import METRICS, sign

if TYPE_CHECKING:
    from markupsafe import Markup

    from mmbench.analysis.report.charts import Look

_TEMPLATES = Path(__file__).parent / "templates"


def page_html(part: Reproduction, figures: Figures, files: Sequence[str], *, several: bool) -> str:
    """Return the page of a part.

    Args:
        part: The part.
        figures: Its charts, by section.
        files: Names of the files beside it.
        several: Whether the report has other parts, too.
    """
    board = ordered(part.systems, part.metric)
    look = look_of(part.lines, board)
    cutoffs = sorted(
        part.cutoffs, key=lambda k: (f"@{k}" != f"@{part.metric.rpartition('@')[2]}", k)
    )
    context = {
        "title": part.title,
        "description": setup.paragraph(part, board),
        "part": part,
        "several": several,
        "systems": look.systems,
        "warnings": checks.warnings_of(part),
        "notes": setup.notes_of(part),
        "boards": [leaderboard(part, cutoff, look.systems) for cutoff in cutoffs],
        "differences": differences(part, part.outcome),
        "figures": {name: [_figure(one, look) for one in own] for name, own in figures.items()},
        "fronts": any(sign(part.metric) for _ in board),
        "slices": _slice_tables(part),
        "costs": plain(reproduction.cost_table(part), "Cost: medians over seeds"),
        "controls": _controls(part),
        "knock_outs": Variants(part).knock_outs(),
        "published": _published(part),
        "compared": [setup.data_table(part), setup.protocol_table(part)],
        "feature_sets": setup.features_table(part),
        "budget": setup.budget_table(part),
        "checklist": checks.checklist(part),
        "runs": setup.runs_table(part),
        "compare_command": setup.compare_command(part),
        "formulas": _formulas(part),
        "files": files,
        "inline": inline,
    }
    return pages.render(pages.environment(_TEMPLATES), "report.html", **context)


def overview_html(
    parts: Sequence[Reproduction], figure: Markup | str, ranks: pages.Table | None
) -> str:
    """Return the first page: what there is, and the mean ranks over datasets."""
    title = "Reproduction" if any(part.published for part in parts) else "Report"
    rows: list[list[Cell | str]] = []
    for part in parts:
        board = ordered(part.systems, part.metric)
        data = setup.runs_of(part)[0].record["dataset"]
        best = board[0] if board else None
        rows.append([
            _link(f"{part.page}.html", part.dataset, part.kind or part.protocol),
            Cell(f"{data['n_users']:,}", data["n_users"]),
            Cell(f"{data['n_items']:,}", data["n_items"]),
            Cell(f"{data['n_train']:,}", data["n_train"]),
            Cell(str(len(part.systems)), len(part.systems)),
            Cell(str(len(setup.runs_of(part))), len(setup.runs_of(part))),
            Cell(best.label if best else "–", note=_best(part, board)),
            Cell(str(n := len(checks.warnings_of(part))), n, mark="warn" if n else ""),
        ])  # fmt: skip
    head = [
        "page",
        "users",
        "items",
        "training rows",
        "systems",
        "runs",
        "best by mean",
        "warnings",
    ]
    columns = [Column(name, numeric=name not in ("page", "best by mean")) for name in head]
    context = {
        "title": title,
        "parts": parts,
        "table": pages.Table("The pages", columns, rows, hidden_caption=True),
        "figure": figure,
        "ranks": ranks,
        "judged": [(part, *_verdicts(part)) for part in parts if part.published],
        "commands": list(dict.fromkeys(part.command for part in parts)),
    }
    return pages.render(pages.environment(_TEMPLATES), "overview.html", **context)


def _verdicts(part: Reproduction) -> tuple[pages.Table | None, list[Markup]]:
    """Return the verdicts on a part's published values; without a margin those on the claims."""
    if part.judged:
        return plain(reproduction.verdict_table(part), part.title), []
    return None, [inline(line.removeprefix("- ")) for line in reproduction.claims(part)]


def _best(part: Reproduction, board: Sequence[Standing]) -> str:
    if not board:
        return ""
    tied = [one for one in part.outcome if one.first == board[0].label and not one.better]
    told = f"{part.metric} {number(board[0].mean)}"
    return f"{told}; order open against {len(tied)}" if tied else told


def _figure(one: Any, look: Look) -> Markup:
    return pages.chart_figure(one.draw(look), one.name, one.caption)


def _slice_tables(part: Reproduction) -> list[pages.Table]:
    """Return the values behind the charts of slices."""
    tables = []
    for family, rows in slice_rows(part).items():
        names = list(dict.fromkeys(row["slice"] for row in rows))
        by_system: dict[str, dict[str, float]] = {}
        for row in rows:
            by_system.setdefault(row["system"], {})[row["slice"]] = row["y"]
        body: list[list[Cell | str]] = [
            [
                system,
                *(
                    Cell(number(v), v) if (v := own.get(name)) is not None else Cell("–")
                    for name in names
                ),
            ]
            for system, own in by_system.items()
        ]
        columns = [Column("system", numeric=False), *(Column(name) for name in names)]
        tables.append(pages.Table(f"{part.metric}, {family}", columns, body))
    return tables


def _controls(part: Reproduction) -> pages.Table | None:
    if not part.controls:
        return None
    table = plain(Table(HEADER, part.controls), "How much is content")
    return table


def _published(part: Reproduction) -> list[tuple[str, pages.Table]]:
    """Return what stands beside published values, each with a heading."""
    if not part.published:
        return []
    out = [
        (f"Ours and published, test @{k}", plain(reproduction.values_table(part, k), f"Test @{k}"))
        for k in part.cutoffs
    ]
    if part.judged:
        out.append(
            ("Verdicts", plain(reproduction.verdict_table(part), "Verdicts on published values"))
        )
    out.append(("Order of the systems", plain(reproduction.order_table(part), "Order by metric")))
    return out


def _formulas(part: Reproduction) -> list[tuple[str, str, str]]:
    """Return name, formula and source of each metric of the page."""
    names = dict.fromkeys(name.rpartition("@")[0] for name in part.metrics)
    return [(one.name, one.formula, one.source) for n in names if (one := METRICS.get(n))]


def plain(table: Table, caption: str) -> pages.Table:
    """Return a table of the Markdown pages as one of these pages; numbers sort as numbers.

    Columns that say nothing, `-` in every row, are left out.
    """
    told = [n for n in range(len(table.header)) if n == 0 or {r[n] for r in table.rows} - {"-"}]
    columns = [Column(table.header[n] or "system", n > 0 and _numeric(table, n)) for n in told]
    rows = [[Cell(inline(row[n]), _value(row[n])) for n in told] for row in table.rows]
    return pages.Table(caption, columns, rows, hidden_caption=True)


def _numeric(table: Table, column: int) -> bool:
    texts = [row[column] for row in table.rows]
    return all(text in ("-", "–", "") or _value(text) is not None for text in texts)


def _value(text: str) -> float | None:
    found = re.match(r"[*!\s]*([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?=$|[\s±%*…])", text)
    return float(found[1].replace(",", "")) if found else None


def inline(text: str) -> Markup:
    """Return a text of the Markdown pages with its `code`, **bold** and *stressed* words."""
    from markupsafe import Markup, escape

    out = str(escape(text))
    for pattern, tag in (
        (r"`([^`]+)`", "code"),
        (r"\*\*([^*]+)\*\*", "strong"),
        (r"\*([^*]+)\*", "em"),
    ):
        out = re.sub(pattern, rf"<{tag}>\1</{tag}>", out)
    return Markup(out)  # of an escaped text


def _link(target: str, text: str, note: str) -> Cell:
    from urllib.parse import quote

    from markupsafe import Markup

    return Cell(Markup('<a href="{}">{}</a>').format(quote(target), text), note=note)
