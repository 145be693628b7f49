"""Distribution alignment: another teacher's word, with the classes as often as they are to be."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..core import Given, Pool, Step, Target, Teacher, Term
from ..errors import RecipeError, SpaceError
from ..memory import Buffers, averages, spoken
from ..targets import DISTRIBUTIONS
from .now import Itself


class _Shares(Buffers):
    """The running mean of what the inner teacher says, and the shares that classes are to have; its own state."""

    marginal: Tensor
    wanted: Tensor
    inner: nn.Module

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        for name in ("marginal", "wanted"):
            self.register_buffer(name, torch.zeros(0))

    def moved(self, p: Tensor, decay: float) -> Tensor:
        """The running mean (classes,) after a batch of distributions (elements, classes); the first batch begins it."""
        if not len(p):
            return self.marginal if len(self.marginal) else p.new_full((p.shape[-1],), 1.0 / p.shape[-1])
        return self.marginal.lerp(p.mean(0), 1.0 - decay) if len(self.marginal) else p.mean(0)


@dataclass(frozen=True)
class ClassAligned(Teacher):
    """What ``teacher`` says, times w_c / q_c and normalised: q the running mean of it, w the shares that are wanted.

    q keeps ``decay`` a step and counts the batch at hand. ``to`` is ``"uniform"`` (all classes alike) or ``"labels"``
    (the shares of the labelled rows, which `fit` brings; in a loop of one's own ``objective.prepare(pool)`` does).

    Source: Berthelot et al., ReMixMatch, ICLR 2020, distribution alignment (there q is the mean over 128 batches).

    Raises:
        RecipeError: no such ``to``, or a decay outside [0, 1).
    """

    teacher: Teacher = Itself()
    decay: float = 0.999
    to: str = "uniform"
    normalised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.to not in ("uniform", "labels"):
            raise RecipeError(f"classes are aligned to='uniform' or to='labels', not {self.to!r}")
        averages(self.decay)

    @property
    def view(self) -> str | None:
        """The view that the inner teacher looks at, where it names one."""
        return getattr(self.teacher, "view", None)

    def own_view(self, term: Term) -> str | None:
        return self.teacher.own_view(term)

    def key(self, term: Term) -> Hashable:
        return ClassAligned, self.decay, self.to, self.teacher.key(term)

    def space(self, head: str) -> str:
        inner = self.teacher.space(head)
        if inner not in DISTRIBUTIONS:
            raise SpaceError(
                f"ClassAligned aligns distributions over classes; for {head!r} {self.teacher} gives {inner}, not one"
            )
        return "probabilities"

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return _Shares(self.teacher.start(model, given))

    def prepare(self, state: nn.Module, pool: Pool) -> None:
        shares = cast(_Shares, state)
        self.teacher.prepare(shares.inner, pool)
        if self.to == "labels" and not pool.targets.is_floating_point():
            counts = pool.targets.flatten().bincount().float()
            shares.wanted = (counts / counts.sum()).to(shares.wanted.device)

    def admitted(self, state: nn.Module) -> Tensor | None:
        return self.teacher.admitted(cast(_Shares, state).inner)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        shares, classes = cast(_Shares, state), step.student(term.view, term.head).shape[-1]
        word = self.teacher.target(shares.inner, step, term).detached()
        p = word.probabilities(classes)
        said = spoken(p, word.valid)
        step.notes.setdefault(self.key(term), said)
        ratio = p * self._wanted(shares, classes) / shares.moved(said, self.decay).clamp(min=1e-6)
        return Target(ratio / ratio.sum(-1, keepdim=True).clamp(min=1e-12), "probabilities", word.valid)

    def _wanted(self, shares: _Shares, classes: int) -> Tensor:
        if self.to == "uniform":
            return torch.full((classes,), 1.0 / classes, device=shares.wanted.device)
        if not len(shares.wanted):
            raise RecipeError("aligning to the labels needs their shares: objective.prepare(pool), or to='uniform'")
        missing = shares.wanted.new_zeros(max(0, classes - len(shares.wanted)))  # classes beyond the last label's
        return torch.cat([shares.wanted, missing])

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        shares: Any = state
        self.teacher.update(shares.inner, steps, term)
        seen = [step.notes[self.key(term)] for step in steps if self.key(term) in step.notes]
        if seen:
            shares.marginal = shares.moved(torch.cat(seen), self.decay)
