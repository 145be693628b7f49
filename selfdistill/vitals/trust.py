"""Does a gate keep what it claims to keep? Its trust is compared with how sure each element's target is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..targets import Target
from .pulse import Pulse, fail

if TYPE_CHECKING:
    from .look import Look, Seen


def judge(look: Look, seen: Seen, student: Tensor, target: Target, index: Tensor, found: dict[str, Tensor]) -> None:
    """Read the gate's trust in the valid elements (``index``), whose outputs and figures are given.

    Raises:
        VitalsError: a gate that claims to keep the surer elements does not.
    """
    if seen.trust is None:
        return
    gate = getattr(look.term, "gate", None)
    trust = seen.trust.detach().float().reshape(-1)[index].clamp(0, 1)
    if "top" in found:
        _note_gap(look.pulse, trust, found["top"])
    if not look.weight or getattr(gate, "prefers", None) != "confident":
        return
    sure = _sureness(gate, student, target, found)
    if sure is not None and len(sure) > 1 and float(sure.max() - sure.min()) > 1e-6:  # labels are all equally sure
        _add(look.pulse, trust, sure)
        _verdict(look.name, look.pulse)


def _note_gap(pulse: Pulse, trust: Tensor, top: Tensor) -> None:
    """The figure ``confidence_gap``: mean confidence where kept minus where dropped."""
    sums = torch.stack([trust.sum(), (1 - trust).sum(), (trust * top).sum(), ((1 - trust) * top).sum()])
    kept, dropped, up, down = sums.tolist()
    if kept > 0 and dropped > 0:
        pulse.add("confidence_gap", up / kept - down / dropped)


def _sureness(gate: Any, student: Tensor, target: Target, found: dict[str, Tensor]) -> Tensor | None:
    """How sure each element is, (N,): what the gate says it measures, else the confidence, else the agreement."""
    if hasattr(gate, "measures"):
        return gate.measures(student, target).float()  # type: ignore[no-any-return]
    if "top" in found:
        return found["top"]
    return -found["differ"].mean(-1) if "differ" in found else None


def _add(pulse: Pulse, trust: Tensor, sure: Tensor) -> None:
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


def _verdict(name: str, pulse: Pulse) -> None:
    remedy = "or set prefers = None on the gate if it asks something else"
    if pulse.third >= 200:  # a kept share is then known to .035
        low, middle, high = (kept / pulse.third for kept in pulse.thirds)
        if high < middle - 0.2 and low < middle - 0.2:
            fail(
                "middle-band", name, f"its gate keeps {high:.0%} of the surest third of its targets, {middle:.0%} of "
                f"the middle one and {low:.0%} of the least sure", f"keep one side of a threshold, {remedy}",
            )  # fmt: skip
    gap = pulse.rank_gap / pulse.rank_weight if pulse.rank_weight else 0.0
    if pulse.rank_weight >= 100 and gap < -0.1:  # more than three standard errors
        fail(
            "inverted-gate", name, "its gate keeps the targets that are less sure (a kept one outranks a dropped one "
            f"in {0.5 + gap:.0%} of all pairs)", f"turn its mask round, {remedy}",
        )  # fmt: skip
    if pulse.rank_weight >= 300 and abs(gap) < 0.05:  # three standard errors; a threshold has a gap of .5
        fail(
            "blind-gate", name, "what its gate keeps is no surer than what it drops (a kept one outranks a dropped "
            f"one in {0.5 + gap:.0%} of all pairs)", "gate by the target's confidence, give the gate a method measures"
            "(student, target) that says how sure it is, or set prefers = None",
        )  # fmt: skip
