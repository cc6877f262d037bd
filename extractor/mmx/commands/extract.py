"""`mmx extract`: from a command line or a recipe to feature sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase.cli import (
    DEFAULT_DATA,
    PATH,
    Command,
    echo_json,
    given,
    json_option,
    options_of,
    progress,
    quiet_option,
    verbose_option,
)
from mmbase.layout import hanging
from mmx.config import RunConfig, SetConfig, from_options, load_recipe
from mmx.errors import Interrupted, ToolError, UsageError

if TYPE_CHECKING:
    from mmbase.progress import Terminal
    from mmx.extraction.summary import Summary


class AutoOr(click.ParamType):  # type: ignore[type-arg]  # not generic in older click
    """A number within a range, or `auto`, which is None."""

    name = "auto or number"

    def __init__(self, low: int, high: int) -> None:
        self.number = click.IntRange(low, high)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Parse the text of an option."""
        return None if value == "auto" else self.number.convert(value, param, ctx)


@click.command(cls=Command, epilog=" ")
@click.argument("recipe", required=False, type=PATH)
@options_of(
    SetConfig,
    RunConfig,
    model={"metavar": "NAME"},
    layer={"metavar": "NAME"},
    pooling={"metavar": "NAME"},
    weights={"metavar": "W"},
    text_columns={"metavar": "A,B"},
    text_template={"metavar": "T"},
    path_column={"metavar": "C"},
    path_separator={"metavar": "S"},
    batch_size={"metavar": "auto|N", "type": AutoOr(1, 65_536)},
    name={"metavar": "NAME"},
    data={"metavar": "DIR"},
    out={"metavar": "DIR"},
    items_file={"metavar": "FILE"},
    id_column={"metavar": "C"},
    user_column={"metavar": "C"},
    device={"metavar": "D"},
    workers={"metavar": "auto|N", "type": AutoOr(1, 1024)},
    address={"metavar": "auto|HOST"},
    max_failures={"metavar": "N|P%"},
    limit={"metavar": "N"},
    seed={"metavar": "N"},
)
@json_option
@quiet_option
@verbose_option
@click.pass_context
def extract(
    ctx: click.Context,
    /,
    *,
    recipe: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Compute the features of a dataset's items: one set, or all those of a RECIPE.

    The same command continues where an interrupted one stopped, and does nothing when the set is
    complete. Items without content are recorded as missing, undecodable ones as corrupt with the
    reason (exit code 3).

    \b
    EXAMPLES
      mmx extract --modality visual --model resnet50
      mmx extract --modality textual --model tfidf-lsa --data data/books --text-columns title,text
      mmx extract --modality audio --model mfcc --data data/clips --workers 4
      mmx extract --modality visual --model resnet50 --weights random --limit 100 --json
      mmx extract --modality visual --model resnet50 --engine ray --address auto
      mmx extract recipes/extract/demo.yaml
    """
    from mmbase.process import tune_process
    from mmx.extraction.remote import shown, staged

    tune_process(one_arena=True)
    reporter = progress(quiet=quiet, verbose=verbose)
    run, sets = _requested(recipe, options)
    _demo_when_absent(run.data, reporter)
    try:
        with staged(run) as here:
            done, failed = _extract_all(here, sets, reporter)
    finally:
        if run.engine == "ray":
            from mmbase.ray_cluster import disconnect

            disconnect()
    documents = [{**summary.as_json(), "path": shown(summary.path)} for summary in done]
    if as_json and recipe is None and done:
        echo_json(documents[0], "mmx.extraction 1.0")
    elif as_json:
        failures = [
            {"modality": one.modality, "model": one.model, "error": reason}
            for one, reason in failed
        ]
        echo_json({"sets": documents, "failed": failures}, "mmx.extractions 1.0")
    else:
        for summary in done:
            click.echo(shown(summary.path))
    ctx.exit(1 if failed else max((summary.exit_code for summary in done), default=0))


def _requested(
    recipe: Path | None, options: dict[str, Any]
) -> tuple[RunConfig, tuple[SetConfig, ...]]:
    """Return the run and its sets; options about the run override those of a recipe."""
    about_run, about_set = given(RunConfig, options), given(SetConfig, options)
    if recipe is not None:
        if about_set:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in about_set)
            raise UsageError(f"{flags}: belongs into the recipe {recipe}, under one of its sets")
        parsed = load_recipe(recipe)
        return from_options(RunConfig, {**parsed.run().model_dump(), **about_run}), parsed.sets
    absent = [f"--{name}" for name in ("modality", "model") if name not in about_set]
    if absent:
        raise UsageError(
            f"{' and '.join(absent)} needed, or a recipe; e.g. mmx extract --modality visual "
            "--model resnet50 (mmx models lists the encoders)"
        )
    return from_options(RunConfig, about_run), (from_options(SetConfig, about_set),)


def _extract_all(
    run: RunConfig, sets: tuple[SetConfig, ...], progress: Terminal
) -> tuple[list[Summary], list[tuple[SetConfig, str]]]:
    """Make every set; of several, one that fails does not keep the others from being made."""
    from mmbase.process import out_of_memory
    from mmstore import StoreError
    from mmx.extraction.extract import extract_together, share_contents

    done: list[tuple[SetConfig, Summary]] = []
    failed: list[tuple[SetConfig, str]] = []

    def attempt(group: tuple[SetConfig, ...], *, fatal: bool) -> str:
        """Make some sets together; return why it failed where other sets may still be made."""
        taken = [summary.path for _, summary in done]
        try:
            made = extract_together(run, group, progress=progress, taken=taken)
        except Interrupted:
            raise
        except (ToolError, StoreError, RuntimeError, MemoryError) as error:
            foreseen = isinstance(error, ToolError | StoreError) or out_of_memory(error)
            if fatal or not foreseen:
                raise
            return str(error) or type(error).__name__  # the error itself would keep the encoder
        done.extend(zip(group, made, strict=True))
        for summary in made:
            text = summary.as_text().splitlines()
            lines = (hanging(line, "", " " * (4 if line[0] == " " else 11)) for line in text)
            progress.note("\n".join(lines) + ("\n" if len(sets) > 1 else ""))
        return ""

    for group in share_contents(run, sets):
        if len(group) > 1:
            if not attempt(tuple(group), fatal=False):
                continue
            progress.note("not all sets of this group could be made together: one after the other")
        for config in group:
            if reason := attempt((config,), fatal=len(sets) == 1):
                failed.append((config, reason))
                progress.warn(f"{config.modality}/{config.model} failed: {reason}")
    done.sort(key=lambda pair: sets.index(pair[0]))
    return [summary for _, summary in done], failed


def _demo_when_absent(data: Path, progress: Terminal) -> None:
    """Generate the default dataset if it is wanted and absent."""
    if data == DEFAULT_DATA and not data.exists():
        from mmx.demo import write_demo

        progress.note(
            f"{data} is not there: generating the synthetic demo catalogue (--data DIR for your "
            "own)"
        )
        write_demo(data)
