"""One look at one term: its figures, and what is certainly wrong with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..targets import DISTRIBUTIONS, Target
from . import floor, space, trust
from .pulse import Pulse, fail

if TYPE_CHECKING:
    from ..core import Measured
    from .watch import Watch

BESIDE = ("projection", "prediction")  # what rows are told apart by; scores of prototypes differ little for long
NARROW, SETTLED = 0.05, 49  # a spread that is none, and the step from which on it counts: before, nothing is learnt
MOST = 4096  # elements a look reads, and classes a histogram has: language models have far more of both


class Seen(NamedTuple):
    """What a term computed with: output (rows, ..., components), target, and per element the trust and the loss."""

    student: Tensor
    target: Target
    trust: Tensor | None
    loss: Tensor


def spread(outputs: Tensor) -> float:
    """sqrt(1 - ||mean of x_i / ||x_i|| ||^2) of outputs (N, width).

    It is sqrt(width) times the standard deviation of the components of the unit vectors, by which Chen and He (SimSiam,
    CVPR 2021, section 4.1) tell a collapse.

    >>> spread(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])), spread(torch.tensor([[1.0, 2.0], [2.0, 4.0]])) < 1e-3
    (1.0, True)
    """
    mean = F.normalize(outputs, dim=-1).mean(0)
    return math.sqrt(max(0.0, 1.0 - float(mean.square().sum())))


def figures(student: Tensor, target: Target) -> dict[str, Tensor]:
    """Per-element figures of outputs (N, components) and a target of N valid elements, none of them masked.

    Distributions have ``differ`` (total variation), ``entropy`` (over log(classes)) and ``top``, each (N,), besides
    ``p``, the target's probabilities, and ``sure``, the student's confidence; values have ``differ`` (N, components).
    """
    if target.space in DISTRIBUTIONS:
        classes = student.shape[-1]
        p, own = target.probabilities(classes).float(), F.softmax(student, dim=-1)
        entropy = torch.special.entr(p.clamp(min=0)).sum(-1) / math.log(max(2, classes))
        return {
            "differ": (p - own).abs().sum(-1) / 2, "entropy": entropy, "top": p.amax(-1), "p": p,
            "sure": own.amax(-1),
        }  # fmt: skip
    if target.value.shape != student.shape:
        return {}
    return {"differ": (target.value - student).abs()}


class Look(NamedTuple):
    """One look at one term."""

    watch: Watch
    name: str
    term: Any
    pulse: Pulse
    weight: float
    new: bool  # the first micro-batch of the step

    def at(self, measured: Measured) -> None:
        seen, valid, kept = measured.seen, float(measured.valid), float(measured.kept)
        pulse, live = self.pulse, valid > 0 and kept > 0
        pulse.valid, pulse.kept = pulse.valid + valid, pulse.kept + kept
        if not valid > 0:
            return
        pulse.add("kept", kept / valid)
        pulse.alive |= seen is None  # a term of its own kind shows nothing to be certain of
        if seen is None:
            return
        with torch.no_grad():
            student, target, index = _flat(seen)
            if self.weight:
                space.judge(self, target)
            found = figures(student, target)
            if target.space == "features":
                self._directions(student)
        gradient, norm = self._gradient(seen, measured, live)
        with torch.no_grad():
            sure = self._note(found, target, live, norm)
            trust.judge(self, seen, student, target, index, found)
            if "top" in found:
                self._labels(seen, target, index)
                space.uniform(self, student.shape[-1], sure)
                floor.judge(self, seen, index, found, gradient)

    def _gradient(self, seen: Seen, measured: Measured, live: bool) -> tuple[Tensor | None, float | None]:
        """The gradient of the total in the term's own output, and its norm."""
        total, grown = measured.tally.total, None
        if total.requires_grad and seen.student.requires_grad:
            (grown,) = torch.autograd.grad(total, seen.student, retain_graph=True, allow_unused=True)
        trains = seen.student.requires_grad or any(p.requires_grad for p in self.watch.student.parameters())
        if grown is None:
            if live and self.weight and trains:
                fail(
                    "no-gradient", self.name, "its loss has no gradient in the student's output",
                    "compute the loss from the student's output, not from the target or a detached copy",
                )  # fmt: skip
            return None, None
        norm = float(grown.float().norm())
        if live:
            mean = norm / max(float(measured.tally.count), 1e-12)
            self.pulse.add("gradient", mean)
            self.pulse.add("pull", abs(self.weight) * mean)
        return grown, norm

    def _note(self, found: dict[str, Tensor], target: Target, live: bool, gradient: float | None) -> float:
        """Write the figures down; the student's mean confidence."""
        from ..teachers import Labels

        pulse, names = self.pulse, [n for n in ("differ", "entropy", "top", "sure") if n in found]
        if not names:
            pulse.alive = True  # nothing to compare, so nothing to be certain of
            return 0.0
        means = torch.stack([found["differ"].max(), *(found[n].mean() for n in names)])
        most, *each = means.tolist()
        read: dict[str, float] = dict(zip(names, each, strict=True))
        if target.space not in DISTRIBUTIONS:
            spread = float(target.value.float().std()) if target.value.numel() > 1 else 0.0
            pulse.add("disagreement", read["differ"] / spread if spread > 0 else None)
        else:
            pulse.add("disagreement", read["differ"])
            pulse.add("entropy", read["entropy"])
            pulse.add("largest", read["top"])
        if live:
            still = gradient is not None and gradient <= 1e-6 * math.sqrt(found["differ"].numel())
            if most != 0 or not still or isinstance(getattr(self.term, "teacher", None), Labels):
                pulse.alive = True
            elif self.new:
                pulse.dead_looks += 1
                pulse.weights = self.watch.fingerprint() if pulse.weights is None else pulse.weights
        if "p" in found:
            p, logs = found["p"], found["p"].clamp(min=1e-30).log()
            low = (logs - logs.mean(-1, keepdim=True)).min()  # a softmax of probabilities goes no lower than -1/C
            pulse.spoke += self.new
            pulse.peak = max(pulse.peak, float(p.max()))
            pulse.twice = pulse.twice and float(low) >= -1.0 / p.shape[-1] - 1e-4
        return read.get("sure", 0.0)

    def _directions(self, student: Tensor) -> None:
        """How far the directions of outputs (N, width) are apart; a method without labels fails where they are one."""
        wide = spread(student)
        self.pulse.add("spread", wide)
        if self.watch.step.clock.step >= SETTLED and self.term.head in BESIDE:
            self.pulse.narrow = self.pulse.narrow + 1 if wide < NARROW else 0

    def _labels(self, seen: Seen, target: Target, index: Tensor) -> None:
        y, best = self.watch.step.batch[self.term.view].y, target.best()
        even = getattr(getattr(self.term, "teacher", None), "even", False)  # then its best class means nothing
        if seen.student.shape[-1] <= MOST and not even:
            _count(self.pulse.targets, best)
        shape = seen.student.shape[:-1]
        if y is None or y.is_floating_point() or y.shape != shape[: y.dim()]:
            return
        y = y.reshape(*y.shape, *(1,) * (len(shape) - y.dim())).expand(shape).reshape(-1)[index]
        known = y >= 0
        if bool(known.any()):
            self.pulse.add("accuracy", float((best == y)[known].float().mean()))
            if seen.student.shape[-1] <= MOST:
                _count(self.pulse.labels, y[known])


def _flat(seen: Seen) -> tuple[Tensor, Target, Tensor]:
    """The first valid elements as rows (N, components), their target, and their places among all elements."""
    student, (value, space, valid) = seen.student.detach().float(), seen.target
    elements = math.prod(student.shape[:-1])
    index = torch.arange(elements, device=student.device) if valid is None else valid.reshape(-1).nonzero().squeeze(1)
    index = index[:MOST]
    flat = value.reshape(-1) if space == "classes" else value.reshape(-1, value.shape[-1])
    return student.reshape(elements, -1)[index], Target(flat[index], space), index


def _count(into: dict[int, int], classes: Tensor) -> None:
    for c, n in zip(*(found.tolist() for found in classes.unique(return_counts=True)), strict=True):
        into[c] = into.get(c, 0) + n
