"""What Python programs and notebooks call, and what the commands stand on; see docs/python.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack, overload

from mmbase.cli import DEFAULT_DATA
from mmbase.layout import hanging
from mmbase.progress import Progress, Silent, Terminal
from mmbase.tabular import Tabular
from mmx.config import RunConfig, SetConfig, from_options, load_recipe
from mmx.errors import Interrupted, SomeSetsFailed, ToolError, UsageError, unknown_name
from mmx.extraction.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

Place: TypeAlias = str | PathLike[str]
"""The path of a file or folder, or where a dataset or store may be, an address."""


class RunChoices(TypedDict, total=False):
    """How an extraction runs: the fields of `mmx.config.RunConfig`."""

    out: Place | None
    items_file: str | None
    id_column: str | None
    user_column: str | None
    device: str
    workers: int | None
    loading: Literal["auto", "threads", "processes"]
    engine: Literal["local", "ray"]
    address: str | None
    on_error: Literal["skip", "fail"]
    max_failures: str | int
    retry_failed: bool
    restart: bool
    extend: bool
    allow_outside: bool
    limit: int | None
    offline: bool
    seed: int


class Choices(RunChoices, total=False):
    """What a feature set is made of, too: the fields of `mmx.config.SetConfig`."""

    source: Literal["item", "interaction"]
    layer: str | None
    pooling: str | None
    weights: str
    precision: Literal["fp32", "bf16", "fp16"]
    decoder: Literal["pil", "torchvision", "nvjpeg"]
    text_columns: Sequence[str] | None
    text_template: str | None
    path_column: str | None
    several: Literal["mean", "ragged"] | None
    path_separator: str | None
    background: str | None
    long_texts: Literal["truncate", "mean", "ragged", "error"]
    batch_size: int | None
    store_dtype: Literal["float32", "float16"]
    name: str | None


@dataclass(frozen=True, eq=False, repr=False)
class Extraction(Tabular, Sequence[Summary]):
    """Feature sets that were made, continued, or found complete, in the order of the recipe.

    Attributes:
        sets: A summary each; `extraction[0]` and `for one in extraction` give them, too.
        failed: Sets that could not be made, and why.
    """

    sets: tuple[Summary, ...]
    failed: tuple[tuple[SetConfig, str], ...] = ()

    @overload
    def __getitem__(self, place: int) -> Summary: ...
    @overload
    def __getitem__(self, place: slice) -> Extraction: ...
    def __getitem__(self, place: int | slice) -> Summary | Extraction:
        """Return a summary, or several as an `Extraction`."""
        found = self.sets[place]
        return found if isinstance(found, Summary) else Extraction(found)

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(self.sets)

    @property
    def title(self) -> str:
        """How many sets there are."""
        return f"{len(self)} feature set{'s' * (len(self) != 1)}"

    def to_pandas(self) -> pd.DataFrame:
        """Return a row per set: modality, name, numbers per item, items by status, seconds."""
        import pandas as pd

        rows = [
            {
                "modality": one.modality,
                "name": one.name,
                "dim": one.dim,
                "ok": one.counts.ok,
                "missing": one.counts.missing,
                "corrupt": one.counts.corrupt,
                "seconds": one.elapsed_s,
                "path": one.path.as_posix(),
            }
            for one in self
        ]
        return pd.DataFrame(rows)


def extract(
    data: Place | None = None,
    *,
    modality: Literal["visual", "textual", "audio"] | None = None,
    model: str | None = None,
    recipe: Place | None = None,
    progress: Progress | bool = False,
    **choices: Unpack[Choices],
) -> Extraction:
    """Compute the features of a dataset's items: one set, or all those of a recipe.

    The same call continues where an interrupted one stopped, and does nothing when the set is
    complete. Items without content are recorded as missing, undecodable ones as corrupt with the
    reason; `Summary.counts` has their numbers.

    Args:
        data: Dataset folder, or its address. None: the recipe's, else the demonstration catalogue
            `data/demo`, which is made if it is absent.
        modality: Kind of content.
        model: The encoder: a name of `mmx.encoders.describe`, a hub id or a folder.
        recipe: A YAML file with several sets, in the place of `modality` and `model`.
        progress: True: notes and bars on stderr, as on the command line.
        choices: All else that `mmx extract` takes; `Choices` lists it.

    Returns:
        A summary per set; `FeatureSet(summary.path)` of `mmstore` reads it.

    Raises:
        UsageError: A name or value that does not exist or does not fit.
        EncoderError: The weights can't be had, a library is missing.
        ToolError: A set could not be made. What was computed is kept, and the same call goes on.
        SomeSetsFailed: Some of several sets; the attribute `extraction` has the others.
        mmstore.StoreError: A file could not be written, or one of another plan is in the way.
        Interrupted: SIGINT or SIGTERM; what was computed is kept.
    """
    for name in choices:
        if name not in Choices.__annotations__:
            raise unknown_name("argument", name, Choices.__annotations__)
    told: Progress = progress if not isinstance(progress, bool) else Silent()
    told = Terminal() if progress is True else told
    given: dict[str, Any] = {"data": data, "modality": modality, "model": model, **choices}
    run, sets = requested(None if recipe is None else Path(recipe), given)
    return extract_all(run, sets, told)


def requested(
    recipe: Path | None, options: dict[str, Any]
) -> tuple[RunConfig, tuple[SetConfig, ...]]:
    """Return the run and its sets; options about the run override those of a recipe.

    Raises:
        UsageError: A value is not allowed, or options do not go together.
    """
    given = {name: value for name, value in options.items() if value is not None}
    about_run, about_set = (
        {name: value for name, value in given.items() if name in kind.model_fields}
        for kind in (RunConfig, SetConfig)
    )
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


def extract_all(run: RunConfig, sets: tuple[SetConfig, ...], progress: Progress) -> Extraction:
    """Make every set; of several, one that fails does not keep the others from being made.

    Raises:
        SomeSetsFailed: Some of several sets failed; each was warned of, with the reason.
        ToolError: The only one did.
    """
    from mmx.extraction.remote import staged

    _demo_when_absent(run.data, progress)
    try:
        with staged(run) as here:
            made = _extract_all(here, sets, progress)
    finally:
        if run.engine == "ray":
            from mmbase.ray_cluster import disconnect

            disconnect()
    if made.failed:
        told = "; ".join(f"{one.modality}/{one.model}: {why}" for one, why in made.failed)
        error = SomeSetsFailed(f"{len(made.failed)} of {len(sets)} sets failed: {told}")
        error.extraction = made
        raise error
    return made


def _extract_all(run: RunConfig, sets: tuple[SetConfig, ...], progress: Progress) -> Extraction:
    """Make every set that can be made; the only one is made, or its error raised."""
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
    return Extraction(tuple(summary for _, summary in done), tuple(failed))


def _demo_when_absent(data: Path, progress: Progress) -> None:
    """Generate the default dataset if it is wanted and absent."""
    if data == DEFAULT_DATA and not data.exists():
        from mmx.demo import write_demo

        progress.note(
            f"{data} is not there: generating the synthetic demo catalogue (--data DIR for your "
            "own)"
        )
        write_demo(data)
