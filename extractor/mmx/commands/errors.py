"""What went wrong, as one line on stderr and an exit code. Nothing heavy is imported here."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from mmx.errors import INSTALL_EXTRA, ToolError


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Shows what the store warns of as one line, once, without the place in the source; other warnings as ever."""
    from mmstore import StoreWarning

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


def report(error: BaseException, *, debug: bool) -> int:
    """Prints an error as one line on stderr and gives its exit code; with `--debug` the traceback comes first."""
    from mmstore import StoreError

    if debug:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        click.echo("interrupted; the same command goes on from what is saved", err=True)
        return 130
    if isinstance(error, ToolError | StoreError):
        for line in str(error).splitlines() or [type(error).__name__]:
            click.echo(f"error: {line}", err=True)
        return error.exit_code if isinstance(error, ToolError) else 1
    if isinstance(error, ModuleNotFoundError):
        click.echo(f"error: {error.name} is not installed; run: {INSTALL_EXTRA}", err=True)
        return 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {where}{error.strerror or error}", err=True)
        return 1
    from mmbase.process import out_of_memory

    if out_of_memory(error):
        told = ". ".join(
            (str(error).splitlines() or ["the machine has no more"])[0].split(". ")[:3]
        )
        click.echo(
            f"error: out of memory: {told}; a smaller --batch-size needs less, --device cpu none "
            "of a GPU's",
            err=True,
        )
        return 1
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    hint = "" if debug else "; --debug shows where"
    click.echo(f"error: unexpected {type(error).__name__}: {error}{notes}{hint}", err=True)
    return 1
