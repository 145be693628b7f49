"""Averages of the student's parameters that move less and less, and the same less the mean of what they say."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .. import ranks
from ..core import Given, Step, Target, Term
from ..heads import space_of
from ..memory import Buffers, averages
from .weights import Ema, Held


@dataclass(frozen=True)
class Momentum(Ema):
    """Moving average of the student's parameters alone, whose decay rises to 1: w' <- d w' + (1 - d) w, step k of K.

    Equation::

        d = 1 - (1 - decay) (cos(pi k / K) + 1) / 2

    It starts from the student's weights, sees the view in train mode, and keeps batch statistics of its own. ``head``
    is what it says, where that is another head than the student's.

    Source: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, section 3.2.

    >>> round(Momentum(0.9).decay_at(0, 10), 4), round(Momentum(0.9).decay_at(5, 10), 4)
    (0.9, 0.95)
    """

    decay: float = 0.996
    train: bool = True
    warm_up: bool = False
    head: str | None = None

    def __post_init__(self) -> None:
        averages(self.decay)

    def decay_at(self, step: int, length: int) -> float:
        """What is kept of the average after a step."""
        return 1.0 - (1.0 - self.decay) * (math.cos(math.pi * min(1.0, step / length)) + 1.0) / 2.0

    def key(self, term: Term) -> Hashable:
        return type(self), self.decay, self.train

    def space(self, head: str) -> str:
        return space_of(self.head or head)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        head = self.head or term.head
        return Target(step.look(cast(Held, state).module, self.view or term.view, head), space_of(head))

    @torch.no_grad()
    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        clock, teacher, student = steps[0].clock, cast(Held, state).module, cast(nn.Module, steps[0].owner)
        mine = list[Tensor](teacher.parameters())
        theirs = [w.to(m.dtype) for m, w in zip(mine, student.parameters(), strict=True)]
        torch._foreach_lerp_(mine, theirs, 1.0 - self.decay_at(clock.step, clock.length))


class Centre(Buffers):
    """A running mean of what is said, of the shape of one row; 0 before anything is."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def follow(self, said: Tensor, decay: float) -> None:
        """mean <- decay x mean + (1 - decay) x the mean over the rows said (rows, ...) by all processes."""
        self.mean = decay * self.mean + (1.0 - decay) * ranks.gather(said).mean(0)


class Centred(Held):
    """Held weights and the mean of what they say."""

    def __init__(self, module: nn.Module, train: bool) -> None:
        super().__init__(module, train)
        self.centre = Centre()


@dataclass(frozen=True)
class CentredMomentum(Momentum):
    """`Momentum` less a running mean of what it says, so that no component is what every row is told.

    Equation::

        target = t - c,  c <- m c + (1 - m) mean t    after the loss, over the rows of all its views; c starts at 0

    Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, equation 4.
    """

    centring: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        averages(self.centring)

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return Centred(copy.deepcopy(model).float(), self.train)

    def key(self, term: Term) -> Hashable:
        return super().key(term), self.centring, self.head or term.head

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        said = super().target(state, step, term)
        return said._replace(value=said.value - cast(Centred, state).centre.mean)

    @torch.no_grad()
    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        held, head = cast(Centred, state), self.head or term.head
        seen = [(step, view) for step in steps for view in step.batch if step.asked(held.module, view)]
        if seen:
            held.centre.follow(torch.cat([step.look(held.module, view, head) for step, view in seen]), self.centring)
        super().update(state, steps, term)
