"""Another sample of the same class as the teacher."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import KL, CrossEntropy
from ..teachers import Itself, Labels
from ..views import pairs


def cs_kd(weight: float = 1.0, temperature: float = 4.0) -> Method:
    """Class-wise self-knowledge distillation: say of a sample what you say of another one of its class.

    Equation::

        L = CE(y, p(x)) + w T^2 KL(sg p^T(x') || p^T(x)),  x' another sample with the label of x

    x' runs in a forward of its own, in train mode and without gradient, as in the authors' code.

    Source: Yun et al., Regularizing Class-wise Predictions via Self-knowledge Distillation, CVPR 2020, equation 3.

    >>> cs_kd().forward
    'separate'
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "class": Term(Itself(view="pair"), KL(temperature), weight=weight),
        },
        views=pairs(),
        forward="separate",
    )
