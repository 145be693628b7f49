"""Labels of rows that were mixed with each other, and of rows that were transformed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..core import Step, Target, Teacher, Term
from ..errors import SpaceError
from ..heads import space_of, tells_copies


@dataclass(frozen=True)
class MixedLabels(Teacher):
    """The labels of both rows of a mixture, each with its share (mixup, Zhang et al. 2018): views of rows ``mixed``."""

    def space(self, head: str) -> str:
        if tells_copies(head) or space_of(head) != "logits":
            raise SpaceError(f"MixedLabels mixes classes, and the head {head!r} speaks of something else")
        return "probabilities"

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        y, classes = step.labels("x"), step.student(term.view, term.head).shape[-1]
        known = y >= 0
        return Target(step.mixed(F.one_hot(y.clamp(min=0), classes).float()), "probabilities", known & known.flip(0))


@dataclass(frozen=True)
class JointLabels(Teacher):
    """For each of M transformed copies of a row the class M y + m: its label and which copy it is, (rows, M)."""

    transforms: int = 4

    def space(self, head: str) -> str:
        if not tells_copies(head):
            raise SpaceError(f"JointLabels are about the head 'joint', which tells copies apart, not {head!r}")
        return "classes"

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        y = step.labels(term.view)
        which = torch.arange(self.transforms, device=y.device)
        return Target(self.transforms * y[:, None] + which, "classes", (y >= 0)[:, None].expand(-1, self.transforms))
