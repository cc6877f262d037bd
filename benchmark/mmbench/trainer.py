"""The one training loop: batches, Adam, validation, the best epoch, exact resume. No files.

A step is a program for the device: its shapes do not depend on the data, it copies nothing and
waits for nothing. Where a GPU allows, it is captured once and then replayed
(`mmbench.ops.capture`); the same code runs step by step elsewhere.

Adam: Kingma & Ba (ICLR 2015), algorithm 1, with beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8; for
parameters torch's fused update, or `ops/gpu/adam.py`, `RowTable`'s own for large tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Batch
from mmbench.errors import Diverged, NotFiniteError, TrainingError
from mmbench.models.base import ModelConfig, Recommender
from mmbench.models.stand_ins import StandIn
from mmbench.ops import draws, gpu  # noqa: F401  # batches are drawn by the kernels of `draws`
from mmbench.ops.capture import Captured, DrawnAhead, capturable
from mmbench.ops.row_table import BETA1, BETA2, EPSILON, RowTable

if TYPE_CHECKING:
    from mmbench.ops.gpu.adam import DenseAdam


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
        self._lr: float = 1.0
        self._dense = _dense_adam(list(self.parameters.values()))

    def schedule(self, lr: float, steps: int) -> None:
        """Say the learning rate of the coming steps, > 0; called before each epoch's first one."""
        self._lr = lr
        for table in self.tables.values():
            table.schedule(lr, steps)
        for group in self._dense.param_groups if self._dense is not None else ():
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def zero_grad(self) -> None:
        """Clear all gradients before a backward."""
        for parameter in self.parameters.values():
            if self.legacy_zero_grad and parameter.grad is not None:
                parameter.grad.detach_().zero_()
            else:
                parameter.grad = None
        for table in self.tables.values():
            table.zero_grad()

    def step(self) -> None:
        """Apply the gradients of one backward."""
        for table in self.tables.values():
            if table.has_gradient or (self.legacy_zero_grad and table.moved):
                table.step(self._lr)
        if self._dense is not None:
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


def _dense_adam(parameters: list[nn.Parameter]) -> torch.optim.Adam | DenseAdam | None:
    """The optimiser of the parameters; None where there is none."""
    if not parameters:
        return None
    # A captured step reads the learning rate on the device.
    on_gpu = capturable(parameters[0].device)
    lr = torch.ones((), device=parameters[0].device) if on_gpu else 1.0
    if isinstance(lr, Tensor) and gpu.serves(lr):
        from mmbench.ops.gpu.adam import DenseAdam

        return DenseAdam(parameters, lr)
    return torch.optim.Adam(
        parameters, lr=lr, betas=(BETA1, BETA2), eps=EPSILON, fused=True, capturable=on_gpu
    )


Validate = Callable[[Recommender], dict[str, float | None]]
"""Scores the model on the validation split: metric@cut-off to value."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to.

    Attributes:
        epoch: 1-based; 0 for a model that is not trained.
        loss: Mean of each loss term over the epoch's batches.
        seconds: Wall time of the training part.
        valid: Validation metrics, if this epoch was validated.
        improved: Whether this epoch is the best so far.
    """

    epoch: int
    loss: dict[str, float]
    seconds: float
    valid: dict[str, float | None] | None = None
    improved: bool = False


@dataclass
class TrainingProgress:
    """Where a training stands: with `Trainer.tensors`, all that a resume needs.

    Attributes:
        epoch: Last finished epoch.
        best_epoch: Epoch with the best validation value so far, the first one on ties; None before
            any validation.
        best_value: That value.
        cpu_s: CPU seconds spent so far, as the caller counts them.
    """

    epoch: int = 0
    best_epoch: int | None = None
    best_value: float = -math.inf
    cpu_s: float = 0.0


class Trainer:
    """Trains one model and yields a record after each epoch.

    Args:
        model: What to train; parameters are moved nowhere.
        train: The training set.
        config: Epochs, batch size, learning rate.
        validate: Called after every `every` epochs and after the last one.
        metric: Which of its values chooses the epoch; larger is better.
        every: Epochs between validations, >= 1.
        patience: Stop after this many validations without improvement; None: never.
        decimals: The value that chooses is rounded to so many first; None: it is not.
        seed: Of the batches and of the model's own randomness.

    Attributes:
        between_steps: Called after each step; may raise to stop.
    """

    def __init__(
        self,
        model: Recommender,
        train: TrainSet,
        config: ModelConfig,
        validate: Validate,
        *,
        metric: str,
        every: int,
        patience: int | None,
        seed: int,
        decimals: int | None = None,
    ) -> None:
        self.model, self.config, self.validate = model, config, validate
        self.metric, self.every, self.patience, self.seed = metric, every, patience, seed
        self.decimals = decimals
        self.between_steps: Callable[[], None] = lambda: None
        self.epochs = config.epochs if model.trained else 0
        self.progress = TrainingProgress()
        self.validations_since_best = 0
        if self.epochs:
            self.device = next(model.parameters()).device
            self.sampler = model.make_sampler(train, config.batch_size, seed, self.device)
            self.optimiser = Adam(model, legacy_zero_grad=model.legacy_zero_grad)
            # Of each step of an epoch the loss terms, (steps, n_terms): read once an epoch.
            self._losses = torch.empty(0)
            self._terms: tuple[str, ...] = ()
            self._captured: Captured | None = None
            self._batches: Callable[[int], Iterator[Batch]] = lambda n: self.sampler.epoch(n)
            if capturable(self.device):
                self._captured = Captured(self._take, self.device)
                self._batches = DrawnAhead(self.sampler, self.device).epoch

    def run(self) -> Iterator[EpochRecord]:
        """Train from where `progress` stands to the end, one record an epoch.

        Raises:
            Diverged: A loss term or a score is not finite; the message has epoch, step and term.
        """
        if not self.epochs:
            yield self._validated(EpochRecord(0, {}, 0.0))
        while self.progress.epoch < self.epochs and not self._out_of_patience():
            epoch = self.progress.epoch + 1
            start = time.perf_counter()
            loss = self._train_epoch(epoch)
            record = EpochRecord(epoch, loss, time.perf_counter() - start)
            self.progress.epoch = epoch
            if epoch % self.every == 0 or epoch == self.epochs:
                record = self._validated(record)
            yield record

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and optimiser state by name, for an exact resume."""
        tensors = {
            f"model.{name}": value.detach() for name, value in self.model.state_dict().items()
        }
        if self.epochs:
            tensors |= {
                f"adam.{name}": value for name, value in self.optimiser.state_dict().items()
            }
        return tensors

    def restore(self, tensors: dict[str, Tensor], progress: TrainingProgress) -> None:
        """Go on from a state that `tensors` and `progress` described.

        Raises:
            TrainingError: The tensors are not those of this model.
        """
        try:
            self.model.load_state_dict(_under("model.", tensors))
        except RuntimeError as error:
            raise TrainingError(
                f"the saved state does not fit this model: {error}; train anew with --restart"
            ) from error
        if self.epochs:
            self.optimiser.load_state_dict(_under("adam.", tensors))
            if self._captured is not None:
                self._captured.forget()
        self.progress = progress
        if progress.best_epoch is not None:
            self.validations_since_best = (progress.epoch - progress.best_epoch) // self.every

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, StandIn):
                module.start_epoch(epoch, self.seed)
        self.model.start_epoch(epoch, self.seed)
        self.optimiser.schedule(
            self.config.lr * self.model.lr_factor(epoch), steps=len(self.sampler)
        )
        take = self._captured or self._take
        for step, batch in enumerate(self._batches(epoch)):
            take(batch)
            if self.device.type == "cpu":  # where a look costs nothing
                self._refuse_what_is_not_finite(epoch, self._losses[step : step + 1], step)
            self.between_steps()
        losses = self._losses[: step + 1].cpu()
        self._refuse_what_is_not_finite(epoch, losses)
        return dict(zip(self._terms, losses.double().mean(0).tolist(), strict=True))

    def _take(self, batch: Batch) -> None:
        """One step: all that a GPU captures. Its loss terms go into a row of `_losses`."""
        self.optimiser.zero_grad()
        terms = self.model.loss(batch)
        losses = torch.stack(list(terms.values()))
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        shape = len(self.sampler), len(terms)
        if self._losses.shape != shape:  # the first step
            self._terms, self._losses = tuple(terms), losses.new_empty(shape)
        self._losses.index_copy_(0, batch.clock[1:], losses.detach()[None])

    def _refuse_what_is_not_finite(self, epoch: int, losses: Tensor, first: int = 0) -> None:
        if bool(torch.isfinite(losses).all()):
            return
        step, term = (~torch.isfinite(losses)).nonzero()[0].tolist()
        raise Diverged(
            f"epoch {epoch}, step {first + step}: loss term {self._terms[term]!r} is "
            f"{losses[step, term].item()}; lower lr (now {self.config.lr:g}) or check the features "
            "with `mmx store verify`"
        )

    def _validated(self, record: EpochRecord) -> EpochRecord:
        self.model.train(False)
        try:
            with torch.inference_mode():
                valid = self.validate(self.model)
        except NotFiniteError as error:
            raise Diverged(f"epoch {record.epoch}: {error}") from error
        value = valid[self.metric]
        if value is None and not self.epochs:  # nothing is chosen
            self.progress.best_epoch = record.epoch
            return replace(record, valid=valid, improved=True)
        if value is None:
            raise TrainingError(
                f"{self.metric} has no value on the validation split: no user has a relevant row "
                "there"
            )
        if self.decimals is not None:  # a gain that rounding hides is none
            value = round(value, self.decimals)
        improved = value > self.progress.best_value
        if improved:
            self.progress.best_epoch, self.progress.best_value = record.epoch, value
            self.validations_since_best = 0
        else:
            self.validations_since_best += 1
        return EpochRecord(record.epoch, record.loss, record.seconds, valid, improved)

    def _out_of_patience(self) -> bool:
        return self.patience is not None and self.validations_since_best >= self.patience


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
