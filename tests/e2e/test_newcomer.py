"""From one's own tables and pictures to a report, by the lines of docs/exchange.md alone."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs/exchange.md"
COMMANDS = 10
"""The most that a newcomer types."""


def write_shop(folder: Path) -> None:
    """Write the demonstration's content as a shop would have it.

    Windows-1252 and semicolons, columns of no usual name, decimal commas, dates, and pictures that
    bear the digest of something.
    """
    from mmx.demo import write_demo

    demo = folder / "demo"
    write_demo(demo, items=400, users=600, seed=3)
    (folder / "photos").mkdir()
    pictures = {path.stem: path for path in sorted((demo / "images").iterdir())}
    with (demo / "items.tsv").open(encoding="utf-8", errors="replace") as file:
        items = list(csv.DictReader(file, delimiter="\t"))
    with (folder / "products.csv").open(
        "w", encoding="cp1252", errors="replace", newline=""
    ) as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Artno", "Label", "About", "Group", "Picture"])
        for item in items:
            name, picture = "", pictures.get(item["item_id"])
            if picture is not None:
                name = hashlib.sha256(picture.name.encode()).hexdigest()[:16] + picture.suffix
                shutil.copy(picture, folder / "photos" / name)
            texts = (item[column] for column in ("title", "description", "category"))
            rows.writerow([item["item_id"], *texts, name])
    with (
        (demo / "interactions.tsv").open(encoding="utf-8") as read,
        (folder / "orders.csv").open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Customer", "Artno", "Stars", "When"])
        for row in csv.DictReader(read, delimiter="\t"):
            when = datetime.fromtimestamp(int(row["timestamp"]), UTC)
            stars = row["rating"] + ",0"
            rows.writerow([row["user_id"], row["item_id"], stars, f"{when:%Y-%m-%d %H:%M:%S}"])
    shutil.rmtree(demo)


def lines() -> list[str]:
    page = PAGE.read_text(encoding="utf-8")
    section = page.partition("## From your own tables to a report\n")[2]
    return re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[0].splitlines()


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")
def test_the_lines_of_the_page_lead_to_a_report(tmp_path: Path) -> None:
    write_shop(tmp_path)
    commands = lines()
    assert len(commands) <= COMMANDS
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "80"}
    told = []
    for line in commands:
        program, *rest = shlex.split(line)
        command = [program, *rest]
        if program in ("mmx", "mmbench"):
            command = [sys.executable, "-m", program, *rest]
        if rest[0] == "train":
            command += ["--set", "epochs=2"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        # Some pictures of the demonstration are damaged, and one text is no UTF-8.
        allowed = (0, 3) if rest[0] == "extract" else (0,)
        assert done.returncode in allowed, f"{line}\n{done.stdout}\n{done.stderr}"
        told.append(done.stdout)
    assert "image" in told[0] and "Picture" in told[0]
    assert "0 errors, 0 warnings" in told[2]
    pages = list((tmp_path / "report").glob("*.html"))
    assert any("freedom" in page.read_text(encoding="utf-8") for page in pages)
