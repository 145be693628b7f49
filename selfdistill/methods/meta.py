"""A teacher that learns to teach."""

from __future__ import annotations

from ..branches import Paired
from ..core import Method, Term
from ..gates import Confident
from ..losses import CrossEntropy, Sharpened
from ..schedules import After, Rise, Until
from ..teachers import Itself, Labels
from ..terms import Feedback
from ..views import weak_strong


def meta_pseudo_labels(
    meta: float = 1.0, rate: float = 0.1, weight: float = 1.0, ramp: float = 1 / 60, temperature: float = 0.7,
    confidence: float = 0.6, smoothing: float = 0.15, tune: float = 0.1, ratio: float = 7.0,
) -> Method:  # fmt: skip
    """Meta pseudo-labels: a student learns a teacher's labels, and the teacher from what they do for the student.

    Equation::

        L = CE(sg q, p_S(u)) + CE(y, p_T(x)) + w(t) UDA_T(u, weak u) + m CE(y, p_S'(x)),  q = p_T(u)
        S' = S - rate grad_S CE(q, p_S(u)), of which the teacher alone learns: see `Feedback`;  UDA_T: see `uda`

    u are strong views. The student sees no label until the last ``tune`` of the run, where it learns labels alone; the
    paper fine-tunes apart, at a rate of 1e-5. S' is a step of plain gradient descent at ``rate``, with soft labels: its
    derivative is exact and in the same step; the paper's hard labels are drawn, and estimate it. ``meta=0`` is the
    control that is missed too often; the released code is near to it, its feedback being along CE(sg q, q), which is
    flat. The first two terms have ``smoothing``. The student is the product; each view is a forward of its own.

    Source: Pham et al., Meta Pseudo Labels, CVPR 2021, section 2; defaults of its code for CIFAR-10, but for ``rate``,
    ``tune`` and ``weight``: 8 there, which in runs a thousand times shorter lets a beginner teach itself one class.

    Needs: unlabelled rows.

    >>> list(meta_pseudo_labels(meta=0).terms)
    ['label', 'pseudo', 'consistency', 'tuned']
    """
    smooth, sharp = CrossEntropy(smoothing=smoothing), Sharpened(CrossEntropy(), temperature)
    weak, sure, rise = Itself("weak", "teacher"), Confident(confidence), Rise(weight, ramp)
    terms = {
        "label": Term(Labels(), smooth, "labelled", "teacher"),
        "pseudo": Term(Itself(head="teacher"), smooth, "strong", weight=Until(1.0, 1.0 - tune)),
        "consistency": Term(weak, sharp, "strong", "teacher", sure, rise),
        "tuned": Term(Labels(), CrossEntropy(), "labelled", weight=After(1.0, 1.0 - tune)),
    }
    if meta:
        terms["meta"] = Feedback(loss=smooth, rate=rate, weight=Until(meta, 1.0 - tune))
    return Method(terms, weak_strong(ratio), Paired(), forward="separate")
