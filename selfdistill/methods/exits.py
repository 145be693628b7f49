"""The deepest classifier teaches the shallow ones."""

from __future__ import annotations

from ..core import Method, Term
from ..heads import Exits
from ..losses import CrossEntropy, Squared
from ..teachers import Itself, Labels


def byot(alpha: float = 0.3, temperature: float = 3.0, feature: float = 0.03) -> Method:
    """Be your own teacher: early exits learn from the label, from the deepest exit, and from its feature.

    Equation::

        L = CE(y, p) + sum_i [(1 - a) CE(y, p_i) + a CE(sg p^T, p_i^T) + l ||F_i - sg F||^2]

    i runs over the shallow exits; there is no factor T^2. Prediction works at every exit (`predict --exit N`).

    Source: Zhang et al., Be Your Own Teacher, ICCV 2019, equation 5; the weights are those of a public reproduction.

    Needs: a model with exits (the default models have them).

    >>> byot().terms["deep"].head
    'exits'
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "exits": Term(Labels(), CrossEntropy(), head="exits", weight=1.0 - alpha, mean_over="rows"),
            "deep": Term(
                Itself(head="logits"), CrossEntropy(temperature), head="exits", weight=alpha, mean_over="rows"
            ),
            "feature": Term(Itself(head="feature"), Squared(), head="features", weight=feature, mean_over="rows"),
        },
        prepare=Exits(),
    )
