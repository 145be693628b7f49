"""When to look, and what concerns the whole student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..step import Step
from .look import Look
from .pulse import Pulse, fail
from .states import Vigil

if TYPE_CHECKING:
    from ..core import Measured


def looked_at(step: int) -> bool:
    """Is this step (from 0) one of the few? Steps 1, 2, 4, ... 32 and every fiftieth, counted from 1.

    >>> [step + 1 for step in range(120) if looked_at(step)]
    [1, 2, 4, 8, 16, 32, 50, 100]
    """
    done = step + 1
    return done % 50 == 0 or (done <= 32 and done & (done - 1) == 0)


class Watch:
    """One look at one step of ``student``: ask `buffers` after each term's tally, and `read` before the graph goes."""

    def __init__(self, student: nn.Module, step: Step, pulse: dict[str, Pulse], vigil: Vigil, on: bool = True) -> None:
        self.student, self.step, self.pulse, self.vigil = student, step, pulse, vigil
        self.on = on and torch.is_grad_enabled() and looked_at(step.clock.step)
        self._versions = _versions(student) if self.on else []
        if self.on:
            vigil.open()

    def buffers(self, name: str, term: Any, measured: Measured) -> Measured:
        """Has the term that was measured moved the student's buffers (`VitalsError`)? A term without a teacher may."""
        now = _versions(self.student) if self.on else []
        if now != self._versions and hasattr(term, "teacher"):
            fail(
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
            waits = getattr(getattr(term, "teacher", None), "waits", None)  # has it nothing to say yet?
            pulse.waiting = (clock.generation == 0 and clock.generations > 1) or bool(waits and waits(clock))
            pulse.frozen = frozen
            weight = float(term.weight_at(clock))
            pulse.weighs |= weight != 0
            Look(self, name, term, pulse, weight, new).at(measured[name])
        self.vigil.rows.see(terms, self.step)
        alone = not any(p.alive or not p.valid for p in pulses.values())  # then nothing else can move the weights
        for name, pulse in pulses.items():
            dead = pulse.dead_looks >= 4 and not pulse.alive and pulse.weighs
            if dead and (alone or pulse.weights != self.fingerprint()):
                fail(
                    "teacher-is-student", name, f"at {pulse.dead_looks} looks its target was exactly the student's own "
                    "output", "give it another model, another view or another head as teacher",
                )  # fmt: skip

    def fingerprint(self) -> float:
        """One number that changes when the student's weights do."""
        return math.fsum(float(p.detach().float().norm()) for p in self.student.parameters())


def _versions(module: nn.Module) -> list[int]:
    return [b._version for b in module.buffers() if not b.is_inference()]
