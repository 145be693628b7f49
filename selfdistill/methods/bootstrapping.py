"""The label, and what the model makes of it at the moment."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import CrossEntropy, Entropy
from ..teachers import Itself, Labels


def soft_bootstrapping(beta: float = 0.95) -> Method:
    """Soft bootstrapping: the label mixed with your prediction of now, which is to be sure.

    Equation::

        L = CE(b y + (1 - b) p, p) = b CE(y, p) + (1 - b) H(p)

    The prediction in the target has a gradient too: without it the second part would have none at all.

    Source: Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2015.

    >>> soft_bootstrapping(0.9).terms["label"].weight
    0.9
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=beta),
            "sure": Term(Itself(), Entropy(), weight=1.0 - beta),
        }
    )


def hard_bootstrapping(beta: float = 0.8) -> Method:
    """Hard bootstrapping: the label mixed with your best class of now.

    Equation::

        L = b CE(y, p) + (1 - b) CE(argmax p, p)

    Source: Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2015.

    >>> hard_bootstrapping().terms["best"].loss.hard
    True
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=beta),
            "best": Term(Itself(), CrossEntropy(hard=True), weight=1.0 - beta),
        }
    )
