"""Manual pages for `man`, from the same click commands that print `--help`.

A page per command, `mmx-extract.1`, in the macros of man(7), which groff and mandoc set alike.
`make man` writes them: `python -m mmbase.manual mmx.cli:cli --out man`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from mmbase.cli import PATH, LazyGroup

_EXAMPLES = re.compile(r"^\s*examples:?\s*$", re.IGNORECASE)


def pages(program: click.Command, version: str) -> dict[str, str]:
    """Return the text of each manual page by its name, the program's first."""
    top = click.Context(program, info_name=program.name)
    return {one.command_path.replace(" ", "-"): _page(one, version) for one in _contexts(top)}


def write(program: click.Command, version: str, folder: Path) -> list[Path]:
    """Write the manual pages of a program into `folder/man1`; return their paths."""
    target = folder / "man1"
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages(program, version).items():
        written.append(target / f"{name}.1")
        written[-1].write_text(text, encoding="utf-8")
    return written


def _contexts(ctx: click.Context) -> Iterator[click.Context]:
    """Yield the contexts of a command and of all below it that are listed."""
    yield ctx
    if isinstance(ctx.command, click.Group):
        for name in ctx.command.list_commands(ctx):
            command = ctx.command.get_command(ctx, name)
            if command is not None and not command.hidden:
                yield from _contexts(click.Context(command, parent=ctx, info_name=name))


def _page(ctx: click.Context, version: str) -> str:
    command, name = ctx.command, ctx.command_path.replace(" ", "-")
    root = ctx.find_root().info_name
    summary = command.get_short_help_str(200).rstrip(".")
    lines = [
        f'.TH {_text(name).upper()} 1 "" "{_text(f"{root} {version}")}" "{root}"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(summary)}",
        ".SH SYNOPSIS",
        f".B {_text(ctx.command_path)}",
        _text(" ".join(command.collect_usage_pieces(ctx))),
    ]
    description, examples = _parts(inspect.cleandoc(command.help or ""))
    lines += [".SH DESCRIPTION", *description]
    options = [one for one in command.get_params(ctx) if isinstance(one, click.Option)]
    options = [one for one in options if one.get_help_record(ctx)]
    if options:
        lines.append(".SH OPTIONS")
        for one in options:
            flags, text = one.get_help_record(ctx) or ("", "")
            lines += [".TP", f".B {_text(flags)}", _text(text)]
    if isinstance(command, LazyGroup):
        lines.append(".SH COMMANDS")
        for below, text in command.rows():
            lines += [".TP", f".BR {_text(f'{name}-{below}')} (1)", _text(text)]
    if examples:
        lines += [".SH EXAMPLES", ".nf", *map(_text, examples), ".fi"]
    if ctx.parent is not None:
        above = ctx.parent.command_path.replace(" ", "-")
        lines += [".SH SEE ALSO", f".BR {_text(above)} (1)"]
    return "\n".join(lines) + "\n"


def _parts(text: str) -> tuple[list[str], list[str]]:
    """Return the paragraphs of a help text as lines of a page, and its examples as typed."""
    lines: list[str] = []
    examples: list[str] = []
    for paragraph in text.split("\n\n"):
        own = paragraph.split("\n")
        kept = own[0].strip() == "\b"
        own = own[kept:]
        if own and _EXAMPLES.match(own[0]):
            examples += [line.strip() for line in own[1:]]
        elif kept:
            lines += [".PP", ".nf", *map(_text, own), ".fi"]
        else:
            lines += [".PP", *(_text(line.strip()) for line in own)]
    return lines[1:] if lines[:2] == [".PP", ".nf"] else lines, examples


def _text(text: str) -> str:
    """Return a line without anything that the macros would take for their own."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    text = "".join(one if one.isascii() else f"\\[u{ord(one):04X}]" for one in text)
    return f"\\&{text}" if text[:1] in (".", "'") else text


@click.command()
@click.argument("programs", nargs=-1, required=True, metavar="MODULE:GROUP...")
@click.option("--out", type=PATH, default=Path("man"), help="Folder; it gets man1/*.1.")
def main(programs: tuple[str, ...], out: Path) -> None:
    """Write the manual pages of programs: `MANPATH=man: man mmx-extract` shows one."""
    for place in programs:
        module, _, name = place.partition(":")
        package = importlib.import_module(module.partition(".")[0])
        written = write(getattr(importlib.import_module(module), name), package.__version__, out)
        click.echo(f"{written[0].parent.as_posix()}: {len(written)} pages of {place}")


if __name__ == "__main__":
    main()
