"""Two views of the same row teach each other."""

from __future__ import annotations

from ..core import Method, Term
from ..features import Features
from ..losses import KL, CrossEntropy, MeanDistance
from ..teachers import Itself, Labels
from ..views import two


def ddgsd(weight: float = 1.0, mmd: float = 5e-4, temperature: float = 1.0) -> Method:
    """Data-distortion guided self-distillation: two augmentations of a row say the same, and their features agree.

    Equation::

        L = sum_v CE(y, p_v) + w T^2 [KL(sg p_1^T || p_2^T) + KL(sg p_2^T || p_1^T)] + mmd ||mean_i (f_1i - f_2i)||^2

    v = 1, 2 are the views, f what the last linear layer sits on. The last part is reported twice, each time with the
    other view held: so its gradient is the equation's. A public reproduction takes means over the batch and all
    channels, so that two numbers are compared, halves the cross-entropy and sets T = 4; this is the paper's form.

    Source: Xu and Liu, Data-Distortion Guided Self-Distillation for Deep Neural Networks, AAAI 2019.

    >>> sorted(ddgsd().terms)
    ['feature', 'feature_other', 'kl', 'kl_other', 'label', 'label_other']
    """
    terms = {}
    for mine, theirs, end in (("x", "other", ""), ("other", "x", "_other")):
        told = Itself(view=theirs)
        terms["label" + end] = Term(Labels(), CrossEntropy(), view=mine)
        terms["kl" + end] = Term(told, KL(temperature), view=mine, weight=weight)
        terms["feature" + end] = Term(told, MeanDistance(), view=mine, head="feature", weight=mmd)
    return Method(terms, views=two(), prepare=Features(("feature",), maps=False))
