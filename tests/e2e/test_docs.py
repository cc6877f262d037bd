"""The documents against the programs: command lines, flags, names and links exist.

Nothing is run: lines are parsed by the very click commands that would run them.
"""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import numpy as np
import pytest
from tests.conftest import REPOSITORY

from mmbench.cli import cli as mmbench
from mmbench.data.exchange.bundle import WHOLE, Bundle, Vectors
from mmbench.data.exchange.folder import write_dataset
from mmbench.data.tables import InteractionTable
from mmbench.metrics import METRICS
from mmbench.models import MODELS
from mmx.cli import cli as mmx
from mmx.encoders import ENCODERS

PROGRAMS: dict[str, click.Command] = {"mmx": mmx, "mmbench": mmbench}
OURS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [REPOSITORY / name for name in OURS] + sorted((REPOSITORY / "docs").rglob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDED = {  # models that pages teach to add
    name
    for page in PAGES
    for name in re.findall(
        r'^\+? +"(.+)": "mmbench\.models\.', page.read_text("utf-8"), re.MULTILINE
    )
}
EVERYWHERE = {"--help", "--version", "--debug", "--quiet", "--verbose"}
"""Flags that every command has, or nearly, and that `--help` explains in full."""


def page_name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@cache
def commands() -> dict[str, click.Command]:
    """Every command of both programs, by its full name (`mmx store ls`)."""

    def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for sub in command.list_commands(context):
                found = command.get_command(context, sub)
                assert found is not None
                yield from walk(f"{name} {sub}", found)

    return {name: command for program in PROGRAMS.items() for name, command in walk(*program)}


def flags(command: click.Command) -> set[str]:
    """The option names of a command, `-h` and `--help` included."""
    parameters = command.get_params(click.Context(command))
    return {
        name
        for one in parameters
        if isinstance(one, click.Option)
        for name in (*one.opts, *one.secondary_opts)
    }


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The longest command name at the start of a line, and the other words."""
    name = words.pop(0)
    while words and f"{name} {words[0]}" in commands():
        name = f"{name} {words.pop(0)}"
    return name, words


def complaint(line: str) -> str:
    """Return what is wrong with a command line; empty if its command would accept it."""
    typed = line.partition(" || ")[0]  # what follows is the shell's
    name, words = split_command(shlex.split(typed, comments=True))
    command = commands()[name]
    if "--help" in words:
        return ""
    if isinstance(command, click.Group):
        return f"no command {' '.join(words) or '(none given)'}"
    context = click.Context(command, info_name=name)
    try:
        values, extra, _ = command.make_parser(context).parse_args(list(words))
        for parameter in command.params:
            value = values.get(parameter.name or "")
            if value is None and parameter.required:
                return f"{parameter.name} is required"
            if not isinstance(parameter.type, click.Path):
                parameter.type_cast_value(context, value)
    except click.UsageError as error:
        return error.format_message()
    if extra:
        return f"unexpected {' '.join(extra)}"
    models = (
        ",".join(values.get("models") or ()) if name in ("mmbench train", "mmbench tune") else ""
    )
    return next(
        (f"no model {one}" for one in models.split(",") if one not in ("", *ADDED, *MODELS)), ""
    )


def typed_lines(text: str) -> list[str]:
    """Lines of a text that call one of the programs; `\\` at a line's end joins the next one."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
    return [line for line in lines if line.partition(" ")[0] in PROGRAMS and " " in line]


DOCUMENTED = [
    (page_name(page), line)
    for page in PAGES
    for language, block in FENCE.findall(page.read_text(encoding="utf-8"))
    if language in ("", "sh", "console")
    for line in typed_lines(block)
]


def test_the_documents_have_command_lines() -> None:
    assert len(DOCUMENTED) > 40
    assert complaint("mmbench train --model vbpr --no-such-flag 1").startswith("No such option")
    assert complaint("mmbench train --model vbpt") == "no model vbpt"
    assert complaint("mmx store import x.npy --modality visual --name x --format nyp")
    assert (
        complaint("mmx store import x.npy --modality visual --name x") == "format_name is required"
    )
    assert complaint("mmx fetch amazon-2014/office as ever") == "unexpected as ever"
    assert complaint("mmbench data splt x") == "no command splt x"


@pytest.mark.parametrize(("page", "line"), DOCUMENTED)
def test_a_documented_command_line_parses(page: str, line: str) -> None:
    assert not complaint(line), f"{page}: {line}"


@pytest.mark.parametrize("name", commands())
def test_every_help_has_examples_that_parse(name: str) -> None:
    text = commands()[name].help or ""
    examples = typed_lines(text)
    assert examples or name == "mmx", f"{name} --help has no example"
    for line in examples:
        assert not complaint(line), line


def test_help_explains_every_option_and_cuts_nothing_off() -> None:
    options = [
        (name, one)
        for name, command in commands().items()
        for one in command.params
        if one.param_type_name == "option"
    ]
    assert [(name, one.name) for name, one in options if not getattr(one, "help", None)] == []
    for name, command in commands().items():
        if isinstance(command, click.Group):
            listed = command.get_help(
                click.Context(command, info_name=name, terminal_width=80)
            ).partition("Commands:")[2]
            assert "..." not in listed, name


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_flags_in_running_text_exist(page: Path) -> None:
    """Check code spans: flags beside a command are its own; a flag alone is some command's."""
    known = set().union(*map(flags, commands().values()))
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8"))):
        words = [word.partition("|")[0] for word in span.split()]
        if words[0] in PROGRAMS:
            name, rest = split_command(words)
            assert (
                not isinstance(commands()[name], click.Group) or not rest or rest[0].startswith("-")
            ), span
            allowed = flags(commands()[name])
        elif words[0].startswith("--"):
            allowed = known
        else:
            continue
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)) <= allowed, (
            f"{page_name(page)}: {span}"
        )


def test_every_command_and_every_flag_is_described() -> None:
    text = "".join(
        page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md"
    )
    absent = [name for name in commands() if not re.search(rf"{name}(?![\w-])", text)]
    absent += [
        f"{name} {flag}"
        for name, command in commands().items()
        for flag in sorted(flags(command) - EVERYWHERE)
        if flag.startswith("--") and not re.search(rf"(?<![\w-]){flag}(?![\w-])", text)
    ]
    assert not absent


def test_every_registered_name_has_an_entry() -> None:
    """Models, metrics and encoder families; a model that was published has a page of its own."""
    text = {
        name: (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
        for name in ("training.md", "evaluation.md")
    }
    encoders = (REPOSITORY / "docs/encoders.md").read_text(encoding="utf-8")
    assert [name for name in MODELS if f"`{name}`" not in text["training.md"]] == []
    assert [
        metric.name
        for metric in METRICS.values()
        if f"`{metric.name}`" not in text["evaluation.md"]
    ] == []
    assert [
        family
        for family in ENCODERS
        if f"| {family} |" not in encoders and f"`{family}`" not in encoders
    ] == []
    for page in (REPOSITORY / "docs/models").glob("*.md"):
        assert page.stem in MODELS
        assert f"models/{page.name})" in text["training.md"], page.name


def test_the_python_of_the_store_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {
        WHOLE: InteractionTable(np.array(["u"], object), np.array(["007"], object), None, None)
    }
    vectors = Vectors(
        "visual", "mine", ["007", "B1"], np.ones((2, 3), np.float32), np.array([True, False])
    )
    Path("my").mkdir()
    write_dataset(Bundle("catalogue", parts, "", None, (vectors,)), Path("my/catalogue"))
    text = (REPOSITORY / "docs/store.md").read_text(encoding="utf-8")
    (block,) = (block for language, block in FENCE.findall(text) if language == "python")
    Path("block.py").write_text(block, encoding="utf-8")
    space = runpy.run_path("block.py")
    assert space["vectors"].shape == (2, 3)
    assert space["present"].tolist() == [True, False]
    assert capsys.readouterr().out.startswith("3 {")


def test_the_encoder_of_the_encoders_page_is_one(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/encoders.md").read_text(encoding="utf-8")
    (block,) = (block for language, block in FENCE.findall(text) if language == "python")
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    family = runpy.run_path(str(tmp_path / "block.py"))["FAMILY"]
    assert family.accepts("letters", "textual")
    assert family.known("textual", None)[0].name == "letters"
    encoder = family.build(None)
    vectors = encoder.encode([encoder.load("banana")])
    assert (vectors.tolist(), str(vectors.dtype), encoder.spec.dim) == ([[6, 3]], "float32", 2)


def slug(heading: str) -> str:
    """The anchor that code forges give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "shared/mmstore/FORMAT.md"], ids=page_name)
def test_links_and_named_files_are_there(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target
    for path in re.findall(r"`((?:docs|recipes|tests|extractor|benchmark|shared)/[\w./-]+)`", text):
        assert (REPOSITORY / path).exists() or "/foo." in path, path
    targets = set(
        re.findall(
            r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
