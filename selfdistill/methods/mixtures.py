"""Rows mixed with each other."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import KL
from ..teachers import External
from ..views import Look, Views


def function_matching(teacher: str | None = None, temperature: float = 1.0, mixing: float = 1.0) -> Method:
    """Function matching: the teacher sees exactly the view of the student, mixtures of rows included; no label counts.

    Equation::

        L = T^2 KL(t^T(u) || p^T(u)),  u_i = s x_i + (1 - s) x_j,  s ~ Beta(a, a) once a batch,  a = ``mixing``
        t = the external teacher, frozen, eval mode; x augmented once, for both

    At a = 1 shares are even over [0, 1], as in the paper. It pays only in long trainings. ``teacher`` is a run or model
    folder; in code: ``function_matching().bind(model, external=teacher)``.

    Source: Beyer et al., Knowledge Distillation: A Good Teacher Is Patient and Consistent, CVPR 2022, section 3.

    Needs: a trained teacher.

    >>> function_matching("runs/large").terms["teacher"].view
    'mixed'
    """
    return Method(
        {"teacher": Term(External(source=teacher), KL(temperature), view="mixed")},
        views=Views((Look("x"), Look("mixed", "mixed")), mixing=mixing),
    )
