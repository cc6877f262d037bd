"""What the commands print at every width: nothing is cut, and 80 columns are what it is made for.

`tests/data/captures-80` holds what is printed in 80 columns; `python -m tests.e2e.test_widths`
writes it anew. Models without training give the same numbers everywhere.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.conftest import REPOSITORY
from tests.mmbench.conftest import write_dataset

from mmbench.cli import cli as mmbench
from mmx.cli import cli as mmx

CAPTURES = REPOSITORY / "tests" / "data" / "captures-80"
CAPTURED = {
    "train": "mmbench train --data toy --model most-popular,item-knn,random --seed 1,2 -q",
    "compare": "mmbench compare runs --metric Recall@20",
    "data-stats": "mmbench data stats toy",
    "store-ls": "mmx store ls toy",
    "extract": "mmx extract --data shop --modality visual --model colour-hog --restart",
}
OTHERS = (
    "mmbench train --data toy --model random --seed 1,2 --metrics all -q",
    "mmbench data filter toy --filter kcore:3 --filter min-rating:3 --out OUT",
    "mmbench data validate toy",
    "mmbench models",
    "mmbench metrics",
    "mmx models --verbose",
)
LONG = re.compile(r"\S{50,}")  # a name, path or digest of this length is never broken


def make(place: Path) -> None:
    """Write two datasets: one to train on, and one to extract from, a file of which is broken."""
    write_dataset(place / "toy", reviews=False)
    (place / "shop" / "images").mkdir(parents=True)
    (place / "shop" / "items.tsv").write_text("item_id\ttitle\nA1\tred\nA2\tblue\nA3\tnone\n")
    pictures = pytest.importorskip("PIL.Image")
    pictures.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(place / "shop/images/A1.png")
    (place / "shop/images/A2.png").write_bytes(b"no picture at all")


def printed(line: str, width: int) -> str:
    """What a command line prints in a terminal of that width."""
    tool, *arguments = line.replace("OUT", f"out{width}").split()
    root = mmx if tool == "mmx" else mmbench
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(root, arguments)
    assert done.exit_code in (0, 3), (line, done.output)
    return done.output


def captured(name: str) -> str:
    """The output in 80 columns, without what another machine or hour would change."""
    text = printed(CAPTURED[name], 80)
    text = re.sub(r"^cost\n.*?\n\n(?=\S)", "cost …\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\b[0-9a-f]{10,64}\b", lambda found: "0" * len(found[0]), text)
    if name == "extract":
        text = re.sub(r"(?<=^time ).*?(?=^digest)", "      …\n", text, flags=re.DOTALL | re.M)
        text = re.sub(r"(?<=^this run ).*?(?=^time)", "  …\n", text, flags=re.DOTALL | re.M)
    return text


@pytest.fixture(scope="module", autouse=True)
def _place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place = tmp_path_factory.mktemp("widths")
    make(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        printed(CAPTURED["train"], 80)
        yield


@pytest.mark.parametrize("name", CAPTURED)
def test_what_is_printed_in_80_columns(name: str) -> None:
    assert captured(name) == (CAPTURES / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", [*CAPTURED.values(), *OTHERS])
def test_nothing_is_cut_at_any_width(line: str) -> None:
    texts = {width: printed(line, width) for width in (60, 80, 100, 200)}
    for width, text in texts.items():
        lines = [one for one in text.splitlines() if not LONG.search(one)]
        assert max(map(len, lines)) <= width
        assert not re.search(r"\S…", text)
    if "ls" not in line and "extract" not in line:  # ls leaves columns out; seconds differ
        words = {width: set(re.sub(r"─|±", " ", text).split()) for width, text in texts.items()}
        words = {width: found - {f"out{width}"} for width, found in words.items()}
        assert words[60] == words[80] == words[100] == words[200]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        os.chdir(folder)
        CAPTURES.mkdir(exist_ok=True)
        for name in CAPTURED:
            (CAPTURES / f"{name}.txt").write_text(captured(name), encoding="utf-8")
