"""Adam over a model: torch's fused update for parameters, `RowTable`'s own for large tables.

Source: Kingma & Ba, Adam (ICLR 2015), algorithm 1, with beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmbench.errors import TrainingError
from mmbench.ops.row_table import BETA1, BETA2, EPSILON, RowTable


class Adam:
    """Adam over all parameters and row tables of a model; no weight decay, no clipping.

    Args:
        model: Its parameters and the `RowTable`s among its modules are optimised.
        legacy_zero_grad: A parameter without gradient goes on by its momentum, its step counter
            too, as torch before 2.0 did it, where clearing a gradient meant zero; otherwise it is
            skipped. A parameter that never had a gradient is skipped in any case. For a table: a
            step in which none of its rows has a gradient.
    """

    def __init__(self, model: nn.Module, *, legacy_zero_grad: bool = False) -> None:
        self.legacy_zero_grad = legacy_zero_grad
        self.tables = {
            name: module for name, module in model.named_modules() if isinstance(module, RowTable)
        }
        self.parameters = dict(model.named_parameters())
        self._dense = (
            torch.optim.Adam(
                self.parameters.values(), lr=1.0, betas=(BETA1, BETA2), eps=EPSILON, fused=True
            )
            if self.parameters
            else None
        )

    def zero_grad(self) -> None:
        """Clear all gradients before a backward."""
        for parameter in self.parameters.values():
            if self.legacy_zero_grad and parameter.grad is not None:
                parameter.grad.detach_().zero_()
            else:
                parameter.grad = None
        for table in self.tables.values():
            table.zero_grad()

    def step(self, lr: float) -> None:
        """Apply the gradients of one backward with learning rate `lr` > 0."""
        for table in self.tables.values():
            if table.has_gradient or (self.legacy_zero_grad and int(table.steps)):
                table.step(lr)
        if self._dense is not None:
            for group in self._dense.param_groups:
                group["lr"] = lr
            self._dense.step()

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters' moments and steps as `<parameter>.<what>`; tables are in the model's."""
        if self._dense is None:
            return {}
        return {
            f"{name}.{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self._dense.state.get(parameter, {}).items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `state_dict`; with `legacy_zero_grad` by the moments of each parameter too.

        Raises:
            TrainingError: A tensor belongs to no parameter, or does not have its shape.
        """
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition(".")
            parameter, known = self.parameters.get(name), key in ("step", "exp_avg", "exp_avg_sq")
            if self._dense is None or parameter is None or not known:
                raise TrainingError(
                    f"saved optimiser: {full_name} belongs to no parameter of this model"
                )
            if key != "step" and tensor.shape != parameter.shape:
                raise TrainingError(
                    f"saved optimiser: {full_name} is {tuple(tensor.shape)}, the parameter "
                    f"{tuple(parameter.shape)}"
                )
            self._dense.state[parameter][key] = tensor.to(parameter.device, copy=True)
            if self.legacy_zero_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
