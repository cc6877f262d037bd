"""Options that several commands share, and what they lead to. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mmbase.progress import Terminal

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_STORE = Path("data/demo/features")


def debug_option(command: Command) -> Command:
    """Adds --debug."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        options = ctx.find_root().obj
        if value and isinstance(options, dict):
            options["debug"] = True

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember, help="Show tracebacks."
    )(command)


def common_options(command: Command) -> Command:
    """Adds -v, -q and --debug."""
    command = debug_option(command)
    command = click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")(command)
    return click.option("-v", "--verbose", is_flag=True, help="Say more.")(command)


def store_option(command: Command) -> Command:
    """Adds --store, as `root`."""
    return click.option(
        "--store",
        "root",
        metavar="DIR",
        type=click.Path(path_type=Path),
        default=DEFAULT_STORE,
        show_default=True,
        help="The store that MODALITY/NAME is looked up in.",
    )(command)


def console(*, quiet: bool, verbose: bool = False) -> Terminal:
    """Progress on stderr, as talkative as -q and -v say."""
    from mmbase.progress import Terminal

    return Terminal(-1 if quiet else 1 if verbose else 0)
