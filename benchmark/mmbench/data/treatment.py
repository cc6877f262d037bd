"""What a recipe does to the stored vectors before a model sees them, as one value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmbench.core.content import Scaling
from mmbench.data.controls import Control
from mmbench.data.masks import Pattern
from mmbench.data.missing import policy_of
from mmbench.errors import UsageError, unknown_name

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

    def policy_for(self, *, uses_features: bool) -> str:
        """Return the policy that matters: a model without content has its items alone.

        (Runs of such models have always been named after `mean` and `zeros`, too.)
        """
        policy = self.policy
        fixed = policy.DROPS or policy.NAME in ("mean", "zeros")
        return policy.spelled if uses_features or fixed else "mean"

    def immaterial(self, *, uses_features: bool) -> list[str]:
        """Return the recipe's fields that change nothing, or stand at the value they always had.

        A run is named after its recipe: without these fields as ever.

        Args:
            uses_features: Whether the model does. One that doesn't depends on masks alone, and on
                them only where the policy leaves items out.
        """
        masks = bool(self.mask) and (uses_features or self.policy.DROPS)
        controls = bool(self.control) and uses_features
        draws = {"shuffled", "noise"} & set(self.control.values()) if controls else set()
        matters = {
            "mask": masks,
            "pattern": masks and self.pattern != "random",
            "control": controls,
            "mask_seed": self.seed != 0 and (masks or bool(draws) or self.policy.DRAWS),
        }
        return [name for name, material in matters.items() if not material]

    def require(self, modalities: Collection[str]) -> None:
        """Refuse a mask or control of a modality that is not used, and controls that leave none.

        Raises:
            UsageError: There is one.
        """
        for name, asked in (("mask", self.mask), ("control", self.control)):
            for modality in asked:
                if modality not in modalities:
                    raise unknown_name(f"modality in {name}", modality, modalities)
                if name == "mask" and self.control.get(modality) == "absent":
                    raise UsageError(f"mask: {modality} is absent by `control`; leave out one")
        if modalities and all(self.control.get(one) == "absent" for one in modalities):
            raise UsageError(
                "control: every modality is absent, and the model needs content; leave one in, or "
                "take a model without content, such as bpr-mf"
            )
