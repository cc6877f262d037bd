"""The picture of a report that README and docs show: `python -m tests.browser.screenshots`.

    python -m tests.browser.screenshots --work FOLDER --out docs/images/report.png

It makes the demonstration catalogue, its features and a small tuned study in FOLDER, which takes
some minutes the first time, writes the report over it, and photographs the page in Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.conftest import ARGUMENTS

FEATURES = {"visual": "colour-hog", "textual": "tfidf-lsa", "audio": "mfcc"}
WIDTH, HEIGHT = 1280, 1500


def study(work: Path) -> None:
    """Make the data and the runs; what is there already is left alone."""

    def run(tool: str, *arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=work, check=False)
        if done.returncode not in (0, 3):  # 3: some items of the catalogue are corrupt on purpose
            raise SystemExit(f"{tool} {' '.join(arguments)} failed")

    if not (work / "data/demo").exists():
        run("mmx", "demo", "--out", "data/demo")
    for modality, name in FEATURES.items():
        run("mmx", "extract", "--data", "data/demo", "--modality", modality, "--model", name)
    features = [word for one in FEATURES.items() for word in ("--features", "=".join(one))]
    common = ["--data", "data/demo", *features, "--scaling", "l2", "--seed", "1,2,3"]
    common += ["--set", "epochs=60"]
    run("mmbench", "train", "--model", "most-popular,item-knn", *common[:-2])
    grid = ["--grid", "lr=0.005,0.01", "--grid", "reg_weight=0.01,0.1"]
    run("mmbench", "train", "--model", "bpr-mf,vbpr", *common, *grid)
    grid = ["--grid", "lr=0.005,0.01", "--grid", "reg_weight=0.0001,0.001"]
    run("mmbench", "train", "--model", "lightgcn,freedom", *common, *grid)
    run("mmbench", "report", "runs", "--out", "report")


def photograph(page: Path, out: Path, *, dark: bool = False) -> None:
    """Write the top of a page as a picture."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        shown = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark" if dark else "light"
        )
        shown.goto(page.resolve().as_uri())
        shown.evaluate("window.pageReady")
        out.parent.mkdir(parents=True, exist_ok=True)
        shown.screenshot(path=out)
        browser.close()


def main() -> None:
    """Make what was asked for."""
    parser = argparse.ArgumentParser(description="Photograph a report.")
    parser.add_argument("--work", type=Path, required=True, help="where the study is kept")
    parser.add_argument("--out", type=Path, default=Path("docs/images/report.png"))
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    study(asked.work)
    photograph(asked.work / "report/demo.html", asked.out)


if __name__ == "__main__":
    main()
