"""The three recipes of CONTRIBUTING, followed to the letter outside the tree.

Each recipe is a file and a line of a registry. A plugin puts the file's folder on the path of its
package, and the line into the source of the registry when that is imported; nothing else is done.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.conftest import REPOSITORY
from tests.mmbench.conftest import write_dataset

import mmbench
from mmstore import FeatureSet

pytestmark = pytest.mark.skipif(
    not Path(mmbench.__file__).is_relative_to(REPOSITORY / "benchmark"),
    reason="the recipes extend a checkout; here an installed wheel is tested",
)

PLUGIN = r"""
import re, sys
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

HERE = Path(__file__).parent


class Registry(SourceFileLoader):
    def path_stats(self, path):
        raise OSError("the changed source has no cache")

    def get_data(self, path):
        place = "{}/{}/{}/__init__.py".format(*Path(path).parts[-4:-1])
        lines = super().get_data(path).decode().splitlines()
        new = (HERE / place).with_suffix(".line").read_text()
        start = next(n for n, line in enumerate(lines) if re.match("(MODEL|METRIC|ENCODER)S", line))
        end = next(n for n in range(start, len(lines)) if re.match("[})]", lines[n]))
        last = max(n for n in range(start, end) if lines[n].lstrip().startswith('"'))
        return "\n".join([*lines[: last + 1], new, *lines[last + 1 :]]).encode()


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        (folder,) = [one.parent for one in HERE.glob("*/*/*/__init__.line")
                     if one.parent.parts[-2:] == tuple(name.split("."))] or [None]
        if folder is None:
            return None
        spec = PathFinder.find_spec(name, path)
        spec.loader = Registry(name, spec.origin)
        spec.submodule_search_locations.append(str(folder))
        return spec


assert not {"mmbench", "mmx"} & set(sys.modules)
sys.meta_path.insert(0, Finder)
"""


class Recipe(NamedTuple):
    """What a section adds: a module and its text, a registry and its new line."""

    module: Path
    text: str
    registry: Path
    line: str


def recipe(heading: str) -> Recipe:
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    module, registry = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", section, re.DOTALL | re.M)
    assert registry[1].count("\n") == 1, "a recipe has one line in the registry"
    return Recipe(Path(module[0]), module[1], Path(registry[0]), registry[1].rstrip())


class Toy(NamedTuple):
    """A recipe, its registered name, its tests, and a defect that one of them notices."""

    heading: str
    name: str
    tests: str
    ours: str
    theirs: str
    noticed_by: str


TOYS = {
    "model": Toy(
        "Add a model",
        "two-tower",
        "tests/mmbench/models/test_conformance.py",
        "        self.projection =",
        '        self.unused = init.normal("unused", d)\n        self.projection =',
        "test_every_parameter_gets_a_gradient",
    ),
    "metric": Toy(
        "Add a metric",
        "FirstHit",
        "tests/mmbench/metrics/test_metrics.py",
        "lists.discount[lists.hits.rank]",
        "lists.hits.rank + 1.0",
        "test_a_metric_has_the_property",
    ),
    "encoder": Toy(
        "Add an encoder",
        "mean-colour",
        "tests/mmx/encoders/test_conformance.py",
        "np.stack(batch)",
        "np.stack(batch)[::-1]",
        "test_an_encoder_keeps_to_the_contract",
    ),
}
if not all(map(find_spec, ("PIL", "soundfile"))):  # the extra `extract`
    del TOYS["encoder"]
every_toy = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)


def follow(toy: Toy, folder: Path, *, defect: bool = False) -> Path:
    """Write what the recipe says below a folder, with the plugin; give the folder back."""
    new = recipe(toy.heading)
    assert new.module.parent == new.registry.parent
    assert not (REPOSITORY / new.module).exists()
    assert new.text.count(toy.ours) == 1
    module, line = folder / new.module, folder / new.registry.with_suffix(".line")
    module.parent.mkdir(parents=True)
    text = new.text.replace(toy.ours, toy.theirs) if defect else new.text
    module.write_text(text, encoding="utf-8")
    line.write_text(new.line, encoding="utf-8")
    (folder / "toys.py").write_text(PLUGIN, encoding="utf-8")
    return folder


def python(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path}, cwd=REPOSITORY, timeout=120,
    )  # fmt: skip


class Verdict(NamedTuple):
    """The tests that passed and failed, and all that pytest printed."""

    passed: list[str]
    failed: list[str]
    printed: str


def judge(folder: Path, *, defect: bool) -> Verdict:
    """Run the tests of all toys in one process, which saves two imports of torch."""
    for toy in TOYS.values():
        follow(toy, folder, defect=defect)
    done = python(
        folder, "-m", "pytest", "-p", "toys", "-p", "no:cacheprovider", "-rfp", "--tb=short",
        *(toy.tests for toy in TOYS.values()), "-k", " or ".join(toy.name for toy in TOYS.values()),
    )  # fmt: skip
    passed, failed = (
        re.findall(rf"^{result} \S+::(\S+)", done.stdout, re.MULTILINE)
        for result in ("PASSED", "FAILED")
    )
    assert done.returncode == bool(failed), done.stdout + done.stderr
    return Verdict(passed, failed, done.stdout)


def command(folder: Path, program: str, *arguments: str | Path) -> str:
    """What an installed program prints with the toy registered."""
    code = f"import sys, toys; from {program}.cli import main; sys.exit(main())"
    done = python(folder, "-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def as_documented(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    return judge(tmp_path_factory.mktemp("toys"), defect=False)


@pytest.fixture(scope="module")
def with_defects(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    return judge(tmp_path_factory.mktemp("toys"), defect=True)


@every_toy
def test_the_conformance_suite_accepts_the_toy(toy: Toy, as_documented: Verdict) -> None:
    assert not as_documented.failed, as_documented.printed
    of_toy = [test for test in as_documented.passed if toy.name in test]
    assert any(test.startswith(toy.noticed_by) for test in of_toy), as_documented.printed


@every_toy
def test_the_conformance_suite_notices_a_defect(toy: Toy, with_defects: Verdict) -> None:
    failed = [test.partition("[")[0] for test in with_defects.failed if toy.name in test]
    assert failed == [toy.noticed_by], with_defects.printed


def test_a_run_of_the_toy_model_is_scored_by_the_toy_metric(tmp_path: Path) -> None:
    for name in ("model", "metric"):
        follow(TOYS[name], tmp_path)
    data = write_dataset(tmp_path / "data")
    command(
        tmp_path, "mmbench", "train", "--model", "two-tower", "--data", data, "--set", "epochs=1",
        "--metrics", "FirstHit,Recall", "--cutoffs", "5", "--out", tmp_path / "runs", "-q",
    )  # fmt: skip
    (found,) = (tmp_path / "runs").rglob("metrics.json")
    assert '"FirstHit@5": ' in found.read_text(encoding="utf-8")


def test_the_toy_encoder_extracts_a_feature_set(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra extract")
    pytest.importorskip("soundfile", reason="needs the extra extract")
    follow(TOYS["encoder"], tmp_path)
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 51, 255))):
        image.new("RGB", (4, 3), colour).save(tmp_path / "data" / "images" / f"{name}.png")
    printed = command(
        tmp_path, "mmx", "extract", "--modality", "visual", "--model", "mean-colour",
        "--data", tmp_path / "data", "--json",
    )  # fmt: skip
    assert json.loads(printed)
    with FeatureSet(tmp_path / "data" / "features" / "visual" / "mean-colour.h5") as features:
        assert features.provenance["extractor"] == "mean-colour"
        assert features.matrix(["b"])[0].tolist() == [pytest.approx([0, 0.2, 1, 0, 0, 0])]
