"""Peers that teach each other."""

from __future__ import annotations

from ..core import Method, Term
from ..heads import Group
from ..losses import KL, CrossEntropy
from ..teachers import Labels, Peers


def mutual(peers: int = 2, weight: float = 1.0) -> Method:
    """Deep mutual learning: K peers train together, each taught by the mean of the others.

    Equation::

        L = sum_k [CE(y, p_k) + w KL(mean_{l != k} sg p_l || p_k)]

    The gradient is that of the paper's (1 / (K - 1)) sum_l KL(p_l || p_k): the KL's derivative is linear in its
    target. All peers see the same batch, one forward each. The first peer is the product; head ``ensemble`` is the
    mean of all.

    Source: Zhang et al., Deep Mutual Learning, CVPR 2018, equations 4 and 7.

    >>> mutual(peers=3).prepare
    Group(peers=3)
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), head="peers", mean_over="rows"),
            "peers": Term(Peers(), KL(), head="peers", weight=weight, mean_over="rows"),
        },
        prepare=Group(peers),
    )
