"""What a release is made of: one version, metadata that installs anywhere, its files."""

from __future__ import annotations

import configparser
import re
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import REPOSITORY

import mmbase
import mmbench
import mmx

pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "pyproject.toml").is_file(), reason="not in a checkout"
)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    document = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(document)


def test_there_is_one_version(project: dict[str, Any]) -> None:
    assert mmx.__version__ == mmbench.__version__ == mmbase.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", mmbase.__version__)
    assert "version" not in project["project"]
    path = project["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{mmbase.__version__}"' in (REPOSITORY / path).read_text()
    elsewhere = [
        str(file.relative_to(REPOSITORY))
        for folder in ("extractor", "benchmark", "shared")
        for file in (REPOSITORY / folder).rglob("*.py")
        if re.search(r'^__version__ = "', file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert elsewhere == [path]


def test_the_citation_is_complete() -> None:
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= cited.keys()
    assert cited["version"] == mmbase.__version__
    licence = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert cited["license"] == licence.split()[0] == "MIT"
    assert cited["authors"] == [{"name": "mmx + mmbench contributors"}]
    assert "The mmx + mmbench contributors" in licence


def test_reports_of_vulnerabilities_go_where_nobody_else_reads_them() -> None:
    page = (REPOSITORY / ".github/SECURITY.md").read_text(encoding="utf-8")
    assert "private vulnerability report" in page
    assert not re.search(r"\S@\S", page)


def test_github_runs_what_ci_runs(project: dict[str, Any]) -> None:
    text = (REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    runs = [step["run"] for step in jobs["linux"]["steps"] if "run" in step]
    assert runs == [".ci/run"]
    for target in re.findall(r"^make (\S+)", (REPOSITORY / ".ci/run").read_text(), re.MULTILINE):
        assert f"`make {target}`" in text
    supported = re.findall(r"Python :: (3\.\d+)'", str(project["project"]["classifiers"]))
    assert jobs["linux"]["strategy"]["matrix"]["python"] == supported


def test_the_container_installs_offline_what_there_is(project: dict[str, Any]) -> None:
    text = (REPOSITORY / ".ci/Containerfile").read_text(encoding="utf-8")
    assert "--no-index --find-links /wheels" in text
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)", text, re.MULTILINE)
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
    assert f".[{extras}]" in text  # the wheels that the comment makes are those that it takes
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)


def test_the_wheel_is_pure_and_has_both_commands(tmp_path: Path) -> None:
    build = pytest.importorskip("hatchling.builders.wheel", reason="no hatchling here")
    (path,) = build.WheelBuilder(str(REPOSITORY)).build(
        directory=str(tmp_path), versions=["standard"]
    )
    assert Path(path).name == f"mmx_mmbench-{mmbase.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        scripts = configparser.ConfigParser()
        scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert metadata["Version"] == mmbase.__version__
    assert metadata["License-Expression"] == "MIT" and metadata["Requires-Python"] == ">=3.11"
    assert {*scripts["console_scripts"]} == {"mmx", "mmbench"}
    needed = [name for name in metadata.get_all("Requires-Dist") if "extra ==" not in name]
    assert len(needed) == 13 and not any(";" in name or "@" in name for name in needed)
    assert not any(name.endswith((".so", ".pyd", ".dll")) for name in names)
    tracked = {"mmx/py.typed", "mmbench/py.typed", "mmstore/py.typed", "mmstore/FORMAT.md"}
    assert tracked <= names and f"{info}/licenses/LICENSE" in names


def test_the_sdist_has_what_is_needed_to_build_and_to_cite(tmp_path: Path) -> None:
    import tarfile

    build = pytest.importorskip("hatchling.builders.sdist", reason="no hatchling here")
    (path,) = build.SdistBuilder(str(REPOSITORY)).build(
        directory=str(tmp_path), versions=["standard"]
    )
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md"} <= names
    assert {"shared/mmbase/__init__.py", "extractor/mmx/cli.py", "tests/conftest.py"} <= names


def test_a_version_decides_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the release before is found by the same command."""
    from tests.mmbench.conftest import write_dataset

    from mmbench.config import Recipe
    from mmbench.models.vbpr import VBPRConfig
    from mmbench.runs.inputs import load_inputs
    from mmbench.runs.run import run_folder

    data = write_dataset(tmp_path / "toy", reviews=False)
    recipe = Recipe(model="vbpr", data=str(data), settings=VBPRConfig())

    def told() -> Path:
        return run_folder(tmp_path, *load_inputs(recipe)).path

    before = told()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("mmx", "mmbench", "mmbase") and hasattr(module, "__version__"):
            monkeypatch.setattr(module, "__version__", "99.0.0")
    assert told() == before
