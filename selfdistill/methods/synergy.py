"""Every classifier of a model teaches every other."""

from __future__ import annotations

from ..core import Method, Term
from ..features import Levels
from ..losses import KL, CrossEntropy
from ..teachers import Itself, Labels


def dks(weight: float = 1.0, temperature: float = 1.0) -> Method:
    """Deeply-supervised knowledge synergy: early exits and the last classifier learn from each other, pair by pair.

    Equation::

        L = sum_i CE(y, p_i) + w T^2 sum_{i != j} KL(sg p_j^T || p_i^T)

    i and j run over the exits and the last classifier; all weights are 1, and T is 1, as in the authors' code. A public
    reproduction takes T = 4.

    Source: Sun et al., Deeply-supervised Knowledge Synergy, CVPR 2019.

    Needs: a model with exits (the default models have them).

    >>> dks().terms["synergy"].teacher
    Itself(view=None, head='tutors')
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), head="classifiers", mean_over="rows"),
            "synergy": Term(Itself(head="tutors"), KL(temperature), head="pupils", weight=weight, mean_over="rows"),
        },
        prepare=Levels(),
    )
