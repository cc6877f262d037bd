"""The command line of mmx: parse, call one function, print one result.

Nothing heavy is imported here; commands import what they need when they run, so that `--help`
answers at once. stdout carries results only; notes, progress and summaries go to stderr.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mmx import __version__
from mmx.commands.errors import plain_warnings, report
from mmx.commands.options import common_options, console
from mmx.errors import ToolError, UsageError

if TYPE_CHECKING:
    from mmbase.progress import Terminal
    from mmx.config import Recipe, RunConfig, SetConfig
    from mmx.extraction.summary import Summary

DEFAULT_DATA = Path("data/demo")

_LAZY = {
    "finetune": (
        "mmx.commands.finetune:finetune",
        "Adapt an encoder to a catalogue by its training interactions.",
    ),
    "fetch": (
        "mmx.commands.fetch:fetch",
        "Download a public collection and convert it to a dataset folder.",
    ),
    "fuse": ("mmx.commands.fuse:fuse", "Join several feature sets of the same items into one."),
    "store": ("mmx.commands.store:store", "List, check, import, export and compare feature sets."),
}
"""Commands of other modules: where they are, and their line in `mmx --help`."""


class Commands(click.Group):
    """A group that imports a lazy command when it is called, and turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which one needs them."""
        return [*self.commands, *_LAZY]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now if it is a lazy one."""
        if cmd_name not in _LAZY:
            return self.commands.get(cmd_name)
        module, _, attribute = _LAZY[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first argument; an unknown one is answered with the closest name."""
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            close = difflib.get_close_matches(args[0], names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        rows = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        rows += [(name, text) for name, (_, text) in _LAZY.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Runs a command line and exits: 0 done, 1 failed, 2 usage, 3 some items failed, 130 interrupted."""
        options = {"debug": False}
        kwargs["standalone_mode"] = False
        kwargs.setdefault("obj", options)
        try:
            with plain_warnings():
                code = super().main(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of a pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place that turns errors into codes
            code = report(error, debug=options["debug"])
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: mmx extract --modality visual --model colour-hog",
)
@click.version_option(__version__, prog_name="mmx")
def cli() -> None:
    """Extract visual, textual and audio features of items into HDF5 feature sets."""


@cli.command(short_help="Compute the features of a dataset's items.", epilog=" ")
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option(
    "--modality", type=click.Choice(["visual", "textual", "audio"]), help="What is looked at."
)
@click.option("--model", metavar="NAME", help="The encoder; `mmx models` lists them.")
@click.option(
    "--data", metavar="DIR", type=click.Path(path_type=Path), help="Dataset folder  [data/demo]."
)
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Feature store  [DATA/features]."
)
@click.option("--name", metavar="NAME", help="Name of the set  [from the encoder].")
@click.option("--layer", metavar="NAME", help="Layer whose output is taken  [the encoder's].")
@click.option("--pooling", metavar="NAME", help="How several vectors become one  [the encoder's].")
@click.option(
    "--weights",
    metavar="W",
    help="default, random, a path, a tag, or HUB_ID[@revision]  [default].",
)
@click.option(
    "--text-columns", metavar="A,B", help="Text columns, joined by a blank  [title, brand, ...]."
)
@click.option(
    "--text-template",
    metavar="T",
    help="lattice, catalogue, or '{title} by {brand}'  [columns joined].",
)
@click.option(
    "--path-column", metavar="C", help="Column of image or audio paths  [image, audio, ...]."
)
@click.option(
    "--source",
    type=click.Choice(["item", "interaction"]),
    help="interaction: a vector for each review  [item].",
)
@click.option(
    "--user-column", metavar="C", help="Column of users, with --source interaction  [user_id]."
)
@click.option(
    "--several",
    type=click.Choice(["mean", "ragged"]),
    help="All files of an item: their mean, or each one.",
)
@click.option(
    "--path-separator", metavar="S", help="Between two paths of one cell, with --several."
)
@click.option(
    "--long-texts",
    type=click.Choice(["truncate", "mean", "ragged", "error"]),
    help="Texts longer than the encoder takes: cut off, in pieces, or corrupt  [truncate].",
)
@click.option(
    "--items-file", metavar="FILE", help="Items table inside the dataset folder  [items.*]."
)
@click.option("--id-column", metavar="C", help="Column of item ids  [item_id].")
@click.option(
    "--batch-size",
    metavar="auto|N",
    help="Items per forward pass  [auto: 32, audio 8; GPU 128, texts 256, audio 16].",
)
@click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:0, mps  [auto].")
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of the forward pass  [fp32]."
)
@click.option(
    "--store-dtype",
    type=click.Choice(["float32", "float16"]),
    help="Of the stored vectors  [float32].",
)
@click.option(
    "--workers",
    metavar="auto|N",
    help="Threads that load and, on the CPU, encode  [auto: one per processor].",
)
@click.option(
    "--on-error", type=click.Choice(["skip", "fail"]), help="What one corrupt item does  [skip]."
)
@click.option(
    "--max-failures",
    metavar="N|P%",
    help="More corrupt items stop the run; a share allows at least 10  [1%].",
)
@click.option("--retry-failed", is_flag=True, help="Try corrupt and missing items again.")
@click.option("--restart", is_flag=True, help="Start anew, whatever is there.")
@click.option(
    "--limit", metavar="N", type=int, help="Only the first N items, into a set of their own."
)
@click.option("--seed", metavar="N", type=int, help="Of random weights and fitted encoders  [0].")
@click.option("--offline", is_flag=True, help="Never open a connection.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@common_options
@click.pass_context
def extract(
    ctx: click.Context,
    /,
    *,
    recipe: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **typed: Any,
) -> None:
    """Compute the features of a dataset's items, one set at a time or all those of a RECIPE.

    The same command goes on where an interrupted one stopped, and does nothing when the set is
    complete. Items without content are recorded as missing, undecodable ones as corrupt with the
    reason (exit code 3).

    \b
    EXAMPLES
      mmx extract --modality visual --model resnet50
      mmx extract --modality textual --model tfidf-lsa --data data/books --text-columns title,authors
      mmx extract --modality audio --model mfcc --data data/clips --workers 4
      mmx extract --modality visual --model resnet50 --weights random --limit 100 --json
      mmx extract recipes/extract/demo.yaml
    """
    from mmbase.process import tune_process

    tune_process(one_arena=True)
    with console(quiet=quiet, verbose=verbose) as progress:
        run, sets = _what_to_extract(recipe, typed)
        _demo_when_absent(run.data, progress)
        done, failed = _extract_all(run, sets, progress)
    if as_json:
        single = recipe is None and done
        failures = [
            {"modality": one.modality, "model": one.model, "error": reason}
            for one, reason in failed
        ]
        click.echo(
            json.dumps(
                done[0].as_json()
                if single
                else {"sets": [s.as_json() for s in done], "failed": failures}
            )
        )
    else:
        for summary in done:
            click.echo(summary.path.as_posix())
    ctx.exit(1 if failed else max((summary.exit_code for summary in done), default=0))


def _what_to_extract(
    recipe: Path | None, typed: dict[str, Any]
) -> tuple[RunConfig, tuple[SetConfig, ...]]:
    """The run and its sets, from a recipe or from flags; flags about the run go before what a recipe says."""
    from mmx.config import RunConfig, SetConfig, from_options, load_recipe

    given = {
        name: value for name, value in typed.items() if value is not None and value is not False
    }
    for name in ("batch_size", "workers"):
        if given.get(name) == "auto":
            del given[name]
    if "text_columns" in given:
        given["text_columns"] = tuple(
            name.strip() for name in given["text_columns"].split(",") if name.strip()
        )
    about_run = {name: value for name, value in given.items() if name in RunConfig.model_fields}
    about_set = {name: value for name, value in given.items() if name in SetConfig.model_fields}
    if recipe is not None:
        if about_set:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in about_set)
            raise UsageError(f"{flags}: belongs into the recipe {recipe}, under one of its sets")
        parsed: Recipe = load_recipe(recipe)
        return from_options(RunConfig, {**parsed.run().model_dump(), **about_run}), parsed.sets
    absent = [f"--{name}" for name in ("modality", "model") if name not in about_set]
    if absent:
        raise UsageError(
            f"{' and '.join(absent)} needed, or a recipe; e.g. mmx extract --modality visual "
            "--model resnet50 "
            "(mmx models lists the encoders)"
        )
    return from_options(RunConfig, about_run), (from_options(SetConfig, about_set),)


def _extract_all(
    run: RunConfig, sets: tuple[SetConfig, ...], progress: Terminal
) -> tuple[list[Summary], list[tuple[SetConfig, str]]]:
    """Makes every set; of several, one that fails (and why is said) does not keep the others from being made."""
    from mmbase.process import out_of_memory, sigterm_as_interrupt
    from mmstore import StoreError
    from mmx.errors import Interrupted
    from mmx.extraction.extract import extract as make
    from mmx.extraction.extract import extract_together, share_contents

    sigterm_as_interrupt()
    done: list[tuple[SetConfig, Summary]] = []
    failed: list[tuple[SetConfig, str]] = []

    def take(made: list[SetConfig], summaries: list[Summary]) -> None:
        done.extend(zip(made, summaries, strict=True))
        for summary in summaries:
            progress.note(summary.as_text() + ("\n" if len(sets) > 1 else ""))

    def foreseen(error: Exception) -> bool:
        return isinstance(error, ToolError | StoreError) or out_of_memory(error)

    for group in share_contents(run, sets):
        if len(group) > 1:
            try:
                taken = [summary.path for _, summary in done]
                take(group, extract_together(run, group, progress=progress, taken=taken))
                continue
            except Interrupted:
                raise
            except (ToolError, StoreError, RuntimeError, MemoryError) as error:
                if not foreseen(error):
                    raise
                progress.note(
                    "not all sets of this group could be made together: one after the other"
                )
        for config in group:
            try:
                taken = [summary.path for _, summary in done]
                take([config], [make(run, config, progress=progress, taken=taken)])
            except (ToolError, StoreError, RuntimeError, MemoryError) as error:
                if len(sets) == 1 or isinstance(error, Interrupted) or not foreseen(error):
                    raise
                reason = str(error) or type(error).__name__
                failed.append(
                    (config, reason)
                )  # the words alone: a traceback would keep the encoder in memory
                progress.warn(f"{config.modality}/{config.model} failed: {reason}")
    done.sort(key=lambda pair: sets.index(pair[0]))
    return [summary for _, summary in done], failed


def _demo_when_absent(data: Path, progress: Terminal) -> None:
    """Generates the default dataset when it is wanted and not there."""
    if data == DEFAULT_DATA and not data.exists():
        from mmx.demo import write_demo

        progress.note(
            f"{data} is not there: generating the synthetic demo catalogue (--data DIR for your "
            "own)"
        )
        write_demo(data)


@cli.command(short_help="List the encoders.")
@click.option("--modality", type=click.Choice(["visual", "textual", "audio"]), help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@common_options
def models(*, modality: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the encoders: dimension, input, and whether the weights are on this machine.

    --verbose adds the layer, the pooling and the weights' licence, beyond the width of a terminal.

    \b
    EXAMPLES
      mmx models
      mmx models --modality audio --verbose
      mmx models --json
    """
    import dataclasses

    from mmx.encoders import describe

    infos = describe(modality)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(info) for info in infos]))
        return
    header = (
        "model",
        "modality",
        "dim",
        "input",
        "weights",
        *(("layer", "pooling", "licence") if verbose else ()),
    )
    rows = [
        (
            i.name,
            i.modality,
            str(i.dim or "?"),
            i.input,
            i.weights,
            i.layer,
            i.pooling,
            i.licence or "-",
        )[: len(header)]
        for i in infos
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        click.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


@cli.command(short_help="Generate the synthetic demo catalogue.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=DEFAULT_DATA,
    show_default=True,
    help="Dataset folder to make.",
)
@click.option(
    "--items",
    metavar="N",
    type=click.IntRange(min=1),
    default=800,
    show_default=True,
    help="How many items.",
)
@click.option(
    "--users",
    metavar="N",
    type=click.IntRange(min=1),
    default=1500,
    show_default=True,
    help="How many users.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=7,
    show_default=True,
    help="Another seed, another catalogue.",
)
@common_options
def demo(*, out: Path, items: int, users: int, seed: int, quiet: bool, verbose: bool) -> None:
    """Generate the synthetic demo catalogue: items with pictures, texts and sounds, and users who like some of them.

    \b
    EXAMPLES
      mmx demo
      mmx demo --out /tmp/small --items 100 --users 200
    """
    from mmx.demo import write_demo

    with console(quiet=quiet, verbose=verbose) as progress:
        write_demo(out, items=items, users=users, seed=seed, progress=progress)
    click.echo(out.as_posix())


@cli.command(short_help="Say what works on this machine and what is missing.")
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=DEFAULT_DATA,
    show_default=True,
    help="Whose disk is looked at.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@common_options
@click.pass_context
def doctor(ctx: click.Context, *, data: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what works on this machine: versions, devices, codecs, caches, disk, and how to install what is missing.

    \b
    EXAMPLES
      mmx doctor
      mmx doctor --data /mnt/catalogue --json
    """
    from mmx.commands.doctor import as_text, examine

    findings = examine(data)
    click.echo(json.dumps(findings) if as_json else as_text(findings))
    ctx.exit(1 if findings["problems"] else 0)


def main() -> NoReturn:
    """Entry point of the installed command."""
    cli.main(prog_name="mmx")
