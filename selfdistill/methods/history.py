"""The model's own history corrects wrong labels."""

from __future__ import annotations

from ..core import Method, Term
from ..gates import Confidence
from ..losses import CrossEntropy, LogOneMinusInner
from ..teachers import History, Labels


def elr(weight: float = 3.0, decay: float = 0.7) -> Method:
    """Early-learning regularisation: keep agreeing with what you said before you could have memorised the label.

    Equation::

        L = CE(y, p) + w mean log(1 - <p, t_i>),  t_i <- d t_i + (1 - d) sg p_i  before it is used; t_i = 0 at first

    The second part is negative; minimising it raises the agreement. p is clamped to [1e-4, 1 - 1e-4] in it, and
    clamped and normalised again before it enters the history.

    Source: Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, NeurIPS 2020, equation 6;
    defaults of CIFAR-10 with symmetric noise.

    >>> elr().terms["history"].teacher.decay
    0.7
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "history": Term(History(decay, clamp=1e-4), LogOneMinusInner(1e-4), weight=weight),
        }
    )


def self_adaptive(decay: float = 0.9, wait: float = 0.3) -> Method:
    """Self-adaptive training: after a while the moving average of your predictions replaces the label.

    Equation::

        L = - sum_i w_i sum_c t_ic log p_ic / sum_i w_i,  w_i = max_c t_ic
        t_i = y_i in epochs e < wait x epochs (from 0), then  t_i <- d t_i + (1 - d) sg p_i  before it is used

    Source: Huang et al., Self-Adaptive Training, NeurIPS 2020, algorithm 1 (60 of 200 epochs of waiting).

    >>> self_adaptive().terms["history"].mean_over
    'kept'
    """
    teacher = History(decay, start_from="labels", wait=wait)
    return Method({"history": Term(teacher, CrossEntropy(), gate=Confidence(), mean_over="kept")})


def selc(decay: float = 0.9, wait: float = 0.15) -> Method:
    """SELC: from the turning point on, the moving average of your predictions corrects the label.

    Equation::

        L = CE(t_i, p),  t_i = y_i in epochs e < wait x epochs (from 0), then  t_i <- d t_i + (1 - d) sg p_i  before use

    It is `self_adaptive` without weights. ``wait`` is the authors' for CIFAR-10 with 40 % of symmetric noise, 30 of 200
    epochs; they had 30 to 40 for it and 20 to 40 for CIFAR-100. The paper estimates the turning point while it trains;
    their code fixes it, and so does this.

    Source: Lu and He, SELC: Self-Ensemble Label Correction Improves Learning with Noisy Labels, IJCAI 2022.

    >>> selc().terms["history"].teacher.wait
    0.15
    """
    return Method({"history": Term(History(decay, start_from="labels", wait=wait), CrossEntropy())})
