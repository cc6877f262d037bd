"""The tutorials, followed to the letter: files written, commands run, what is printed compared.

In a tutorial a fenced block is one of these:

- `console`: lines that begin with `$ ` are typed, and what stands below one is what it prints; `…`
  stands for anything. Decimals may differ by 2 %, or by 0.02: processors differ, and tables of
  small catalogues say no more. A command fails the test unless it succeeds, or `echo $?` follows;
- a block whose first line is `# PATH` is a file; as `diff`, lines with `+` that come into one.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.conftest import REPOSITORY

TUTORIALS = REPOSITORY / "docs/tutorials"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DECIMAL = re.compile(r"\d+\.\d+|(?<=±)\.\d+")
PACKAGES = ("extractor", "benchmark", "shared")


class Typed(NamedTuple):
    """A command line, and what the page says that it prints."""

    line: str
    printed: str


class Written(NamedTuple):
    """A file, or with `inserted` the lines that come into one."""

    path: str
    text: str
    inserted: bool


def steps(page: str) -> Iterator[Typed | Written]:
    """What a reader of the page does, in order."""
    for language, block in BLOCK.findall(page):
        named = re.match(r"# (\S+\.\w+)\n", block)
        if language == "console":
            for part in re.split(r"^\$ ", re.sub(r"\\\n\s*", "", block), flags=re.MULTILINE)[1:]:
                line, _, printed = part.partition("\n")
                yield Typed(line, printed.strip("\n"))
        elif named:
            yield Written(named[1], block[named.end() :], language == "diff")


def insert(file: Path, change: str) -> None:
    """Put each line with `+` behind the line that stands above it in the change."""
    text, above = file.read_text(encoding="utf-8"), ""
    for line in change.splitlines():
        if line.startswith("+"):
            assert text.count(above) == 1, f"{file}: {above}"
            text = text.replace(above, f"{above}{line[1:]}\n")
        above = f"{line[1:]}\n"
    file.write_text(text, encoding="utf-8")


def difference(claimed: str, printed: str) -> str:
    """Return what of a claim isn't printed; empty if all of it is."""
    claimed, printed = (
        "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
        for text in (claimed, printed)
    )
    pattern = re.escape(DECIMAL.sub("0.0", claimed)).replace("…", "(?:.|\n)*?")
    if not re.fullmatch(pattern, DECIMAL.sub("0.0", printed)):
        return f"the page says:\n{claimed}\nthe command prints:\n{printed}"
    if "…" not in claimed:
        pairs = zip(DECIMAL.findall(claimed), DECIMAL.findall(printed), strict=True)
        for ours, theirs in pairs:
            if not math.isclose(float(ours), float(theirs), rel_tol=0.02, abs_tol=0.02):
                return f"the page says {ours}, the command prints {theirs}\n{printed}"
    return ""


class Reader:
    """Somebody who does in a folder what a page says."""

    def __init__(self, folder: Path, packages: Path | None = None) -> None:
        self.folder = folder
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": programs, "COLUMNS": "80"}
        if packages is not None:
            paths = [str(packages / name) for name in PACKAGES]
            self.environment["PYTHONPATH"] = os.pathsep.join([*paths, str(packages)])

    def types(self, line: str, before: int) -> subprocess.CompletedProcess[str]:
        """Run a line of the shell after one that ended with the code `before`."""
        return subprocess.run(
            ["bash", "-c", f"(exit {before}); {line}"], cwd=self.folder, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300,
        )  # fmt: skip

    def follows(self, page: str) -> None:
        """Do all that the page says, and compare what it says that is printed."""
        code, failed = 0, ""
        for step in steps(page):
            if isinstance(step, Written):
                file = self.folder / step.path
                file.parent.mkdir(parents=True, exist_ok=True)
                if step.inserted:
                    insert(file, step.text)
                else:
                    file.write_text(step.text, encoding="utf-8")
                continue
            assert not failed or step.line == "echo $?", failed
            done = self.types(step.line, code)
            code = done.returncode
            failed = f"{step.line} ended with {code}\n{done.stdout}" if code else ""
            told = step.printed and difference(step.printed, done.stdout)
            assert not told, f"$ {step.line}\n{told}"
        assert not failed, failed


def tutorial(name: str) -> str:
    return (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")


def test_the_reader_notices_what_a_page_has_wrong(tmp_path: Path) -> None:
    good = "```console\n$ echo 0.500 a; \\\n   echo b\n0.501 a\n…\n$ false\n$ echo $?\n1\n```\n"
    Reader(tmp_path).follows(good)
    for ours, theirs in (
        ("0.501 a", "0.6 a"), ("0.501 a\n…", "0.501 a"), ("$ echo $?\n1", "$ true"), ("…", "c…"),
    ):  # fmt: skip
        wrong = good.replace(ours, theirs).replace("0.6 a\n…", "0.6 a\nb")
        assert wrong != good
        with pytest.raises(AssertionError):
            Reader(tmp_path).follows(wrong)
    Reader(tmp_path).follows(
        "```text\n# a/b.txt\none\ntwo\n```\n```diff\n# a/b.txt\n one\n+new\n```"
    )
    assert (tmp_path / "a/b.txt").read_text() == "one\nnew\ntwo\n"


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    for library in ("PIL", "skimage", "sklearn", "altair"):
        pytest.importorskip(library, reason="needs the extras extract and report")
    Reader(tmp_path).follows(tutorial("catalogue"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu", "question"])
def test_a_tutorial(name: str, tmp_path: Path) -> None:
    for library in ("PIL", "skimage", "sklearn", "torchvision"):
        pytest.importorskip(library, reason="needs the extra extract")
    Reader(tmp_path).follows(tutorial(name))


@pytest.mark.slow
def test_a_model_of_ones_own(tmp_path: Path) -> None:
    for library in ("PIL", "skimage", "sklearn"):
        pytest.importorskip(library, reason="needs the extra extract")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    Reader(tmp_path, tmp_path).follows(tutorial("model"))
