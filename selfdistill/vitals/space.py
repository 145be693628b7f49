"""Is a target what it says it is: logits, a distribution, over the classes that exist?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..targets import Target
from .pulse import fail

if TYPE_CHECKING:
    from .look import Look

SOME = 256  # elements that are enough to see that a column never moves


def judge(look: Look, target: Target) -> None:
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
                "probabilities-as-logits", look.name, "its target is called logits, but every row is a "
                "distribution and would be softmaxed twice", "declare the space 'probabilities'",
            )  # fmt: skip
        _padding(look, value[:SOME])
        return
    allowed = 2e-2 if target.value.dtype in (torch.float16, torch.bfloat16) else 1e-3
    whole = getattr(getattr(look.term, "teacher", None), "normalised", True)
    if whole and (low < -1e-5 or most > allowed):
        fail(
            "not-a-distribution", look.name, f"its target is called probabilities, but a row is {most:.3g} off 1 "
            f"(smallest entry {low:.3g})", "normalise it, or set normalised = False on the teacher",
        )  # fmt: skip


def _padding(look: Look, value: Tensor) -> None:
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
        "padded-vocabulary", look.name, f"{len(pulse.padded)} columns of its target's logits are exactly 0 throughout "
        f"and hold {mass:.2%} of its probability, on classes that do not exist", "set the logits of padding to -inf, "
        "or cut them off on both sides",
    )  # fmt: skip


def uniform(look: Look, classes: int, sure: float) -> None:
    """A target that was softmaxed twice never exceeds a bound, however sure the student is.

    A teacher that is even on purpose, at times, says ``even = True``.
    """
    pulse = look.pulse
    if getattr(getattr(look.term, "teacher", None), "even", False):
        return
    bound = math.e / (math.e + classes - 1)
    needed = 6 if classes > 3 else 12  # with few classes an honest young teacher stays below the bound too
    flat = pulse.spoke >= needed and pulse.peak <= bound + 1e-6 and pulse.twice
    if look.weight and flat and sure > (1 + bound) / 2:
        fail(
            "uniform-target", look.name, f"no target probability ever exceeded {bound:.3f}, what a second softmax "
            "leaves, while the student is confident", "softmax the target once, and temper logits only",
        )  # fmt: skip
