"""Traditional distillation, to compare with."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import KL, CrossEntropy
from ..teachers import External, Labels


def distil(teacher: str | None = None, alpha: float = 0.9, temperature: float = 4.0) -> Method:
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
