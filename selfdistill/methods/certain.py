"""Pseudo-labels that are certain, not only probable."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import CrossEntropy, Excluding
from ..teachers import CertainLabels
from ..views import Look, Views


def ups(
    generations: int = 5,
    positive: float = 0.7,
    spread: float = 0.05,
    negative: float = 0.05,
    negative_spread: float = 0.005,
    passes: int = 10,
) -> Method:
    """Uncertainty-aware pseudo-labels: what rows surely are, and what they surely are not, by passes with dropout.

    Equation::

        L = mean CE(t, p) over rows with a label or a certain class (t) + mean -sum_c m_c log(1 - p_c) / sum_c m_c
        t: best class of q where q >= a and s <= k;  m_c = 1[q_c <= b and s_c <= l] in rows without t
        q, s = mean and deviation of T passes of the last generation, dropout on

    Each generation starts afresh and chooses again from the whole pool; ``generations`` counts the first, on labels
    alone (the authors' code trains 20; fewer are the default here for their cost). That code balances the classes of t
    in its first rounds and softens what it excludes by a temperature of 2; the equations have neither.

    Source: Rizve et al., In Defense of Pseudo-Labeling, ICLR 2021, equations 5 to 8.

    Needs: unlabelled rows, and a model with dropout: --model 'cnn(dropout=0.3)'.

    >>> ups(generations=2).terms["excluded"].loss
    Excluding()
    """
    chosen = (positive, spread, negative, negative_spread, passes)
    return Method(
        {
            "label": Term(CertainLabels(*chosen), CrossEntropy()),
            "excluded": Term(CertainLabels(*chosen, excludes=True), Excluding()),
        },
        views=Views((Look("x", "union"),)),
        generations=generations,
    )
