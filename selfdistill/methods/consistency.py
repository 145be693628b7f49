"""Say the same of a row that was changed: by noise, by an adversary, by strong augmentation."""

from __future__ import annotations

from ..core import Always, Method, Term
from ..gates import Annealed, Confident, LabelledShare
from ..losses import CrossEntropy, Entropy, Sharpened, Squared
from ..schedules import Ramp
from ..teachers import Itself, Labels
from ..terms import Perturbed
from ..views import Look, Views, two, weak_strong


def pi_model(weight: float = 100.0, ramp: float = 80 / 300) -> Method:
    """Pi-model: say the same of a row, labelled or not, in two passes with other augmentation and other dropout.

    Equation::

        L = sum over labelled rows of CE(y, p(x)) / B
          + w(t) mean over the B rows and C classes of [(p(x) - sg p(x'))^2 + (sg p(x) - p(x'))^2]
        w(t) = weight M / N exp(-5 (1 - t / ramp)^2);  M of N rows have a label

    The two squares have together the gradient of the paper's one, (p(x) - p(x'))^2, which runs through both passes;
    the figure is twice its. The authors' code ramps by whole epochs, from 0 in the first, where this has exp(-5). Each
    pass is a forward of its own.

    Source: Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017, algorithm 1.

    >>> pi_model().forward
    'separate'
    """
    taught, share, rise = Squared(mean=True), LabelledShare(), Ramp(weight, ramp)
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), mean_over="view"),
            "here": Term(Itself("other"), taught, gate=share, weight=rise, mean_over="view"),
            "there": Term(Itself("x"), taught, "other", gate=share, weight=rise, mean_over="view"),
        },
        views=two("all"),
        forward="separate",
    )


def vat(
    size: float = 8.0, weight: float = 1.0, iterations: int = 1, entropy: float = 0.0, ratio: float = 4.0
) -> Method:
    """Virtual adversarial training: say the same of a row that was moved to where you change your mind most.

    Equation::

        L = CE(y, p(x)) + w mean_u KL(sg p(u) || p(u + r)) + e mean_u H(p(u))
        r = size x the unit vector in which KL(sg p(u) || p(u + r)) grows most, by power iteration: see `Perturbed`

    ``entropy`` e is the paper's VAT+EntMin at 1. ``size`` is in the units of the inputs, over all of a row, and is to
    be tuned; 8 is the authors' for augmented CIFAR-10. The paper perturbs labelled rows too, in proportion.

    Source: Miyato et al., Virtual Adversarial Training, IEEE TPAMI 2019, equations 5 to 8; batches of 32 and 128.

    Needs: unlabelled rows, and inputs that can be moved.

    >>> vat(size=2.0).terms["adversarial"].size
    2.0
    """
    terms = {
        "label": Term(Labels(), CrossEntropy(), view="labelled"),
        "adversarial": Perturbed(view="unlabelled", weight=weight, size=size, iterations=iterations),
    }
    if entropy:
        terms["entropy"] = Term(Itself(), Entropy(), view="unlabelled", weight=entropy)
    return Method(terms, views=Views((Look("labelled"), Look("unlabelled", "unlabelled")), ratio))


def uda(
    confidence: float = 0.8, temperature: float = 0.4, weight: float = 1.0, annealing: str = "", ratio: float = 7.0
) -> Method:
    """Unsupervised data augmentation: the sharpened word on the weak view is the target of the strong one.

    Equation::

        L = CE(y, p(weak x)) + w mean_u 1[max q >= c] CE(q^(1/T) / sum, p(strong u)),  q = sg p(weak u)

    The gate judges q before it is sharpened, and rows that fail it count as zero. With ``annealing`` (``"linear"``,
    ``"log"``, ``"exp"``) labels that are learnt too soon are dropped for a while: see `Annealed`. The authors' code has
    a KL for CE(q, p), with the same gradient. All views share one forward.

    Source: Xie et al., Unsupervised Data Augmentation for Consistency Training, NeurIPS 2020 (images: c .8, T .4).

    Needs: unlabelled rows.

    >>> uda(annealing="log").terms["label"].gate
    Annealed(schedule='log')
    """
    label = Annealed(annealing) if annealing else Always()
    taught, gate = Sharpened(CrossEntropy(), temperature), Confident(confidence)
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), view="labelled", gate=label, mean_over="kept"),
            "consistency": Term(Itself(view="weak"), taught, view="strong", gate=gate, weight=weight),
        },
        views=weak_strong(ratio),
    )
