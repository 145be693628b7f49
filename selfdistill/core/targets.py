"""Targets know their space, so that nothing is softmaxed twice and no temperature meets a probability unasked."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SpaceError

#: What a target can be. ``classes`` are integer labels (rows, ...); every other space has its components last.
#: ``excluded`` has a one for each class that the row is said *not* to have.
SPACES = ("classes", "probabilities", "logits", "values", "gaussian", "ranks", "features", "excluded", "members")


#: Spaces that stand for a distribution over classes.
DISTRIBUTIONS = frozenset({"classes", "probabilities", "logits"})


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits at a temperature; at 1 they stay as they are."""
    return logits if temperature == 1.0 else logits / temperature


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
            self.fits(classes)
            return F.log_softmax(tempered(self.value, temperature), dim=-1)
        return torch.log(self.probabilities(classes, temperature))

    def probabilities(self, classes: int, temperature: float = 1.0) -> Tensor:
        """The distribution at a temperature (p^(1/T), normalised again), (rows, ..., classes)."""
        if self.space == "classes":
            return F.one_hot(self.value.clamp(min=0), classes).float()  # one-hot at every temperature
        if self.space not in DISTRIBUTIONS:
            raise SpaceError(f"a target of {self.space} is no distribution over classes")
        self.fits(classes)
        if self.space == "logits":
            return F.softmax(tempered(self.value, temperature), dim=-1)
        if temperature == 1.0:
            return self.value
        powered = self.value.pow(1.0 / temperature)
        return powered / powered.sum(-1, keepdim=True).clamp(min=1e-30)  # a row that says nothing is 0, and stays it

    def fits(self, width: int) -> None:
        """Refuse components that broadcasting would silently stretch, or a loss read past."""
        if self.space != "classes" and self.value.shape[-1] != width:
            raise SpaceError(f"a target of {self.value.shape[-1]} {self.space} does not fit the student's {width}")

    def best(self) -> Tensor:
        """The most probable class, (rows, ...)."""
        return self.value if self.space == "classes" else self.value.argmax(-1)

    def detached(self) -> Target:
        """The same target, cut off whatever graph it came from, and 0 in rows that say nothing."""
        value = self.value.detach()
        if self.valid is not None and isinstance(value, Tensor):
            mask = self.valid.reshape(*self.valid.shape, *(1,) * (value.dim() - self.valid.dim()))
            value = torch.where(mask, value, torch.zeros_like(value))
        return Target(value, self.space, self.valid)

    def spread(self, student: Tensor) -> Target:
        """The same target for every inner element of the student's output (exits, peers), without copying.

        It is cut off whatever graph it came from, and 0 in rows that say nothing: so no teacher learns through its
        student's loss, and a nan that stands for nothing enters no gradient.

        Raises:
            SpaceError: its elements are not the first dimensions of the student's.
        """
        shape = student.shape[:-1]
        value, valid = self.value.detach(), self.valid
        lead = value.shape if self.space == "classes" else value.shape[:-1]
        if len(lead) > len(shape) or lead != shape[: len(lead)]:
            raise SpaceError(
                f"target of {self.space} with elements {tuple(lead)} does not fit the student's {tuple(shape)}"
            )
        if lead != shape:
            inner = (1,) * (len(shape) - len(lead))
            components = value.shape[len(lead) :]
            value = value.reshape(*lead, *inner, *components).expand(*shape, *components)
        if valid is not None:
            if valid.shape != shape:
                valid = valid.reshape(*valid.shape, *(1,) * (len(shape) - valid.dim())).expand(shape)
            if isinstance(value, Tensor):  # lazy logits are read where they are valid alone
                mask = valid.reshape(*shape, *(1,) * (value.dim() - valid.dim()))
                value = torch.where(mask, value, torch.zeros_like(value))
        return Target(value, self.space, valid)


class Matched(NamedTuple):
    """One normal distribution for several: its mean and log variance, and the two parts of the variance, (...)."""

    mean: Tensor
    log_variance: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def matched(means: Tensor, log_variances: Tensor) -> Matched:
    """The normal distribution with the mean and the variance of an even mixture of K normal ones.

    Equation::

        m = mean_k m_k,  s^2 = mean_k s_k^2 + mean_k (m_k - m)^2

    The first part of the variance is noise that all members see (aleatoric), the second their disagreement (epistemic).

    Args:
        means, log_variances: of the members, (..., K).

    Source: Lakshminarayanan, Pritzel and Blundell, Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles, NeurIPS 2017, section 2.4.

    >>> mean, _, aleatoric, epistemic = matched(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
    >>> mean.item(), aleatoric.item(), epistemic.item()
    (2.0, 1.0, 1.0)
    """
    aleatoric, epistemic = log_variances.exp().mean(-1), means.var(-1, correction=0)
    return Matched(means.mean(-1), (aleatoric + epistemic).log(), aleatoric, epistemic)
