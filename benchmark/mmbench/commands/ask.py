"""`mmbench ask`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mmbase.cli import (
    DEFAULT_DATA,
    PATH,
    CommaList,
    Command,
    echo_json,
    json_option,
    progress,
    quiet_option,
)
from mmbase.layout import hanging
from mmbench.commands import common
from mmbench.commands.run import RECIPES


@click.command(cls=Command)
@click.argument("question", type=RECIPES)
@click.option("--data", type=PATH, help="Dataset folder of designs that name none.")
@click.option("--out", type=PATH, help="The page.  [default: questions/QUESTION-DATASET.md]")
@click.option("--seeds", type=CommaList(int), help="Seeds instead of the question's.")
@click.option("--epochs", type=click.IntRange(min=1), help="At most this many, for a quick look.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps, instead of the question's.")
@click.option("--runs", type=PATH, default=Path("runs"), help="Folder of the runs.")
@common.jobs_option
@json_option
@quiet_option
def ask(*, question: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Answer a QUESTION: run its designs, and write a page with its verdict.

    A question file has designs (recipes with lists), the factors asked about with a reference each,
    and the metrics. The page has the answer as sentences, tables with intervals over seeds, and the
    factors' effects as paired differences; a CSV file beside it has every value with its run
    folder. Finished runs are read, not repeated: after an interruption the same command goes on.
    See docs/questions.

    \b
    Examples:
      mmbench ask recipes/questions/fusion.yaml
      mmbench ask recipes/questions/missing.yaml --data data/lastfm --jobs 8
      mmbench ask mine.yaml --data my/catalogue --seeds 1,2,3,4,5 --out answers/mine.md
      mmbench ask recipes/questions/extractors.yaml --seeds 1,2 --epochs 2 --json
    """
    from mmbench.analysis.answering import answer
    from mmbench.analysis.question import plan, read_question
    from mmbench.analysis.report import question_page
    from mmbench.analysis.report.answer import answer_of, document_of
    from mmbench.interface.demo import make_demo
    from mmbench.runs.batch import Batch, local_executor

    data: Path = options["data"] or DEFAULT_DATA
    name = data.resolve().name
    asked = read_question(question, name)
    chosen = {key: options[key] for key in ("epochs", "device")}
    planning = plan(asked, data, seeds=options["seeds"] or (), **chosen)
    reporter = progress(quiet=quiet)
    if any(cell.recipe.data == str(DEFAULT_DATA) for cell in planning.cells):
        make_demo(needs_features=True, progress=reporter)
    for note in planning.notes:
        reporter.note(note)
    batch = Batch(options["runs"], local_executor(options["jobs"] or 1, reporter), reporter)
    done = answer(planning, batch)
    if not done:
        batch.raise_failures()
    out = options["out"] or Path("questions") / f"{question.stem}-{name}.md"
    found = answer_of(planning, done, _command(question, options))
    written = question_page.write(found, out)
    if as_json:
        document = {**document_of(found), "files": [path.as_posix() for path in written]}
        echo_json(document, "mmbench.question 1.0")
    else:
        for kind, text in found.verdicts():
            place = f"{found.names[kind]}: " if found.names[kind] else ""
            click.echo(hanging(f"{place}{text.replace('**', '')}", "", "  "))
        click.echo(out.as_posix())
    batch.raise_failures()


def _command(question: Path, options: Mapping[str, Any]) -> str:
    """Return the command that makes the page again, without what changes no number of it."""
    parts = ["mmbench", "ask", question.as_posix()]
    for key in ("data", "out", "seeds", "epochs", "device", "runs"):
        value = options[key]
        if value is not None and (key, value) != ("runs", Path("runs")):
            told = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
            parts += [f"--{key}", told]
    return shlex.join(parts)
