"""Recipes: the typed description of a run, the one place of its defaults and their help."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from mmbench.core.content import Scaling, Source
from mmbench.data.controls import Control
from mmbench.data.masks import Pattern, Share
from mmbench.data.missing import OLD_NAMES, spelled
from mmbench.data.treatment import Treatment
from mmbench.errors import DataError, UsageError, first_problem, validation_in_words
from mmbench.metrics import PAPER, Need, resolve
from mmbench.metrics.item_data import required
from mmbench.models import ModelConfig, model_class
from mmbench.models.search_space import Range as Range
from mmbench.models.search_space import Search as Search
from mmbench.models.settings import for_model as for_model
from mmbench.models.settings import make_settings as make_settings
from mmbench.models.settings import setting_name as setting_name
from mmbench.models.settings import without_retired
from mmbench.models.start import StartFrom
from mmbench.ops import SparseBackend

RECIPE_FILE = "recipe.yaml"


Approximation = Literal["ann", "frozen-features", "half-features", "lazy-adam", "tf32"]
"""What may be given up for speed, by name: see `Recipe.approximate`."""

Protocol = Literal["strict", "paper", "next-item"]
"""How runs are scored, by name: see `mmbench.evaluation.protocol`."""


class Evaluation(BaseModel):
    """How a run is validated and scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Protocol = Field(
        "strict",
        description="strict: candidates are the whole catalogue, validation positives are masked "
        "at test, users without a list score 0. paper: as in arXiv 2309.05273. next-item: each "
        "user's next item after their history, at test with the validation item in it.",
    )
    repeats: Literal["allowed", "masked"] = Field(
        "allowed",
        description="next-item: whether items of the history are listed again, or masked.",
    )
    diversity_features: str | None = Field(
        None,
        description="Feature set in which ILD, Unexpectedness and VisDiv measure, e.g. "
        "visual=resnet50.",
    )
    categories: str | None = Field(
        None,
        description="Column of items.tsv for Miscalibration and SRecall; `a|b`: two categories.",
    )
    metrics: tuple[str, ...] = Field(
        PAPER,
        min_length=1,
        description="Names, `paper` (six) or `all`; see `mmbench metrics`.",
    )
    cutoffs: tuple[int, ...] = Field((10, 20), min_length=1, description="List lengths.")
    select_by: str = Field(
        "Recall@20", description="Validation metric that chooses epoch and configuration."
    )
    every: int = Field(10, ge=1, description="Epochs between validations.")
    patience: int | None = Field(
        None, ge=1, description="Stop after N validations without improvement.  [default: never]"
    )
    select_decimals: int | None = Field(
        None,
        ge=0,
        le=15,
        description="Round --select-by to N decimals before it chooses or stops; MMRec: 4.  "
        "[default: unrounded]",
    )
    threshold: float = Field(
        0.0,
        allow_inf_nan=False,
        description="A held-out row is relevant if its rating is at least this.",
    )

    @property
    def rounded(self) -> str:
        """How the metric that chooses is rounded, in words that follow others; or nothing."""
        digits = self.select_decimals
        return "" if digits is None else f", rounded to {digits} decimals"

    @field_validator("metrics")
    @classmethod
    def _spelled_out(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        sources: dict[Need, str] = {"content": "diversity_features", "topics": "categories"}
        at_hand = [need for need, source in sources.items() if info.data.get(source)]
        chosen = resolve(names, at_hand=at_hand)
        for metric in chosen:
            for need in metric.needs:
                required(True if need in at_hand else None, need, metric.name)
        return tuple(metric.name for metric in chosen)

    @model_serializer(mode="wrap")
    def _plain(self, as_usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = as_usual(self)
        if not self.next_item:
            plain.pop("repeats", None)  # a run is named after its recipe: without it as ever
        return plain

    @property
    def next_item(self) -> bool:
        """Whether the protocol is `next-item`."""
        return self.protocol == "next-item"

    @property
    def whole_catalogue(self) -> bool:
        """Whether every item is a candidate, and users without a list or training rows score 0."""
        return self.protocol != "paper"

    @model_validator(mode="after")
    def _of_the_protocol(self) -> Evaluation:
        if self.repeats != "allowed" and not self.next_item:
            raise ValueError(
                f"repeats = {self.repeats}: has no meaning under the protocol {self.protocol}, "
                "which lists no item again; --protocol next-item has it"
            )
        return self

    @model_validator(mode="after")
    def _names(self) -> Evaluation:
        if min(self.cutoffs) < 1 or len(set(self.cutoffs)) < len(self.cutoffs):
            raise ValueError(f"cutoffs {list(self.cutoffs)} must be distinct and at least 1")
        name, _, cutoff = self.select_by.partition("@")
        (metric,) = resolve([name])
        if metric.needs and metric.name not in self.metrics:
            raise ValueError(
                f"select_by {self.select_by!r} must be among the metrics, since it needs side data"
            )
        if metric.higher_is_better is not True:
            raise ValueError(
                f"select_by {self.select_by!r}: higher is not better, so it can't choose an epoch"
            )
        if not cutoff.isdigit() or int(cutoff) < 1:
            raise ValueError(f"select_by {self.select_by!r} must look like Recall@20")
        return self


class Recipe(BaseModel):
    """One run, or one grid or search of runs from which validation chooses.

    `settings` is the model's own configuration class; `grid` maps some of its fields to the values
    that are tried, `search` says how values are proposed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field("data/demo", description="Dataset folder.")
    columns: dict[str, str] = Field(
        {},
        description="Column that is user_id, item_id, rating, timestamp, where the names are not "
        "understood.",
    )
    split: str | None = Field(
        None,
        description="Split name, random[:TEST,VALID[,SEED]] or leave-one-out.  [default: the one "
        "taken before, else the only one, else random]",
    )
    model: str = Field(description="A name of `mmbench models`.")
    features: dict[str, str] = Field(
        {},
        description="Feature sets to use.  [default: those taken before, else the only one "
        "of each modality]",
    )
    missing: str = Field(
        "mean",
        description="Replacement of an absent vector: mean, zeros, drop, propagation, pagerank, … "
        "(docs/missing.md), with settings: pagerank:alpha=0.2.",
    )
    mask: dict[str, Share] = Field(
        {}, description="Share of a modality's vectors that is taken away, in [0, 1): visual=0.3."
    )
    pattern: Pattern = Field("random", description="Whose vectors a mask takes first.")
    control: dict[str, Control] = Field(
        {}, description="Replacement of a modality's vectors: shuffled, noise, constant, absent."
    )
    mask_seed: int = Field(0, ge=0, description="Seed of masks, controls and the policy random.")
    scaling: Scaling = Field(
        "none",
        description="Scaling of the vectors: l2: each to length 1; standard: each number to "
        "mean 0 and variance 1, divided by the square root of how many there are.",
    )
    start_from: StartFrom | None = Field(
        None,
        description="Finished run of the same model and encoders, perhaps on other data: its "
        "weights are taken over, but for those of single users and items; see docs/transfer.md.",
    )
    seed: int = Field(123, description="Seed of initial values, batches and dropout.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    sparse_backend: SparseBackend = Field(
        "torch",
        description="Kernels of sparse products; torch-sparse needs the extra "
        "sparse: pip install '.[sparse]' in the checkout.",
    )
    # ann: item graphs of the neighbours that faiss finds. frozen-features: content vectors that a
    # model would train stay as stored. half-features: they do, as float16. lazy-adam: they move
    # only in steps that use them. tf32: products on CUDA with a mantissa of 10 bits.
    approximate: tuple[Approximation, ...] = Field(
        (),
        description="Give up exactness for speed or memory: ann, frozen-features, "
        "half-features, lazy-adam, tf32.",
    )
    settings: SerializeAsAny[ModelConfig] = Field(
        description="A setting, e.g. lr=0.001, or of one model: vbpr.lr=0.001; see `mmbench models "
        "NAME`."
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        {}, description="Values to try; validation chooses, test is scored once."
    )
    search: Search | None = Field(None, description="Trials that are proposed one by one.")
    evaluation: Evaluation = Evaluation()

    @field_validator("missing", mode="before")
    @classmethod
    def _policy(cls, given: object) -> str:
        return spelled(given)

    @model_validator(mode="before")
    @classmethod
    def _typed_settings(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("model"), str):
            settings, grid = values.get("settings", {}), values.get("grid", {})
            if isinstance(settings, Mapping):
                values = {**values, "settings": make_settings(values["model"], settings)}
            if isinstance(grid, Mapping):
                grid = {setting_name(values["model"], key): tried for key, tried in grid.items()}
                values = {**values, "grid": grid}
        return values

    @model_validator(mode="after")
    def _one_kind(self) -> Recipe:
        self.treatment.require_fit(self.model, self.settings, self.features)
        if self.search is not None:
            if self.grid:
                raise ValueError("grid and search: give one of them")
            for name in self.search.space:
                if name not in type(self.settings).model_fields:
                    raise ValueError(f"search: {self.model} has no setting {name!r}")
            for name, domain in self.search.space.items():  # now, and not after some trials
                for value in domain.probes() if isinstance(domain, Range) else domain:
                    make_settings(self.model, {**self.settings.model_dump(), name: value})
        return self

    @property
    def searched(self) -> tuple[str, ...]:
        """Names of the settings that validation chooses."""
        return tuple(self.grid) if self.search is None else tuple(self.search.space)

    def trial(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of one trial, with these settings and nothing left to choose."""
        settings = make_settings(self.model, {**self.settings.model_dump(), **values})
        return self.model_copy(update={"grid": {}, "search": None, "settings": settings})

    def trials(self) -> list[Recipe]:
        """Return a recipe for each combination of the grid, in the order of the listed values."""
        return [
            self.trial(dict(zip(self.grid, values, strict=True)))
            for values in itertools.product(*self.grid.values())
        ]

    @property
    def treatment(self) -> Treatment:
        """What is done to the stored vectors, as far as it matters to the model."""
        asked = Treatment(
            self.missing, self.scaling, self.mask, self.pattern, self.control, self.mask_seed
        )
        return asked.material(uses_features=self.needs_content)

    @property
    def content_of(self) -> Source:
        """What the content that is read belongs to."""
        return model_class(self.model).content_of

    @property
    def loads_features(self) -> bool:
        """Whether content is read: for the model, or to say which items there are."""
        return self.needs_content or self.treatment.policy.DROPS

    @property
    def needs_content(self) -> bool:
        """Whether the model, or one of the grid's or the search's trials, uses content."""
        model = model_class(self.model)
        if not model.uses_features or model.needs_content(self.settings):
            return model.uses_features
        tried = [one.settings for one in self.trials()]
        if self.search is not None:
            for name, domain in self.search.space.items():
                values = () if isinstance(domain, Range) else domain
                tried += [self.trial({name: value}).settings for value in values]
        return any(map(model.needs_content, tried))

    def dump(self) -> dict[str, Any]:
        """The recipe as plain JSON values, everything spelled out that matters."""
        treatment = self.treatment
        what = {"missing": treatment.missing, "mask": dict(treatment.mask)}
        plain = self.model_dump(mode="json") | what
        for name in treatment.immaterial:
            del plain[name]
        fields = type(self.settings).model_fields
        for name in self.settings.ADDED:
            if getattr(self.settings, name) == fields[name].default:
                del plain["settings"][name]
        if self.start_from is None:
            del plain["start_from"]  # a run is named after its recipe: without one as ever
        if self.evaluation.select_decimals is None:
            del plain["evaluation"]["select_decimals"]  # likewise
        return plain

    def digest(self, *others: object) -> str:
        """Return ten hex digits of all that determines the run's numbers.

        That is the recipe without the places of the data and of another run, and `others`.
        """
        plain = self.dump()
        del plain["data"], plain["columns"]
        older = {new: old for old, new in OLD_NAMES.items()}
        plain["missing"] = older.get(plain["missing"], plain["missing"])
        if self.start_from is not None:
            plain["start_from"] = self.start_from.digest  # wherever that run lies
        text = json.dumps([plain, *others], sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def make_recipe(**values: Any) -> Recipe:
    """Return a `Recipe`.

    Raises:
        UsageError: A key or value is not one; the message names the key.
    """
    try:
        return Recipe(**values)
    except ValidationError as error:
        raise UsageError(first_problem(error, "recipe")) from error


def make_evaluation(**values: Any) -> Evaluation:
    """Return an `Evaluation` from command-line values.

    Raises:
        UsageError: A value is out of range, or a metric does not exist.
    """
    try:
        return Evaluation(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = f"{problem['loc'][0]} = {problem['input']!r}: " if problem["loc"] else ""
        raise UsageError(where + problem["msg"].removeprefix("Value error, ")) from error


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write a recipe as YAML, in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(
        yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    partial.replace(path)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe that `write_recipe` wrote.

    Raises:
        DataError: The file is absent or is no recipe.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Recipe(**without_retired(values))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); is {path.parent} a run folder?"
        ) from error
    except ValidationError as error:
        raise DataError(f"{path}: not a recipe: {validation_in_words(error)}") from error
    except (yaml.YAMLError, TypeError, ValueError, RecursionError, UsageError) as error:
        # ValueError: bytes that are no text, a date that is none, a number of 5,000 digits.
        what = " ".join(str(error).split())
        raise DataError(f"{path}: not a recipe: {what}") from error
