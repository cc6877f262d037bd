"""Completion in bash, zsh and fish: click's own, with the names that a tool knows.

A shell calls the tool itself at each press of the key, so nothing here imports torch or pandas.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TypeAlias

import click
from click.shell_completion import CompletionItem, get_completion_class

from mmbase.cli import Command

SHELLS = ("bash", "zsh", "fish")

_PLACES = {
    "bash": "~/.local/share/bash-completion/completions/{tool}",
    "zsh": "~/.zfunc/_{tool}",
    "fish": "~/.config/fish/completions/{tool}.fish",
}
_MORE = {
    "bash": 'needs the package bash-completion; or, in ~/.bashrc: eval "$({tool} completion bash)"',
    "zsh": "needs `fpath+=~/.zfunc` before `compinit` in ~/.zshrc",
    "fish": "fish reads it from there by itself",
}

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completing(find: Callable[[click.Context], Iterable[str]], *, before: str = "") -> Complete:
    """Return what completes names, also the last one of several with commas between them.

    Args:
        find: Returns the names; called when a shell asks.
        before: What else stands before a name: `=` completes the value of NAME=VALUE.
    """

    def complete(
        ctx: click.Context, parameter: click.Parameter, typed: str
    ) -> list[CompletionItem]:
        head, comma, last = typed.rpartition(",")
        if before:
            key, sign, last = last.partition(before)
            head, comma = f"{head}{comma}{key}", sign
            if not sign:
                return []
        taken = set() if before else {*head.split(",")}
        names = (name for name in find(ctx) if name.startswith(last) and name not in taken)
        return [CompletionItem(f"{head}{comma}{name}") for name in names]

    return complete


def where(tool: str, shell: str) -> list[str]:
    """Return where the script of a shell belongs, as lines of that shell."""
    place, more = (lines[shell].format(tool=tool) for lines in (_PLACES, _MORE))
    return [f"{tool} completion {shell:<4} # > {place}", f"# {more}"]


def completion_command(tool: str, heading: str = "Examples:") -> click.Command:
    """Return the command that prints the script of a tool for a shell.

    `heading` stands above the examples of its help, as in the tool's other commands.
    """

    @click.command("completion", cls=Command)
    @click.argument("shell", type=click.Choice(SHELLS))
    @click.pass_context
    def completion(ctx: click.Context, shell: str) -> None:
        kind = get_completion_class(shell)
        assert kind is not None
        script = kind(ctx.find_root().command, {}, tool, f"_{tool}_COMPLETE".upper()).source()
        # Completed lists have commas of their own, at which fish would cut them off.
        script = script.replace('(string split ","', '(string split --max 1 ","')
        click.echo(script.strip())
        if sys.stdout.isatty():  # no script of a shell's start
            click.echo("\n".join(where(tool, shell)), err=True)

    examples = [f"  {line}" for shell in SHELLS for line in where(tool, shell)]
    completion.help = (
        "Print a script with which bash, zsh or fish completes commands, options and names.\n\n"
        "Save it where the shell looks for such scripts, and start a new shell.\n\n"
        "\b\n" + "\n".join([heading, *examples])
    )
    return completion
