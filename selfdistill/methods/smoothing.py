"""Labels smoothed by something better than the uniform distribution: by a design, by classes, by an order of rows."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import KL, CrossEntropy
from ..teachers import BetaRanked, ClassMean, Labels, Virtual


def tf_kd_reg(alpha: float = 0.1, temperature: float = 20.0, correct: float = 0.99) -> Method:
    """Teacher-free regularisation: a virtual teacher that is right with a given confidence, and even otherwise.

    Equation::

        L = (1 - a) CE(y, p) + a T^2 KL(d^T || p^T),  d_y = correct,  d_c = (1 - correct) / (C - 1) for other classes

    Both sides are softened, as in the paper's equation: d^T is d^(1/T), normalised. The authors' code takes the softmax
    of d / T, which is uniform to three digits, leaves the student at T = 1, averages over classes, and multiplies by
    100; it trains another loss. T^2 is the usual factor, which the paper's equations leave out.

    Source: Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020, equations
    9 and 10.

    >>> tf_kd_reg().terms["virtual"].teacher
    Virtual(correct=0.99)
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=1.0 - alpha),
            "virtual": Term(Virtual(correct), KL(temperature), weight=alpha),
        }
    )


def ols(alpha: float = 0.5) -> Method:
    """Online label smoothing: learn what you said on average of this class in the last epoch, where you were right.

    Equation::

        L = a CE(y, p) + (1 - a) CE(S_y, p),  S_c = mean of p_i over rows i with y_i = c = argmax p_i, last epoch

    S is uniform in the first epoch, as in the paper, and for a class of which no row was right. In the authors' code it
    is 0 in the first epoch, which leaves a CE(y, p) alone.

    Source: Zhang et al., Delving Deep into Label Smoothing, IEEE Transactions on Image Processing 2021.

    >>> ols().terms["class_mean"].teacher
    ClassMean()
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=alpha),
            "class_mean": Term(ClassMean(), CrossEntropy(), weight=1.0 - alpha),
        }
    )


def beta_smoothing(alpha: float = 0.6, a: float = 3.0, decay: float = 0.999) -> Method:
    """Beta smoothing: label smoothing whose strength differs from row to row, in the order of your confidence.

    Equation::

        L = (1 - alpha) CE(y, p) + alpha CE(q, p),  q_y = b_(k),  q_c = (1 - b_(k)) / (C - 1) for other classes
        b_(1) <= ... <= b_(B): sorted draws of Beta(a, 1);  k = rank of p'_y in the batch, p' by averaged weights
        theta' <- d theta' + (1 - d) theta,  d = min(1 - 1 / (step + 1), decay)

    The average sees the same view in train mode, as in the authors' code. The batch is the micro-batch of a process.

    Source: Zhang and Sabuncu, Self-Distillation as Instance-Specific Label Smoothing, NeurIPS 2020.

    >>> beta_smoothing().terms["ranked"].teacher.a
    3.0
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=1.0 - alpha),
            "ranked": Term(BetaRanked(decay, a=a), CrossEntropy(), weight=alpha),
        }
    )
