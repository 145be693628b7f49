"""Vitals: is the signal of each term alive? A few steps are looked at; what is certainly dead stops the run.

`Objective.vitals()` gives per term means over the looks, and warnings. What `Watch` is certain of it raises as
`VitalsError` at once. Only the terms' own outputs are differentiated, never the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import VitalsError
from .step import Step
from .targets import DISTRIBUTIONS, Target

if TYPE_CHECKING:
    from .core import Measured

__all__ = ["Pulse", "Seen", "Vitals", "Watch", "looked_at", "summarise"]

MOST = 4096  # elements a look reads, and classes a histogram has: language models have far more of both
NAMES = (
    "gradient", "gradient_share", "disagreement", "entropy", "largest", "kept", "confidence_gap", "accuracy",
    "class_distance",
)  # fmt: skip


def looked_at(step: int) -> bool:
    """Is this step (from 0) one of the few? Steps 1, 2, 4, ... 32 and every fiftieth, counted from 1.

    >>> [step + 1 for step in range(120) if looked_at(step)]
    [1, 2, 4, 8, 16, 32, 50, 100]
    """
    done = step + 1
    return done % 50 == 0 or (done <= 32 and done & (done - 1) == 0)


class Seen(NamedTuple):
    """What a term computed with: output (rows, ..., components), target, and per element the trust and the loss."""

    student: Tensor
    target: Target
    trust: Tensor | None
    loss: Tensor


@dataclass
class Pulse:
    """What the looks at one term added up to: plain numbers, in no ``state_dict``."""

    looks: int = 0  # steps, however many micro-batches each had
    last: tuple[int, int] = (-1, -1)  # generation and step of the last look
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    valid: float = 0.0
    kept: float = 0.0
    trusted: float = 0.0  # elements kept and dropped where target's confidence is known
    dropped: float = 0.0
    gap: float = 0.0  # confidence of kept minus dropped, within looks, and its weight
    gap_weight: float = 0.0
    alive: bool = False
    dead_looks: int = 0
    weights: float | None = None  # a fingerprint of the student at the first dead look
    peak: float = 0.0  # the largest target probability ever
    twice: bool = True  # could every target so far be a softmax of probabilities?
    spoke: int = 0  # looks with a distribution
    weighs: bool = False
    waiting: bool = False  # a generation that has no teacher yet
    frozen: list[str] = field(default_factory=list)
    targets: dict[int, int] = field(default_factory=dict)  # rows by the target's best class
    labels: dict[int, int] = field(default_factory=dict)

    def add(self, name: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def mean(self, name: str) -> float | None:
        return self.sums[name] / self.counts[name] if self.counts.get(name) else None


@dataclass(frozen=True)
class Vitals:
    """The reading: for each term means over the looks (None: not measurable), and what looks wrong.

    ``gradient`` is the norm of the mean loss's gradient in the term's own output, ``gradient_share`` its weighted
    share; ``disagreement`` the total variation between target and student, or mean abs(t - s) / std(t) for values;
    ``entropy`` the target's over log(classes), ``largest`` its largest probability, ``kept`` the share that the gate
    kept, ``confidence_gap`` the target's confidence where kept minus where dropped, ``accuracy`` the target's on rows
    with labels, ``class_distance`` the total variation between the classes of targets and labels.
    """

    terms: dict[str, dict[str, float | None]]
    warnings: list[str]

    def to_json(self) -> str:
        """The reading as one JSON object."""
        return json.dumps(asdict(self), allow_nan=False)


def distance(one: Mapping[int, int], other: Mapping[int, int]) -> float | None:
    """Total variation between two histograms of classes; None where either is empty."""
    a, b = sum(one.values()), sum(other.values())
    if not a or not b:
        return None
    return sum(abs(one.get(c, 0) / a - other.get(c, 0) / b) for c in {*one, *other}) / 2


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


class Watch:
    """One look at one step of ``student``: ask `buffers` after each term's tally, and `read` before the graph goes."""

    def __init__(self, student: nn.Module, step: Step, pulse: dict[str, Pulse]) -> None:
        self.student, self.step, self.pulse = student, step, pulse
        self.on = torch.is_grad_enabled() and looked_at(step.clock.step)
        self._versions = _versions(student) if self.on else []

    def buffers(self, name: str, term: Any, measured: Measured) -> Measured:
        """Has the term that was measured moved the student's buffers (`VitalsError`)? A term without a teacher may."""
        now = _versions(self.student) if self.on else []
        if now != self._versions and hasattr(term, "teacher"):
            _fail(
                "teacher-moved-buffers", name, "computing its target changed the student's own buffers (batch-norm "
                "statistics, say)", "run the teacher on a copy, or in eval mode",
            )  # fmt: skip
        self._versions = now
        return measured

    def read(self, terms: Mapping[str, Any], measured: Mapping[str, Measured]) -> None:
        """Look at every term.

        Raises:
            VitalsError: a signal is certainly dead or inverted.
        """
        if not self.on:
            return
        frozen = sorted({
            type(m).__name__ for m in self.student.modules()
            if not m.training and isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
        })  # fmt: skip
        clock, pulses = self.step.clock, self.pulse
        for name, term in terms.items():
            pulse = pulses.setdefault(name, Pulse())
            if pulse.last[0] != clock.generation:
                pulse = pulses[name] = Pulse()
            new, pulse.last = pulse.last[1] != clock.step, (clock.generation, clock.step)
            pulse.looks += int(new)
            pulse.frozen, pulse.waiting = frozen, clock.generation == 0 and clock.generations > 1
            weight = float(term.weight_at(clock))
            pulse.weighs |= weight != 0
            _Look(self, name, term, pulse, weight, new).at(measured[name])
        alone = not any(p.alive or not p.valid for p in pulses.values())  # then nothing else can move the weights
        for name, pulse in pulses.items():
            dead = pulse.dead_looks >= 4 and not pulse.alive and pulse.weighs
            if dead and (alone or pulse.weights != self.fingerprint()):
                _fail(
                    "teacher-is-student", name, f"at {pulse.dead_looks} looks its target was exactly the student's own "
                    "output", "give it another model, another view or another head as teacher",
                )  # fmt: skip

    def fingerprint(self) -> float:
        """One number that changes when the student's weights do."""
        return math.fsum(float(p.detach().float().norm()) for p in self.student.parameters())


class _Look(NamedTuple):
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
                self._fits_its_space(target)
            found = figures(student, target)
        gradient = self._gradient(seen, measured, live)
        with torch.no_grad():
            sure = self._note(found, target, live, gradient)
            if "top" in found:
                self._gate(seen, found["top"], index)
                self._labels(seen, target, index)
                self._uniform(student.shape[-1], sure)

    def _gradient(self, seen: Seen, measured: Measured, live: bool) -> float | None:
        """Norm of the gradient of the total in the term's own output."""
        total, grown = measured.tally.total, None
        if total.requires_grad and seen.student.requires_grad:
            (grown,) = torch.autograd.grad(total, seen.student, retain_graph=True, allow_unused=True)
        trains = seen.student.requires_grad or any(p.requires_grad for p in self.watch.student.parameters())
        if grown is None:
            if live and self.weight and trains:
                _fail(
                    "no-gradient", self.name, "its loss has no gradient in the student's output",
                    "compute the loss from the student's output, not from the target or a detached copy",
                )  # fmt: skip
            return None
        norm = float(grown.float().norm())
        if live:
            mean = norm / max(float(measured.tally.count), 1e-12)
            self.pulse.add("gradient", mean)
            self.pulse.add("pull", abs(self.weight) * mean)
        return norm

    def _note(self, found: dict[str, Tensor], target: Target, live: bool, gradient: float | None) -> float:
        """Write the figures down; the student's mean confidence."""
        from .teachers import Labels

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

    def _fits_its_space(self, target: Target) -> None:
        """Probabilities are no logits, and what does not sum to 1 is no distribution."""
        value = target.value.float()
        if target.space not in ("logits", "probabilities") or value.shape[-1] < 2 or not len(value):
            return
        off, uneven = (value.sum(-1) - 1).abs().max(), (value - 1.0 / value.shape[-1]).abs().max()
        low, high, most, odd = torch.stack([value.min(), value.max(), off, uneven]).tolist()
        if target.space == "logits":
            if len(value) >= 8 and low >= 0 and high <= 1 and most < 1e-4 and odd > 1e-6:
                _fail(
                    "probabilities-as-logits", self.name, "its target is called logits, but every row is a "
                    "distribution and would be softmaxed twice", "declare the space 'probabilities'",
                )  # fmt: skip
            return
        allowed = 2e-2 if target.value.dtype in (torch.float16, torch.bfloat16) else 1e-3
        whole = getattr(getattr(self.term, "teacher", None), "normalised", True)
        if whole and (low < -1e-5 or most > allowed):
            _fail(
                "not-a-distribution", self.name, f"its target is called probabilities, but a row is {most:.3g} off 1 "
                f"(smallest entry {low:.3g})", "normalise it, or set normalised = False on the teacher",
            )  # fmt: skip

    def _gate(self, seen: Seen, top: Tensor, index: Tensor) -> None:
        if seen.trust is None:
            return
        trust = seen.trust.detach().float().reshape(-1)[index].clamp(0, 1)
        pulse, c = self.pulse, top
        sums = torch.stack([trust.sum(), (1 - trust).sum(), (trust * c).sum(), ((1 - trust) * c).sum()])
        kept, dropped, up, down = sums.tolist()
        pulse.trusted, pulse.dropped = pulse.trusted + kept, pulse.dropped + dropped
        if kept > 0 and dropped > 0:
            weight, gap = kept * dropped / (kept + dropped), up / kept - down / dropped
            # within looks: a threshold that rises during training inverts the means over all of them
            pulse.gap, pulse.gap_weight = pulse.gap + weight * gap, pulse.gap_weight + weight
            pulse.add("confidence_gap", gap)
        claims = getattr(getattr(self.term, "gate", None), "prefers", None) == "confident"
        if self.weight and claims and min(pulse.trusted, pulse.dropped) >= 200 and pulse.gap_weight:
            gap = pulse.gap / pulse.gap_weight
            if gap < -0.02:
                _fail(
                    "inverted-gate", self.name, f"its gate keeps targets that are less confident by {-gap:.3f} than "
                    "those it drops", "turn its mask round, or set prefers = None on the gate",
                )  # fmt: skip

    def _labels(self, seen: Seen, target: Target, index: Tensor) -> None:
        y, best = self.watch.step.batch[self.term.view].y, target.best()
        if seen.student.shape[-1] <= MOST:
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

    def _uniform(self, classes: int, sure: float) -> None:
        pulse = self.pulse
        bound = math.e / (math.e + classes - 1)
        needed = 6 if classes > 3 else 12  # with few classes an honest young teacher stays below the bound too
        flat = pulse.spoke >= needed and pulse.peak <= bound + 1e-6 and pulse.twice
        if self.weight and flat and sure > (1 + bound) / 2:
            _fail(
                "uniform-target", self.name, f"no target probability ever exceeded {bound:.3f}, what a second softmax "
                "leaves, while the student is confident", "softmax the target once, and temper logits only",
            )  # fmt: skip


def _flat(seen: Seen) -> tuple[Tensor, Target, Tensor]:
    """The first valid elements as rows (N, components), their target, and their places among all elements."""
    student, (value, space, valid) = seen.student.detach().float(), seen.target
    elements = math.prod(student.shape[:-1])
    index = torch.arange(elements, device=student.device) if valid is None else valid.reshape(-1).nonzero().squeeze(1)
    index = index[:MOST]
    flat = value.reshape(-1) if space == "classes" else value.reshape(-1, value.shape[-1])
    return student.reshape(elements, -1)[index], Target(flat[index], space), index


def _versions(module: nn.Module) -> list[int]:
    return [b._version for b in module.buffers() if not b.is_inference()]


def _count(into: dict[int, int], classes: Tensor) -> None:
    for c, n in zip(*(found.tolist() for found in classes.unique(return_counts=True)), strict=True):
        into[c] = into.get(c, 0) + n


def _fail(vital: str, name: str, what: str, remedy: str) -> None:
    raise VitalsError(vital, f"{vital}: term {name!r}: {what}; {remedy}")


def _warned(name: str, pulse: Pulse, labels: Mapping[int, int]) -> list[str]:
    said = []
    if pulse.looks >= 5 and pulse.weighs and not pulse.waiting:
        if not pulse.valid:
            said.append(f"term {name!r} never had a valid target in {pulse.looks} looks")
        elif not pulse.kept:
            said.append(f"the gate of term {name!r} kept nothing in {pulse.looks} looks")
    of, most = sum(pulse.targets.values()), max(pulse.targets.values(), default=0)
    if of and labels and most > 0.9 * of and max(labels.values()) < 0.5 * sum(labels.values()):
        said.append(f"{most / of:.0%} of the targets of term {name!r} are one class; the labels are spread over more")
    return said


def summarise(pulses: Mapping[str, Pulse]) -> Vitals:
    """The reading of some pulses; before the first look every figure is None."""
    everyone = max((p.labels for p in pulses.values()), key=lambda h: sum(h.values()), default={})
    whole = sum(pulse.mean("pull") or 0.0 for pulse in pulses.values())
    terms, warnings = {}, []
    for name, pulse in pulses.items():
        read: dict[str, float | None] = {key: pulse.mean(key) for key in NAMES}
        pull = pulse.mean("pull")
        read["gradient_share"] = pull / whole if pull is not None and whole else None
        read["class_distance"] = distance(pulse.targets, pulse.labels or everyone)
        terms[name] = {**read, "looks": float(pulse.looks)}
        warnings += _warned(name, pulse, pulse.labels or everyone)
    frozen = sorted({kind for pulse in pulses.values() for kind in pulse.frozen})
    if frozen:
        warnings.append(f"{', '.join(frozen)} of the student in eval mode while it trains; call model.train()")
    return Vitals(terms, warnings)
