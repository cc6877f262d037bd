"""The Python interface: its page runs as written, its names stay, its imports are cheap."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.conftest import REPOSITORY

import mmbench
import mmstore
import mmx

PAGE = REPOSITORY / "docs/python.md"

MMBENCH = {
    "load_dataset": "data split=None columns=None",
    "train": "model data=None * seed=None settings=None grid=None out='runs' jobs=1 executor=None "
    "restart=False track=() progress=False **choices",
    "tune": "model data=None * search sampler='tpe' pruner='none' budget=12 seed=None "
    "settings=None out='runs' jobs=1 progress=False **choices",
    "recipes": "model data=None * seed=None settings=None grid=None search=None how=None "
    "progress=False **choices",
    "evaluate": "run=None * recs=None data=None split=None columns=None slices=False **choices",
    "recommend": "run * k=20 users=None history=None include_seen=False data=None progress=False",
    "compare": "runs metrics=('Recall@20', 'nDCG@20') * baseline=None test='randomisation' "
    "correction='holm' alpha=0.05 split='test' only=() allow_mixed=False",
    "report": "runs out='report' metric=None * only=() questions=() allow_mixed=False "
    "command='mmbench.report'",
}
MMX = {
    "extract": "data=None * modality=None model=None recipe=None progress=False **choices",
    "write_demo": "out * items=800 users=1500 seed=7 space=None progress=None",
}
CLASSES = {
    mmbench: [
        "Comparisons",
        "Dataset",
        "Evaluated",
        "Evaluation",
        "Range",
        "Recipe",
        "Recommendations",
        "Report",
        "Result",
        "Runs",
    ],
    mmx: ["Extraction", "Summary"],
}  # fmt: skip


def in_words(function: Any) -> str:
    """The arguments of a function: names and defaults; `*` before those that are named only."""
    words, named = [], False
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not named:
            words.append("*")
            named = True
        stars = "**" if one.kind is one.VAR_KEYWORD else ""
        default = "" if one.default is one.empty else f"={one.default!r}"
        words.append(f"{stars}{one.name}{default}")
    return " ".join(words)


def test_the_names_are_those_of_the_page() -> None:
    assert {*mmbench.__all__} == {*MMBENCH, *CLASSES[mmbench], "errors", "__version__"}
    assert {*mmx.__all__} == {*MMX, *CLASSES[mmx], "encoders", "errors", "__version__"}
    text = PAGE.read_text(encoding="utf-8")
    for package in (mmbench, mmx):
        for name in package.__all__:
            assert name == "__version__" or re.search(rf"`(\w+\.)?{name}\b", text), name


@pytest.mark.parametrize(
    ("package", "name", "expected"),
    [(mmbench, *one) for one in MMBENCH.items()] + [(mmx, *one) for one in MMX.items()],
)
def test_signatures_stay(package: ModuleType, name: str, expected: str) -> None:
    assert in_words(getattr(package, name)) == expected


@pytest.mark.parametrize("package", [mmbench, mmx])
def test_every_name_says_what_it_is(package: ModuleType) -> None:
    """Functions say what they take and raise, classes what they hold; both in full sentences."""
    for name in package.__all__:
        one = getattr(package, name)
        if name == "__version__":
            continue
        text = inspect.getdoc(one) or ""
        assert text and text.partition("\n")[0].endswith((".", ";")), name
        if inspect.isfunction(one):
            assert "Args:" in text and "Raises:" in text, name
            for argument in inspect.signature(one).parameters:
                assert re.search(rf"^ +{argument}: \S", text, re.MULTILINE), f"{name}: {argument}"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = package.trian
    assert dir(package) == sorted(package.__all__)


def test_typed_arguments_are_the_keys_of_recipes() -> None:
    from mmbench.config import Evaluation, Recipe
    from mmbench.interface.choices import Choices, Scoring
    from mmx.config import RunConfig, SetConfig
    from mmx.interface import Choices as Extracting

    own = {"data", "model", "seed", "settings", "grid", "search", "evaluation"}
    assert {*Scoring.__annotations__} == {*Evaluation.model_fields}
    recipe = ({*Recipe.model_fields} - own) | {*Evaluation.model_fields}
    assert {*Choices.__annotations__} == recipe
    both = {*RunConfig.model_fields, *SetConfig.model_fields} - {"data", "modality", "model"}
    assert {*Extracting.__annotations__} == both


def test_imports_are_cheap() -> None:
    """No library is imported with the packages, and it costs less than a tenth of a second."""
    code = (
        "import sys, time; before = {*sys.modules}; start = time.process_time(); "
        "import mmbench, mmx, mmstore; spent = time.process_time() - start; "
        "print(spent, *({one.partition('.')[0] for one in sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    spent, *loaded = done.stdout.split()
    heavy = {"torch", "pandas", "numba", "numpy", "pydantic", "pyarrow", "h5py", "click", "rich"}
    assert not heavy & {*loaded}
    assert float(spent) < 0.1


def _require_extraction() -> None:
    for name in ("PIL", "skimage", "sklearn"):  # of the extra `extract`
        pytest.importorskip(name)


def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _require_extraction()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags)
    assert found.attempted > 20
    assert not found.failed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    _require_extraction()
    folder = tmp_path_factory.mktemp("python") / "<b>small"
    mmx.write_demo(folder, items=30, users=40)
    mmx.extract(folder, modality="visual", model="colour-hog")
    return mmbench.load_dataset(folder)


@pytest.fixture(scope="module")
def runs(dataset: Any) -> Any:
    settings = {"epochs": 2, "embedding_dim": 4}
    return mmbench.train("vbpr,most-popular", dataset, settings=settings, out=dataset.path / "runs")


def test_what_files_say_is_no_markup(runs: Any, dataset: Any) -> None:
    page = dataset._repr_html_()
    assert "&lt;b&gt;small" in page and "<b>" not in page
    for one in (runs, runs[0], mmbench.evaluate(runs[1]), mmbench.recommend(runs[0], k=2)):
        assert "<b>" not in one._repr_html_() and "<table" in one._repr_html_()
        assert str(one) == repr(one) == one.__rich__().plain
        assert isinstance(one.to_pandas(), pd.DataFrame)


def test_numbers_of_numpy_are_seeds_and_nobody_is_no_user(runs: Any, dataset: Any) -> None:
    seeds = [one.seed for one in mmbench.recipes("vbpr", dataset, seed=np.arange(1, 3))]
    assert seeds == [1, 2]
    assert mmbench.recipes("vbpr", dataset, seed=np.int64(3), progress=None)[0].seed == 3
    with pytest.raises(mmbench.errors.UsageError, match="users: names nobody"):
        mmbench.recommend(runs[0], users=[])


def test_a_table_of_anything_is_text(tmp_path: Path) -> None:
    from mmbase.tabular import Tabular

    class Odd(Tabular):
        title = "<i>\x1b[31m"

        def to_pandas(self) -> pd.DataFrame:
            values = ["<script>", "\x1b]8;;x", None, 1e-9, 12345.678, *range(30)]
            return pd.DataFrame({"<th>": values}, index=pd.Index(range(35), name="&"))

    page, text = Odd()._repr_html_(), str(Odd())
    assert "<script>" not in page and "<i>" not in page
    assert (
        "&lt;script&gt;" in page
        and "<th>&lt;th&gt;</th>" in page
        and "&amp;" in page
        and "$" not in page
    )
    assert "\x1b" not in text and r"\x1b]8;;x" in text and "12,345.7" in text
    assert text.count("\n") == 23 and "…" in text  # title, header and its name, 20 rows, the dots


def test_runs_are_what_the_command_makes(runs: Any, dataset: Any) -> None:
    from mmbench.cli import run as command

    line = f"train --model vbpr,most-popular --data {dataset.path} --out {dataset.path / 'runs'}"
    assert command([*line.split(), "--set", "epochs=2", "--set", "embedding_dim=4", "-q"]) == 0
    assert len(list((dataset.path / "runs").iterdir())) == 2  # found complete, under the same name
    by_recipe = mmbench.train(
        mmbench.recipes("vbpr", dataset, settings={"epochs": 2, "embedding_dim": 4}),
        out=dataset.path / "runs",
    )
    assert by_recipe[0].test == runs[0].test
    by_file = mmbench.train(runs[0].path / "recipe.yaml", out=dataset.path / "runs")
    assert by_file[0].path == runs[0].path
    with pytest.raises(mmbench.errors.UsageError, match="settings: the recipes say it"):
        mmbench.train(mmbench.recipes("vbpr", dataset), settings={"lr": 1})


def test_the_callers_torch_is_as_before(runs: Any) -> None:
    import torch

    from mmbase import gemm

    torch.set_deterministic_debug_mode("default")
    before = gemm._choice
    mmbench.recommend(runs[0], k=1).to_pandas()
    assert torch.get_deterministic_debug_mode() == 0
    assert gemm._choice is before


def test_a_failure_keeps_what_is_finished(dataset: Any, tmp_path: Path) -> None:
    grid = {"lr": [0.01, 1e30]}  # the second diverges
    settings = {"epochs": 3, "embedding_dim": 4}
    with pytest.raises(mmbench.errors.SomeFailed) as caught:
        mmbench.train(
            "vbpr,most-popular", dataset, settings=settings, grid={"vbpr.lr": grid["lr"]},
            out=tmp_path,
        )  # fmt: skip
    assert [run.recipe.model for run in caught.value.finished] == ["vbpr", "most-popular"]
    assert caught.value.finished[0].recipe.settings.lr == 0.01


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: mmbench.train("vbpr", "nowhere"), "nowhere: no such dataset folder"),
        (lambda: mmbench.train("vbpr", epochs=3), "unknown argument 'epochs'"),
        (lambda: mmbench.train([]), "--model is missing"),
        (lambda: mmbench.train("vbpr", grid={"lr": "0.1"}), "expected a list of values"),
        (lambda: mmbench.train("vbpr", grid={"lr": []}), "grid: lr: has no values to try"),
        (lambda: mmbench.train("vbpr", grid=[0.1]), "grid: expected a mapping"),
        (lambda: mmbench.train("vbpr", settings="lr=1"), "settings: expected a mapping, e.g."),
        (lambda: mmbench.train("vbpr", jobs="2"), "jobs = '2': expected a whole number"),
        (lambda: mmbench.load_dataset("x", columns="user"), "columns: expected a mapping"),
        (lambda: mmbench.recommend("x", k=1.5), "k = 1.5: expected a whole number"),
        (lambda: mmbench.recommend(None), "expected a run folder or a result"),
        (lambda: mmbench.evaluate(5), "expected a run folder or a result"),
        (lambda: mmbench.compare(None), "expected run folders or results"),
        (lambda: mmbench.report([5]), "expected run folders or results"),
        (lambda: mmbench.train("vbpr", "x", pattern="random"), "--pattern: there is no mask"),
        (lambda: mmbench.evaluate("nowhere"), "is nowhere a run folder"),
        (lambda: mmbench.evaluate(), "give either a run folder or"),
        (lambda: mmbench.evaluate(recs="x.tsv"), "--recs needs --data"),
        (lambda: mmbench.compare("x", test="sign"), "unknown test 'sign'"),
        (lambda: mmbench.compare("x", alpha=1.5), "between 0 and 1"),
        (lambda: mmbench.compare("x"), "no finished run here"),
        (lambda: mmx.extract("x", modality="visual"), "--model needed"),
        (lambda: mmx.extract("x", modality="visual", model="no-such"), "no such|unknown visual"),
        (lambda: mmx.extract("x", modality="visual", model="mfcc", wokers=1), "Did you mean 'work"),
        (lambda: mmx.encoders.create("nope", modality="audio"), "unknown audio model"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call: Any, expected: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((mmbench.errors.ToolError, mmstore.StoreError), match=expected):
        call()
    assert not list(tmp_path.iterdir())
