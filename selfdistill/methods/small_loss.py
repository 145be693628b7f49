"""Samples with a small loss are probably labelled right."""

from __future__ import annotations

from ..core import Method, Term
from ..gates import SmallLoss
from ..heads import Group
from ..losses import CrossEntropy
from ..teachers import Labels


def co_teaching(noise: float = 0.4, ramp: float = 0.05) -> Method:
    """Co-teaching: two networks, and each learns the labels that the other one finds easy.

    Equation::

        L = sum_k mean over S_l of CE(y, p_k),  l the other network
        S_l = the int((1 - F) n) of the n rows of the batch with the smallest CE(y, p_l)
        F = noise x min(e / (ramp x epochs), 1) in epoch e (from 0)

    ``noise`` is the share of wrong labels, which the authors know (0.2 to 0.5); estimate it by `selfdistill doubts` of
    an `elr` run, say. The ramp is 10 of 200 epochs; their code is through with it one epoch earlier, and divides by the
    rows twice. The first network is the product.

    Source: Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels, NeurIPS 2018,
    algorithm 1.

    >>> co_teaching(noise=0.3).terms["label"].gate
    SmallLoss(noise=0.3, ramp=0.05, crossed=True)
    """
    easy = SmallLoss(noise, ramp, crossed=True)  # the mean is over both networks' rows, and the sum twice that
    return Method(
        {"label": Term(Labels(), CrossEntropy(), head="peers", gate=easy, weight=2.0, mean_over="kept")},
        prepare=Group(2),
    )
