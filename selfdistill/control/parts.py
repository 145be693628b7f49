"""Parts that policies alone need: actions that were taken as labels, returns, the gate of self-imitation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ..core.outputs import element_shape, space_of
from ..core.parts import BaseTerm, Gate, Loss, Teacher
from ..core.step import Forward, TrainingClock
from ..core.targets import Target
from ..errors import SpaceError
from ..losses import GaussianKL


@dataclass(frozen=True)
class Release:
    """``weight`` that falls on a straight line to 0, which it reaches after ``share`` of the training.

    >>> [Release(1.0, 0.5)(TrainingClock(step=step, epochs=4)) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """

    weight: float = 1.0
    share: float = 0.25

    def __call__(self, clock: TrainingClock) -> float:
        return self.weight * max(0.0, 1.0 - clock.progress / self.share) if self.share > 0 else 0.0


@dataclass(frozen=True)
class ActionsTaken(Teacher):
    """The action that was taken in each row as its label: the ``y`` of the term's view.

    Discrete ones are (rows,) or (rows, dimensions), continuous ones (rows, dimensions).
    """

    def space(self, head: str) -> str:
        return "values" if space_of(head) == "gaussian" else "classes"

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        actions = forward.labels(term.view)
        if self.space(term.head) == "values":
            return Target(actions.unsqueeze(-1), "values")
        return Target(actions.long(), "classes")


@dataclass(frozen=True)
class Returns(Teacher):
    """The discounted return that followed each row: the extra field ``returns`` (rows,) of the term's view."""

    def space(self, head: str) -> str:
        return "values"

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        return Target(returns_of(forward, term)[:, None], "values")


def returns_of(forward: Forward, term: BaseTerm) -> Tensor:
    """The returns (rows,) of the term's view.

    Raises:
        SpaceError: the view has none.
    """
    returns = forward.batch[term.view].extra.get("returns")
    if returns is None:
        raise SpaceError(f"view {term.view!r} carries no returns; give its rows the extra field 'returns'")
    return returns


@dataclass(frozen=True)
class Surpassed(Gate):
    """How far the return of a row surpassed the student's value of it: clip(R - V, 0, most), without gradient.

    Source: Oh et al., Self-Imitation Learning, ICML 2018, equation 2; the clip is that of the authors' code.
    """

    most: float = 1.0
    prefers: ClassVar[str | None] = None

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        value = forward.student(term.view, "values").detach().squeeze(-1)
        trust = (returns_of(forward, term) - value).clamp(0.0, self.most)
        shape = element_shape(student)
        return trust.reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)


@dataclass(frozen=True)
class SquaredShortfall(Loss):
    """max(target - value, 0)^2 / 2 of one value: it raises a value that the return surpassed, and never lowers one.

    >>> SquaredShortfall()(torch.tensor([[1.0], [1.0]]), Target(torch.tensor([[3.0], [0.0]]), "values")).tolist()
    [2.0, 0.0]
    """

    flat: ClassVar[bool] = True
    student_spaces: ClassVar[frozenset[str]] = frozenset({"values"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"values"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(1)
        return 0.5 * (target.value - student).clamp(min=0.0).square().sum(-1)


@dataclass(frozen=True)
class SquaredMeans(Loss):
    """(m_t - m)^2 of two normal distributions: their means alone, so that the teacher's noise is not imitated.

    >>> SquaredMeans()(torch.tensor([[1.0, 0.0]]), Target(torch.tensor([[3.0, 9.0]]), "gaussian")).tolist()
    [4.0]
    """

    flat: ClassVar[bool] = True
    student_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(2)
        return (target.value[..., 0] - student[..., 0]).square()


@dataclass(frozen=True)
class GaussianMeanNLL(Loss):
    """-log N(m_t; m, s^2): the likelihood of the action that the teacher prefers, its mean.

    >>> mean, target = torch.tensor([[1.0, 0.0]]), Target(torch.tensor([[1.0, 5.0]]), "gaussian")
    >>> round(GaussianMeanNLL()(mean, target).item(), 4)
    0.9189
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    signed: ClassVar[bool] = True

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(2)
        mean, log_variance = student.unbind(-1)
        normal = Normal(mean, (0.5 * log_variance).exp())
        log_prob: Tensor = normal.log_prob(target.value[..., 0])
        return -log_prob


@dataclass(frozen=True)
class SharpenedGaussianKL(Loss):
    """KL(t || p) of normal distributions, where t is N(m_t, T s_t^2), the target to the power 1/T: sharper below 1.

    >>> student, target = torch.tensor([[1.0, 0.0]]), Target(torch.tensor([[1.0, 0.0]]), "gaussian")
    >>> round(SharpenedGaussianKL(0.5)(student, target).item(), 4)
    0.0966
    """

    temperature: float = 0.5
    student_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        mean, log_variance = target.value.unbind(-1)
        sharper = torch.stack([mean, log_variance + math.log(self.temperature)], -1)
        return GaussianKL()(student, Target(sharper, "gaussian", target.valid))
