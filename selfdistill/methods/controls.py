"""Controls: what every method has to beat."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import CrossEntropy
from ..teachers import Labels


def plain() -> Method:
    """Cross-entropy on the labels: no distillation at all.

    Equation::

        L = CE(y, p)

    Source: the control of every paper.

    >>> list(plain().terms)
    ['label']
    """
    return Method({"label": Term(Labels(), CrossEntropy())})


def label_smoothing(smoothing: float = 0.1) -> Method:
    """Cross-entropy on labels mixed with the uniform distribution: what a teacher that knows nothing gives.

    Equation::

        L = CE(t, p),  t_y = 1 - e,  t_c = e / (C - 1) for the other classes

    The other convention, (1 - e) y + e / C (PyTorch's), is the same with e scaled by (C - 1) / C.

    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, section 7.

    >>> label_smoothing(0.2).terms["label"].loss.smoothing
    0.2
    """
    return Method({"label": Term(Labels(), CrossEntropy(smoothing=smoothing))})
