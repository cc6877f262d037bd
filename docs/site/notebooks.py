"""Hook: notebooks are run while the site is built, and become pages with what they printed.

A notebook is a Python file in `docs/notebooks/` in jupytext's percent format. No output is kept in
the repository: the pages, and the `.ipynb` files that they link to, hold what this machine
computed.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import jupytext
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbformat import NotebookNode

DOCS = Path(__file__).parents[1]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.py"))
QUIET = {"JUPYTER_PLATFORM_DIRS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
"""Say nothing about folders of settings and frozen modules."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the notebooks behind the tutorials."""
    for section in config.nav or []:
        section.get("Tutorials", []).extend(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page and an `.ipynb` per notebook."""
    with ThreadPoolExecutor() as pool:
        notebooks = pool.map(executed, [path.read_text(encoding="utf-8") for path in NOTEBOOKS])
    for path, notebook in zip(NOTEBOOKS, notebooks, strict=True):
        page, download = f"notebooks/{path.stem}.md", f"notebooks/{path.stem}.ipynb"
        files.append(File.generated(config, page, content=markdown(notebook, path.stem)))
        files.append(File.generated(config, download, content=nbformat.writes(notebook)))
    return files


@cache
def executed(source: str) -> NotebookNode:
    """Run a notebook in an empty folder, with the packages of this checkout.

    Raises:
        CellExecutionError: A cell failed; the message holds its traceback.
    """
    notebook = jupytext.reads(source, fmt="py:percent")
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    packages = [str(DOCS.parent / name) for name in ("extractor", "benchmark", "shared")]
    path = os.pathsep.join([*packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=120,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=ERROR"],
        )
        client.execute(
            env={**os.environ, **QUIET, "PYTHONPATH": path, "PATH": programs, "COLUMNS": "88"}
        )
    return notebook


def markdown(notebook: NotebookNode, name: str) -> str:
    """Write a notebook as a page; the link to its file stands under the title."""
    parts: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            if len(parts) == 1:
                parts.append(f"[Download this notebook]({name}.ipynb)")
        elif cell.source.strip():
            parts.append(fenced(cell.source, "python"))
            parts += [text for output in cell.outputs if (text := shown(output))]
    return "\n\n".join(parts) + "\n"


def shown(output: NotebookNode) -> str:
    """Write what a cell printed or returned; its richest form that a page can hold."""
    if output.output_type == "stream":
        return fenced(output.text, "text") if output.name == "stdout" else ""
    data = output.get("data", {})
    if "text/html" in data:
        plain = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        flat = "\n".join(line for line in plain.splitlines() if line.strip())
        return f'<div class="output">\n{flat}\n</div>'
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
    return fenced(data["text/plain"], "text") if "text/plain" in data else ""


def fenced(text: str, language: str) -> str:
    """Fence a text as code, also one that holds fences."""
    return f"````{language}\n{text.rstrip()}\n````"
