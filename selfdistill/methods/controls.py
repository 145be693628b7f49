"""Controls: what every method has to beat, from labels alone to a larger teacher."""

from __future__ import annotations

from ..core.objective import Method
from ..core.parts import Always, Gate, PerElement, Reduction, Schedule, Term
from ..io.expressions import Positive, Share
from ..losses import KL, CrossEntropy
from ..teachers import External, Labels

ALWAYS, PER_ELEMENT = Always(), PerElement()


def supervised(
    view: str = "x",
    head: str = "logits",
    *,
    gate: Gate = ALWAYS,
    weight: float | Schedule = 1.0,
    smoothing: float = 0.0,
    reduction: Reduction = PER_ELEMENT,
) -> Term:
    """Cross-entropy of the student's prediction with the label: the term that most recipes have.

    Args:
        view: The view that the student predicts from.
        head: The student's output that is compared with the label.
        gate: How far each label is trusted.
        weight: The term's weight, a number or a schedule.
        smoothing: Share of the label's probability that the other classes divide, in [0, 1].
        reduction: By what the sum over elements is divided.

    Returns:
        The term.

    >>> supervised("labelled").loss
    CrossEntropy(temperature=1.0, hard=False, smoothing=0.0)
    """
    return Term(Labels(), CrossEntropy(smoothing=smoothing), view, head, gate, weight, reduction)


def plain() -> Method:
    """Cross-entropy on the labels: no distillation at all.

    Equation::

        L = CE(y, p)

    Returns:
        The method, with the term ``label``.

    Source: the control of every paper.

    >>> list(plain().terms)
    ['label']
    """
    return Method({"label": supervised()})


def label_smoothing(smoothing: Share = 0.1) -> Method:
    """Label smoothing: cross-entropy on labels that give a little probability to every other class.

    Equation::

        L = CE(t, p),  t_y = 1 - e,  t_c = e / (C - 1) for the other classes

    PyTorch's convention, (1 - e) y + e / C, is the same with e scaled by (C - 1) / C.

    Args:
        smoothing: Probability e that the classes other than the label divide, in [0, 1].

    Returns:
        The method, with the term ``label``.

    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, section 7.

    >>> label_smoothing(0.2).terms["label"].loss.smoothing
    0.2
    """
    return Method({"label": supervised(smoothing=smoothing)})


def distil(teacher: str | None = None, alpha: Share = 0.9, temperature: Positive = 4.0) -> Method:
    """Knowledge distillation: a student learns from an external, usually larger, trained teacher.

    Equation::

        L = (1 - a) CE(y, p) + a T^2 KL(t^T || p^T),  t = the external teacher, frozen, eval mode

    In code: ``distil().bind(model, external=teacher)``.

    Args:
        teacher: Run folder or model folder of the teacher; in code leave it out and pass the module to `bind` as
            ``external``.
        alpha: Share of the teacher's term in the loss, in [0, 1]; the label has the rest.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``label`` and ``teacher``.

    Needs: a trained teacher.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2.

    >>> distil("runs/large").terms["teacher"].teacher.source
    'runs/large'
    """
    return Method(
        {
            "label": supervised(weight=1.0 - alpha),
            "teacher": Term(External(source=teacher), KL(temperature), weight=alpha),
        }
    )
