"""Settings: how to train, as one frozen value that a run folder records."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import nn

from ..errors import DataError, RecipeError
from ..evaluation.audit import Audit, measure_for
from ..io.expressions import BatchSize, Epochs, NonNegative, Positive, Range, Seed, Steps, field_fault

LARGEST = 1e18  # of rates: the product of two of them is finite in float32

_NUMBERED = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)")  # of the name of a weight: up to the first number


PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """The settings of a training. ``steps`` (per generation) takes the place of ``epochs`` where given.

    ``accumulate`` splits each batch into micro-batches; the loss stays that of the whole batch (batch norm and dropout
    see the micro-batch). ``parallel`` is ``ddp`` or ``fsdp`` and matters under torchrun only. ``save_seconds`` and
    ``save_steps`` are the time between checkpoints. ``audit``, ``audit_level``, ``audit_delta``, ``audit_measure``
    (left open, accuracy for classes and mse for values) and ``patience`` say how generations are accepted; see
    `audit.Audit`. ``audit_epochs`` audits within a generation too, every so many epochs, and rolls back to the best
    audited state; see `rollback`. ``vitals`` looks at a few steps and refuses a signal that is dead. ``cache`` keeps
    what a frozen teacher says of inputs that do not change, so that it is asked once.
    ``memory_dtype`` is the precision of remembered predictions, and ``memory_top`` how many of the largest
    probabilities of each are kept (0: all), while the others share the rest of their sum. ``layer_decay`` is what the
    learning rate of a layer is multiplied by for each layer above it.
    """

    epochs: Epochs = 30
    steps: Steps | None = None
    batch_size: BatchSize = 64
    accumulate: BatchSize = 1
    optimizer: str = "adamw"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 1e-4
    schedule: str = "cosine"
    clip: Positive | None = None
    precision: str = "float32"
    compile: bool = False
    parallel: str = "ddp"
    seed: Seed = 0
    audit: str = "safe"
    audit_level: float = 0.05
    audit_delta: float | None = None
    audit_measure: str | None = None
    audit_epochs: Epochs | None = None
    patience: Epochs | None = None
    vitals: bool = True
    cache: bool = True
    memory_dtype: str = "float32"
    memory_top: Annotated[int, Range(0, limit=2**20)] = 0
    layer_decay: Annotated[float, Range(0, 1, above=True)] = 1.0
    save_seconds: NonNegative = 30.0
    save_steps: Steps | None = None

    def __post_init__(self) -> None:
        if fault := field_fault(self):
            raise DataError(fault)
        choices = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("cosine", "constant"),
            "precision": tuple(PRECISIONS),
            "memory_dtype": tuple(PRECISIONS),
            "parallel": ("ddp", "fsdp"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"{name} is {', '.join(allowed[:-1])} or {allowed[-1]}, not {getattr(self, name)!r}")
        Audit(self.audit, self.audit_level, self.audit_delta, 1, self.patience, self.audit_measure or "accuracy")

    def make_audit(self, generations: int, task: str = "classify") -> Audit:
        """The audit of a method of so many generations; the first of them is not audited."""
        planned = max(1, generations - 1)
        options = self.audit_epochs is not None and generations > 1  # the checks within generations have the other half
        level = self.audit_level / 2 if options else self.audit_level
        measure = measure_for(task, self.audit_measure)
        return Audit(self.audit, level, self.audit_delta, planned, self.patience, measure)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if value > LARGEST:
                raise DataError(f"{name} is at most {LARGEST:g}, since weights are float32, not {value:g}; lower it")
        parameters: Any = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise RecipeError("the model has no weights to train; build one that has")
        if self.layer_decay < 1:
            parameters = layer_rates(model, self.lr, self.layer_decay)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay, foreach=True
            )
        return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay, foreach=True)

    def make_scheduler(
        self, optimizer: torch.optim.Optimizer, steps: int, cycles: int = 1
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate over so many steps; in each of the ``cycles`` the cosine starts at the full rate again."""
        if self.schedule == "cosine" and cycles > 1:
            return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_restarted, steps=steps, cycles=cycles))
        if self.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def layer_rates(model: nn.Module, lr: float, decay: float) -> list[dict[str, Any]]:
    """The parameters of a model in groups, a layer each, with rates that fall from the last layer to the first.

    A layer is what comes first in a name up to a number, as ``body.blocks.3``; else the module that holds the weight.

    Equation::

        rate of layer l of L = lr decay^(L - l)

    Source: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, ACL 2018 (discriminative
    rates); Clark et al., ELECTRA, ICLR 2020 (one factor a layer).

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> [group["lr"] for group in layer_rates(model, 0.1, 0.5)]
    [0.05, 0.1]
    """
    layers = dict[str, list[nn.Parameter]]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = _NUMBERED.match(name)
            layers.setdefault(found[0] if found else name.rpartition(".")[0], []).append(parameter)
    count = len(layers)
    return [{"params": group, "lr": lr * decay ** (count - 1 - i)} for i, group in enumerate(layers.values())]


def _restarted(step: int, steps: int, cycles: int) -> float:
    """Half a cosine from 1 towards 0 in each cycle; cycle k starts at step k steps / cycles, rounded down.

    >>> [round(_restarted(step, 8, 2), 2) for step in range(8)]
    [1.0, 0.85, 0.5, 0.15, 1.0, 0.85, 0.5, 0.15]
    """
    starts = [k * steps // cycles for k in range(cycles + 1)]
    start, end = next(((a, b) for a, b in pairwise(starts) if a <= step < b), (0, 1))  # after the last step: asked once
    return 0.5 * (1.0 + math.cos(math.pi * (step - start) / (end - start)))
