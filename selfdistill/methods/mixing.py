"""Mixed and rotated rows: predictions for mixtures and copies of a row are what teaches."""

from __future__ import annotations

from ..core.mixing import Mixing
from ..core.objective import Method
from ..core.parts import PerRow, Term
from ..io.expressions import NonNegative, Positive
from ..losses import KL, CrossEntropy, Squared
from ..models.feature_heads import Levels, Rotations
from ..teachers import CurrentStudent, External, JointLabels, MixedLabels
from .controls import supervised


def function_matching(teacher: str | None = None, temperature: Positive = 1.0, mixing: float = 1.0) -> Method:
    """Function matching: the student imitates the teacher on mixtures of rows that both see alike; labels are not used.

    Equation::

        L = T^2 KL(t^T(u) || p^T(u)),  u_i = s x_i + (1 - s) x_j,  s ~ Beta(a, a) once a batch,  a = ``mixing``
        t = the external teacher, frozen, eval mode; x augmented once, for both

    It pays only in long trainings. In code: ``function_matching().bind(model, external=teacher)``.

    Args:
        teacher: Run folder or model folder of the teacher; in code leave it out and pass the module to `bind` as
            ``external``.
        temperature: Temperature of both sides, above 0.
        mixing: Parameter a of the Beta distribution of the shares, above 0; at 1 shares are uniform over [0, 1].

    Returns:
        The method, with the term ``teacher``.

    Needs: a trained teacher.

    Source: Beyer et al., Knowledge Distillation: A Good Teacher Is Patient and Consistent, CVPR 2022, section 3.

    >>> function_matching("runs/large").terms["teacher"].view
    'mixed'
    """
    return Method(
        {"teacher": Term(External(source=teacher), KL(temperature), view="mixed")},
        mixing=Mixing(mixing),
    )


def mixskd(temperature: Positive = 3.0, mixing: float = 0.4, feature: NonNegative = 1.0) -> Method:
    """MixSKD: the prediction for a mixture of two rows and the mixture of both predictions teach each other.

    Equation::

        L = sum_k CE(y, p_k) + sum_k CE(y~, p_k(u)) + CE(y~, h(u)) + CE(y~, h~) + f sum_k mean_d (F_k(u) - F~_k)^2
          + T^2 { sum over exits k [KL(sg p_k(u)^T || p~_k^T) + KL(sg p~_k^T || p_k(u)^T)]
                  + KL(sg h(u)^T || p~^T) + KL(sg h~^T || p(u)^T) }
        u_i = s x_i + (1 - s) x_j, s ~ Beta(a, a), a = ``mixing``; ~ mixes logits, features F and labels in the same way

    k runs over exits and last classifier, p is the last; h is a learnt linear classifier on the features of all. The
    squares are reported twice, each time with one side held constant, which gives the equation's gradient; features are
    pooled.

    Args:
        temperature: Temperature of both sides, above 0.
        mixing: Parameter a of the Beta distribution of the shares, above 0.
        feature: Weight f of the squared distance of features, 0 or more.

    Returns:
        The method, with the terms ``label``, ``mixed``, ``exits``, ``last``, ``fused``, ``feature``, ``exits_mixed``,
        ``last_mixed``, ``fused_mixed`` and ``feature_mixed``.

    Departs: The discriminators that make the features alike are left out. The authors' code logs the cross-entropy of
    mixtures but adds none of it to the loss, which leaves h untrained; the paper adds it, and so does this.

    Needs: a model with exits (the default models have them).

    Source: Yang et al., MixSKD: Self-Knowledge Distillation from Mixup for Image Recognition, ECCV 2022.

    >>> len(mixskd().terms)
    10
    """
    mean, kl, rows = MixedLabels(), KL(temperature), PerRow()
    terms = {"label": supervised(head="classifiers", reduction=rows)}
    terms["mixed"] = Term(mean, CrossEntropy(), "mixed", "classifiers", reduction=rows)
    for end, view, other in (("", "between", "mixed"), ("_mixed", "mixed", "between")):
        terms["exits" + end] = Term(CurrentStudent(other), kl, view, "exits", reduction=rows)
        terms["last" + end] = Term(CurrentStudent(other, "fused"), kl, view)
        terms["fused" + end] = Term(mean, CrossEntropy(), view, "fused")
        terms["feature" + end] = Term(
            CurrentStudent(other), Squared(mean=True), view, "levels", weight=feature, reduction=rows
        )
    return Method(terms, wrap_model=Levels(fused=True), mixing=Mixing(mixing))


def sla_sd(weight: NonNegative = 1.0, temperature: Positive = 1.0) -> Method:
    """Self-supervised label augmentation: class and rotation are one label; the mean of all rotations is the teacher.

    Equation::

        L = mean_m CE((y, m), j(x_m)) + CE(y, p(x)) + w T^2 KL(sg softmax(a / T) || p^T(x))
        x_m = x turned m times by 90 degrees, m = 0..3;  a_c = mean_m of the joint logit of (c, m) for x_m

    The joint classifier j is a second linear layer on the same features; all copies run in one forward pass. The mean
    is one of logits, not of probabilities.

    Args:
        weight: Weight of the distillation from the aggregated prediction, 0 or more.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``joint``, ``label`` and ``aggregated``.

    Departs: The authors multiply the first part by 4 on large data sets; here it has weight 1 everywhere.

    Needs: square images.

    Source: Lee, Hwang and Shin, Self-supervised Label Augmentation via Input Transformations, ICML 2020.

    >>> sla_sd().terms["joint"].teacher
    JointLabels(transforms=4)
    """
    terms = {
        "joint": Term(JointLabels(), CrossEntropy(), head="joint"),
        "label": supervised(),
        "aggregated": Term(CurrentStudent(head="aggregated"), KL(temperature), weight=weight),
    }
    return Method(terms, wrap_model=Rotations())
