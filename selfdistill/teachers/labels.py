"""Stateless teachers: the labels, also of mixed or rotated rows, and the student's own outputs of the same step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..core.mixing import mixture_of
from ..core.outputs import VALUES, space_of, tells_copies
from ..core.parts import BaseTerm, Teacher, aligned_target
from ..core.step import Forward
from ..core.targets import Target, matched
from ..errors import SpaceError
from .memories import memory_value


@dataclass(frozen=True)
class MixedLabels(Teacher):
    """The labels of both rows of a mixture, each with its share (mixup, Zhang et al. 2018): views of rows ``mixed``."""

    mixed: ClassVar[bool] = True

    def space(self, head: str) -> str:
        if tells_copies(head) or space_of(head) != "logits":
            raise SpaceError(f"MixedLabels mixes classes, and the head {head!r} speaks of something else")
        return "probabilities"

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        y, classes = forward.labels("x"), forward.student(term.view, term.head).shape[-1]
        known = y >= 0
        return Target(
            mixture_of(forward).mix(F.one_hot(y.clamp(min=0), classes).float()), "probabilities", known & known.flip(0)
        )


@dataclass(frozen=True)
class JointLabels(Teacher):
    """For each of M transformed copies of a row the class M y + m: its label and which copy it is, (rows, M)."""

    transforms: int = 4

    def space(self, head: str) -> str:
        if not tells_copies(head):
            raise SpaceError(f"JointLabels are about the head 'joint', which tells copies apart, not {head!r}")
        return "classes"

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        y = forward.labels(term.view)
        which = torch.arange(self.transforms, device=y.device)
        return Target(self.transforms * y[:, None] + which, "classes", (y >= 0)[:, None].expand(-1, self.transforms))


@cache
def _label_space(head: str) -> str:
    """What labels say about a head: its classes or its values.

    Raises:
        SpaceError: they say nothing about it.
    """
    spaces = {"logits": "classes", "values": "values", "gaussian": "values", "ranks": "values"}
    if tells_copies(head):
        raise SpaceError(f"labels say nothing about the head {head!r}, which tells copies apart; JointLabels do")
    if space_of(head) not in spaces:
        raise SpaceError(f"labels say nothing about the head {head!r}, which speaks of {space_of(head)}")
    return spaces[space_of(head)]


@dataclass(frozen=True)
class Labels(Teacher):
    """The labels: classes (rows,) or values (rows, outputs); a row with -1 or nan has none and counts for nothing."""

    labels: ClassVar[bool] = True

    def space(self, head: str) -> str:
        return _label_space(head)

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        y = forward.labels(term.view)
        if _label_space(term.head) == "classes":
            return Target(y, "classes", y >= 0)
        y = y if y.dim() > 1 else y.unsqueeze(-1)
        return Target(y.nan_to_num(), "values", ~y.isnan().any(-1))


@dataclass(frozen=True)
class CurrentStudent(Teacher):
    """The student's own output in the same step, detached: on another view, another head, or both."""

    view: str | None = None
    head: str | None = None

    def student_view(self, term: BaseTerm) -> str | None:
        return self.view

    def space(self, head: str) -> str:
        return space_of(self.head or head)

    def of_values(self) -> CurrentStudent:
        return replace(self, head=VALUES.get(self.head, self.head) if self.head else None)

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        view, head = self.view or term.view, self.head or term.head
        return aligned_target(forward, term, view, lambda: forward.student(view, head).detach(), self.space(term.head))


@dataclass(frozen=True)
class OtherPeers(Teacher):
    """For each peer the mean probability, or value, of the *others*, from the same forward: never taught by itself.

    Of peers with a mean and a log variance it is the normal distribution that matches the others' mixture.
    """

    def space(self, head: str) -> str:
        spaces = {"peers": "probabilities", "peer_values": "values", "peer_gaussians": "gaussian"}
        if head not in spaces:
            raise SpaceError(f"OtherPeers needs the head 'peers', 'peer_values' or 'peer_gaussians', not {head!r}")
        return spaces[head]

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        space, outputs = self.space(term.head), forward.student(term.view, term.head).detach()  # (rows, K, components)
        peers = outputs.shape[1]
        if peers < 2:
            raise SpaceError(f"peers teach each other: at least two are needed, not {peers}")
        if space == "gaussian":
            each = [matched(*outputs[:, [j for j in range(peers) if j != k]].unbind(-1)) for k in range(peers)]
            return Target(torch.stack([torch.stack([m.mean, m.log_variance], -1) for m in each], dim=1), space)
        outputs = memory_value(outputs, space)
        return Target((outputs.sum(1, keepdim=True) - outputs) / (peers - 1), space)


@dataclass(frozen=True)
class Sampled(Teacher):
    """The mean of ``passes`` forward passes of the student with dropout on, and over its peers: of the means, and of
    the log variances (UCVME, Dai et al. 2023). Without dropout all passes are the same."""

    passes: int = 5

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise SpaceError(f"a teacher of several passes makes at least one, not {self.passes}")

    def space(self, head: str) -> str:
        if space_of(head) != "gaussian":
            raise SpaceError(f"Sampled averages a mean and a log variance; the head {head!r} has none")
        return "gaussian"

    def forward_passes(self, peers: float, generations: int) -> float:
        return peers * self.passes

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        outputs = forward.dropout_outputs(term.view, term.head, self.passes)  # (rows, passes, ..., 2)
        return Target(outputs.flatten(1, -2).mean(1), self.space(term.head))
