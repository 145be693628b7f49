"""What the integrations share: models of named inputs, the length of a run, and the objective's state as a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil, inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import Method, Objective
from ..core.step import Batch, Rows
from ..errors import CheckpointError, DataError, RecipeError
from ..io.expressions import one_line
from ..io.tensors import read_tensors, write_tensors
from ..training.task import counts

FILE = "objective.safetensors"


class NamedInputs(nn.Module):
    """A model of named inputs as one of a single tensor: (rows, ...) of one name, (rows, names, ...) of several.

    >>> NamedInputs(nn.Linear(3, 2), ["input"])(torch.zeros(4, 3)).shape
    torch.Size([4, 2])
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, x: Tensor) -> Any:
        columns = x.unbind(1) if len(self.names) > 1 else (x,)
        return self.model(**dict(zip(self.names, columns, strict=True)))


def batch_of(inputs: Mapping[str, Any], names: Sequence[str], fixed: Sequence[str] = ()) -> Batch:
    """The views of a batch: mappings by their names, or else all of it as the view ``x``.

    A view has the model's inputs and its ``labels`` and ``id``, where it has some; what is beside the views is of all.

    Raises:
        DataError: an input is missing, inputs do not stack, or there is a label for each token.

    >>> batch_of({"input_ids": torch.ones(2, 5), "labels": torch.tensor([0, 1])}, ["input_ids"])["x"].x.shape
    torch.Size([2, 5])
    """
    views = {name: value for name, value in inputs.items() if isinstance(value, Mapping)} or {"x": {}}
    batch = Batch({name: _rows(name, {**inputs, **view}, names) for name, view in views.items()})
    batch.fixed = frozenset(fixed)
    return batch


def _rows(view: str, inputs: Mapping[str, Any], names: Sequence[str]) -> Rows:
    absent = [name for name in names if name not in inputs]
    if absent:
        raise DataError(
            f"view {view!r} has no {absent[0]!r} (it has: {', '.join(inputs)}); name the model's inputs by inputs="
        )
    columns, y = [inputs[name] for name in names], inputs.get("labels")
    if len({(column.shape, column.dtype) for column in columns}) > 1:
        raise DataError(f"inputs {' and '.join(names)} of view {view!r} differ in shape or type; stack them yourself")
    if y is not None and y.dim() > 1 and not y.is_floating_point():
        raise DataError(
            f"view {view!r} has labels {tuple(y.shape)}: token by token is not for a Trainer's recipe, which knows "
            "neither padding nor the shift of a causal model; use selfdistill.language"
        )
    return Rows(torch.stack(columns, 1) if len(columns) > 1 else columns[0], y, inputs.get("id"))


def bind_named(method: Method, model: nn.Module, names: Sequence[str], options: Mapping[str, Any]) -> Objective:
    """The objective for a model of named inputs; other models among the options have the same inputs."""
    models = {
        key: NamedInputs(value, names) if isinstance(value, nn.Module) else value for key, value in options.items()
    }
    return method.bind(NamedInputs(model, names), **models)


def total_counts(objective: Objective, batches: Sequence[Batch]) -> dict[str, Tensor] | None:
    """The counts that divide the terms, over all micro-batches and processes; None where the batch is in one piece."""
    return counts(objective, batches) if max(len(batches), distributed.size()) > 1 else None


def set_run_length(objective: Objective, steps: float, batches: Any, accumulate: int, done: int) -> None:
    """Set the length of an objective's run: all optimizer steps, batches of an epoch (or their loader), finished steps.

    Raises:
        RecipeError: the run has no end, and schedules would not know where they are.

    >>> from selfdistill.methods import plain
    >>> objective = plain().bind(nn.Linear(3, 2))
    >>> set_run_length(objective, steps=10, batches=7, accumulate=2, done=5)
    >>> objective.clock.epoch, objective.clock.epochs, objective.clock.progress
    (1, 3, 0.5)
    """
    if not 0 < steps < inf:
        raise RecipeError("the run has no end, and a recipe's schedules need one; give the Trainer a number of steps")
    if not isinstance(batches, int | float):
        batches = len(batches) if hasattr(batches, "__len__") else inf
    per_epoch = ceil(batches / accumulate) if 0 < batches < inf else int(steps)
    clock = replace(objective.clock, epochs=ceil(steps / per_epoch), per_epoch=per_epoch, steps=int(steps))
    objective.clock = clock.at(done)


def save(objective: Objective, folder: str, writes: bool) -> None:
    """Write the state into a checkpoint's folder, if this process ``writes``."""
    if writes:
        write_tensors(Path(folder, FILE), objective.state_dict())


def load(objective: Objective, folder: str) -> None:
    """Load the state from a checkpoint's folder.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to another recipe or model.
    """
    path = Path(folder, FILE)
    try:
        objective.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: of another recipe or model ({why}); resume with those that wrote it") from None


def warn(line: str) -> None:
    """Print a line about trouble that a run survives, beside what it prints."""
    print(line, file=sys.stderr)


@contextmanager
def requiring(packages: str) -> Iterator[None]:
    """Imports within it need these packages, and a failure names them."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"this needs {packages} ({one_line(error)}): pip install {packages}") from None
