"""Teachers that know in which order the other classes follow, and take their probabilities from Zipf's law."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Step, Target, Teacher, Term
from .memories import one_per_row


def zipf(scores: Tensor, y: Tensor, power: float = 1.0) -> Tensor:
    """r^-power for the class of rank r by these scores, 0 for the label, normalised: (rows, classes).

    A class has rank 1 + the number of classes with a higher score, the label's among them, so equal scores share one.

    >>> zipf(torch.tensor([[5.0, 3.0, 3.0, 0.0]]), torch.tensor([0]))
    tensor([[0.0000, 0.4000, 0.4000, 0.2000]])
    """
    ordered, classes = scores.sort(dim=-1).values.contiguous(), scores.shape[-1]
    rank = 1 + classes - torch.searchsorted(ordered, scores.contiguous(), right=True)
    given = rank.float().pow(-power).scatter(-1, y.clamp(min=0)[:, None], 0.0)
    return given / given.sum(-1, keepdim=True)


@dataclass(frozen=True)
class ZipfRanks(Teacher):
    """Zipf's law over the other classes, in the order of the votes of all positions of a map (Liang et al. 2022).

    ``votes`` is the head that has a classification of every position, such as ``dense:stages.2``.
    """

    votes: str
    power: float = 1.0

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        said, y = step.student(term.view, self.votes).detach(), step.labels(term.view)  # (rows, positions, classes)
        votes = F.one_hot(said.argmax(-1), said.shape[-1]).sum(1).float()
        return Target(zipf(votes, y, self.power), "probabilities", y >= 0)


@dataclass(frozen=True)
class WeakRanks(Teacher):
    """Zipf's law over the other classes, in the order of w_c / (1 - w_y) + p_c / (1 - p_y) (USKD, Yang et al. 2023).

    ``weak`` is the head of a weak classifier of the same rows, w its probabilities and p the student's.
    """

    weak: str

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        y = step.labels(term.view)
        label, scores = y.clamp(min=0)[:, None], torch.zeros(())
        for head in (self.weak, term.head):
            p = F.softmax(step.student(term.view, head).detach(), dim=-1)
            scores = scores.to(p) + p / (1.0 - p.gather(-1, label)).clamp(min=1e-6)
        return Target(zipf(scores, y), "probabilities", y >= 0)
