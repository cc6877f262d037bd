"""The shell of both tools: lazy commands, options made from models, errors as exit codes."""

from __future__ import annotations

import errno
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field

from mmbase import cli as shell
from mmbase.errors import DataError, UsageError
from mmbase.layout import Column
from mmbase.progress import Silent
from mmbench.cli import cli as mmbench
from mmbench.commands.train import recipes_from
from mmbench.config import Evaluation, Recipe, Search, make_settings
from mmstore import StoreError
from mmx.cli import cli as mmx
from mmx.config import RunConfig, SetConfig


def walk(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and all commands below it, each with its place."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, *path, name)


COMMANDS = [
    pytest.param(root, path, command, id=" ".join((tool, *path)))
    for tool, root in (("mmx", mmx), ("mmbench", mmbench))
    for path, command in walk(root)
]


def parsed(root: click.Group, name: str, *arguments: str) -> dict[str, Any]:
    """The values that a command gets for some arguments."""
    command = root.get_command(click.Context(root), name)
    assert command is not None
    return command.make_context(name, list(arguments)).params


# ----------------------------------------------------------------------------------------------
# every command of both tools


@pytest.mark.parametrize(("root", "path", "command"), COMMANDS)
def test_debug_is_accepted_in_every_position(
    root: click.Group, path: tuple[str, ...], command: click.Command
) -> None:
    for place in range(len(path) + 1):
        line = [*path[:place], "--debug", *path[place:], "--help"]
        done = CliRunner().invoke(root, line)
        assert done.exit_code == 0, (line, done.stderr)


@pytest.mark.parametrize(
    ("root", "line", "same"),
    [
        (mmx, "--json models --modality audio", "models --modality audio --json"),
        (mmx, "--modality audio --json models", "models --modality audio --json"),
        (mmx, "--json store ls nowhere", "store ls nowhere --json"),
        (mmx, "store --json ls nowhere", "store ls nowhere --json"),
        (mmbench, "--json models vbpr", "models vbpr --json"),
        (
            mmbench,
            "-q --set lr=x train --model vbpr --data x",
            "train --model vbpr --data x -q --set lr=x",
        ),
        (mmbench, "--data train train", "train --data train"),
        (mmbench, "--nonsense train", "train --nonsense"),
        (mmbench, "train --version", "--version"),
        (mmx, "store ls --version", "--version"),
        (mmx, "store --version", "--version"),
    ],
)
def test_an_option_before_the_name_of_its_command(
    root: shell.Shell, line: str, same: str, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, texts = [], []
    for typed in (line, same):
        codes.append(shell.run(root, typed.split(), prog_name="tool"))
        texts.append(capsys.readouterr())
    assert codes[0] == codes[1]
    assert texts[0] == texts[1]
    assert "No such option" not in texts[0].err or "--nonsense" in line


@pytest.mark.parametrize(("root", "path", "command"), COMMANDS)
def test_no_command_has_more_than_twelve_parameters(
    root: click.Group, path: tuple[str, ...], command: click.Command
) -> None:
    if command.callback is not None:
        assert len(inspect.signature(command.callback).parameters) <= 12


@pytest.mark.parametrize("root", [mmx, mmbench])
def test_the_help_of_a_tool_has_a_line_for_each_command(root: shell.Shell) -> None:
    text = CliRunner().invoke(root, ["--help"]).stdout
    for name, (_, line) in root.lazy.items():
        assert f"  {name} " in text
        assert line in text


# ----------------------------------------------------------------------------------------------
# the defaults of the models are those of the command lines


@pytest.mark.parametrize(
    ("root", "name", "models", "at_least"),
    [
        (mmx, "extract", (RunConfig, SetConfig), 8),
        (mmx, "finetune", (RunConfig, SetConfig), 3),
        (mmbench, "train", (Recipe, Evaluation), 6),
        (mmbench, "tune", (Recipe, Evaluation, Search), 7),
        (mmbench, "evaluate", (Evaluation,), 1),
    ],
)
def test_the_help_shows_the_defaults_of_the_models(
    root: click.Group, name: str, models: tuple[type[BaseModel], ...], at_least: int
) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    fields = {field: info for model in models for field, info in model.model_fields.items()}
    checked = 0
    for option in command.params:
        info = fields.get(option.name or "")
        if info is None or not isinstance(option, click.Option):
            continue
        default = info.default
        if option.required or (name, option.name) == ("evaluate", "protocol"):  # the run's own
            continue
        if isinstance(default, str | int | float | Path) and not isinstance(default, bool):
            assert f"[default: {default}]" in (option.help or ""), option.name
            checked += 1
    assert checked >= at_least


def test_train_without_options_is_the_recipe_of_the_models() -> None:
    options = parsed(mmbench, "train", "--model", "vbpr", "--data", "d")
    (recipe,) = recipes_from(options, Silent())
    expected = Recipe(model="vbpr", data="d", settings=make_settings("vbpr", {}))
    assert recipe.model_dump() == expected.model_dump()
    assert recipe.digest() == expected.digest()


def test_tune_without_options_is_the_search_of_the_models() -> None:
    options = parsed(
        mmbench, "tune", "--model", "vbpr", "--data", "d", "--search", "lr=1..2", "--sampler",
        "random",
    )  # fmt: skip
    (recipe,) = recipes_from(options, Silent())
    assert recipe.search is not None
    assert (recipe.search.budget, recipe.search.sampler) == (12, "random")
    assert recipe.evaluation == Evaluation()


def test_typed_options_reach_the_recipe() -> None:
    line = "--model vbpr,bpr-mf --data d --seed 3,1 --patience 2 --cutoffs 5 --metrics Recall"
    more = "--select-by Recall@5 --set vbpr.lr=0.5 --features visual=x --approximate tf32"
    options = parsed(mmbench, "train", *line.split(), *more.split())
    recipes = recipes_from(options, Silent())
    assert [(one.model, one.seed) for one in recipes] == [
        ("vbpr", 3), ("vbpr", 1), ("bpr-mf", 3), ("bpr-mf", 1)
    ]  # fmt: skip
    evaluation = recipes[0].evaluation
    assert (evaluation.patience, evaluation.cutoffs) == (2, (5,))
    assert (evaluation.metrics, evaluation.select_by) == (("Recall",), "Recall@5")
    assert recipes[0].settings.model_dump()["lr"] == 0.5
    assert recipes[0].features == {"visual": "x"}
    assert recipes[2].features == {}
    assert recipes[0].approximate == ("tf32",)


# ----------------------------------------------------------------------------------------------
# options of any model


class Toy(BaseModel):
    kind: Literal["a", "b"] = Field("a", description="A kind.")
    number: int = Field(3, ge=1, lt=9, description="A number.")
    share: float = Field(0.5, description="A share.")
    names: tuple[str, ...] = Field(("x", "y"), description="Some names.")
    sizes: tuple[int, ...] | None = Field(None, description="Some sizes.")
    folder: Path = Field(Path("here"), description="A folder.")
    pairs: dict[str, str] = Field({}, description="Pairs.")
    flag: bool = Field(False, description="A flag.")


@click.command(cls=shell.Command)
@shell.options_of(
    Toy, number={"flags": ("--how-many", "number")}, pairs={"callback": shell.parse_pairs}
)
def toy(**options: Any) -> None:
    """Print the model."""
    click.echo(Toy(**shell.given(Toy, options)).model_dump_json(exclude_defaults=True))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "{}"),
        ("--kind b --flag", '{"kind":"b","flag":true}'),
        ("--how-many 8 --share 0", '{"number":8,"share":0.0}'),
        ("--pairs a=b,c=d --pairs e==", '{"pairs":{"a":"b","c":"d","e":"="}}'),
        ("--names u --sizes 1,2", '{"names":["u"],"sizes":[1,2]}'),
    ],
)
def test_options_from_a_model(line: str, expected: str) -> None:
    assert CliRunner().invoke(toy, line.split()).stdout.strip() == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--kind c", "'a', 'b'"),
        ("--how-many 9", "1<=x<9"),
        ("--how-many 0", "1<=x<9"),
        ("--number 1", "No such option"),
        ("--sizes 1,x", "whole numbers"),
        ("--names ,", "expected names"),
        ("--pairs a=b,c", "expected NAME=VALUE"),
        ("--share half", "not a valid float"),
    ],
)
def test_options_refuse_what_the_model_would(line: str, message: str) -> None:
    done = CliRunner().invoke(toy, line.split())
    assert done.exit_code == 2
    assert message in done.stderr


def test_the_help_is_the_description_and_the_default() -> None:
    text = " ".join(CliRunner().invoke(toy, ["--help"]).stdout.split())
    assert "--kind [a|b] A kind. [default: a]" in text
    assert "--names NAME,… Some names. [default: x,y]" in text
    assert "--pairs NAME=VALUE Pairs." in text
    assert "--flag A flag. --debug" in text


def test_a_field_that_is_renamed_is_noticed() -> None:
    with pytest.raises(TypeError, match="nothing"):
        shell.options_of(Toy, exclude=("nothing",))


# ----------------------------------------------------------------------------------------------
# groups and errors


@click.group(
    cls=shell.Shell,
    lazy={"late": ("json.tool:main", "Imported late."), "gone": ("no_such_module:x", "Absent.")},
    saved="the last step",
    saves_memory="buy some",
)
def tool() -> None:
    """A tool."""


@tool.command()
@click.argument("code", type=int, default=0)
@click.pass_context
def leave(ctx: click.Context, code: int) -> None:
    """Leave."""
    ctx.exit(code)


@tool.command()
def work() -> int:
    """Work."""
    failure()
    return 3


def failure() -> None:
    """Replaced by what fails."""


def invoke(*line: str) -> click.testing.Result:
    return CliRunner().invoke(tool, list(line), prog_name="tool")


def test_a_group_lists_commands_without_importing_them() -> None:
    sys.modules.pop("json.tool", None)
    assert "Imported late." in invoke("--help").stdout
    assert "json.tool" not in sys.modules


def test_the_closest_command_or_all() -> None:
    done = invoke("leavee")
    assert (done.exit_code, "Did you mean 'leave'?" in done.stderr) == (2, True)
    assert "Choose one of: late, gone, leave, work." in invoke("xyz").stderr


def test_exit_codes_of_commands() -> None:
    assert [invoke("leave", code).exit_code for code in ("0", "1", "130")] == [0, 1, 130]
    assert invoke("work").exit_code == 3
    assert shell.run(tool, ["leave", "7"]) == 7


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("a: b"), 1, "error: a: b"),
        (UsageError("one\ntwo"), 2, "error: one\nerror: two"),
        (StoreError("x.h5: damaged"), 1, "error: x.h5: damaged"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from the last step"),
        (PermissionError(13, "Denied", "here"), 1, "error: here: Denied"),
        (MemoryError(), 1, "error: out of memory: the machine has no more; buy some"),
        (
            RuntimeError("CUDA out of memory. Tried 2 GiB. GPU 0 is full. See the manual"),
            1,
            "error: out of memory: CUDA out of memory. Tried 2 GiB. GPU 0 is full; buy some",
        ),
        (RuntimeError("odd"), 1, "error: unexpected RuntimeError: odd; --debug shows where"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(globals(), "failure", fail)
    done = invoke("work")
    assert (done.exit_code, done.stderr.lstrip()) == (code, line + "\n")
    for words in (("--debug", "work"), ("work", "--debug")):
        done = invoke(*words)
        assert done.exit_code == code
        assert "Traceback" in done.stderr


def test_a_module_that_is_not_installed() -> None:
    done = invoke("gone")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: no_such_module is not installed; run: pip install")


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, int]] = []
    monkeypatch.setattr("os.dup2", lambda *numbers: moved.append(numbers))

    def fail() -> None:
        raise BrokenPipeError  # without a number: click itself answers EPIPE

    monkeypatch.setitem(globals(), "failure", fail)
    with Path("/dev/null").open("w") as sink:
        monkeypatch.setattr(sys, "stdout", sink)
        assert shell.run(tool, ["work"]) == 0
    assert len(moved) == 1


def test_a_reader_that_leaves_in_the_middle_ends_the_work(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setitem(globals(), "failure", fail)
    assert shell.run(tool, ["work"]) == 130
    assert capfd.readouterr() == ("", "")


def test_refused_options(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command(cls=shell.Command)
    @click.option("--size", "n", type=int, default=1)
    def command(n: int) -> None:
        shell.refuse_options(("n",), "means nothing here")

    run: Callable[..., Any] = CliRunner().invoke
    assert run(command, []).exit_code == 0
    assert str(run(command, ["--size", "1"]).exception) == "--size: means nothing here"


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    names = Column("name", ["x", "longer"], left=True)
    shell.echo_table([names], [Column("dim", ["5", ""])], title="sets")
    lines = ["sets", "", " name    dim", " " + "─" * 11, " x         5", " longer"]
    assert capsys.readouterr().out == "\n".join(lines) + "\n\n"


@pytest.mark.parametrize(
    "line",
    [
        ["report", ".", "--out", ""],
        ["train", "--model", "vbpr", "--data", ""],
        ["data", "validate", ""],
    ],
)
def test_an_empty_path_is_not_this_folder(
    line: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert shell.run(mmbench, line) == 2
    assert "the path is empty; say . for this folder" in capfd.readouterr().err


def test_without_an_output_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert shell.run(mmbench, ["metrics", "Recall"]) == 0
