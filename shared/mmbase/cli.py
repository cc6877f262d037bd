"""The command-line shell of both tools: lazy commands, shared options, errors as exit codes.

Nothing heavy is imported before a command runs, so that `--help` answers at once. stdout carries
results only; notes, progress and errors go to stderr.
"""

from __future__ import annotations

import copy
import difflib
import errno
import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from mmbase import layout
from mmbase.errors import INSTALL_EXTRA, ToolError, UsageError
from mmbase.layout import Column
from mmbase.parameters import FOLDER as FOLDER
from mmbase.parameters import PATH as PATH
from mmbase.parameters import CommaList as CommaList
from mmbase.parameters import attributes_of
from mmbase.parameters import split_list as split_list
from mmbase.process import out_of_memory, sigterm_as_interrupt
from mmbase.progress import Terminal

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])

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
    """A command that accepts `--debug` and `--version` among its own options."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.append(_debug_option())

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters, `--version` of the tool among them."""
        return [*super().get_params(ctx), *_version_option(self, ctx)]


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and listed without an import.

    Options of a command may also stand before its name.

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

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters, `--version` of the tool among them."""
        return [*super().get_params(ctx), *_version_option(self, ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the group's options; move other options before a command's name behind it."""
        place = next((n for n, arg in enumerate(args) if arg in self.list_commands(ctx)), None)
        if place is not None:
            own = {name for one in self.get_params(ctx) for name in one.opts}
            before, name, after = args[:place], args[place], args[place + 1 :]
            kept = [arg for arg in before if arg in own]
            args = [*kept, name, *(arg for arg in before if arg not in own), *after]
        return super().parse_args(ctx, args)

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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands, without importing them, and the options that begin so."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=text)
            for name, text in self.rows()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def rows(self) -> list[tuple[str, str]]:
        """Return the names of the commands, each with its line in the group's help."""
        rows = [(name, text) for name, (_, text) in self.lazy.items()]
        shown = ((name, one) for name, one in self.commands.items() if not one.hidden)
        return [*rows, *((name, command.get_short_help_str(80)) for name, command in shown)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(self.rows())


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
        sigterm_as_interrupt()
        sys.exit(run(self, args, *more, **options))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; when the reader of its output has gone, it ends as if interrupted."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            _drop_output()  # click would answer with 1, as if something had failed
            raise click.exceptions.Exit(130) from error


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
        if sys.stdout is not None:  # it was closed: `>&-`
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has gone (`| head`): no more output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place for exit codes
        return _report(cli, error, debug="--debug" in arguments)
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """Send what is still printed, also by the interpreter at its end, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())


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
        with suppress(OSError):  # the terminal may be gone
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


def _version_option(command: click.Command, ctx: click.Context) -> list[click.Parameter]:
    """Return the tool's `--version` for a command below it; its help does not repeat it."""
    root = ctx.find_root().command
    found = [] if root is command else [one for one in root.params if one.name == "version"]
    copies = [copy.copy(one) for one in found]
    for one in copies:
        one.hidden = True  # type: ignore[attr-defined]  # it is an Option
    return copies


def _debug_option() -> click.Option:
    # `run` looks for the flag in the whole command line: an error may come before it is parsed.
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."
    )


# --------------------------------------------------------------------------------------------
# options


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
            attributes = {**attributes_of(fields[name]), **changes.get(name, {})}
            flags = attributes.pop("flags", (f"--{name.replace('_', '-')}", name))
            shown = attributes.pop("shown", None)
            if shown and "[default" not in attributes["help"]:
                attributes["help"] += f"  [default: {shown}]"
            function = click.option(*flags, **attributes)(function)
        return function

    return decorate


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


def echo_json(document: Mapping[str, Any], schema: str) -> None:
    """Print one JSON object to stdout, its `schema`, a name and a version, first."""
    click.echo(json.dumps({"schema": schema, **document}, ensure_ascii=False))


def echo_table(labels: Sequence[Column], columns: Sequence[Column], *, title: str = "") -> None:
    """Print a table to stdout, as wide as the terminal, a blank line after it; see `layout`."""
    for text in layout.tables(labels, columns):
        if title:
            click.echo(click.style(layout.hanging(title), bold=True) + "\n")
        click.echo(text + "\n")
