"""The end of one cycle of the learning rate teaches the next."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import KL, CrossEntropy
from ..schedules import ByCycle
from ..teachers import Labels, Snapshot


def snapshot_distillation(cycles: int = 4, temperature: float = 2.0, weight: float = 1.0) -> Method:
    """Snapshot distillation: in one training, the model at the end of a cycle teaches the cycle after it.

    Equation::

        cycle 1:  L = CE(y, p)
        cycle k:  L = (1 + 1 / T) CE(y, p) + w KL(t^T || p),  t = the model at the end of cycle k - 1, frozen

    Only the teacher is softened. Under the cosine schedule (the default) each cycle starts at the full learning rate.
    No code was published; 4 cycles and T = 2 are ours, from the range that the paper tries.

    Source: Yang et al., Snapshot Distillation: Teacher-Student Optimization in One Generation, CVPR 2019.

    >>> snapshot_distillation().terms["label"].weight
    ByCycle(cycles=4, first=1.0, later=1.5)
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=ByCycle(cycles, 1.0, 1.0 + 1.0 / temperature)),
            "past": Term(Snapshot(cycles, temperature), KL(), weight=weight),
        }
    )
