"""Habits of the shell: completion, `--version`, manual pages, a bar on a terminal that changes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from tests.conftest import REPOSITORY

from mmbase import manual, version
from mmbase.completion import SHELLS
from mmbench.cli import cli as mmbench
from mmx.cli import cli as mmx

PROGRAMS = {"mmx": mmx, "mmbench": mmbench}


def completed(line: str) -> list[str]:
    """What a shell is offered for the last word of a line, which may be empty."""
    tool, *words = line.split(" ")
    found = ShellComplete(PROGRAMS[tool], {}, tool, "_X").get_completions(words[:-1], words[-1])
    return [one.value for one in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mmx mo", ["models"]),
        ("mmbench re", ["reproduce", "recommend", "report"]),
        ("mmx store imp", ["import"]),
        ("mmx extract --mod", ["--modality", "--model"]),
        ("mmx extract --modality te", ["textual"]),
        ("mmx extract --modality visual --model resnet1", ["resnet101", "resnet152", "resnet18"]),
        ("mmx finetune --modality visual --model resnet10", ["resnet101"]),
        ("mmbench train --model sas", ["sasrec"]),
        ("mmbench train --model vbpr,bp", ["vbpr,bpr-mf"]),
        ("mmbench train --model vbpr,vb", []),  # it is there already
        ("mmbench train --protocol pa", ["paper"]),
        ("mmbench train --missing prop", ["propagation"]),
        ("mmbench train --control visual=sh", ["visual=shuffled"]),
        ("mmbench train --control vis", []),
        ("mmbench train --select-by Prec", ["Precision@10", "Precision@20"]),
        ("mmbench evaluate --metrics nDCG,Prec", ["nDCG,Precision"]),
        ("mmbench compare --metric Precision@1", ["Precision@10"]),
        ("mmbench models free", ["freedom"]),
        ("mmbench metrics Prec", ["Precision"]),
        ("mmbench completion ", [*SHELLS]),
    ],
)
def test_names_are_completed(line: str, expected: list[str]) -> None:
    assert sorted(completed(line)) == sorted(expected)


def test_splits_of_the_dataset_are_completed(tmp_path: Path) -> None:
    (tmp_path / "splits/loo").mkdir(parents=True)
    found = ["leave-one-out", "loo"]
    assert sorted(completed(f"mmbench train --data {tmp_path} --split l")) == found
    assert sorted(completed(f"mmbench evaluate --data {tmp_path} --split l")) == found


@pytest.mark.parametrize(
    "line",
    ["mmbench train --model vb", "mmbench evaluate --metrics n", "mmx extract --model res", "mmx "],
)
def test_completion_imports_nothing_heavy(line: str) -> None:
    """It runs at each press of a key: no torch, no pandas, and little time of the processor."""
    tool, *words = line.split(" ")
    code = (
        "import sys, time, click.shell_completion as c; "
        f"from {tool}.cli import cli; "
        f"found = c.ShellComplete(cli, {{}}, {tool!r}, '_X').get_completions({words[:-1]!r}, "
        f"{words[-1]!r}); print(time.process_time(), len(found), *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    spent, n_found, *modules = done.stdout.split()
    assert int(n_found) > 0
    assert not {"torch", "pandas", "scipy", "numba", "pyarrow", "sklearn", "rich"} & {*modules}
    assert float(spent) < 1.0  # 0.2 on an idle machine


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("tool", PROGRAMS)
def test_scripts_are_right_for_their_shells(tool: str, shell: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(PROGRAMS[tool], ["completion", shell])
    assert done.exit_code == 0
    assert f"_{tool}_COMPLETE".upper() in done.stdout
    path = tmp_path / "script"
    path.write_text(done.stdout)
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(path)], check=True)
    assert shell != "fish" or "string split --max 1" in done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes(tmp_path: Path) -> None:
    """The script, sourced by a shell, calls the tool and offers what it says."""
    tool = tmp_path / "mmbench"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m mmbench "$@"\n')
    tool.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(CliRunner().invoke(mmbench, ["completion", "bash"]).stdout)
    lines = f"""source {script}
COMP_WORDS=(mmbench train --model vbpr,bp); COMP_CWORD=3
_mmbench_completion mmbench bp --model
echo "${{COMPREPLY[@]}}"
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", lines],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
        cwd=REPOSITORY,
    )
    assert done.stdout.split() == ["vbpr,bpr-mf"], done.stderr


def test_version_tells_what_it_runs_on() -> None:
    for tool, program in PROGRAMS.items():
        first, *others = CliRunner().invoke(program, ["--version"]).stdout.splitlines()
        assert re.fullmatch(rf"{tool}, version \d+\.\d+\.\d+", first)
        told = dict(re.split(r" {2,}", line, maxsplit=1) for line in others)
        assert list(told) == ["commit", "Python", "torch", "GPU", "store format"]
        assert told["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    assert built in version.torch_build()


def test_what_is_not_known_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "gpus/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H100\nIRQ: 7\n")
    assert version.gpus(tmp_path / "gpus") == "NVIDIA H100"
    monkeypatch.setattr(version.platform, "system", lambda: "Darwin")
    assert version.gpus(tmp_path / "none").startswith("unknown; see")

    file = tmp_path / "shared/mmbase/version.py"
    monkeypatch.setattr(version, "__file__", str(file))
    monkeypatch.setattr(version.metadata, "distribution", lambda name: Distribution(None))
    assert version.commit() == "unknown: installed from a distribution file"
    noted = '{"url": "x", "vcs_info": {"commit_id": "0123456789abcdef"}}'
    monkeypatch.setattr(version.metadata, "distribution", lambda name: Distribution(noted))
    assert version.commit() == "0123456789ab"
    (tmp_path / "pyproject.toml").touch()
    assert version.commit() == "unknown: this folder is no git checkout"
    (tmp_path / ".git").touch()
    assert version.commit() == "unknown: git does not say"


class Distribution:
    def __init__(self, noted: str | None) -> None:
        self.noted = noted

    def read_text(self, name: str) -> str | None:
        return self.noted


@click.group()
def odd() -> None:
    r"""Say \fBbold\fP and "quotes".

    .TH is no macro here, nor is
    'this, and - is a minus.

    \b
    Examples:
      odd --x "a b"   # …
    """


def test_manual_pages() -> None:
    for tool, program in PROGRAMS.items():
        found = manual.pages(program, "1.2.3")
        assert {tool, *(f"{tool}-{name}" for name in program.list_commands(click.Context(program)))
                } <= {*found}  # fmt: skip
        for name, text in found.items():
            assert text.startswith(f'.TH {name.replace("-", chr(92) + "-").upper()} 1 "" "{tool} 1')
            assert all(f".SH {part}\n" in text for part in ("NAME", "SYNOPSIS", "OPTIONS"))
            assert text.isascii() and text.count(".nf\n") == text.count(".fi\n")
    train = manual.pages(mmbench, "1")["mmbench-train"]
    assert r".B \-\-model NAME" in train or r".B \-\-model" in train
    assert ".SH EXAMPLES\n.nf\nmmbench train \\-\\-model vbpr\n" in train


def test_manual_pages_take_nothing_for_macros(tmp_path: Path) -> None:
    (text,) = manual.pages(odd, "1").values()
    assert r"\efBbold\efP and \(dqquotes\(dq" in text
    assert "\n\\&.TH is no macro here" in text and "\n\\&'this, and \\- is" in text
    assert r"odd \-\-x \(dqa b\(dq   # \[u2026]" in text
    if shutil.which("groff"):
        for number, page in enumerate((text, *manual.pages(mmx, "1").values())):
            path = tmp_path / f"{number}.1"
            path.write_text(page)
            command = ["groff", "-man", "-Tutf8", "-ww", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert not done.stderr, page
        shown = re.sub(".\b", "", subprocess.run(
            ["groff", "-man", "-Tascii", str(tmp_path / "0.1")],
            capture_output=True, text=True, check=True).stdout)  # fmt: skip
        assert r"Say \fBbold\fP" in re.sub(r"\x1b\[[0-9;]*m", "", shown)


def test_manual_pages_are_written(tmp_path: Path) -> None:
    done = CliRunner().invoke(manual.main, ["mmx.cli:cli", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "man1/mmx-store-ls.1").is_file()
