"""The order of the other classes is taught, and Zipf's law says what each has."""

from __future__ import annotations

from ..core import Method, Term
from ..features import Features
from ..losses import AmongOthers, CrossEntropy, SelfWeighted
from ..teachers import Labels, WeakRanks, ZipfRanks


def zipf_smoothing(weight: float = 0.1, power: float = 1.0, layer: str = "stages.2") -> Method:
    """Zipf's label smoothing: positions of the last map vote for classes, and their order says what the others get.

    Equation::

        L = CE(y, p) + w KL(q || p^),  q_c ~ r_c^-power for c != y,  p^_c = p_c / (1 - p_y)
        r_c = 1 + the number of classes with more votes;  a position votes for the best class of the classifier on it

    ``layer`` says the last map, and the model's last linear layer is applied to each of its positions. Classes with as
    many votes share a rank, and the label takes part in the ranking, as in the authors' code. Their code for small
    images also classifies earlier maps, which is left out.

    Source: Liang et al., Efficient One Pass Self-distillation with Zipf's Label Smoothing, ECCV 2022.

    Needs: a model whose last layer before its classifier says a map (cnn, resnet).

    >>> zipf_smoothing().terms["others"].teacher
    ZipfRanks(votes='dense:stages.2', power=1.0)
    """
    votes = f"dense:{layer}"
    others = Term(ZipfRanks(votes, power), AmongOthers(), weight=weight)
    return Method({"label": Term(Labels(), CrossEntropy()), "others": others}, prepare=Features((votes,)))


def uskd(target: float = 0.1, others: float = 0.1, weak: float = 0.1, layer: str = "stages.1") -> Method:
    """USKD: your own probability of the label weighs the row, and a weak classifier helps to order the other classes.

    Equation::

        L = CE(y, p) - target (s^2 + 1 - mean s^2) log s + others KL(q || p^) + weak CE_e(y, w),  s = p_y, weights held
        q_c ~ 1 / r_c for c != y,  p^_c = p_c / (1 - p_y),  r = rank by w_c / (1 - w_y) + p_c / (1 - p_y)

    w is a linear classifier on what ``layer`` says, pooled; CE_e smooths by 0.1 (over all classes in the authors' code,
    over the others here). Defaults are those of CIFAR-100; for ImageNet they are 1, 0.1 and 0.005. The KL has the
    gradient of the paper's cross-entropy. The authors' code ranks by log p_c / (1 - log p_y) in the second place, where
    the paper has probabilities; the label takes part in the ranking.

    Source: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels, ICCV 2023.

    >>> uskd(layer="layer3").terms["weak"].head
    'classify:layer3'
    """
    head = f"classify:{layer}"
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "target": Term(Labels(), SelfWeighted(), weight=target),
            "others": Term(WeakRanks(head), AmongOthers(), weight=others),
            "weak": Term(Labels(), CrossEntropy(smoothing=0.1), head=head, weight=weak),
        },
        prepare=Features((head,)),
    )
