"""The figures of a term over all looks, and their summary."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from ...errors import VitalsError

NAMES = (
    "gradient",
    "gradient_share",
    "disagreement",
    "entropy",
    "largest",
    "kept",
    "confidence_gap",
    "accuracy",
    "class_distance",
    "weight_distance",
    "spread",
)


@dataclass
class TermHealth:
    """The sums of one term over all looks: plain numbers, in no ``state_dict``."""

    looks: int = 0  # steps, however many micro-batches each had
    last: tuple[int, int] = (-1, -1)  # generation and step of the last look
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    sums_before: dict[str, float] = field(default_factory=dict)  # as they were when `interval` was asked last
    counts_before: dict[str, int] = field(default_factory=dict)
    valid: float = 0.0
    kept: float = 0.0
    rank_gap: float = 0.0  # rank of confidence of kept minus dropped, within looks, and its weight
    rank_weight: float = 0.0
    thirds: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # trust in the least, middle, most confident
    third: float = 0.0  # elements of each
    padded: list[int] = field(default_factory=list)  # columns of the target that were always 0, and looks in a row
    padded_looks: int = 0
    flat: float = 0.0  # elements without loss or gradient, of those where target and student differ
    differing: float = 0.0
    flat_looks: int = 0
    alive: bool = False
    dead_looks: int = 0
    weights: float | None = None  # a fingerprint of the student at the first dead look
    peak: float = 0.0  # the largest target probability ever
    twice: bool = True  # could every target so far be a softmax of probabilities?
    spoke: int = 0  # looks with a distribution
    weighs: bool = False
    narrow: int = 0  # looks in a row, from step 50 on, at which all elements had nearly one direction
    waiting: bool = False  # a generation that has no teacher yet
    frozen: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # warnings of its own
    targets: dict[int, int] = field(default_factory=dict)  # rows by the target's best class
    labels: dict[int, int] = field(default_factory=dict)

    def add(self, name: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def note(self, warning: str) -> None:
        if warning not in self.notes:
            self.notes.append(warning)

    def mean(self, name: str) -> float | None:
        return self.sums[name] / self.counts[name] if self.counts.get(name) else None

    def recent(self, name: str) -> float | None:
        """The mean since the last `interval`."""
        count = self.counts.get(name, 0) - self.counts_before.get(name, 0)
        return (self.sums[name] - self.sums_before.get(name, 0.0)) / count if count else None


@dataclass(frozen=True)
class Vitals:
    """The summary: for each term means over the looks (None: not measurable), and warnings.

    ``gradient`` is the norm of the mean loss's gradient in the term's own output, ``gradient_share`` its weighted
    share; ``disagreement`` the total variation between target and student, or mean abs(t - s) / std(t) for values;
    ``entropy`` the target's over log(classes), ``largest`` its largest probability, ``kept`` the share that the gate
    kept, ``confidence_gap`` the target's confidence where kept minus where dropped, ``accuracy`` the target's on rows
    with labels, ``class_distance`` the total variation between the classes of targets and labels,
    ``weight_distance`` that of a teacher's weights from the student's, over the norm of the student's, ``spread`` that
    of the directions of the student's features: 1 where they cancel out, 0 where all elements have the same.
    """

    terms: dict[str, dict[str, float | None]]
    warnings: list[str]

    def to_json(self) -> str:
        """The reading as one JSON object."""
        return json.dumps(asdict(self), allow_nan=False)


def distance(first: Mapping[int, int], second: Mapping[int, int]) -> float | None:
    """Total variation between two histograms of classes; None where either is empty."""
    a, b = sum(first.values()), sum(second.values())
    if not a or not b:
        return None
    return sum(abs(first.get(c, 0) / a - second.get(c, 0) / b) for c in {*first, *second}) / 2


def fail(vital: str, name: str, evidence: str, remedy: str) -> None:
    raise VitalsError(vital, f"{vital}: term {name!r}: {evidence}; {remedy}")


def _warned(name: str, pulse: TermHealth, labels: Mapping[int, int]) -> list[str]:
    warnings = list(pulse.notes)
    if pulse.looks >= 5 and pulse.weighs and not pulse.waiting:
        if not pulse.valid:
            warnings.append(f"term {name!r} never had a valid target in {pulse.looks} looks")
        elif not pulse.kept:
            warnings.append(f"the gate of term {name!r} kept nothing in {pulse.looks} looks")
    if pulse.narrow >= 5:
        warnings.append(
            f"the outputs of term {name!r} have nearly one direction, whatever the row: the features have collapsed; "
            "lower --lr, or take another method"
        )
    of, largest = sum(pulse.targets.values()), max(pulse.targets.values(), default=0)
    if of and labels and largest > 0.9 * of and max(labels.values()) < 0.5 * sum(labels.values()):
        warnings.append(
            f"{largest / of:.0%} of the targets of term {name!r} are one class; the labels are spread over more"
        )
    return warnings


def _labels(pulses: Mapping[str, TermHealth]) -> dict[int, int]:
    """The classes of the labels, by the term that saw most of them."""
    return max((p.labels for p in pulses.values()), key=lambda h: sum(h.values()), default={})


def _figures(
    pulses: Mapping[str, TermHealth], mean: Callable[[TermHealth, str], float | None]
) -> dict[str, dict[str, float | None]]:
    labels, total = _labels(pulses), math.fsum(mean(pulse, "pull") or 0.0 for pulse in pulses.values())
    terms: dict[str, dict[str, float | None]] = {}
    for name, pulse in pulses.items():
        terms[name], pull = {key: mean(pulse, key) for key in NAMES}, mean(pulse, "pull")
        terms[name]["gradient_share"] = pull / total if pull is not None and total else None
        terms[name]["class_distance"] = distance(pulse.targets, pulse.labels or labels)
    return terms


def interval(pulses: Mapping[str, TermHealth]) -> dict[str, dict[str, float]]:
    """Means by term over the looks since the last call, of the figures that could be measured; empty without a look.

    ``class_distance`` is that of the generation so far.
    """
    if not any(pulse.counts != pulse.counts_before for pulse in pulses.values()):
        return {}
    figures = _figures(pulses, TermHealth.recent)
    for pulse in pulses.values():
        pulse.sums_before, pulse.counts_before = dict(pulse.sums), dict(pulse.counts)
    return {
        name: {key: value for key, value in values.items() if value is not None} for name, values in figures.items()
    }


def summarise(pulses: Mapping[str, TermHealth]) -> Vitals:
    """The reading of some pulses; before the first look every figure is None."""
    labels, warnings = _labels(pulses), []
    terms = _figures(pulses, TermHealth.mean)
    for name, pulse in pulses.items():
        terms[name]["looks"] = float(pulse.looks)
        warnings += _warned(name, pulse, pulse.labels or labels)
    frozen = sorted({kind for pulse in pulses.values() for kind in pulse.frozen})
    if frozen:
        warnings.append(f"{', '.join(frozen)} of the student in eval mode while it trains; call model.train()")
    return Vitals(terms, warnings)
