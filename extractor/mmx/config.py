"""What an extraction may be told, as frozen models, and recipes that hold several extractions.

The defaults are written here and nowhere else; the command line passes on only what was typed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from mmx.errors import UsageError

Modality: TypeAlias = Literal["visual", "textual", "audio"]
SetName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)
]
FailureLimit: TypeAlias = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?%?$")]

COLOURS = {"white": "#ffffff", "black": "#000000", "grey": "#808080"}


def _colour(value: str) -> str:
    """Return a colour as #rrggbb."""
    value = COLOURS.get(value.lower(), value.lower())
    if re.fullmatch("#[0-9a-f]{6}", value) is None:
        raise ValueError("a colour is white, black, grey or #rrggbb, as in #f0f0f0")
    return value


Colour: TypeAlias = Annotated[str, AfterValidator(_colour)]


def _device(value: str) -> str:
    """Return a device, or several CUDA devices, each named once and with its number."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+|:all)?", value):
        return value
    names = value.split(",")
    if len(names) == 1 or not all(re.fullmatch(r"cuda:\d+", name) for name in names):
        raise ValueError(
            "a device is auto, cpu, mps, cuda or cuda:N; several are cuda:all or cuda:0,cuda:1 and "
            f"so on (got {value!r})"
        )
    numbers = [int(name.removeprefix("cuda:")) for name in names]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"each device is named once (got {value!r})")
    return value


Device: TypeAlias = Annotated[str, AfterValidator(_device)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class RunConfig(_Frozen):
    """How extractions run: what all sets of a recipe have in common."""

    data: Path = Field(Path("data/demo"), description="Dataset folder, or its address (s3://…).")
    out: Path | None = Field(
        None, description="Feature store, or its address.  [default: DATA/features]"
    )
    items_file: str | None = Field(
        None, description="Items table inside the dataset folder.  [default: items.*]"
    )
    id_column: str | None = Field(None, description="Column of item ids.  [default: item_id]")
    user_column: str | None = Field(
        None, description="Column of users, for source interaction.  [default: user_id]"
    )
    device: Device = Field(
        "auto",
        description="auto, cpu, cuda, cuda:0, mps; cuda:0,cuda:1 or cuda:all share the work.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Contents to load at a time.  [default: auto; on a GPU as measured, on the CPU "
        "one a processor]",
    )
    loading: Literal["auto", "threads", "processes"] = Field(
        "auto", description="What loads contents; auto: on a GPU what is measured to be faster."
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="local: this process; ray: the processors or GPUs of a Ray cluster."
    )
    address: str | None = Field(
        None,
        min_length=1,
        description="Ray cluster: auto, or HOST[:PORT] of its head.  [default: one of this "
        "machine's processors]",
    )
    on_error: Literal["skip", "fail"] = Field("skip", description="What one corrupt item does.")
    max_failures: FailureLimit = Field(
        "1%", description="More corrupt items stop the run; a share allows at least 10."
    )
    retry_failed: bool = Field(False, description="Try corrupt and missing items again.")
    restart: bool = Field(False, description="Start anew, whatever is there.")
    extend: bool = Field(
        False, description="Take over a finished set of fewer items, and compute the new ones."
    )
    allow_outside: bool = Field(
        False, description="Follow paths and links that lead out of the dataset folder."
    )
    limit: int | None = Field(
        None, ge=1, description="Only the first N items, into a set of their own."
    )
    offline: bool = Field(False, description="Never open a connection.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of random weights and of fitted encoders."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.extend and self.restart:
            raise ValueError("extend keeps what restart discards; give one of them")
        return self

    @model_validator(mode="after")
    def _fits_the_engine(self) -> Self:
        if self.engine == "local" and self.address is not None:
            raise ValueError("address is about a Ray cluster; add engine ray")
        if self.engine == "ray" and self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                "with engine ray a device is auto, cpu or cuda: a worker on each processor, or on "
                f"each GPU of the cluster (got {self.device!r})"
            )
        if self.engine == "ray" and self.loading != "auto":
            raise ValueError("loading is about engine local; a Ray cluster has its own way")
        return self

    @property
    def store(self) -> Path:
        """Return the folder of the feature store."""
        return self.out if self.out is not None else self.data / "features"

    def failure_limit(self, n_items: int) -> int:
        """Return the number of corrupt items that is still accepted.

        A number is taken as it is. A share is rounded up and, unless it is zero, never below ten
        items: in a catalogue of fifty, one broken file is two per cent and no reason to stop.
        """
        if not self.max_failures.endswith("%"):
            return int(float(self.max_failures))
        share = float(self.max_failures[:-1]) / 100
        return max(10, -int(-n_items * share // 1)) if share else 0


class SetConfig(_Frozen):
    """One feature set: which encoder looks at what."""

    modality: Modality = Field(description="Kind of content to encode.")
    model: str = Field(min_length=1, description="The encoder; `mmx models` lists them.")
    source: Literal["item", "interaction"] = Field(
        "item", description="item: a vector per item; interaction: a vector per review."
    )
    layer: str | None = Field(
        None, description="Layer whose output is stored.  [default: the encoder's]"
    )
    pooling: str | None = Field(
        None, description="How several vectors become one.  [default: the encoder's]"
    )
    weights: str = Field(
        "default", min_length=1, description="default, random, a path, a tag, or HUB_ID[@revision]."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Precision of the forward pass."
    )
    decoder: Literal["pil", "torchvision", "nvjpeg"] = Field(
        "pil",
        description="What decodes JPEG files; torchvision and, on a GPU, nvjpeg are faster and a "
        "little off.",
    )
    text_columns: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Text columns, joined by a blank.  [default: title, brand, ...]",
    )
    text_template: str | None = Field(
        None,
        description="lattice, catalogue, or '{title} by {brand}'.  [default: columns joined]",
    )
    path_column: str | None = Field(
        None, description="Column of image or audio paths.  [default: image, audio, ...]"
    )
    several: Literal["mean", "ragged"] | None = Field(
        None, description="All files of an item instead of one: their mean, or every vector."
    )
    path_separator: str | None = Field(
        None, min_length=1, description="Between two paths of one cell, with several."
    )
    background: Colour | None = Field(
        None,
        description="Colour behind transparent pixels: white, black, grey or #rrggbb.  "
        "[default: transparency is ignored]",
    )
    long_texts: Literal["truncate", "mean", "ragged", "error"] = Field(
        "truncate",
        description="Texts longer than the encoder takes: cut off, in pieces, or corrupt.",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Items per forward pass.  [default: auto; 32, audio 8; GPU 128, texts 256, "
        "audio 16]",
    )
    store_dtype: Literal["float32", "float16"] = Field(
        "float32", description="Type of the stored vectors."
    )
    name: SetName | None = Field(None, description="Name of the set.  [default: from the encoder]")

    @model_validator(mode="after")
    def _fits_the_modality(self) -> Self:
        if self.modality == "textual" and (self.several or self.path_separator):
            raise ValueError(
                "several and path_separator are about files; a text set has text_columns"
            )
        if self.modality != "visual" and self.background:
            raise ValueError(f"background is about pictures (got modality {self.modality})")
        if self.modality != "visual" and self.decoder != "pil":
            raise ValueError(f"decoder is about pictures (got modality {self.modality})")
        if self.modality != "textual" and self.long_texts != "truncate":
            raise ValueError(f"long_texts is about texts (got modality {self.modality})")
        if self.modality != "textual" and self.source == "interaction":
            raise ValueError(f"source interaction is about texts (got modality {self.modality})")
        if self.path_separator and not self.several:
            raise ValueError("path_separator needs several: mean or ragged")
        return self


class Recipe(RunConfig):
    """Several feature sets of one dataset."""

    sets: tuple[SetConfig, ...] = Field(
        min_length=1, description="the feature sets, made in this order"
    )

    def run(self) -> RunConfig:
        """What the sets have in common."""
        return RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        UsageError: no such file, no YAML, or keys and values that are not allowed: one line each,
            with file, line, key, rule and value, and the closest match of an unknown key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UsageError(
            f"{path.name}{where}: not valid YAML ({getattr(error, 'problem', None) or error})"
        ) from error
    if not isinstance(content, dict):
        raise UsageError(
            f"{path.name}: a recipe is a mapping of keys (got {type(content).__name__})"
        )
    _refuse_twins(path.name, node)
    recipe: Recipe = _validated(
        Recipe, content, lambda loc: f"{path.name}, line {_line(node, loc)}: {_key(loc)}"
    )
    return recipe


def from_options(model: type[RunConfig] | type[SetConfig], options: dict[str, Any]) -> Any:
    """Return a `RunConfig` or `SetConfig` from command-line options; None stands for not given."""
    given = {name: value for name, value in options.items() if value is not None}
    return _validated(
        model, given, lambda loc: f"--{str(loc[0] if loc else 'modality').replace('_', '-')}"
    )


def _key(loc: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _validated(
    model: type[Any], content: dict[str, Any], where: Callable[[tuple[str | int, ...]], str]
) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = []
        for problem in problems:
            loc = problem["loc"]
            if any(other["loc"][: len(loc)] == loc != other["loc"] for other in problems):
                # a set with a mistake does not count as one: "too few sets" would be said besides
                continue
            lines.append(f"{where(loc)}: {_rule(model, problem)}")
        raise UsageError("\n".join(lines)) from error


def _rule(model: type[BaseModel], problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        owner = SetConfig if problem["loc"][0] == "sets" else model
        known = sorted(owner.model_fields)
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key; {hint}"
    if problem["type"] == "missing":
        return "this key is needed"
    message: str = problem["msg"]
    if problem["type"] == "value_error":  # ours, about several keys at once
        return message.removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]} (got {problem['input']!r})"


def _line(node: Any, loc: tuple[str | int, ...]) -> int:
    """The 1-based line of the deepest node along `loc`, the key's own line for a mapping."""
    line: int = node.start_mark.line + 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == part), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _refuse_twins(name: str, node: Any) -> None:
    """Raises when a mapping has one key twice: YAML would keep the last one without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise UsageError(
                    f"{name}, line {line}: {key.value} is given twice (first in line "
                    f"{seen[key.value]})"
                )
            seen[key.value] = line
            _refuse_twins(name, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twins(name, value)
