"""Gates with adaptive thresholds: by class, or by the running mean and variance of the confidence.

`update` advances the running statistics. Where the paper includes the current batch, it is added before the batch is
weighed, over all processes; with several micro-batches each adds its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.memory import Buffers, SampleMemory, averages, spoken
from ..core.parts import BaseTerm, BindArgs, Gate, GenerationData, Schedule, value_at
from ..core.step import Forward
from ..core.targets import DISTRIBUTIONS, Target
from ..errors import RecipeError

MAPPINGS = ("convex", "linear", "concave")


class _Progress(SampleMemory):
    """The last confident class of each row, counted from 1 (0: none yet), and the number of rows."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(()))


@dataclass(frozen=True)
class ClassProgress(Gate[_Progress]):
    """1 where the confidence exceeds M(b_c) x ``threshold``, c the target's class: harder classes get lower thresholds.

    b_c = s_c / max(max_c s_c, rows without any), s_c = rows whose last confidence above ``threshold`` was for c, before
    this batch; without ``warm_up`` b_c = s_c / max_c s_c. M is ``convex`` x / (2 - x), ``linear`` x or ``concave``
    log(1 + x) / log 2. A row keeps its class when its confidence falls. Until a row was confident, all pass.

    Source: Zhang et al., FlexMatch, NeurIPS 2021, algorithm 1.

    Raises:
        RecipeError: an unknown mapping.
    """

    threshold: float = 0.95
    mapping: str = "convex"
    warm_up: bool = True
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # thresholds differ by class

    def __post_init__(self) -> None:
        if self.mapping not in MAPPINGS:
            raise RecipeError(f"mapping is 'convex', 'linear' or 'concave', not {self.mapping!r}")

    def start(self, model: nn.Module, args: BindArgs) -> _Progress:
        return _Progress()

    def prepare(self, state: _Progress, pool: GenerationData) -> None:
        state.rows.fill_(len(pool.unlabelled))

    def thresholds(self, progress: _Progress, classes: int) -> Tensor:
        """The threshold of each class, (classes,)."""
        counts = progress.stored.long().flatten().bincount(minlength=classes + 1)[1:].float()
        rows = progress.rows.clamp(min=len(progress))  # outside `fit` the number of rows is not known
        undecided = rows * max(1, progress.width) - counts.sum()
        largest = torch.maximum(counts.max(), undecided) if self.warm_up else counts.max()
        b = counts / largest.clamp(min=1.0)
        fractions = {"convex": b / (2.0 - b), "linear": b, "concave": torch.log1p(b) / math.log(2.0)}[self.mapping]
        return self.threshold * fractions

    def weigh(self, state: _Progress, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        confidence, best = target.probabilities(student.shape[-1]).max(-1)
        certain = confidence > self.threshold if target.valid is None else (confidence > self.threshold) & target.valid
        forward.notes.setdefault(self.key(term), (certain, best, forward.ids(term.view)))
        return (confidence > self.thresholds(state, student.shape[-1]).to(confidence.device)[best]).to(student.dtype)

    def update(self, state: _Progress, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for forward in (forward for forward in forwards if self.key(term) in forward.notes):
            certain, best, ids = forward.notes[self.key(term)]
            certain, best = certain.reshape(len(certain), -1), best.reshape(len(best), -1)
            previous, _ = state.read(ids, certain.shape[1])
            state.write(ids, torch.where(certain, best + 1.0, previous))


class Running(Buffers):
    """Running means over targets: of the confidence, its variance, the class probabilities, and the best class."""

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

    def advance(self, p: Tensor, decay: float, aligned: bool = False) -> Running:
        """The means after a batch of distributions (elements, classes); ``aligned``: of aligned confidences.

        The class probabilities start uniform or, with ``aligned``, from the first batch.
        """
        result, uniform = Running(), p.new_full((p.shape[-1],), 1.0 / p.shape[-1])
        first = not len(self.marginal)
        mean, marginal, histogram = (
            (uniform[0], uniform, uniform) if first else (self.mean, self.marginal, self.histogram)
        )
        result.mean, result.variance, result.marginal, result.histogram = mean, self.variance, marginal, histogram
        if len(p):
            batch_mean = p.mean(0)
            result.marginal = batch_mean if first and aligned else marginal.lerp(batch_mean, 1.0 - decay)
            result.histogram = histogram.lerp(p.argmax(-1).bincount(minlength=len(uniform)).to(p) / len(p), 1.0 - decay)
            confidence = result.align(p).amax(-1) if aligned else p.amax(-1)
            result.mean = mean.lerp(confidence.mean(), 1.0 - decay)
            result.variance = self.variance.lerp(confidence.var(), 1.0 - decay) if len(p) > 1 else self.variance
        return result

    def align(self, p: Tensor) -> Tensor:
        """Distributions aligned to uniform class shares: p_c / q_c, normalised."""
        ratio = p / self.marginal.clamp(min=1e-6)
        return ratio / ratio.sum(-1, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True)
class _RunningGate(Gate[Running]):
    """A gate with running means over its targets."""

    decay: float | Schedule = 0.999
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # thresholds differ by class

    def __post_init__(self) -> None:
        averages(self.decay)

    def start(self, model: nn.Module, args: BindArgs) -> Running:
        return Running()

    def aligns(self) -> bool:
        """Does the confidence of aligned targets enter the means?"""
        return False

    def running_means(
        self, state: Running, student: Tensor, target: Target, forward: Forward, term: BaseTerm
    ) -> Running:
        """The running means with the current batch."""
        p = spoken(target.probabilities(student.shape[-1]), target.valid)
        forward.notes.setdefault(self.key(term), p)
        return state.advance(p, value_at(self.decay, forward.clock), self.aligns())

    def update(self, state: Running, forwards: Sequence[Forward], term: BaseTerm) -> None:
        batches = [forward.notes[self.key(term)] for forward in forwards if self.key(term) in forward.notes]
        if batches:
            decay = value_at(self.decay, forwards[0].clock)
            result = state.advance(torch.cat(batches), decay, self.aligns())
            for name in state._buffers:
                setattr(state, name, getattr(result, name))


@dataclass(frozen=True)
class SelfAdaptive(_RunningGate):
    """1 where the confidence reaches t x q_c / max_c q_c, c the target's class.

    t is the running mean of the confidence and q_c that of class c's probability, with the current batch; both start
    from 1 / C with the decay ``decay`` a step.

    Source: Wang et al., FreeMatch, ICLR 2023, self-adaptive thresholding.

    Raises:
        RecipeError: a decay outside [0, 1).
    """

    def weigh(self, state: Running, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        running = self.running_means(state, student, target, forward, term)
        confidence, best = target.probabilities(student.shape[-1]).max(-1)
        return (confidence >= (running.mean * running.marginal / running.marginal.max())[best]).to(student.dtype)


@dataclass(frozen=True)
class TruncatedGaussian(_RunningGate):
    """Trust exp(-min(c - m, 0)^2 / (2 (s / ``narrow``)^2)) in a target of confidence c: 1 from the mean m on.

    m and s^2 are running means of the confidence's mean and (unbiased) variance over a batch, with the current batch;
    they start from 1 / C and 1. With ``aligned`` c is the confidence of p_c / q_c, normalised, q the running mean of p:
    a frequent class needs a higher confidence. The target itself does not change.

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

    def weigh(self, state: Running, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        running = self.running_means(state, student, target, forward, term)
        p = target.probabilities(student.shape[-1])
        deficit = ((running.align(p) if self.aligned else p).amax(-1) - running.mean).clamp(max=0.0)
        return torch.exp(-deficit.square() * self.narrow**2 / (2.0 * running.variance.clamp(min=1e-12))).to(
            student.dtype
        )
