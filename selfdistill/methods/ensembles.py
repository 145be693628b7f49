"""Several trainings as one teacher: their mean, and how far they disagree."""

from __future__ import annotations

from ..core import Method, Term
from ..heads import Together
from ..losses import KL, CrossEntropy, DirichletNLL
from ..schedules import AtLast, ByGeneration
from ..teachers import Ancestors, Labels, Members
from ..terms import Cooling


def born_again_ensemble(generations: int = 3, xi: float = 1.0, temperature: float = 1.0) -> Method:
    """Born-again ensemble: every generation imitates the mean of all before it, and all together are the product.

    Equation::

        generation 0:  L = CE(y, p)
        generation k:  L = (1 - xi) CE(y, p) + xi T^2 KL(t^T || p^T),  t = mean of the generations before k, frozen
        prediction:    the mean probability of the generations

    What the audit rolls back neither teaches nor predicts.

    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018, section 3.1; of theirs each generation learns from
    the last one alone (`born_again`), and their ensemble is the mean.

    >>> born_again_ensemble().terms["past"].teacher
    Ancestors(view=None, at_last=False)
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=ByGeneration(1.0, 1.0 - xi)),
            "past": Term(Ancestors(), KL(temperature), weight=ByGeneration(0.0, xi)),
        },
        prepare=Together(),
        generations=generations,
    )


def ensemble_distil(members: int = 4, alpha: float = 1.0, temperature: float = 1.0) -> Method:
    """From an ensemble to a single model: some trainings on the labels, then one on what they say together.

    Equation::

        generations 0 to M - 1:  L = CE(y, p), each from its own start
        generation M:            L = (1 - a) CE(y, p) + a T^2 KL(t^T || p^T),  t = mean of the M, frozen

    The run tells how much of the ensemble's gain over a plain model the single one keeps. The mean is taken first and
    tempered then.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2; the ensemble of
    Lakshminarayanan, Pritzel and Blundell, Deep Ensembles, NeurIPS 2017.

    >>> ensemble_distil(members=3).generations
    4
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=AtLast(1.0, 1.0 - alpha)),
            "ensemble": Term(Ancestors(at_last=True), KL(temperature), weight=AtLast(0.0, alpha)),
        },
        generations=members + 1,
    )


def end2(members: int = 4, start: float = 10.0, share: float = 0.5, smoothing: float = 1e-4) -> Method:
    """Ensemble distribution distillation: a single model learns what the members say, and how far they disagree.

    Equation::

        generations 0 to M - 1:  L = CE(y, p), each from its own start
        generation M:            L = - mean_m log Dirichlet(p_m; a),  a = exp(z / T),  p_m = softmax(z_m / T)
        T falls on a line from ``start`` to 1 over ``share`` of the training

    The mean of the Dirichlet distribution is softmax(z), as of any model; the sum of a tells how surely. Members are
    smoothed towards the uniform distribution. The paper has ensembles of 100.

    Source: Malinin, Mlodozeniec and Gales, Ensemble Distribution Distillation, ICLR 2020.

    >>> end2().terms["members"].loss
    DirichletNLL(temperature=1.0, smoothing=0.0001)
    """
    members_term = Cooling(
        Members(at_last=True), DirichletNLL(1.0, smoothing), weight=AtLast(0.0, 1.0), start=start, share=share
    )
    return Method(
        {"label": Term(Labels(), CrossEntropy(), weight=AtLast(1.0, 0.0)), "members": members_term},
        generations=members + 1,
    )
