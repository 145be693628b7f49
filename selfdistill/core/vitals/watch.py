"""Checks of losses, targets and gates at single steps.

Is a target what it says it is: logits, a distribution, over the classes that exist?

Does a gate keep what it claims to keep? Its trust is compared with how sure each element's target is.

One look at one term: its figures, and what is certainly wrong with it.

When to look, and what concerns the whole student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..parts import BaseTerm, Gate, TermResult, TermTrace
from ..step import Forward
from ..targets import DISTRIBUTIONS, Target
from .states import StateWatch, by_labels
from .summary import TermHealth, fail

APART = 0.1  # total variation from which on target and student clearly differ


def judge_floor(
    look: TermLook, trace: TermTrace, index: Tensor, values: dict[str, Tensor], gradient: Tensor | None
) -> None:
    """Read the loss of the valid elements (``index``); ``gradient`` is that of the total in the output.

    A loss that says ``signed = True`` may be negative, one that says ``flat = True`` may be 0 where the two differ.

    Raises:
        VitalsError: the loss is 0 between equals and less elsewhere, or cut off at 0 without gradient.
    """
    term, pulse = look.term, look.pulse
    if not look.weight or trace.target.space not in DISTRIBUTIONS or not look.normalised or trace.loss is None:
        return
    rule = term.loss
    loss = trace.loss.detach().float().reshape(-1)[index]
    differs = values["differ"] > APART
    if trace.trust is not None:
        differs &= trace.trust.reshape(-1)[index] > 0
    cut = torch.zeros_like(differs)
    if gradient is not None:
        cut = differs & (loss == 0) & (gradient.reshape(trace.loss.numel(), -1)[index] == 0).all(-1)
    low, size, differ, flat = torch.stack([loss.min(), loss.abs().mean(), differs.sum(), cut.sum()]).tolist()
    if low < -1e-3 * (1 + size) and not (rule and rule.signed):
        _negative(look, trace)
    pulse.flat, pulse.differing = pulse.flat + flat, pulse.differing + differ
    pulse.flat_looks += int(look.new and flat > 0)
    # a flat place that stays: three looks, and far more elements than stand exactly on a kink
    often = pulse.flat_looks >= 3 and pulse.flat >= 16 and pulse.flat >= 0.05 * pulse.differing
    if often and not (rule and rule.flat):
        fail(
            "clamped-loss",
            look.name,
            "its loss is exactly 0, without gradient, for "
            f"{pulse.flat / pulse.differing:.0%} of the elements where target and student differ",
            "do not clamp "
            "it: renormalise what it compares or add the mass of the tail; or set flat = True if that part is meant",
        )


def _negative(look: TermLook, trace: TermTrace) -> None:
    """Tell a negative loss by rounding or intention from one that is no divergence, by the loss itself in float64."""
    target = Target(
        trace.target.value.double() if trace.target.space != "classes" else trace.target.value, *trace.target[1:]
    )
    loss, student = look.term.loss, trace.student.detach().double()
    if loss is None:
        return
    agreement = target.log_probabilities(student.shape[-1]).clamp(min=-80.0)  # a student that agrees with its target
    try:
        losses, agreed_losses = (loss(output, target).double() for output in (student, agreement))
    except RuntimeError:  # a loss that cannot do float64
        return
    if target.valid is not None:
        losses, agreed_losses = losses[target.valid], agreed_losses[target.valid]
    low, size, agreed = torch.stack([losses.min(), losses.abs().mean(), agreed_losses.abs().max()]).tolist()
    if low >= -1e-3 * (1 + size):
        return
    if agreed <= 1e-3 * (1 + size):
        fail(
            "negative-divergence",
            look.name,
            f"its loss is 0 between equals and {low:.3g} between others, so learning "
            "drives the student away from its target",
            "renormalise what it compares or add the mass of the tail; or "
            "set signed = True on a loss that is meant to be negative",
        )
    look.pulse.note(
        f"the loss of term {look.name!r} goes below 0; set signed = True on it if that is meant, and renormalise what "
        "it compares if it is a divergence"
    )


SOME = 256  # elements that are enough to see that a column never moves


def judge_space(look: TermLook, target: Target) -> None:
    """Refuse probabilities declared as logits, rows that do not sum to 1, and padding among the classes.

    Raises:
        VitalsError: one of these.
    """
    value = target.value.float()
    if target.space not in ("logits", "probabilities") or value.shape[-1] < 2 or not len(value):
        return
    deviation, uneven = (value.sum(-1) - 1).abs().max(), (value - 1.0 / value.shape[-1]).abs().max()
    low, high, largest, unevenness = torch.stack([value.min(), value.max(), deviation, uneven]).tolist()
    if target.space == "logits":
        if len(value) >= 8 and low >= 0 and high <= 1 and largest < 1e-4 and unevenness > 1e-6:
            fail(
                "probabilities-as-logits",
                look.name,
                "its target is called logits, but every row is a distribution and would be softmaxed twice",
                "declare the space 'probabilities'",
            )
        _padding(look, value[:SOME])
        return
    tolerance = 2e-2 if target.value.dtype in (torch.float16, torch.bfloat16) else 1e-3
    if look.normalised and (low < -1e-5 or largest > tolerance):
        fail(
            "not-a-distribution",
            look.name,
            f"its target is called probabilities, but a row is {largest:.3g} off 1 (smallest entry {low:.3g})",
            "normalise it, or set normalised = False on the teacher",
        )


def _padding(look: TermLook, value: Tensor) -> None:
    """Columns of exactly 0 beside others that vary: one may be a class of reference, several are padding."""
    pulse, empty = look.pulse, (value == 0).all(0)
    if not bool(empty.any()):  # the rule: nothing more is computed
        pulse.padded_looks, pulse.padded = 0, []
        return
    vary = bool((value.amax(0) > value.amin(0)).any())
    columns = set(empty.nonzero().squeeze(1).tolist())
    repeated = columns & set(pulse.padded) if pulse.padded_looks else columns
    pulse.padded = sorted(repeated) if vary and len(repeated) > 1 else []
    pulse.padded_looks = pulse.padded_looks + int(look.new) if pulse.padded else 0
    if pulse.padded_looks < 3:
        return
    mass = float(value.softmax(-1)[:, pulse.padded].sum(-1).mean())
    fail(
        "padded-vocabulary",
        look.name,
        f"{len(pulse.padded)} columns of its target's logits are exactly 0 throughout "
        f"and hold {mass:.2%} of its probability, on classes that do not exist",
        "set the logits of padding to -inf, or cut them off on both sides",
    )


def uniform(look: TermLook, classes: int, sure: float) -> None:
    """A target that was softmaxed twice never exceeds a bound, however sure the student is.

    A teacher that is even on purpose, at times, says ``even = True``.
    """
    pulse = look.pulse
    if look.even:
        return
    bound = math.e / (math.e + classes - 1)
    least = 6 if classes > 3 else 12  # with few classes an honest young teacher stays below the bound too
    flat = pulse.spoke >= least and pulse.peak <= bound + 1e-6 and pulse.twice
    if look.weight and flat and sure > (1 + bound) / 2:
        fail(
            "uniform-target",
            look.name,
            f"no target probability ever exceeded {bound:.3f}, what a second softmax "
            "leaves, while the student is confident",
            "softmax the target once, and temper logits only",
        )


def judge_trust(
    look: TermLook, trace: TermTrace, student: Tensor, target: Target, index: Tensor, values: dict[str, Tensor]
) -> None:
    """Read the gate's trust in the valid elements (``index``), whose outputs and figures are given.

    Raises:
        VitalsError: a gate that claims to keep the surer elements does not.
    """
    if trace.trust is None:
        return
    gate = look.term.gate
    trust = trace.trust.detach().float().reshape(-1)[index].clamp(0, 1)
    if "top" in values:
        _note_gap(look.pulse, trust, values["top"])
    if not look.weight or gate is None or gate.prefers != "confident":
        return
    sure = _sureness(gate, student, target, values)
    if sure is not None and len(sure) > 1 and float(sure.max() - sure.min()) > 1e-6:  # labels are all equally sure
        _add(look.pulse, trust, sure)
        _verdict(look.name, look.pulse)


def _note_gap(pulse: TermHealth, trust: Tensor, top: Tensor) -> None:
    """The figure ``confidence_gap``: mean confidence where kept minus where dropped."""
    sums = torch.stack([trust.sum(), (1 - trust).sum(), (trust * top).sum(), ((1 - trust) * top).sum()])
    kept, dropped, kept_sum, dropped_sum = sums.tolist()
    if kept > 0 and dropped > 0:
        pulse.add("confidence_gap", kept_sum / kept - dropped_sum / dropped)


def _sureness(gate: Gate, student: Tensor, target: Target, values: dict[str, Tensor]) -> Tensor | None:
    """The confidence of each element, (N,): the gate's measure, else the target's confidence, else the agreement."""
    if (measured := gate.confidence(student, target)) is not None:
        return measured.float()
    if "top" in values:
        return values["top"]
    return -values["differ"].mean(-1) if "differ" in values else None


def _add(pulse: TermHealth, trust: Tensor, sure: Tensor) -> None:
    """Ranks within the look: a threshold that rises during training would invert means over all looks."""
    n = len(sure)
    rank = sure.argsort().argsort()
    mask = trust > trust.mean()  # for a gate of 0 and 1 what it keeps, for one in between what it trusts more
    thirds = trust.new_zeros(3).index_add_(0, rank * 3 // n, trust)
    share = rank.float() / (n - 1)
    several, upper, *sums = torch.cat([torch.stack([mask.sum(), share[mask].sum()]), thirds]).tolist()
    remaining = n - several
    if several and remaining:
        weight = several * remaining / n  # the variance of a gap of ranks is 1 / 12 of its inverse
        pulse.rank_gap += weight * (upper / several - (n / 2 - upper) / remaining)
        pulse.rank_weight += weight
    pulse.thirds = [a + b for a, b in zip(pulse.thirds, sums, strict=True)]
    pulse.third += n / 3


def _verdict(name: str, pulse: TermHealth) -> None:
    remedy = "or set prefers = None on the gate if it asks something else"
    if pulse.third >= 200:  # a kept share is then known to .035
        low, middle, high = (trust / pulse.third for trust in pulse.thirds)
        if high < middle - 0.2 and low < middle - 0.2:
            fail(
                "middle-band",
                name,
                f"its gate keeps {high:.0%} of the surest third of its targets, {middle:.0%} of "
                f"the middle one and {low:.0%} of the least sure",
                f"keep one side of a threshold, {remedy}",
            )
    gap = pulse.rank_gap / pulse.rank_weight if pulse.rank_weight else 0.0
    if pulse.rank_weight >= 100 and gap < -0.1:  # more than three standard errors
        fail(
            "inverted-gate",
            name,
            "its gate keeps the targets that are less sure (a kept one outranks a dropped one "
            f"in {0.5 + gap:.0%} of all pairs)",
            f"turn its mask round, {remedy}",
        )
    if pulse.rank_weight >= 300 and abs(gap) < 0.05:  # three standard errors; a threshold has a gap of .5
        fail(
            "blind-gate",
            name,
            "what its gate keeps is no surer than what it drops (a kept one outranks a dropped "
            f"one in {0.5 + gap:.0%} of all pairs)",
            "gate by the target's confidence, give the gate a method confidence"
            "(student, target) that says how sure it is, or set prefers = None",
        )


BESIDE = ("projection", "prediction")  # what rows are told apart by; scores of prototypes differ little for long


NARROW, SETTLED = 0.05, 49  # a spread that is none, and the step from which on it counts: before, nothing is learnt


MOST = 4096  # elements a look reads, and classes a histogram has: language models have far more of both


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
        p, q = target.probabilities(classes).float(), F.softmax(student, dim=-1)
        entropy = torch.special.entr(p.clamp(min=0)).sum(-1) / math.log(max(2, classes))
        return {
            "differ": (p - q).abs().sum(-1) / 2,
            "entropy": entropy,
            "top": p.amax(-1),
            "p": p,
            "sure": q.amax(-1),
        }
    if target.value.shape != student.shape:
        return {}
    return {"differ": (target.value - student).abs()}


class TermLook(NamedTuple):
    """One look at one term."""

    watch: Watch
    name: str
    term: BaseTerm
    pulse: TermHealth
    weight: float
    new: bool  # the first micro-batch of the step

    @property
    def normalised(self) -> bool:
        """Whether the probabilities of its target sum to 1."""
        return self.term.teacher is None or self.term.teacher.normalised

    @property
    def even(self) -> bool:
        """Whether a target without a best class is intended."""
        return self.term.teacher is not None and self.term.teacher.even

    def at(self, measured: TermResult) -> None:
        trace, valid, kept = measured.seen, float(measured.valid), float(measured.kept)
        pulse, live = self.pulse, valid > 0 and kept > 0
        pulse.valid, pulse.kept = pulse.valid + valid, pulse.kept + kept
        if not valid > 0:
            return
        pulse.add("kept", kept / valid)
        pulse.alive |= trace is None  # a term of its own kind shows nothing to be certain of
        if trace is None:
            return
        with torch.no_grad():
            student, target, index = _flat(trace)
            if self.weight:
                judge_space(self, target)
            values = figures(student, target)
            if target.space == "features":
                self._directions(student)
        gradient, norm = self._gradient(trace, measured, live)
        with torch.no_grad():
            sure = self._note(values, target, live, norm)
            judge_trust(self, trace, student, target, index, values)
            if "top" in values:
                self._labels(trace, target, index)
                uniform(self, student.shape[-1], sure)
                judge_floor(self, trace, index, values, gradient)

    def _gradient(self, trace: TermTrace, measured: TermResult, live: bool) -> tuple[Tensor | None, float | None]:
        """The gradient of the total in the term's own output, and its norm."""
        total, gradient = measured.tally.total, None
        if total.requires_grad and trace.student.requires_grad:
            (gradient,) = torch.autograd.grad(total, trace.student, retain_graph=True, allow_unused=True)
        trains = trace.student.requires_grad or any(p.requires_grad for p in self.watch.student.parameters())
        if gradient is None:
            if live and self.weight and trains:
                fail(
                    "no-gradient",
                    self.name,
                    "its loss has no gradient in the student's output",
                    "compute the loss from the student's output, not from the target or a detached copy",
                )
            return None, None
        norm = float(gradient.float().norm())
        if live:
            mean = norm / max(float(measured.tally.count), 1e-12)
            self.pulse.add("gradient", mean)
            self.pulse.add("pull", abs(self.weight) * mean)
        return gradient, norm

    def _note(self, values: dict[str, Tensor], target: Target, live: bool, gradient: float | None) -> float:
        """Write the figures down; the student's mean confidence."""
        pulse, names = self.pulse, [n for n in ("differ", "entropy", "top", "sure") if n in values]
        if not names:
            pulse.alive = True  # nothing to compare, so nothing to be certain of
            return 0.0
        means = torch.stack([values["differ"].max(), *(values[n].mean() for n in names)])
        largest, *averages = means.tolist()
        averaged: dict[str, float] = dict(zip(names, averages, strict=True))
        if target.space not in DISTRIBUTIONS:
            deviation = float(target.value.float().std()) if target.value.numel() > 1 else 0.0
            pulse.add("disagreement", averaged["differ"] / deviation if deviation > 0 else None)
        else:
            pulse.add("disagreement", averaged["differ"])
            pulse.add("entropy", averaged["entropy"])
            pulse.add("largest", averaged["top"])
        if live:
            vanishes = gradient is not None and gradient <= 1e-6 * math.sqrt(values["differ"].numel())
            if largest != 0 or not vanishes or by_labels(self.term):
                pulse.alive = True
            elif self.new:
                pulse.dead_looks += 1
                pulse.weights = self.watch.fingerprint() if pulse.weights is None else pulse.weights
        if "p" in values:
            p, logs = values["p"], values["p"].clamp(min=1e-30).log()
            low = (logs - logs.mean(-1, keepdim=True)).min()  # a softmax of probabilities goes no lower than -1/C
            pulse.spoke += self.new
            pulse.peak = max(pulse.peak, float(p.max()))
            pulse.twice = pulse.twice and float(low) >= -1.0 / p.shape[-1] - 1e-4
        return averaged.get("sure", 0.0)

    def _directions(self, student: Tensor) -> None:
        """Record the spread of the directions of outputs (N, width): a method without labels fails where they are
        equal.
        """
        value = spread(student)
        self.pulse.add("spread", value)
        if self.watch.step.clock.step >= SETTLED and self.term.head in BESIDE:
            self.pulse.narrow = self.pulse.narrow + 1 if value < NARROW else 0

    def _labels(self, trace: TermTrace, target: Target, index: Tensor) -> None:
        y, predicted = self.watch.step.batch[self.term.view].y, target.best()
        if trace.student.shape[-1] <= MOST and not self.even:
            _count(self.pulse.targets, predicted)
        shape = trace.student.shape[:-1]
        if y is None or y.is_floating_point() or y.shape != shape[: y.dim()]:
            return
        y = y.reshape(*y.shape, *(1,) * (len(shape) - y.dim())).expand(shape).reshape(-1)[index]
        labelled = y >= 0
        if bool(labelled.any()):
            self.pulse.add("accuracy", float((predicted == y)[labelled].float().mean()))
            if trace.student.shape[-1] <= MOST:
                _count(self.pulse.labels, y[labelled])


def _flat(trace: TermTrace) -> tuple[Tensor, Target, Tensor]:
    """The first valid elements as rows (N, components), their target, and their places among all elements."""
    student, (value, space, valid) = trace.student.detach().float(), trace.target
    elements = math.prod(student.shape[:-1])
    index = torch.arange(elements, device=student.device) if valid is None else valid.reshape(-1).nonzero().squeeze(1)
    index = index[:MOST]
    flat = value.reshape(-1) if space == "classes" else value.reshape(-1, value.shape[-1])
    return student.reshape(elements, -1)[index], Target(flat[index], space), index


def _count(histogram: dict[int, int], classes: Tensor) -> None:
    for c, n in zip(*(part.tolist() for part in classes.unique(return_counts=True)), strict=True):
        histogram[c] = histogram.get(c, 0) + n


class Watch:
    """One look at one step of ``student``: `buffers` after each term's tally, and `read` before the graph is freed."""

    def __init__(self, student: nn.Module, forward: Forward, pulse: dict[str, TermHealth], vigil: StateWatch) -> None:
        self.student, self.step, self.pulse, self.vigil = student, forward, pulse, vigil
        self._versions = _versions(student)
        vigil.open()

    def buffers(self, name: str, term: BaseTerm) -> None:
        """Check that the measured term has not moved the student's buffers (`VitalsError`); a term without a teacher
        may.
        """
        versions = _versions(self.student)
        if versions != self._versions and term.teacher is not None:
            fail(
                "teacher-moved-buffers",
                name,
                "computing its target changed the student's own buffers (batch-norm statistics, say)",
                "run the teacher on a copy, or in eval mode",
            )
        self._versions = versions

    def read(self, terms: Mapping[str, BaseTerm], measured: Mapping[str, TermResult]) -> None:
        """Look at every term.

        Raises:
            VitalsError: a signal is certainly dead or inverted.
        """
        frozen = sorted(
            {
                type(m).__name__
                for m in self.student.modules()
                if not m.training and isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
            }
        )
        clock, pulses = self.step.clock, self.pulse
        for name, term in terms.items():
            pulse = pulses.setdefault(name, TermHealth())
            if pulse.last[0] != clock.generation:
                pulse = pulses[name] = TermHealth()
            new, pulse.last = pulse.last[1] != clock.step, (clock.generation, clock.step)
            pulse.looks += int(new)
            pulse.waiting = (clock.generation == 0 and clock.generations > 1) or (
                term.teacher is not None and term.teacher.has_no_target(clock)
            )
            pulse.frozen = frozen
            weight = float(term.weight_at(clock))
            pulse.weighs |= weight != 0
            TermLook(self, name, term, pulse, weight, new).at(measured[name])
        self.vigil.rows.see(terms, self.step)
        nothing_else = not any(
            p.alive or not p.valid for p in pulses.values()
        )  # then nothing else can move the weights
        for name, pulse in pulses.items():
            dead = pulse.dead_looks >= 4 and not pulse.alive and pulse.weighs
            if dead and (nothing_else or pulse.weights != self.fingerprint()):
                fail(
                    "teacher-is-student",
                    name,
                    f"at {pulse.dead_looks} looks its target was exactly the student's own output",
                    "give it another model, another view or another head as teacher",
                )

    def fingerprint(self) -> float:
        """One number that changes when the student's weights do."""
        return math.fsum(float(p.detach().float().norm()) for p in self.student.parameters())


def _versions(module: nn.Module) -> list[int]:
    return [b._version for b in module.buffers() if not b.is_inference()]
