"""Labels are replaced, for good, by what the model came to say of the sample."""

from __future__ import annotations

from ..core import Method, Term
from ..gates import LabelledShare
from ..losses import KL, ClassPrior, CrossEntropy, Entropy, Squared
from ..schedules import ByGeneration, EpochRamp
from ..teachers import Ensembled, Itself, Labels, Refurbished, Relabelled
from ..views import Look, Views


def temporal_ensembling(weight: float = 30.0, decay: float = 0.6, ramp: float = 80 / 300) -> Method:
    """Temporal ensembling: agree with the average of what you said of the sample in earlier epochs, labelled or not.

    Equation::

        L = sum over labelled rows of CE(y, p) / B + w(e) mean over the B rows and C classes of (p - t_i)^2
        t_i = Z_i / (1 - d^e),  Z_i <- d Z_i + (1 - d) p_i after each epoch,  Z_i = 0 at first
        w(e) = weight M / N exp(-5 (1 - e / (ramp x epochs))^2), and 0 in epoch 0;  M of N rows have a label

    Source: Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017, algorithm 2 (80 of 300 epochs).

    >>> temporal_ensembling().terms["past"].teacher
    Ensembled(decay=0.6)
    """
    past = Squared(mean=True)
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), mean_over="view"),
            "past": Term(
                Ensembled(decay), past, gate=LabelledShare(), weight=EpochRamp(weight, ramp), mean_over="view"
            ),
        },
        views=Views((Look("x", "all", "weak"),)),
    )


def selfie(
    noise: float = 0.2, generations: int = 3, history: int = 15, threshold: float = 0.05, wait: float = 0.25
) -> Method:
    """SELFIE: what you always said of a sample becomes its label; of the others only the easy ones teach.

    Equation::

        L = mean over R and S of CE(y~, p),  y~ = the refurbished label in R, else y
        R: rows whose last q predictions had a frequency entropy of at most threshold x log C, now or once before
        S: the ceil((1 - noise) n) of n rows with the smallest CE(y, p)
        in epochs e < wait x epochs (from 0) CE(y, p) over all rows; each generation begins so, and keeps R and y~

    ``noise`` is the share of wrong labels, which the authors know (0.1 to 0.4). ``generations`` is one and their two
    restarts (their command line makes three). Their code takes what a history lacks for class 0; here it is not sure.

    Source: Song, Kim and Lee, SELFIE: Refurbishing Unclean Samples for Robust Deep Learning, ICML 2019, algorithm 1.

    >>> selfie(generations=1).terms["label"].teacher.history
    15
    """
    return Method(
        {"label": Term(Refurbished(noise, history, threshold, wait), CrossEntropy())}, generations=generations
    )


def joint_optimisation(prior: float = 1.2, entropy: float = 0.8, window: int = 10, wait: float = 0.35) -> Method:
    """Joint optimisation: learn weights and labels in turn, then learn the labels once more from the start.

    Equation::

        generation 0:  L = KL(s_i || p) + prior KL(uniform || mean over the batch of p) + entropy H(p)
                       s_i = y_i in epochs e < wait x epochs (from 0), then the mean of the last ``window`` epochs' p_i
        generation 1:  L = KL(s_i || p),  s_i as it stood at the end

    The last two parts keep the labels from becoming one class, and flat. Their weights are those of symmetric noise
    (the code's defaults are 1 and 0.5); the wait is 70 of 200 epochs. The authors' second training is shorter (120) and
    faster; here both take the same settings.

    Source: Tanaka et al., Joint Optimization Framework for Learning with Noisy Labels, CVPR 2018.

    >>> joint_optimisation().generations
    2
    """
    return Method(
        {
            "label": Term(Relabelled(window, wait), KL()),
            "prior": Term(Itself(), ClassPrior(), weight=ByGeneration(prior, 0.0)),
            "sure": Term(Itself(), Entropy(), weight=ByGeneration(entropy, 0.0)),
        },
        generations=2,
    )
