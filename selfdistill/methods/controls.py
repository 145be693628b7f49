"""Controls: what every method has to beat.

Traditional distillation, to compare with.
"""

from __future__ import annotations

from ..core.objective import Method
from ..core.parts import Term
from ..io.expressions import Positive, Share
from ..losses import KL, CrossEntropy
from ..teachers import External, Labels


def plain() -> Method:
    """Cross-entropy on the labels: no distillation at all.

    Equation::

        L = CE(y, p)

    Source: the control of every paper.

    >>> list(plain().terms)
    ['label']
    """
    return Method({"label": Term(Labels(), CrossEntropy())})


def label_smoothing(smoothing: Share = 0.1) -> Method:
    """Cross-entropy on labels mixed with the uniform distribution: what a teacher that knows nothing gives.

    Equation::

        L = CE(t, p),  t_y = 1 - e,  t_c = e / (C - 1) for the other classes

    The other convention, (1 - e) y + e / C (PyTorch's), is the same with e scaled by (C - 1) / C.

    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, section 7.

    >>> label_smoothing(0.2).terms["label"].loss.smoothing
    0.2
    """
    return Method({"label": Term(Labels(), CrossEntropy(smoothing=smoothing))})


def distil(teacher: str | None = None, alpha: Share = 0.9, temperature: Positive = 4.0) -> Method:
    """Knowledge distillation from an external, larger model: the traditional teacher and student.

    Equation::

        L = (1 - a) CE(y, p) + a T^2 KL(t^T || p^T),  t = the external teacher, frozen, eval mode

    ``teacher`` is a run or model folder; in code pass a module instead: ``distil().bind(model, external=teacher)``.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2.

    Needs: a trained teacher.

    >>> distil("runs/large").terms["teacher"].teacher.source
    'runs/large'
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=1.0 - alpha),
            "teacher": Term(External(source=teacher), KL(temperature), weight=alpha),
        }
    )
