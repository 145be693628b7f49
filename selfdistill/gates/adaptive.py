"""Gates whose threshold follows the targets: by class, or by their running mean and spread.

The running statistics are a state that `update` moves on. Where the paper counts the batch at hand too, it is added
before the batch is weighed, over all processes; with several micro-batches each adds its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.memory import Buffers, SampleMemory, averages, spoken
from ..core.parts import BaseTerm, BindArgs, Gate, GenerationData
from ..core.step import Forward
from ..core.targets import DISTRIBUTIONS, Target
from ..errors import RecipeError

MAPPINGS = ("convex", "linear", "concave")


class _Progress(SampleMemory):
    """The last sure class of each row, from 1 on (0: none yet), and how many rows there are."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(()))


@dataclass(frozen=True)
class ClassProgress(Gate[_Progress]):
    """1 where the confidence exceeds M(b_c) x ``threshold``, c the target's class: harder classes are let in sooner.

    b_c = s_c / max(max_c s_c, rows without any), s_c = rows whose last confidence above ``threshold`` was for c, before
    this batch; without ``warm_up`` b_c = s_c / max_c s_c. M is ``convex`` x / (2 - x), ``linear`` x or ``concave``
    log(1 + x) / log 2. A row keeps its class when it becomes unsure again. As long as no row was sure, all pass.

    Source: Zhang et al., FlexMatch, NeurIPS 2021, algorithm 1.

    Raises:
        RecipeError: no such mapping.
    """

    threshold: float = 0.95
    mapping: str = "convex"
    warm_up: bool = True
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # a row of a hard class passes where a surer one of an easy class does not

    def __post_init__(self) -> None:
        if self.mapping not in MAPPINGS:
            raise RecipeError(f"mapping is 'convex', 'linear' or 'concave', not {self.mapping!r}")

    def start(self, model: nn.Module, given: BindArgs) -> _Progress:
        return _Progress()

    def prepare(self, state: _Progress, pool: GenerationData) -> None:
        state.rows.fill_(len(pool.unlabelled))

    def thresholds(self, progress: _Progress, classes: int) -> Tensor:
        """The threshold of each class, (classes,)."""
        counts = progress.values.long().flatten().bincount(minlength=classes + 1)[1:].float()
        rows = torch.maximum(progress.rows, progress.seen.sum())  # outside `fit` nobody has said how many there are
        without = rows * max(1, progress.values.shape[1]) - counts.sum()
        most = torch.maximum(counts.max(), without) if self.warm_up else counts.max()
        b = counts / most.clamp(min=1.0)
        mapped = {"convex": b / (2.0 - b), "linear": b, "concave": torch.log1p(b) / math.log(2.0)}[self.mapping]
        return self.threshold * mapped

    def weigh(self, state: _Progress, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        sure, best = target.probabilities(student.shape[-1]).max(-1)
        said = sure > self.threshold if target.valid is None else (sure > self.threshold) & target.valid
        step.notes.setdefault(self.key(term), (said, best, step.ids(term.view)))
        return (sure > self.thresholds(state, student.shape[-1]).to(sure.device)[best]).to(student.dtype)

    def update(self, state: _Progress, steps: Sequence[Forward], term: BaseTerm) -> None:
        for step in (step for step in steps if self.key(term) in step.notes):
            said, best, ids = step.notes[self.key(term)]
            said, best = said.reshape(len(said), -1), best.reshape(len(best), -1)
            before, _ = state.read(ids, said.shape[1])
            state.write(ids, torch.where(said, best + 1.0, before))


class Running(Buffers):
    """Running means of what targets say: of the confidence, of its variance, of each class, of the best class."""

    mean: Tensor
    variance: Tensor
    marginal: Tensor
    histogram: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, start in (("mean", torch.zeros(())), ("variance", torch.ones(()))):
            self.register_buffer(name, start)
        for name in ("marginal", "histogram"):
            self.register_buffer(name, torch.zeros(0))

    def moved(self, p: Tensor, decay: float, aligned: bool = False) -> Running:
        """The means after a batch of distributions (elements, classes); ``aligned`` ones enter mean and variance.

        At first all classes are alike, or as the first batch has them where it aligns.
        """
        after, even = Running(), p.new_full((p.shape[-1],), 1.0 / p.shape[-1])
        first = not len(self.marginal)
        mean, marginal, histogram = (even[0], even, even) if first else (self.mean, self.marginal, self.histogram)
        after.mean, after.variance, after.marginal, after.histogram = mean, self.variance, marginal, histogram
        if len(p):
            said = p.mean(0)
            after.marginal = said if first and aligned else marginal.lerp(said, 1.0 - decay)
            after.histogram = histogram.lerp(p.argmax(-1).bincount(minlength=len(even)).to(p) / len(p), 1.0 - decay)
            sure = after.align(p).amax(-1) if aligned else p.amax(-1)
            after.mean = mean.lerp(sure.mean(), 1.0 - decay)
            after.variance = self.variance.lerp(sure.var(), 1.0 - decay) if len(p) > 1 else self.variance
        return after

    def align(self, p: Tensor) -> Tensor:
        """Distributions with the classes as often as each other: p_c / q_c, normalised."""
        ratio = p / self.marginal.clamp(min=1e-6)
        return ratio / ratio.sum(-1, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True)
class _Follows(Gate[Running]):
    """A gate that follows running means of what its targets say."""

    decay: float = 0.999
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # thresholds differ by class

    def __post_init__(self) -> None:
        averages(self.decay)

    def start(self, model: nn.Module, given: BindArgs) -> Running:
        return Running()

    def aligns(self) -> bool:
        """Does the confidence of aligned targets enter the means?"""
        return False

    def now(self, state: Running, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Running:
        """The running means with the batch at hand."""
        p = spoken(target.probabilities(student.shape[-1]), target.valid)
        step.notes.setdefault(self.key(term), p)
        return state.moved(p, self.decay, self.aligns())

    def update(self, state: Running, steps: Sequence[Forward], term: BaseTerm) -> None:
        seen = [step.notes[self.key(term)] for step in steps if self.key(term) in step.notes]
        if seen:
            after = state.moved(torch.cat(seen), self.decay, self.aligns())
            for name in state._buffers:
                setattr(state, name, getattr(after, name))


@dataclass(frozen=True)
class SelfAdaptive(_Follows):
    """1 where the confidence reaches t x q_c / max_c q_c, c the target's class: both follow the targets themselves.

    t is the running mean of the confidence and q_c that of class c's probability, with the batch at hand; both start
    from 1 / C and keep ``decay`` a step.

    Source: Wang et al., FreeMatch, ICLR 2023, self-adaptive thresholding.

    Raises:
        RecipeError: a decay outside [0, 1).
    """

    def weigh(self, state: Running, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        now = self.now(state, student, target, step, term)
        sure, best = target.probabilities(student.shape[-1]).max(-1)
        return (sure >= (now.mean * now.marginal / now.marginal.max())[best]).to(student.dtype)


@dataclass(frozen=True)
class TruncatedGaussian(_Follows):
    """Trust exp(-min(c - m, 0)^2 / (2 (s / ``narrow``)^2)) in a target of confidence c: 1 from the mean m on.

    m and s^2 are running means of the confidence's mean and (unbiased) variance over a batch, with the batch at hand;
    they start from 1 / C and 1. With ``aligned`` c is the confidence of p_c / q_c, normalised, q the running mean of p:
    a class that is said often must be said more surely. The target itself stays as it is.

    Source: Chen et al., SoftMatch, ICLR 2023, truncated Gaussian and uniform alignment; their code has narrow = 2.

    Raises:
        RecipeError: a decay outside [0, 1), or a width of 0.
    """

    narrow: float = 1.0
    aligned: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.narrow > 0:
            raise RecipeError(f"narrow divides the deviation and is above 0, not {self.narrow}")

    def aligns(self) -> bool:
        return self.aligned

    def weigh(self, state: Running, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        now = self.now(state, student, target, step, term)
        p = target.probabilities(student.shape[-1])
        below = ((now.align(p) if self.aligned else p).amax(-1) - now.mean).clamp(max=0.0)
        return torch.exp(-below.square() * self.narrow**2 / (2.0 * now.variance.clamp(min=1e-12))).to(student.dtype)
