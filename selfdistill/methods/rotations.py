"""What is said of a row in all its rotations teaches what is said of it as it is."""

from __future__ import annotations

from ..core import Method, Term
from ..features import Rotations
from ..losses import KL, CrossEntropy
from ..teachers import Itself, JointLabels, Labels


def sla_sd(weight: float = 1.0, temperature: float = 1.0) -> Method:
    """Self-supervised label augmentation, distilled: class and rotation are one label, told from all copies of a row.

    Equation::

        L = mean_m CE((y, m), j(x_m)) + CE(y, p(x)) + w T^2 KL(sg softmax(a / T) || p^T(x))
        x_m = x turned m times by 90 degrees, m = 0..3;  a_c = mean_m of the joint logit of (c, m) for x_m

    The joint classifier j is a second linear layer on the same features; all copies run in one forward. Logits are
    averaged, not probabilities. The authors multiply the first part by 4 on large data.

    Source: Lee, Hwang and Shin, Self-supervised Label Augmentation via Input Transformations, ICML 2020.

    Needs: square images.

    >>> sla_sd().terms["joint"].teacher
    JointLabels(transforms=4)
    """
    terms = {
        "joint": Term(JointLabels(), CrossEntropy(), head="joint"),
        "label": Term(Labels(), CrossEntropy()),
        "aggregated": Term(Itself(head="aggregated"), KL(temperature), weight=weight),
    }
    return Method(terms, prepare=Rotations())
