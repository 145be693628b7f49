"""Targets know their space, so that nothing is softmaxed twice and no temperature meets a probability unasked."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SpaceError

#: What a target can be. ``classes`` are integer labels (rows, ...); every other space has its components last.
SPACES = ("classes", "probabilities", "logits", "values", "gaussian", "features")
#: Spaces that stand for a distribution over classes.
DISTRIBUTIONS = frozenset({"classes", "probabilities", "logits"})


class Target(NamedTuple):
    """A teacher's word: ``value`` in its ``space``; ``valid`` (rows, ...) is False where it has nothing to say.

    >>> Target(torch.tensor([[0.0, 0.0]]), "logits").probabilities(2, temperature=3.0).tolist()
    [[0.5, 0.5]]
    """

    value: Tensor
    space: str
    valid: Tensor | None = None

    def log_probabilities(self, classes: int, temperature: float = 1.0) -> Tensor:
        """Logarithms of the distribution at a temperature, (rows, ..., classes)."""
        if self.space == "logits":
            return F.log_softmax(self.value / temperature, dim=-1)
        return torch.log(self.probabilities(classes, temperature))

    def probabilities(self, classes: int, temperature: float = 1.0) -> Tensor:
        """The distribution at a temperature (p^(1/T), normalised again), (rows, ..., classes)."""
        if self.space == "logits":
            return F.softmax(self.value / temperature, dim=-1)
        if self.space == "classes":
            return F.one_hot(self.value.clamp(min=0), classes).float()  # one-hot at every temperature
        if self.space != "probabilities":
            raise SpaceError(f"a target of {self.space} is no distribution over classes")
        if temperature == 1.0:
            return self.value
        powered = self.value.pow(1.0 / temperature)
        return powered / powered.sum(-1, keepdim=True)

    def best(self) -> Tensor:
        """The most probable class, (rows, ...)."""
        return self.value if self.space == "classes" else self.value.argmax(-1)

    def spread(self, student: Tensor) -> Target:
        """The same target for every inner element of the student's output (exits, peers), without copying."""
        shape = student.shape[:-1]
        value, valid = self.value, self.valid
        lead = value.shape if self.space == "classes" else value.shape[:-1]
        if lead == shape:
            return self
        if len(lead) >= len(shape) or lead[0] != shape[0]:
            raise SpaceError(
                f"target of {self.space} with elements {tuple(lead)} does not fit the student's {tuple(shape)}"
            )
        for _ in range(len(shape) - len(lead)):
            value = value.unsqueeze(1)
            valid = valid.unsqueeze(1) if valid is not None else None
        value = value.expand(shape if self.space == "classes" else (*shape, value.shape[-1]))
        return Target(value, self.space, valid.expand(shape) if valid is not None else None)
