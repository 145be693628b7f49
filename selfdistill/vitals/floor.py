"""Is a loss on distributions a divergence where it says so: never below 0, and flat only where the two agree?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..targets import DISTRIBUTIONS, Target
from .pulse import fail

if TYPE_CHECKING:
    from .look import Look, Seen

APART = 0.1  # total variation from which on target and student clearly differ


def judge(look: Look, seen: Seen, index: Tensor, found: dict[str, Tensor], gradient: Tensor | None) -> None:
    """Read the loss of the valid elements (``index``); ``gradient`` is that of the total in the output.

    A loss that says ``signed = True`` may be negative, one that says ``flat = True`` may be 0 where the two differ.

    Raises:
        VitalsError: the loss is 0 between equals and less elsewhere, or cut off at 0 without gradient.
    """
    term, pulse = look.term, look.pulse
    rule, whole = getattr(term, "loss", None), getattr(getattr(term, "teacher", None), "normalised", True)
    if not look.weight or seen.target.space not in DISTRIBUTIONS or not whole:
        return
    loss = seen.loss.detach().float().reshape(-1)[index]
    apart = found["differ"] > APART
    if seen.trust is not None:
        apart &= seen.trust.reshape(-1)[index] > 0
    cut = torch.zeros_like(apart)
    if gradient is not None:
        cut = apart & (loss == 0) & (gradient.reshape(seen.loss.numel(), -1)[index] == 0).all(-1)
    low, size, differ, flat = torch.stack([loss.min(), loss.abs().mean(), apart.sum(), cut.sum()]).tolist()
    if low < -1e-3 * (1 + size) and not getattr(rule, "signed", False):
        _negative(look, seen)
    pulse.flat, pulse.differing = pulse.flat + flat, pulse.differing + differ
    pulse.flat_looks += int(look.new and flat > 0)
    # a flat place that stays: three looks, and far more elements than stand exactly on a kink
    often = pulse.flat_looks >= 3 and pulse.flat >= 16 and pulse.flat >= 0.05 * pulse.differing
    if often and not getattr(rule, "flat", False):
        fail(
            "clamped-loss", look.name, "its loss is exactly 0, without gradient, for "
            f"{pulse.flat / pulse.differing:.0%} of the elements where target and student differ", "do not clamp "
            "it: renormalise what it compares or add the mass of the tail; or set flat = True if that part is meant",
        )  # fmt: skip


def _negative(look: Look, seen: Seen) -> None:
    """Below 0: by rounding, by intention, or because it is no divergence? Asked of the loss itself, in float64."""
    target = Target(
        seen.target.value.double() if seen.target.space != "classes" else seen.target.value, *seen.target[1:]
    )
    student = seen.student.detach().double()
    same = target.log_probabilities(student.shape[-1]).clamp(min=-80.0)  # a student that agrees with its target
    try:
        here, there = (look.term.loss(one, target).double() for one in (student, same))
    except RuntimeError:  # a loss that cannot do float64
        return
    if target.valid is not None:
        here, there = here[target.valid], there[target.valid]
    low, size, agreed = torch.stack([here.min(), here.abs().mean(), there.abs().max()]).tolist()
    if low >= -1e-3 * (1 + size):
        return
    if agreed <= 1e-3 * (1 + size):
        fail(
            "negative-divergence", look.name, f"its loss is 0 between equals and {low:.3g} between others, so learning "
            "drives the student away from its target", "renormalise what it compares or add the mass of the tail; or "
            "set signed = True on a loss that is meant to be negative",
        )  # fmt: skip
    look.pulse.note(
        f"the loss of term {look.name!r} goes below 0; set signed = True on it if that is meant, and renormalise what "
        "it compares if it is a divergence"
    )
