"""Is a loss on distributions a divergence where it says so: never below 0, and flat only where the two agree?

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
    look: TermLook, seen: TermTrace, index: Tensor, found: dict[str, Tensor], gradient: Tensor | None
) -> None:
    """Read the loss of the valid elements (``index``); ``gradient`` is that of the total in the output.

    A loss that says ``signed = True`` may be negative, one that says ``flat = True`` may be 0 where the two differ.

    Raises:
        VitalsError: the loss is 0 between equals and less elsewhere, or cut off at 0 without gradient.
    """
    term, pulse = look.term, look.pulse
    if not look.weight or seen.target.space not in DISTRIBUTIONS or not look.normalised or seen.loss is None:
        return
    rule = term.loss
    loss = seen.loss.detach().float().reshape(-1)[index]
    apart = found["differ"] > APART
    if seen.trust is not None:
        apart &= seen.trust.reshape(-1)[index] > 0
    cut = torch.zeros_like(apart)
    if gradient is not None:
        cut = apart & (loss == 0) & (gradient.reshape(seen.loss.numel(), -1)[index] == 0).all(-1)
    low, size, differ, flat = torch.stack([loss.min(), loss.abs().mean(), apart.sum(), cut.sum()]).tolist()
    if low < -1e-3 * (1 + size) and not (rule and rule.signed):
        _negative(look, seen)
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


def _negative(look: TermLook, seen: TermTrace) -> None:
    """Below 0: by rounding, by intention, or because it is no divergence? Asked of the loss itself, in float64."""
    target = Target(
        seen.target.value.double() if seen.target.space != "classes" else seen.target.value, *seen.target[1:]
    )
    loss, student = look.term.loss, seen.student.detach().double()
    if loss is None:
        return
    same = target.log_probabilities(student.shape[-1]).clamp(min=-80.0)  # a student that agrees with its target
    try:
        here, there = (loss(one, target).double() for one in (student, same))
    except RuntimeError:  # a loss that cannot do float64
        return
    if target.valid is not None:
        here, there = here[target.valid], there[target.valid]
    low, size, agreed = torch.stack([here.min(), here.abs().mean(), there.abs().max()]).tolist()
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
    """Probabilities are no logits, what does not sum to 1 is no distribution, and padding is no class.

    Raises:
        VitalsError: one of these.
    """
    value = target.value.float()
    if target.space not in ("logits", "probabilities") or value.shape[-1] < 2 or not len(value):
        return
    off, uneven = (value.sum(-1) - 1).abs().max(), (value - 1.0 / value.shape[-1]).abs().max()
    low, high, most, odd = torch.stack([value.min(), value.max(), off, uneven]).tolist()
    if target.space == "logits":
        if len(value) >= 8 and low >= 0 and high <= 1 and most < 1e-4 and odd > 1e-6:
            fail(
                "probabilities-as-logits",
                look.name,
                "its target is called logits, but every row is a distribution and would be softmaxed twice",
                "declare the space 'probabilities'",
            )
        _padding(look, value[:SOME])
        return
    allowed = 2e-2 if target.value.dtype in (torch.float16, torch.bfloat16) else 1e-3
    if look.normalised and (low < -1e-5 or most > allowed):
        fail(
            "not-a-distribution",
            look.name,
            f"its target is called probabilities, but a row is {most:.3g} off 1 (smallest entry {low:.3g})",
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
    again = columns & set(pulse.padded) if pulse.padded_looks else columns
    pulse.padded = sorted(again) if vary and len(again) > 1 else []
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
    needed = 6 if classes > 3 else 12  # with few classes an honest young teacher stays below the bound too
    flat = pulse.spoke >= needed and pulse.peak <= bound + 1e-6 and pulse.twice
    if look.weight and flat and sure > (1 + bound) / 2:
        fail(
            "uniform-target",
            look.name,
            f"no target probability ever exceeded {bound:.3f}, what a second softmax "
            "leaves, while the student is confident",
            "softmax the target once, and temper logits only",
        )


def judge_trust(
    look: TermLook, seen: TermTrace, student: Tensor, target: Target, index: Tensor, found: dict[str, Tensor]
) -> None:
    """Read the gate's trust in the valid elements (``index``), whose outputs and figures are given.

    Raises:
        VitalsError: a gate that claims to keep the surer elements does not.
    """
    if seen.trust is None:
        return
    gate = look.term.gate
    trust = seen.trust.detach().float().reshape(-1)[index].clamp(0, 1)
    if "top" in found:
        _note_gap(look.pulse, trust, found["top"])
    if not look.weight or gate is None or gate.prefers != "confident":
        return
    sure = _sureness(gate, student, target, found)
    if sure is not None and len(sure) > 1 and float(sure.max() - sure.min()) > 1e-6:  # labels are all equally sure
        _add(look.pulse, trust, sure)
        _verdict(look.name, look.pulse)


def _note_gap(pulse: TermHealth, trust: Tensor, top: Tensor) -> None:
    """The figure ``confidence_gap``: mean confidence where kept minus where dropped."""
    sums = torch.stack([trust.sum(), (1 - trust).sum(), (trust * top).sum(), ((1 - trust) * top).sum()])
    kept, dropped, up, down = sums.tolist()
    if kept > 0 and dropped > 0:
        pulse.add("confidence_gap", up / kept - down / dropped)


def _sureness(gate: Gate, student: Tensor, target: Target, found: dict[str, Tensor]) -> Tensor | None:
    """How sure each element is, (N,): what the gate says it measures, else the confidence, else the agreement."""
    if (measured := gate.measures(student, target)) is not None:
        return measured.float()
    if "top" in found:
        return found["top"]
    return -found["differ"].mean(-1) if "differ" in found else None


def _add(pulse: TermHealth, trust: Tensor, sure: Tensor) -> None:
    """Ranks within the look: a threshold that rises during training would invert means over all looks."""
    n = len(sure)
    rank = sure.argsort().argsort()
    kept = trust > trust.mean()  # for a gate of 0 and 1 what it keeps, for one in between what it trusts more
    thirds = trust.new_zeros(3).index_add_(0, rank * 3 // n, trust)
    share = rank.float() / (n - 1)
    several, upper, *each = torch.cat([torch.stack([kept.sum(), share[kept].sum()]), thirds]).tolist()
    others = n - several
    if several and others:
        weight = several * others / n  # the variance of a gap of ranks is 1 / 12 of its inverse
        pulse.rank_gap += weight * (upper / several - (n / 2 - upper) / others)
        pulse.rank_weight += weight
    pulse.thirds = [a + b for a, b in zip(pulse.thirds, each, strict=True)]
    pulse.third += n / 3


def _verdict(name: str, pulse: TermHealth) -> None:
    remedy = "or set prefers = None on the gate if it asks something else"
    if pulse.third >= 200:  # a kept share is then known to .035
        low, middle, high = (kept / pulse.third for kept in pulse.thirds)
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
            "gate by the target's confidence, give the gate a method measures"
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
        p, own = target.probabilities(classes).float(), F.softmax(student, dim=-1)
        entropy = torch.special.entr(p.clamp(min=0)).sum(-1) / math.log(max(2, classes))
        return {
            "differ": (p - own).abs().sum(-1) / 2,
            "entropy": entropy,
            "top": p.amax(-1),
            "p": p,
            "sure": own.amax(-1),
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
        """Do the probabilities of its target sum to 1?"""
        return self.term.teacher is None or self.term.teacher.normalised

    @property
    def even(self) -> bool:
        """Is a target without a best class meant?"""
        return self.term.teacher is not None and self.term.teacher.even

    def at(self, measured: TermResult) -> None:
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
                judge_space(self, target)
            found = figures(student, target)
            if target.space == "features":
                self._directions(student)
        gradient, norm = self._gradient(seen, measured, live)
        with torch.no_grad():
            sure = self._note(found, target, live, norm)
            judge_trust(self, seen, student, target, index, found)
            if "top" in found:
                self._labels(seen, target, index)
                uniform(self, student.shape[-1], sure)
                judge_floor(self, seen, index, found, gradient)

    def _gradient(self, seen: TermTrace, measured: TermResult, live: bool) -> tuple[Tensor | None, float | None]:
        """The gradient of the total in the term's own output, and its norm."""
        total, grown = measured.tally.total, None
        if total.requires_grad and seen.student.requires_grad:
            (grown,) = torch.autograd.grad(total, seen.student, retain_graph=True, allow_unused=True)
        trains = seen.student.requires_grad or any(p.requires_grad for p in self.watch.student.parameters())
        if grown is None:
            if live and self.weight and trains:
                fail(
                    "no-gradient",
                    self.name,
                    "its loss has no gradient in the student's output",
                    "compute the loss from the student's output, not from the target or a detached copy",
                )
            return None, None
        norm = float(grown.float().norm())
        if live:
            mean = norm / max(float(measured.tally.count), 1e-12)
            self.pulse.add("gradient", mean)
            self.pulse.add("pull", abs(self.weight) * mean)
        return grown, norm

    def _note(self, found: dict[str, Tensor], target: Target, live: bool, gradient: float | None) -> float:
        """Write the figures down; the student's mean confidence."""
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
            if most != 0 or not still or by_labels(self.term):
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

    def _labels(self, seen: TermTrace, target: Target, index: Tensor) -> None:
        y, best = self.watch.step.batch[self.term.view].y, target.best()
        if seen.student.shape[-1] <= MOST and not self.even:
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


def _flat(seen: TermTrace) -> tuple[Tensor, Target, Tensor]:
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


class Watch:
    """One look at one step of ``student``: ask `buffers` after each term's tally, and `read` before the graph goes."""

    def __init__(self, student: nn.Module, step: Forward, pulse: dict[str, TermHealth], vigil: StateWatch) -> None:
        self.student, self.step, self.pulse, self.vigil = student, step, pulse, vigil
        self._versions = _versions(student)
        vigil.open()

    def buffers(self, name: str, term: BaseTerm) -> None:
        """Has the term that was measured moved the student's buffers (`VitalsError`)? A term without a teacher may."""
        now = _versions(self.student)
        if now != self._versions and term.teacher is not None:
            fail(
                "teacher-moved-buffers",
                name,
                "computing its target changed the student's own buffers (batch-norm statistics, say)",
                "run the teacher on a copy, or in eval mode",
            )
        self._versions = now

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
                term.teacher is not None and term.teacher.waits(clock)
            )
            pulse.frozen = frozen
            weight = float(term.weight_at(clock))
            pulse.weighs |= weight != 0
            TermLook(self, name, term, pulse, weight, new).at(measured[name])
        self.vigil.rows.see(terms, self.step)
        alone = not any(p.alive or not p.valid for p in pulses.values())  # then nothing else can move the weights
        for name, pulse in pulses.items():
            dead = pulse.dead_looks >= 4 and not pulse.alive and pulse.weighs
            if dead and (alone or pulse.weights != self.fingerprint()):
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
