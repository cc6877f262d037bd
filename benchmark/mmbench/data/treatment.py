"""What a recipe does to the stored vectors before a model sees them, as one value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mmbench.core.content import Scaling
from mmbench.data.controls import Control
from mmbench.data.masks import Pattern
from mmbench.data.missing import policy_of
from mmbench.errors import UsageError, unknown_name
from mmbench.models import ModelConfig, model_class

if TYPE_CHECKING:
    from mmbench.data.missing.base import Policy


@dataclass(frozen=True)
class Treatment:
    """Masks, controls, scaling and the missing-content policy: applied in this order.

    Attributes:
        missing: The policy, as `mmbench.data.missing.policy_of` reads it.
        scaling: See `Scaling`.
        mask: Modality to the share of its vectors that is taken away.
        pattern: From whom, see `Pattern`.
        control: Modality to what replaces its vectors.
        seed: Of all that is drawn.
    """

    missing: str = "mean"
    scaling: Scaling = "none"
    mask: Mapping[str, float] = field(default_factory=dict)
    pattern: Pattern = "random"
    control: Mapping[str, Control] = field(default_factory=dict)
    seed: int = 0

    @property
    def policy(self) -> Policy:
        """The missing-content policy."""
        return policy_of(self.missing)

    def material(self, *, uses_features: bool) -> Treatment:
        """Return what matters to a model: no masks of nothing, or of what is left out anyway."""
        mask = {m: share for m, share in self.mask.items() if share}
        if not uses_features:
            return replace(self, mask=mask)._of_items_alone()
        left = {m: share for m, share in mask.items() if self.control.get(m) != "absent"}
        return replace(self, mask=left)

    def _of_items_alone(self) -> Treatment:
        """Return what matters to a model without content: which items there are.

        Masks and absent modalities do where the policy drops items. (`missing` and `scaling` have
        always been part of the names of such a model's runs.)
        """
        if self.policy.DROPS:
            absent = {m: control for m, control in self.control.items() if control == "absent"}
            return replace(self, control=absent)
        named = self.policy.NAME in ("mean", "zeros")
        return Treatment(self.missing if named else "mean", self.scaling)

    @property
    def immaterial(self) -> list[str]:
        """The recipe's fields that change nothing, or stand at the value they always had.

        A run is named after its recipe: without these fields as ever.
        """
        draws = self.mask or {"shuffled", "noise"} & set(self.control.values())
        material = {
            "mask": bool(self.mask),
            "pattern": bool(self.mask) and self.pattern != "random",
            "control": bool(self.control),
            "mask_seed": self.seed != 0 and bool(draws or self.policy.DRAWS),
        }
        return [name for name, matters in material.items() if not matters]

    def require_fit(self, model: str, settings: ModelConfig, features: Collection[str]) -> None:
        """Refuse what a model can't do, and modalities that are not among the features, if any.

        Raises:
            UsageError: There is one.
        """
        if features:
            self.require(features)
        kind = model_class(model)
        if kind.content_of == "interaction" and kind.uses_features and self.policy.OF_ITEMS:
            raise UsageError(
                f"missing: {self.policy.NAME} is about items, and {model} needs vectors of "
                "interactions; choose mean, zeros or random"
            )
        if self.policy.TRAINS and not model_class(model).learns_absent_with(settings):
            raise UsageError(
                f"missing: {self.policy.NAME} trains a part of the model, for which {model} has no "
                "place with these settings (docs/missing.md); choose another policy"
            )

    def require(self, modalities: Collection[str]) -> None:
        """Refuse a mask or control of a modality that is not used, and controls that leave none.

        Raises:
            UsageError: There is one.
        """
        for name, asked in (("mask", self.mask), ("control", self.control)):
            for modality in asked:
                if modality not in modalities:
                    raise unknown_name(f"modality in {name}", modality, modalities)
        if modalities and all(self.control.get(one) == "absent" for one in modalities):
            raise UsageError(
                "control: every modality is absent, and the model needs content; leave one in, or "
                "take a model without content, such as bpr-mf"
            )
