"""`mmx extract`: from a command line or a recipe to feature sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmbase.cli import (
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
from mmx.commands.names import encoder_names
from mmx.config import RunConfig, SetConfig
from mmx.errors import SomeSetsFailed


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
    model={"metavar": "NAME", "shell_complete": encoder_names},
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
    from mmx.extraction.remote import shown
    from mmx.interface import extract_all, requested

    tune_process(one_arena=True)
    reporter = progress(quiet=quiet, verbose=verbose)
    typed = given(RunConfig, options) | given(SetConfig, options)
    try:
        made = extract_all(*requested(recipe, typed), reporter)
    except SomeSetsFailed as error:  # each was warned of
        made = error.extraction
    done, failed = made.sets, made.failed
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
