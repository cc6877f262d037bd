from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mmbase.cli import given
from mmstore import FeatureSet, StoreError, StoreWarning
from mmx.cli import cli
from mmx.config import RunConfig, SetConfig
from mmx.errors import INSTALL_EXTRA, Interrupted, ToolError, UsageError
from mmx.extraction.plan import BATCH_SIZES


def mmx_run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="mmx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            root / "images" / f"{name}.png"
        )
    (root / "items.tsv").write_text(
        "item_id\ttitle\na\tred lamp\nb\tblue lamp\nc\tred chair\n", encoding="utf-8"
    )
    return root


def visual(data: Path, *more: str | Path) -> Result:
    return mmx_run(
        "extract", "--modality", "visual", "--model", "colour-hog", "--data", data, *more
    )


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, mmx.cli; heavy = {'numpy', 'torch', 'h5py', 'pandas', 'pyarrow', 'pydantic', "
        "'rich', 'yaml'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exit_0_the_result_is_on_stdout_and_the_rest_on_stderr(data: Path) -> None:
    result = visual(data)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{data}/features/visual/colour-hog.h5\n"
    assert "3 ok, 0 missing, 0 corrupt" in result.stderr
    assert visual(data, "--quiet").stderr == ""


def test_json_is_one_document(data: Path) -> None:
    result = visual(data, "--json")
    assert json.loads(result.stdout)["items"]["ok"] == 3


def test_exit_1_no_such_data(tmp_path: Path) -> None:
    result = visual(tmp_path / "absent")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_exit_1_another_plan_is_in_the_way(data: Path) -> None:
    visual(data)
    result = visual(data, "--batch-size", "7")
    assert result.exit_code == 1
    assert "--restart" in result.stderr
    assert visual(data, "--batch-size", "7", "--restart").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract"], "--modality and --model needed"),
        (["extract", "--modality", "visual"], "--model needed"),
        (["extract", "--modality", "visula", "--model", "x"], "visula"),
        (["extract", "--modality", "visual", "--model", "colour-hgo"], "Did you mean 'colour-hog'"),
        (["extract", "--modality", "audio", "--model", "colour-hog"], "--modality visual"),
        (
            ["extract", "--modality", "visual", "--model", "colour-hog", "--max-failures", "x"],
            "--max-failures",
        ),
        (
            ["extract", "--modality", "visual", "--model", "colour-hog", "--batch-size", "0"],
            "--batch-size",
        ),
        (
            ["extract", "--modality", "visual", "--model", "colour-hog", "--workers", "many"],
            "--workers",
        ),
        (
            ["extract", "--modality", "visual", "--model", "colour-hog", "--device", "gpu"],
            "--device",
        ),
        (
            ["extract", "--modality", "visual", "--model", "colour-hog", "--id-column", "itemid"],
            "Did you mean 'item_id'",
        ),
        (
            ["extract", "--modality", "textual", "--model", "tfidf-lsa", "--text-columns", "titel"],
            "Did you mean 'title'",
        ),
        (["extract", "--no-such-flag"], "No such option"),
        (["extract", "absent.yaml"], "cannot be read"),
        (["extrat"], "Did you mean 'extract'"),
        (["models", "--modality", "smell"], "smell"),
        (["demo", "--items", "0"], "--items"),
    ],
)
def test_exit_2_usage(data: Path, arguments: list[str], message: str) -> None:
    where = ["--data", str(data)] if arguments[0] == "extract" and len(arguments) > 2 else []
    result = mmx_run(*arguments, *where)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_exit_3_finished_but_some_items_failed(data: Path) -> None:
    (data / "images" / "b.png").write_bytes(b"")
    result = visual(data)
    assert result.exit_code == 3
    assert "2 ok, 0 missing, 1 corrupt" in result.stderr
    assert "  b: " in result.stderr
    assert visual(data).exit_code == 3  # also when it was complete before


def test_a_corrupt_item_stops_the_run_when_asked_to(data: Path) -> None:
    (data / "images" / "b.png").write_bytes(b"")
    result = visual(data, "--on-error", "fail")
    assert result.exit_code == 1
    assert "item 'b'" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ToolError("a: b"), 1, "error: a: b\n"),
        (UsageError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (StoreError("x.h5: damaged"), 1, "error: x.h5: damaged\n"),
        (Interrupted("stopped"), 130, "error: stopped\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
            1,
            f"torchvision is not installed; run: {INSTALL_EXTRA}",
        ),
        (PermissionError(13, "Permission denied", "here"), 1, "error: here: Permission denied\n"),
        (RuntimeError("odd"), 1, "error: unexpected RuntimeError: odd; --debug shows where\n"),
        (
            RuntimeError(
                "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 is full. Including 3 MB of "
                "others. See …"
            ),
            1,
            "error: out of memory: CUDA out of memory. Tried to allocate 2 GiB. GPU 0 is full; "
            "a smaller --batch-size needs less, --device cpu none of a GPU's\n",
        ),
    ],
)
def test_every_error_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("mmx.encoders.describe", fail)
    result = mmx_run("models")
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in mmx_run("models", "--debug").stderr


@pytest.mark.parametrize(
    "command", [["fetch", "amazon-2014/offce"], ["finetune"], ["store", "ls"], ["fuse"]]
)
def test_every_command_has_debug(command: list[str]) -> None:
    """The message of an unexpected error recommends it."""
    assert "No such option" not in mmx_run(*command, "--debug").stderr


def test_warnings_of_the_store_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*args: Any, **kwargs: Any) -> list[Any]:
        warnings.warn("begun anew", StoreWarning, stacklevel=2)
        return []

    monkeypatch.setattr("mmx.encoders.describe", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert mmx_run("models").stderr == "warning: begun anew\n"


def test_a_recipe_makes_several_sets_and_flags_about_the_run_go_first(
    data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"data: {tmp_path}/elsewhere\nsets:\n- {{modality: visual, model: colour-hog}}\n"
        "- {modality: textual, model: tfidf-lsa, text_columns: [title]}\n",
        encoding="utf-8",
    )
    result = mmx_run("extract", recipe, "--data", data, "--json")
    assert result.exit_code == 0, result.stderr
    assert [one["name"] for one in json.loads(result.stdout)["sets"]] == ["colour-hog", "tfidf-lsa"]
    refused = mmx_run("extract", recipe, "--model", "mfcc")
    assert refused.exit_code == 2
    assert "--model: belongs into the recipe" in refused.stderr


def test_one_set_that_fails_does_not_keep_the_others_from_being_made(
    data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"data: {data}\nsets:\n- {{modality: audio, model: mfcc}}\n- {{modality: visual, model: "
        "colour-hog}\n",
        encoding="utf-8",
    )
    result = mmx_run("extract", recipe, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [one["model"] for one in document["failed"]] == ["mfcc"]
    assert [one["name"] for one in document["sets"]] == ["colour-hog"]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")]
)
def test_a_set_that_memory_is_too_small_for_does_not_keep_the_others_from_being_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fit(*_: object) -> None:
        raise error

    monkeypatch.setattr("mmx.encoders.handcrafted.TfidfLsaEncoder.fit", fit)
    recipe = tmp_path / "r.yaml"
    sets = "[{modality: textual, model: tfidf-lsa}, {modality: visual, model: colour-hog}]"
    recipe.write_text(f"data: {data}\nsets: {sets}\n")
    result = mmx_run("extract", recipe, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [one["error"] for one in document["failed"]] == [str(error) or "MemoryError"]
    assert [one["name"] for one in document["sets"]] == ["colour-hog"]


def test_a_zero_on_the_command_line_goes_before_the_recipe(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"data: {data}\nseed: 3\nsets: [{{modality: textual, model: tfidf-lsa}}]\n")
    assert mmx_run("extract", recipe, "--seed", "0").exit_code == 0
    with FeatureSet(data / "features/textual/tfidf-lsa.h5") as features:
        assert features.provenance["preprocessing"]["seed"] == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            "modality: visual, model: colour-hog",
            "modality: visual, model: colour-hog, store_dtype: float16",
        ),
        (
            "modality: visual, model: colour-hog",
            "modality: visual, model: colour-hog, batch_size: 2",
        ),
    ],
    ids=["made together", "one after the other"],
)
def test_a_set_of_a_recipe_never_replaces_another_one_of_it(
    data: Path, tmp_path: Path, first: str, second: str
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"data: {data}\nsets:\n  - {{{first}}}\n  - {{{second}}}\n")
    result = mmx_run("extract", recipe, "--restart")
    assert result.exit_code == 1
    assert "another set of this run has that name" in result.stderr
    assert result.stdout.count("colour-hog.h5") == 1
    with FeatureSet(data / "features/visual/colour-hog.h5") as features:
        assert features.dtype == np.float32
        assert features.provenance["batch_size"] != 2


def test_the_demo_is_generated_when_the_default_data_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mmx.demo.write_demo", lambda out, **options: (out.parent.mkdir(), data.rename(out))
    )
    data = data.rename(tmp_path / "made")
    result = mmx_run("extract", "--modality", "visual", "--model", "colour-hog")
    assert result.exit_code == 0, result.stderr
    assert "generating" in result.stderr.splitlines()[0]
    assert result.stdout == "data/demo/features/visual/colour-hog.h5\n"


def test_demo_writes_a_small_catalogue(tmp_path: Path) -> None:
    result = mmx_run("demo", "--out", tmp_path / "d", "--items", "24", "--users", "30", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{tmp_path}/d\n"
    assert (tmp_path / "d" / "items.tsv").is_file()


def test_models_as_table_and_json() -> None:
    table = mmx_run("models", "--modality", "audio").stdout.splitlines()
    assert table[0].split()[:3] == ["model", "modality", "dim"]
    assert any(line.split()[:3] == ["mfcc", "audio", "300"] for line in table)
    assert max(map(len, mmx_run("models").stdout.splitlines())) <= 100
    assert "licence" in mmx_run("models", "--modality", "audio", "--verbose").stdout
    document = json.loads(mmx_run("models", "--json").stdout)
    assert document["schema"] == "mmx.models 1.0"
    names = {info["name"]: info for info in document["models"]}
    assert names["colour-hog"]["dim"] == 452


def test_doctor_says_what_is_here(tmp_path: Path) -> None:
    result = mmx_run("doctor", "--data", tmp_path / "not" / "yet", "--json")
    findings = json.loads(result.stdout)
    assert findings["disk_free_bytes"] > 0
    assert findings["devices"][0].startswith("cpu: ")
    assert result.exit_code == (1 if findings["problems"] else 0)
    assert "packages" in mmx_run("doctor", "--data", tmp_path).stdout


def test_doctor_names_mistakes_of_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/IMG_1.jpg").write_bytes(b"x")
    (tmp_path / "items.csv").write_text("item_id,title\na,one\nb ,two\n")
    found = json.loads(mmx_run("doctor", "--data", tmp_path, "--json").stdout)["data"]
    assert [(one["name"], one["severity"]) for one in found] == [
        ("picture-names", "error"), ("id-blanks", "warning"),
    ]  # fmt: skip
    result = mmx_run("doctor", "--data", tmp_path)
    assert result.exit_code == 1
    assert "fix: name files <item_id>.<extension>" in result.stdout
    (tmp_path / "images/IMG_1.jpg").rename(tmp_path / "images/a.jpg")
    assert mmx_run("doctor", "--data", tmp_path).exit_code == 3
    result = mmx_run("doctor", "--data", tmp_path / "images")
    assert result.exit_code == 1 and f"take {tmp_path.as_posix()}" in " ".join(
        result.stdout.split()
    )


def test_doctor_says_why_a_gpu_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    def fail(index: int) -> str:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 12020). Please update …"
        )

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # as the driver counts
    monkeypatch.setattr(torch.cuda, "get_device_name", fail)
    result = mmx_run("doctor", "--data", tmp_path)
    assert "problem: cuda:0 cannot be used by torch" in result.stdout
    assert "driver on your system is too old" in result.stdout


def test_doctor_says_how_to_install_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mmx.commands.doctor

    packages = {
        **mmx.commands.doctor._PACKAGES,
        "no-such-package": ("no_such_package", "extract", "a test"),
    }
    monkeypatch.setattr(mmx.commands.doctor, "_PACKAGES", packages)
    result = mmx_run("doctor", "--data", tmp_path)
    assert result.exit_code == 1
    assert f"problem: no-such-package missing; run: {INSTALL_EXTRA}" in result.stdout


def commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def test_every_help_has_examples_and_every_short_line_fits() -> None:
    top = mmx_run("--help").stdout
    assert max(map(len, top.splitlines())) <= 80
    for name in commands():
        assert f"  {name} " in top
        assert "EXAMPLES" in mmx_run(name, "--help").stdout, name


def test_the_defaults_in_the_help_are_the_defaults() -> None:
    defaults = {**RunConfig.model_fields, **SetConfig.model_fields}
    options = [one for one in commands()["extract"].params if isinstance(one, click.Option)]
    helps = {one.name: one.help or "" for one in options if one.name in defaults}
    assert set(helps) == set(defaults)
    for name, text in helps.items():
        default = defaults[name].default
        if isinstance(default, str | Path | int) and not isinstance(default, bool):
            assert f"[default: {default}]" in text, name
    sizes = {size for of_device in BATCH_SIZES.values() for size in of_device.values()}
    assert all(str(size) in helps["batch_size"] for size in sizes)


def test_options_that_are_not_typed_keep_the_defaults_of_the_models() -> None:
    command = commands()["extract"]
    values = command.make_context("extract", []).params
    assert given(RunConfig, values) == given(SetConfig, values) == {}
    values = command.make_context("extract", ["--batch-size", "auto", "--seed", "0"]).params
    assert (given(RunConfig, values), given(SetConfig, values)) == ({"seed": 0}, {})


@pytest.mark.parametrize("command", ["demo", "finetune"])
def test_a_seed_that_no_library_takes_is_a_matter_of_the_command_line(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--seed", str(2**32)])
    assert result.exit_code == 2
    assert "--seed" in result.stderr


def test_a_path_that_leads_out_of_the_folder_is_a_corrupt_item(data: Path, tmp_path: Path) -> None:
    (data / "images" / "a.png").rename(tmp_path / "outside.png")
    (data / "images" / "c.png").rename(data / "inside.png")
    (data / "items.tsv").write_text(
        "item_id\timage\na\t../outside.png\nb\t\nc\tinside.png\n", encoding="utf-8"
    )
    result = visual(data)
    assert result.exit_code == 3
    assert "2 ok, 0 missing, 1 corrupt" in result.stderr
    assert "  a: ../outside.png: leads out of the dataset folder" in result.stderr


def test_an_item_that_is_there_twice_is_named_with_both_lines(data: Path) -> None:
    (data / "items.tsv").write_bytes(b"\xef\xbb\xbfitem_id\ttitle\r\na\tx\r\nb\ty\r\na\tz\r\n")
    result = visual(data)
    assert result.exit_code == 1
    assert "items.tsv: item_id 'a' occurs twice (lines 2 and 4)" in result.stderr
    assert not (data / "features").exists()
