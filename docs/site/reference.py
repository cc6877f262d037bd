"""Hook: reference pages of models, metrics, encoders and commands, made from the registries.

Nothing that these pages say is kept in the repository: they are made anew from what the programs
know about themselves, most of it what their `--json` prints.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parents[1]
sys.path[:0] = [str(DOCS.parent / name) for name in ("extractor", "benchmark", "shared")]

import mmbench as mmbench_package  # noqa: E402
import mmstore  # noqa: E402
import mmx as mmx_package  # noqa: E402
from mmbench.cli import cli as mmbench  # noqa: E402
from mmbench.commands.registries import LETTERS  # noqa: E402
from mmbench.models import MODELS, model_class  # noqa: E402
from mmbench.models.origins import GROUPS, grouped  # noqa: E402
from mmx.cli import cli as mmx  # noqa: E402

PROGRAMS: dict[str, click.Group] = {"mmx": mmx, "mmbench": mmbench}
POPULATIONS = {"relevant": "users with a relevant item", "evaluated": "all users"}
WRITTEN = {page.stem for page in (DOCS / "models").glob("*.md")} - {"index"}
"""Models whose page somebody wrote; the settings are added to it."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page per model and per command into the navigation."""
    for section in config.nav or []:
        if "Models" in section:
            section["Models"] += [
                {GROUPS[group].capitalize(): [{name: f"models/{name}.md"} for name in names]}
                for group, names in grouped().items()
            ]
        for entry in section.get("Reference", ()):
            if "Commands" in entry:
                entry["Commands"] += [
                    {program: [{one: command_page(program, one)} for one in names(group)]}
                    for program, group in PROGRAMS.items()
                ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Add to a model's written page what its class knows."""
    folder, _, file = page.file.src_uri.rpartition("/")
    name = file.removesuffix(".md")
    if folder == "models" and name in WRITTEN:
        return f"{markdown}\n\n{settings(name)}"
    return markdown


def pages() -> Iterator[tuple[str, str]]:
    """Give the paths and texts of all generated pages."""
    yield "models/index.md", models()
    for name in MODELS:
        if name not in WRITTEN:
            doc = inspect.cleandoc(sys.modules[model_class(name).__module__].__doc__ or "")
            yield f"models/{name}.md", f"# {name}\n\n{described(doc)}\n\n{settings(name)}"
    yield "reference/metrics.md", metrics()
    yield "reference/encoders.md", encoders()
    yield "reference/python.md", python()
    yield "reference/commands/index.md", commands()
    for program, group in PROGRAMS.items():
        for name in names(group):
            yield command_page(program, name), "\n".join(command(program, group, name, 1))


def models() -> str:
    """List the models, by kind."""
    known = {one["name"]: one for one in printed(mmbench, "models")["models"]}
    parts = [
        "# Models\n\nWhat `mmbench models` lists; `mmbench train --model NAME` trains one, "
        "and [Training](../training.md) says what decides a run."
    ]
    for group, members in grouped().items():
        rows = [
            (
                f"[`{name}`]({name}.md)",
                known[name]["summary"],
                known[name]["paper"],
                str(known[name]["year"] or ""),
            )
            for name in members
        ]
        parts.append(
            f"## {GROUPS[group].capitalize()}\n\n"
            + table(("model", "what it is", "published", "year"), rows)
        )
    return "\n\n".join(parts)


def described(doc: str) -> str:
    """Turn a docstring into Markdown: paragraphs flow, what is indented, as equations, is code."""
    return "\n\n".join(
        block(inspect.cleandoc(part)) if "\n " in f"\n{part}" else escaped(part.replace("\n", " "))
        for part in doc.split("\n\n")
    )


def settings(name: str) -> str:
    """Tell a model's settings with their defaults, and what it can score."""
    entry = printed(mmbench, "models", name)
    rows = [
        (
            f"`{key}`",
            f"`{json.dumps(one.get('default'))}`",
            admitted(one),
            one.get("description", ""),
        )
        for key, one in entry["settings"].items()
    ]
    if not rows:
        return "## Settings\n\nIt has none."
    return (
        f"## Settings\n\n`--set NAME=VALUE` of `mmbench train`; `mmbench models {name}` prints "
        f"them, too.\n\n{table(('setting', 'default', 'values', 'meaning'), rows)}"
    )


def admitted(entry: dict[str, Any]) -> str:
    """Say which values a setting takes."""
    choices = [one for kind in (entry, *entry.get("anyOf", ())) for one in kind.get("enum", ())]
    if choices:
        return ", ".join(f"`{one}`" for one in choices)
    bounds = [
        f"{sign} {entry[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in entry
    ]
    return ", ".join([entry.get("type", ""), *bounds]).strip(", ")


def metrics() -> str:
    """Tell every metric with formula, population, bounds and source."""
    parts = [
        "# Metrics\n\nWhat `mmbench metrics` prints; [Evaluation](../evaluation.md) says how "
        f"lists are made and averaged.\n\n{LETTERS}"
    ]
    for entry in printed(mmbench, "metrics")["metrics"]:
        low, high = (f"{end:g}" if end is not None else "∞" for end in entry["bounds"])
        facts = [f"- **Range:** {low} to {high}", f"- **Source:** {entry['source']}"]
        if entry["population"]:
            facts.insert(0, f"- **Averaged over:** {POPULATIONS[entry['population']]}")
        if entry["aliases"]:
            facts.append("- **Also called:** " + ", ".join(f"`{one}`" for one in entry["aliases"]))
        if entry["needs"]:
            facts.append("- **Needs:** " + ", ".join(f"`{one}`" for one in entry["needs"]))
        parts.append(
            f"## {entry['name']}\n\n{block(textwrap.fill(entry['formula'], 76))}\n\n"
            + "\n".join(facts)
        )
    return "\n\n".join(parts)


def encoders() -> str:
    """List the encoders that have names of their own, by modality."""
    parts = [
        "# Encoders\n\nWhat `mmx models` lists. Families that take any model of a hub take more "
        "than their rows here: [Encoders](../encoders.md) says which, and how to write one. "
        "*Layer* and *pooling* are the defaults of `--layer` and `--pooling`."
    ]
    known = printed(mmx, "models")["models"]
    for modality in dict.fromkeys(one["modality"] for one in known):
        rows = [
            (
                f"`{one['name']}`",
                one["family"],
                str(one["dim"] or ""),
                one["input"],
                f"`{one['layer']}`",
                one["pooling"],
                licence(one["licence"]),
            )
            for one in known
            if one["modality"] == modality
        ]
        heads = (
            "model",
            "family",
            "numbers",
            "input",
            "layer",
            "pooling",
            "licence of the weights",
        )
        parts.append(f"## {modality.capitalize()}\n\n{table(heads, rows)}")
    return "\n\n".join(parts)


def licence(text: str | None) -> str:
    """Link a licence that is an address."""
    return f"[licence]({text})" if text and text.startswith("https://") else text or ""


def python() -> str:
    """Ask mkdocstrings for every public name, where it is defined."""
    parts = [
        "# Python\n\nEvery public name. [From Python](../python.md) shows them at work and says "
        "which stay; nothing else of the packages is an interface."
    ]
    for package in (mmbench_package, mmx_package, mmstore):
        parts.append(f"## {package.__name__}\n\n{(package.__doc__ or '').splitlines()[0]}")
        for name in sorted(package.__all__, key=str.lower):
            known = getattr(package, name)
            if inspect.ismodule(known):
                parts.append(f"### {known.__name__}")
                members = [getattr(known, one) for one in sorted(known.__all__)]
                if known.__name__.endswith(".errors"):  # its functions are of use within alone
                    members = [one for one in members if inspect.isclass(one)]
                parts += [directive(one, 4) for one in members]
            else:
                parts.append(directive(known, 3))
    return "\n\n".join(filter(None, parts))


def directive(known: object, level: int) -> str:
    """Ask for the documentation of a class or function; of nothing else."""
    if not (inspect.isclass(known) or inspect.isfunction(known)):
        return ""
    path = f"{known.__module__}.{known.__qualname__}"
    return f"::: {path}\n    options:\n      heading_level: {level}"


def commands() -> str:
    """List the commands of both programs."""
    parts = ["# Commands\n\nWhat `--help` prints, a page per command."]
    for program, group in PROGRAMS.items():
        context = click.Context(group, info_name=program)
        rows = [
            (
                f"[`{program} {name}`]({command_page(program, name).rpartition('/')[2]})",
                child(group, name).get_short_help_str(200),
            )
            for name in group.list_commands(context)
        ]
        lead = inspect.cleandoc(group.help or "").split("\n\n")[0].replace("\n", " ")
        parts.append(f"## {program}\n\n{lead}\n\n{table(('command', ''), rows)}")
    return "\n\n".join(parts)


def command(program: str, group: click.Group, name: str, level: int) -> Iterator[str]:
    """Write a command's section, and those of its own commands below it."""
    one = child(group, name)
    full = f"{program} {name}"
    yield f"{'#' * level} {full}\n"
    context = click.Context(one, info_name=full)
    yield block(" ".join([full, *one.collect_usage_pieces(context)])) + "\n"
    yield prose(one.help or "") + "\n"
    options = [one for one in one.get_params(context) if isinstance(one, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    rows = [(f"`{names}`", meaning) for names, meaning in records]
    yield table(("option", ""), rows) + "\n"
    if isinstance(one, click.Group):
        for inner in names(one):
            yield from command(full, one, inner, level + 1)


def prose(text: str) -> str:
    """Turn a docstring of click into Markdown: paragraphs flow, `\\b` blocks are code."""
    parts = []
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b"):
            head, _, rest = part.removeprefix("\b").lstrip("\n").partition("\n")
            title = re.fullmatch(r"examples?:?", head.strip(), re.IGNORECASE)
            parts += (
                ["Examples:", block(inspect.cleandoc(rest), "sh")]
                if title
                else [block(f"{head}\n{rest}")]
            )
        else:
            parts.append(escaped(part.replace("\n", " ")))
    return "\n\n".join(parts)


def printed(program: click.Group, *words: str) -> dict[str, Any]:
    """Return what a command prints with `--json`."""
    result = CliRunner().invoke(program, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def names(group: click.Group) -> list[str]:
    """Give the names of a group's commands, in the order of `--help`."""
    return group.list_commands(click.Context(group))


def child(group: click.Group, name: str) -> click.Command:
    """Give a command of a group."""
    found = group.get_command(click.Context(group), name)
    assert found is not None, name
    return found


def command_page(program: str, name: str) -> str:
    """Give the path of a command's page."""
    return f"reference/commands/{program}-{name}.md"


def block(text: str, language: str = "text") -> str:
    """Fence a text as code."""
    return f"```{language}\n{text.rstrip()}\n```"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Write a table; blanks of a cell become one, so that each row is a line."""
    lines = [heads, tuple("---" for _ in heads), *(tuple(map(cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Make a text safe in a cell; code spans and links stay."""
    flat = re.sub(r"\s+", " ", text).strip().replace("|", "\\|")
    return flat if flat.startswith(("`", "[")) else escaped(flat)


def escaped(text: str) -> str:
    """Keep Markdown from reading signs of a text as markup, outside code spans."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if n % 2 else re.sub(r"([*_<>\[\]])", r"\\\1", part) for n, part in enumerate(parts)
    )
