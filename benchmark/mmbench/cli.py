"""The command line of mmbench: parse, call one function, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from mmbase.process import out_of_memory
from mmbench import __version__
from mmbench.errors import ToolError


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called: `COMMANDS` maps a name to where it is and its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one is closest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"no command {args[0]!r}.{hint} Choose one of: {', '.join(COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


COMMANDS: dict[str, tuple[str, str]] = {
    "train": (
        "mmbench.commands.train:train",
        "Train models and print their validation and test metrics.",
    ),
    "run": ("mmbench.commands.run:run", "Run recipes: datasets, models and seeds from a file."),
    "reproduce": (
        "mmbench.commands.reproduce:reproduce",
        "Do published studies again and report ours beside theirs.",
    ),
    "tune": ("mmbench.commands.tune:tune", "Search settings on validation; score test once."),
    "evaluate": (
        "mmbench.commands.evaluate:evaluate",
        "Score a finished run, or lists made anywhere else.",
    ),
    "recommend": (
        "mmbench.commands.recommend:recommend",
        "Write what a finished run recommends, or its embeddings.",
    ),
    "compare": (
        "mmbench.commands.compare:compare",
        "Say which models are better, with tests and intervals.",
    ),
    "report": (
        "mmbench.commands.report:report",
        "Write tables and plots as Markdown, HTML, LaTeX and CSV.",
    ),
    "data": ("mmbench.commands.data:data", "Split, filter, check, import and export datasets."),
    "models": ("mmbench.commands.registries:models", "List the models and their settings."),
    "metrics": ("mmbench.commands.registries:metrics", "List the metrics with formula and source."),
}


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="mmbench")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Train and evaluate multimodal recommenders on feature stores.

    \b
    Examples:
      mmbench train --model vbpr                          # on data/demo, made on first use
      mmbench train --model vbpr --data my/catalogue --features visual=resnet50
      mmbench train --model vbpr,bpr-mf --seed 1,2,3      # mean and spread over seeds
      mmbench evaluate --recs lists.tsv --data my/catalogue
    """


def main() -> None:
    """Entry point: exit code 0 done, 1 data or run failed, 2 usage, 130 interrupted and resumable."""
    from mmbase.process import tune_process

    tune_process()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; errors become one line on stderr."""
    debug = "--debug" in arguments
    try:
        outcome: Any = cli.main(args=arguments, prog_name="mmbench", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("interrupted; the same command goes on from the last saved epoch\n")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing is left to say, and the interpreter
        # must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        code = _known(error)
        if debug or code is None:
            raise
        sys.stderr.write(f"error: {_in_words(error)}\n")
        return code
    return outcome if isinstance(outcome, int) else 0


def _in_words(error: Exception) -> str:
    if isinstance(error, ToolError) or not out_of_memory(error):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {error}"
    told = ". ".join(
        str(error).splitlines()[0].split(". ")[:3]
    )  # torch goes on with how its allocator can be tuned
    return f"{told}; less is needed with a smaller batch_size or fewer --jobs, and none of a GPU's with --device cpu"


def _known(error: Exception) -> int | None:
    """The exit code of an error whose message is meant for the user; None for any other."""
    if isinstance(error, ToolError):
        return error.exit_code
    if out_of_memory(error):
        return 1
    from mmstore import StoreError

    if isinstance(error, StoreError):
        return 1
    if isinstance(error, OSError) and error.errno is not None:
        return 1  # no space, no permission
    return None
