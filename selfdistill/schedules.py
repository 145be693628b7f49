"""Schedules of the weights of terms: functions from the clock to a number; a plain number is a constant schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .core.step import TrainingClock


@dataclass(frozen=True)
class RunShare:
    """A share of the run that is larger in short ones: ``short`` at 0 steps, ``full`` from ``steps`` on.

    A loop that does not say how long it is counts as long.

    >>> [RunShare(0.1, 0.4, 1000)(TrainingClock(steps=n)) for n in (500, 1000, 2000)]
    [0.25, 0.1, 0.1]
    """

    full: float
    short: float
    steps: int = 2**20

    def __call__(self, clock: TrainingClock) -> float:
        missing = max(0.0, 1.0 - clock.length / self.steps) if clock.length > 1 else 0.0
        return self.full + (self.short - self.full) * missing


@dataclass(frozen=True)
class Linear:
    """From ``start`` to ``end`` over the generation, one value an epoch: start + (end - start) (e + 1) / E.

    Epoch e counts from 0, so the last epoch has the full ``end`` (PS-KD, Kim et al. ICCV 2021, equation 5).

    >>> Linear(0.0, 0.8)(TrainingClock(epoch=4, epochs=10))
    0.4
    """

    start: float
    end: float

    def __call__(self, clock: TrainingClock) -> float:
        return self.start + (self.end - self.start) * (clock.epoch + 1) / clock.epochs


@dataclass(frozen=True)
class Ramp:
    """Sigmoid ramp-up: peak x exp(-5 (1 - t)^2) with t = progress / share, capped at 1 (Laine and Aila, ICLR 2017).

    >>> Ramp(2.0, share=0.5)(TrainingClock(step=50, epochs=100))
    2.0
    """

    peak: float
    share: float = 0.4

    def __call__(self, clock: TrainingClock) -> float:
        t = min(1.0, clock.progress / self.share) if self.share > 0 else 1.0
        return self.peak * math.exp(-5.0 * (1.0 - t) ** 2)


@dataclass(frozen=True)
class EpochRamp:
    """`Ramp` by whole epochs: peak x exp(-5 (1 - t)^2) with t = e / (share x epochs) in epoch e from 0, capped at 1.

    >>> EpochRamp(2.0, share=0.5)(TrainingClock(epoch=5, epochs=10))
    2.0
    """

    peak: float
    share: float = 80 / 300

    def __call__(self, clock: TrainingClock) -> float:
        t = min(1.0, clock.epoch / (self.share * clock.epochs)) if self.share > 0 else 1.0
        return self.peak * math.exp(-5.0 * (1.0 - t) ** 2)


@dataclass(frozen=True)
class Rise:
    """A straight line from 0 to ``peak``, which is reached after ``share`` of the generation; 0 until ``start`` of it.

    >>> Rise(2.0, share=0.5)(TrainingClock(step=25, epochs=100))
    1.0
    >>> Rise(2.0, 0.5, start=0.25)(TrainingClock(step=25, epochs=100))
    0.0
    """

    peak: float
    share: float = 0.4
    start: float = 0.0

    def __call__(self, clock: TrainingClock) -> float:
        elapsed, length = clock.progress - self.start, self.share - self.start
        return self.peak * min(1.0, max(0.0, elapsed / length)) if length > 0 else self.peak * (elapsed >= 0)


@dataclass(frozen=True)
class From:
    """Nothing in the first ``share`` of the epochs, then ``weight``.

    >>> [From(0.5, 2.0)(TrainingClock(epochs=4, epoch=epoch)) for epoch in range(4)]
    [0.0, 0.0, 2.0, 2.0]
    """

    share: float
    weight: float

    def __call__(self, clock: TrainingClock) -> float:
        return self.weight if clock.epoch >= self.share * clock.epochs else 0.0


@dataclass(frozen=True)
class ByCycle:
    """One value for the first of ``cycles`` parts of a generation (which has no snapshot) and one for all later ones.

    >>> [ByCycle(2, 1.0, 1.5)(TrainingClock(epochs=4, step=step)) for step in range(4)]
    [1.0, 1.0, 1.5, 1.5]
    """

    cycles: int
    first: float
    later: float

    def __call__(self, clock: TrainingClock) -> float:
        return self.first if clock.step < clock.length // self.cycles else self.later


@dataclass(frozen=True)
class ByGeneration:
    """One value for generation 0 (which has no predecessor) and one for all later ones.

    >>> ByGeneration(1.0, 0.1)(TrainingClock(generation=2, generations=3))
    0.1
    """

    first: float
    later: float

    def __call__(self, clock: TrainingClock) -> float:
        return self.first if clock.generation == 0 else self.later


@dataclass(frozen=True)
class AtLast:
    """One value for the last generation and one for all before it.

    >>> [AtLast(1.0, 0.1)(TrainingClock(generation=g, generations=3)) for g in range(3)]
    [1.0, 1.0, 0.1]
    """

    before: float
    last: float

    def __call__(self, clock: TrainingClock) -> float:
        return self.last if clock.generation == clock.generations - 1 else self.before


@dataclass(frozen=True)
class After:
    """0 until ``share`` of the generation is done, then ``value``.

    >>> [After(2.0, share=0.5)(TrainingClock(step=s, epochs=10)) for s in (4, 5)]
    [0.0, 2.0]
    """

    value: float
    share: float = 0.1

    def __call__(self, clock: TrainingClock) -> float:
        return self.value if clock.progress >= self.share else 0.0


@dataclass(frozen=True)
class Until:
    """``value`` until ``share`` of the generation is done, then 0: the complement of `After`.

    >>> [Until(2.0, share=0.5)(TrainingClock(step=s, epochs=10)) for s in (4, 5)]
    [2.0, 0.0]
    """

    value: float
    share: float = 0.9

    def __call__(self, clock: TrainingClock) -> float:
        return self.value if clock.progress < self.share else 0.0


@dataclass(frozen=True)
class ShortRun:
    """A ramp made for ``steps`` steps: in a shorter generation its share grows, up to ``share``.

    A ramp of none or of few steps in a million is over before a short run has learnt anything.

    >>> [round(ShortRun(Rise(1.0, 0.0), 0.4, 10**6)(TrainingClock(step=s, epochs=100)), 2) for s in (0, 20, 40)]
    [0.0, 0.5, 1.0]
    >>> ShortRun(Rise(1.0, 0.0), 0.4, 100)(TrainingClock(epochs=100))
    1.0
    """

    ramp: Ramp | Rise | After | Until
    share: float = 0.4
    steps: int = 2**20

    def __call__(self, clock: TrainingClock) -> float:
        return replace(self.ramp, share=RunShare(self.ramp.share, self.share, self.steps)(clock))(clock)


@dataclass(frozen=True)
class RunDecay:
    """The decay of an average that remembers a share of the run: ``decay`` in a run of ``steps`` steps.

    In a run of n steps the average remembers n / ``steps`` times as many of them, and no fewer than with ``least``.

    >>> [RunDecay(0.999, 2**20)(TrainingClock(steps=n)) for n in (100, 2**20)]
    [0.9, 0.999]
    """

    decay: float
    steps: int
    least: float = 0.9

    def __call__(self, clock: TrainingClock) -> float:
        steps = clock.length if clock.length > 1 else self.steps  # a loop that does not say how long it is
        return max(self.least, 1.0 - (1.0 - self.decay) * self.steps / steps)


@dataclass(frozen=True)
class Every:
    """``at`` in every ``steps``-th step, and ``between`` in the others.

    >>> [Every(3, 0.0, 1.0)(TrainingClock(step=step)) for step in range(6)]
    [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    """

    steps: int
    at: float
    between: float

    def __call__(self, clock: TrainingClock) -> float:
        return self.between if (clock.step + 1) % self.steps else self.at
