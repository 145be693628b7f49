"""The average of the student's weights as its teacher."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import CrossEntropy, Squared
from ..schedules import Ramp
from ..teachers import Ema, Labels
from ..views import two


def mean_teacher(weight: float = 100.0, decay: float = 0.999, ramp: float = 5 / 180) -> Method:
    """Mean Teacher: agree with the moving average of your own weights, on another view, labelled or not.

    Equation::

        L = CE(y, p(x)) + w(t) mean_c (p_c(x) - p'_c(x'))^2,  w(t) = weight exp(-5 (1 - t / ramp)^2)
        theta' <- d theta' + (1 - d) theta,  d = min(1 - 1 / (step + 1), decay)

    Labelled rows have both parts, unlabelled ones the second. The teacher is in eval mode; the paper's has noise of its
    own (train mode). The cross-entropy is a mean over labelled rows; the authors' code divides it by all rows of a
    batch, of which it labels about a quarter.

    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017 (decay); weight and ramp are those
    of the authors' code for CIFAR-10.

    >>> mean_teacher().terms["consistency"].teacher.decay
    0.999
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "consistency": Term(Ema(decay, view="other"), Squared(mean=True), weight=Ramp(weight, ramp)),
        },
        views=two("all"),
    )
