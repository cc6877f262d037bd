"""The command-line shell of both tools: lazy commands, shared options, errors as exit codes.

Nothing heavy is imported before a command runs, so that `--help` answers at once. stdout carries
results only; notes, progress and errors go to stderr.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import click

from mmbase import layout
from mmbase.errors import INSTALL_EXTRA, ToolError, UsageError
from mmbase.layout import Column
from mmbase.process import out_of_memory
from mmbase.progress import Terminal

Function = TypeVar("Function", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
DEFAULT_DATA = Path("data/demo")
"""The synthetic demonstration catalogue, which both tools make on first use."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout instead of text."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Warnings and errors only.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="More details.")


# --------------------------------------------------------------------------------------------
# commands and groups


class Command(click.Command):
    """A command that accepts `--debug` among its own options."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.append(_debug_option())


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and listed without an import.

    Args:
        lazy: Name of a command: where it is (`module:attribute`), and its line in the group's help.
    """

    command_class = Command

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.lazy = lazy or {}
        self.params.append(_debug_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of their use."""
        return [*self.lazy, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported now if it is lazy; None if there is none of this name."""
        if cmd_name not in self.lazy:
            return self.commands.get(cmd_name)
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of the first argument; fail with the closest name if it is unknown."""
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], names, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Choose one of: {', '.join(names)}."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        rows = [(name, text) for name, (_, text) in self.lazy.items()]
        rows += [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Shell(LazyGroup):
    """The top-level group of a tool: turns errors into one line on stderr and an exit code.

    Args:
        saved: The state that the same command continues from after an interruption.
        saves_memory: Advice for the error that memory ran out.
        prepare: Called first by the installed command, to set the process up.
    """

    def __init__(
        self,
        *args: Any,
        saved: str = "",
        saves_memory: str = "",
        prepare: Callable[[], None] = lambda: None,
        **attributes: Any,
    ) -> None:
        super().__init__(*args, **attributes)
        self.saved, self.saves_memory, self.prepare = saved, saves_memory, prepare

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> NoReturn:
        """Run a command line and exit with the code of `run`."""
        self.prepare()
        sys.exit(run(self, args, *more, **options))


def run(cli: Shell, arguments: Sequence[str] | None = None, *more: Any, **options: Any) -> int:
    """Run a command line and return its exit code; an error becomes one line on stderr.

    Returns:
        0 done, 1 data or run failed, 2 usage, 3 some items failed, 130 interrupted and resumable.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _plain_warnings():
            options["standalone_mode"] = False
            code = click.Group.main(cli, arguments, *more, **options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has gone (`| head`): no more output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place for exit codes
        return _report(cli, error, debug="--debug" in arguments)
    return code if isinstance(code, int) else 0


def _report(cli: Shell, error: BaseException, *, debug: bool) -> int:
    """Print an error as one line on stderr, after its traceback with `--debug`; its exit code."""
    from mmstore.errors import StoreError

    if debug:
        traceback.print_exception(error)
    lines = str(error).splitlines() or [type(error).__name__]
    code = 1
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        click.echo(f"interrupted; the same command goes on from {cli.saved}", err=True)
        return 130
    if isinstance(error, ToolError | StoreError):
        code = getattr(error, "exit_code", 1)
    elif isinstance(error, ModuleNotFoundError):
        lines = [f"{error.name} is not installed; run: {INSTALL_EXTRA}"]
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        lines = [f"{where}{error.strerror or error}"]
    elif out_of_memory(error):
        # torch goes on with ways to tune its allocator.
        told = ". ".join(lines[0].split(". ")[:3]) if str(error) else "the machine has no more"
        lines = [f"out of memory: {told}; {cli.saves_memory}"]
    else:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        hint = "" if debug else "; --debug shows where"
        lines = [f"unexpected {type(error).__name__}: {error}{notes}{hint}"]
    for line in lines:
        click.echo(f"error: {line}", err=True)
    return code


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning of the store as one line, once, without its place in the source."""
    from mmstore.errors import StoreWarning

    with warnings.catch_warnings():
        warnings.simplefilter("default", StoreWarning)
        show = warnings.showwarning

        def plain(
            message: Warning | str, category: type[Warning], *where: Any, **more: Any
        ) -> None:
            if issubclass(category, StoreWarning):
                click.echo(f"warning: {message}", err=True)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = plain
        yield


def _debug_option() -> click.Option:
    # `run` looks for the flag in the whole command line: an error may come before it is parsed.
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."
    )


# --------------------------------------------------------------------------------------------
# options


class CommaList(click.ParamType):  # type: ignore[type-arg]  # not generic in older click
    """Values separated by commas, as a tuple without blanks around them.

    Args:
        of: The type of an element, str or int.
    """

    name = "list"

    def __init__(self, of: type = str) -> None:
        self.of = of

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what `--help` shows for a value."""
        return "N,…" if self.of is int else "NAME,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Parse the text of an option."""
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(map(self.of, split_list([value])))
        except ValueError:
            found = ()
        if not found:
            kind = "whole numbers" if self.of is int else "names"
            self.fail(f"expected {kind} separated by commas (got {value!r})", param, ctx)
        return found


def split_list(values: Sequence[str]) -> list[str]:
    """Return comma-separated and repeated values as one list."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def parse_pairs(
    ctx: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    """Parse NAME=VALUE, repeated or comma-separated: a callback of options."""
    pairs = [value.partition("=") for value in split_list(values)]
    if any(not (name and equals and value) for name, equals, value in pairs):
        raise click.BadParameter(f"expected {parameter.metavar or 'NAME=VALUE'}", ctx, parameter)
    return {name: value for name, _, value in pairs}


def options_of(
    *models: Any,
    only: Collection[str] = (),
    exclude: Collection[str] = (),
    **changes: Mapping[str, Any],
) -> Callable[[Function], Function]:
    """Decorate a command with an option for each field of pydantic models.

    The field gives the option's name, its help (the description, and the default), its choices
    (`Literal`) and its range (`ge`, `gt`, `le`); booleans become flags, tuples comma-separated
    lists, mappings repeatable NAME=VALUE. The value of an option that was not typed is None (or
    empty), so that defaults stay with the models: see `given`.

    Args:
        models: Pydantic models, in the order in which `--help` shows their fields.
        only: The fields to take; all if empty.
        exclude: Fields to leave out.
        changes: Attributes of `click.option` for single fields; `flags` replaces the names and
            `shown` the default that the help shows.
    """
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    chosen = [name for name in fields if (not only or name in only) and name not in exclude]
    if unknown := {*only, *exclude, *changes} - set(fields):
        raise TypeError(f"options_of: no such fields: {', '.join(sorted(unknown))}")

    def decorate(function: Function) -> Function:
        for name in reversed(chosen):
            attributes = {**_attributes(fields[name]), **changes.get(name, {})}
            flags = attributes.pop("flags", (f"--{name.replace('_', '-')}", name))
            shown = attributes.pop("shown", None)
            if shown and "[default" not in attributes["help"]:
                attributes["help"] += f"  [default: {shown}]"
            function = click.option(*flags, **attributes)(function)
        return function

    return decorate


def _attributes(field: Any) -> dict[str, Any]:
    """Return the `click.option` attributes that follow from a pydantic field."""
    attributes: dict[str, Any] = {"help": field.description, "default": None}
    kind = _without_none(field.annotation)
    origin = typing.get_origin(kind)
    bounds = {
        bound: value
        for rule in field.metadata
        for bound in ("ge", "gt", "le", "lt")
        if (value := getattr(rule, bound, None)) is not None
    }
    if kind is bool:
        return {"help": field.description, "is_flag": True}
    if origin is Literal:
        attributes["type"] = click.Choice(typing.get_args(kind))
    elif origin is tuple:
        attributes["type"] = CommaList(int if typing.get_args(kind)[0] is int else str)
    elif origin is dict:
        attributes |= {"multiple": True, "default": (), "metavar": "NAME=VALUE"}
    elif kind is int and bounds:
        attributes["type"] = click.IntRange(
            bounds.get("ge", bounds.get("gt")),
            bounds.get("le", bounds.get("lt")),
            min_open="gt" in bounds,
            max_open="lt" in bounds,
        )
    elif kind in (int, float):
        attributes["type"] = kind
    elif kind is Path:
        attributes["type"] = PATH
    default = field.default
    if isinstance(default, tuple):
        attributes["shown"] = ",".join(map(str, default))
    elif isinstance(default, str | int | float | Path):
        attributes["shown"] = str(default)
    return attributes


def _without_none(kind: Any) -> Any:
    """Return X of `X | None`, without annotations."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def given(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a model that were typed; the others keep the model's defaults."""
    typed = {name: options[name] for name in model.model_fields if name in options}
    # An option that was not typed is None, False (a flag) or empty; 0 is a value.
    return {
        name: value
        for name, value in typed.items()
        if value is not None and value is not False and value != ()
    }


def refuse_options(names: Collection[str], why: str) -> None:
    """Refuse options that were typed and would change nothing; call it from within a command.

    Args:
        names: Names of parameters (`test_ratio`, not `--test`).
        why: Completes `--test: `.

    Raises:
        UsageError: One of them was typed.
    """
    context = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in names and context.get_parameter_source(name) is typed:
            raise UsageError(f"{parameter.opts[0]}: {why}")


# --------------------------------------------------------------------------------------------
# output


def progress(*, quiet: bool, verbose: bool = False) -> Terminal:
    """Return the progress reporter that -q and -v ask for."""
    return Terminal(-1 if quiet else int(verbose))


def echo_json(document: Any) -> None:
    """Print one JSON document to stdout."""
    click.echo(json.dumps(document, ensure_ascii=False))


def echo_table(labels: Sequence[Column], columns: Sequence[Column], *, title: str = "") -> None:
    """Print a table to stdout, as wide as the terminal, a blank line after it; see `layout`."""
    for text in layout.tables(labels, columns):
        if title:
            click.echo(click.style(layout.hanging(title), bold=True) + "\n")
        click.echo(text + "\n")
