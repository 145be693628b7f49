"""Soft labels: by a fixed rule, by class, by rank, or by similar rows of the batch."""

from __future__ import annotations

from ..core.objective import Method
from ..core.parts import Term
from ..io.expressions import Extras, NonNegative, Positive, Share
from ..losses import KL, AmongOthers, CrossEntropy, MeanDistance, SelfWeighted
from ..models.feature_taps import Features
from ..teachers import BetaRanked, ClassMean, CurrentStudent, Labels, Neighbours, Virtual, WeakRanks, ZipfRanks
from ..views import Views, pairs, two
from .controls import supervised


def bake(weight: NonNegative = 1.0, omega: float = 0.5, temperature: Positive = 4.0, mates: Extras = 3) -> Method:
    """BAKE: rows with similar features share their predictions, by a random walk over the batch.

    Equation::

        L = CE(y, p) + w T^2 KL(sg Q || p^T),  Q = (1 - omega) (I - omega A)^-1 softmax(z / T)
        A_ij = softmax over j != i of cos(f_i, f_j),  f what the last linear layer sits on

    Of each batch one row in 1 + ``mates`` is drawn, the others are of its class: so neighbours are near. An epoch has
    as many steps as a plain one. Defaults are those of CIFAR-100; the authors take omega 0.9 and one mate for finer
    classes.

    Args:
        weight: Weight of the second part, 0 or more.
        omega: Share of the neighbours in the target, in [0, 1).
        temperature: Temperature of both sides, above 0.
        mates: Rows of the same class drawn for each row of a batch, 0 or more.

    Returns:
        The method, with the terms ``label`` and ``batch``.

    Source: Ge et al., Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification, arXiv
    2104.13298, 2021.

    >>> bake().views.mates
    3
    """
    batch = Term(Neighbours(omega, temperature), KL(temperature), weight=weight)
    terms = {"label": supervised(), "batch": batch}
    return Method(terms, Views(mates=mates), Features(("feature",), maps=False))


def zipf_smoothing(weight: NonNegative = 0.1, power: float = 1.0, layer: str = "stages.2") -> Method:
    """Zipf's label smoothing: positions of the last map vote for classes, whose ranks become probabilities.

    Equation::

        L = CE(y, p) + w KL(q || p^),  q_c ~ r_c^-power for c != y,  p^_c = p_c / (1 - p_y)
        r_c = 1 + the number of classes with more votes;  a position votes for the best class of the classifier on it

    The model's last linear layer is applied to each position of the map. Classes with as many votes share a rank, and
    the label takes part in the ranking, as in the authors' code.

    Args:
        weight: Weight of the second part, 0 or more.
        power: Exponent of Zipf's law, above 0.
        layer: Name of the model's last layer that gives a map.

    Returns:
        The method, with the terms ``label`` and ``others``.

    Departs: The authors' code for small images also classifies earlier maps, which is left out.

    Needs: a model whose last layer before its classifier says a map (cnn, resnet).

    Source: Liang et al., Efficient One Pass Self-distillation with Zipf's Label Smoothing, ECCV 2022.

    >>> zipf_smoothing().terms["others"].teacher
    ZipfRanks(votes='dense:stages.2', power=1.0)
    """
    votes = f"dense:{layer}"
    others = Term(ZipfRanks(votes, power), AmongOthers(), weight=weight)
    return Method({"label": supervised(), "others": others}, wrap_model=Features((votes,)))


def uskd(target: float = 0.1, others: float = 0.1, weak: float = 0.1, layer: str = "stages.1") -> Method:
    """USKD: the probability of the label weighs its loss, and a weak classifier helps to rank the other classes.

    Equation::

        L = CE(y, p) - target (s^2 + 1 - mean s^2) log s + others KL(q || p^) + weak CE_e(y, w),  s = p_y, weights held
        q_c ~ 1 / r_c for c != y,  p^_c = p_c / (1 - p_y),  r = rank by w_c / (1 - w_y) + p_c / (1 - p_y)

    w is a linear classifier on the pooled output of ``layer``; CE_e smooths by 0.1. Defaults are those of CIFAR-100;
    for ImageNet they are 1, 0.1 and 0.005. The KL has the gradient of the paper's cross-entropy. The label takes part
    in the ranking.

    Args:
        target: Weight of the label's part, 0 or more.
        others: Weight of the other classes' part, 0 or more.
        weak: Weight of the weak classifier's loss, 0 or more.
        layer: Name of the layer below the weak classifier.

    Returns:
        The method, with the terms ``label``, ``target``, ``others`` and ``weak``.

    Departs: CE_e smooths over the other classes; in the authors' code over all. Their code ranks by log p_c / (1 - log
    p_y) in the second place, where the paper, as here, has probabilities.

    Source: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels, ICCV 2023.

    >>> uskd(layer="layer3").terms["weak"].head
    'classify:layer3'
    """
    head = f"classify:{layer}"
    return Method(
        {
            "label": supervised(),
            "target": Term(Labels(), SelfWeighted(), weight=target),
            "others": Term(WeakRanks(head), AmongOthers(), weight=others),
            "weak": supervised(head=head, weight=weak, smoothing=0.1),
        },
        wrap_model=Features((head,)),
    )


def cs_kd(weight: NonNegative = 1.0, temperature: Positive = 4.0) -> Method:
    """Class-wise self-knowledge distillation: a sample's prediction agrees with that of another sample of its class.

    Equation::

        L = CE(y, p(x)) + w T^2 KL(sg p^T(x') || p^T(x)),  x' another sample with the label of x

    x' runs in a forward pass of its own, in train mode and without gradient, as in the authors' code.

    Args:
        weight: Weight of the second part, 0 or more.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``label`` and ``class``.

    Source: Yun et al., Regularizing Class-wise Predictions via Self-knowledge Distillation, CVPR 2020, equation 3.

    >>> cs_kd().forward
    'separate'
    """
    return Method(
        {
            "label": supervised(),
            "class": Term(CurrentStudent(view="pair"), KL(temperature), weight=weight),
        },
        views=pairs(),
        forward="separate",
    )


def tf_kd_reg(alpha: Share = 0.1, temperature: Positive = 20.0, correct: float = 0.99) -> Method:
    """Teacher-free regularisation: a virtual teacher gives the label a fixed probability and divides the rest evenly.

    Equation::

        L = (1 - a) CE(y, p) + a T^2 KL(d^T || p^T),  d_y = correct,  d_c = (1 - correct) / (C - 1) for other classes

    Both sides are softened, as in the paper's equation: d^T is d^(1/T), normalised.

    Args:
        alpha: Share of the teacher's term in the loss, in [0, 1]; the label has the rest.
        temperature: Temperature of both sides, above 0.
        correct: Probability that the virtual teacher gives to the label, in (0, 1).

    Returns:
        The method, with the terms ``label`` and ``virtual``.

    Departs: The authors' code takes the softmax of d / T, which is uniform to three digits, leaves the student at T =
    1, averages over classes, and multiplies by 100; it trains another loss. T^2 is the usual factor, which the paper's
    equations leave out.

    Source: Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020, equations 9
    and 10.

    >>> tf_kd_reg().terms["virtual"].teacher
    Virtual(correct=0.99)
    """
    return Method(
        {
            "label": supervised(weight=1.0 - alpha),
            "virtual": Term(Virtual(correct), KL(temperature), weight=alpha),
        }
    )


def ols(alpha: Share = 0.5) -> Method:
    """Online label smoothing: the soft label of a class is the mean of its correct predictions in the last epoch.

    Equation::

        L = a CE(y, p) + (1 - a) CE(S_y, p),  S_c = mean of p_i over rows i with y_i = c = argmax p_i, last epoch

    S is uniform in the first epoch, as in the paper, and for a class of which no row was right.

    Args:
        alpha: Share a of the label, in [0, 1]; the class mean has the rest.

    Returns:
        The method, with the terms ``label`` and ``class_mean``.

    Departs: In the authors' code S is 0 in the first epoch, which leaves a CE(y, p) alone.

    Source: Zhang et al., Delving Deep into Label Smoothing, IEEE Transactions on Image Processing 2021.

    >>> ols().terms["class_mean"].teacher
    ClassMean()
    """
    return Method(
        {
            "label": supervised(weight=alpha),
            "class_mean": Term(ClassMean(), CrossEntropy(), weight=1.0 - alpha),
        }
    )


def beta_smoothing(alpha: Share = 0.6, a: float = 3.0, decay: Share = 0.999) -> Method:
    """Beta smoothing: label smoothing whose strength differs from row to row, in the order of the model's confidence.

    Equation::

        L = (1 - alpha) CE(y, p) + alpha CE(q, p),  q_y = b_(k),  q_c = (1 - b_(k)) / (C - 1) for other classes
        b_(1) <= ... <= b_(B): sorted draws of Beta(a, 1);  k = rank of p'_y in the batch, p' by averaged weights
        theta' <- d theta' + (1 - d) theta,  d = min(1 - 1 / (step + 1), decay)

    The averaged model sees the same view in train mode, as in the authors' code. The batch is the micro-batch of a
    process.

    Args:
        alpha: Share of the teacher's term in the loss, in [0, 1]; the label has the rest.
        a: Parameter a of the Beta(a, 1) distribution of the strengths, above 0.
        decay: Decay d of the averaged weights, in [0, 1].

    Returns:
        The method, with the terms ``label`` and ``ranked``.

    Source: Zhang and Sabuncu, Self-Distillation as Instance-Specific Label Smoothing, NeurIPS 2020.

    >>> beta_smoothing().terms["ranked"].teacher.a
    3.0
    """
    return Method(
        {
            "label": supervised(weight=1.0 - alpha),
            "ranked": Term(BetaRanked(decay, a=a), CrossEntropy(), weight=alpha),
        }
    )


def ddgsd(weight: NonNegative = 1.0, mmd: float = 5e-4, temperature: Positive = 1.0) -> Method:
    """Data-distortion guided self-distillation: two views of a row teach each other; their mean features agree.

    Equation::

        L = sum_v CE(y, p_v) + w T^2 [KL(sg p_1^T || p_2^T) + KL(sg p_2^T || p_1^T)] + mmd ||mean_i (f_1i - f_2i)||^2

    v = 1, 2 are the views, f is the input of the last linear layer. The last part is reported twice, each time with the
    other view held constant: so its gradient is the equation's.

    Args:
        weight: Weight of the second part, 0 or more.
        mmd: Weight of the squared distance of mean features, 0 or more.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``label``, ``kl``, ``feature``, ``label_other``, ``kl_other`` and ``feature_other``.

    Departs: A public reproduction takes means over the batch and all channels, so that two numbers are compared, halves
    the cross-entropy and sets T = 4; this is the paper's form.

    Source: Xu and Liu, Data-Distortion Guided Self-Distillation for Deep Neural Networks, AAAI 2019.

    >>> sorted(ddgsd().terms)
    ['feature', 'feature_other', 'kl', 'kl_other', 'label', 'label_other']
    """
    terms = {}
    for view, other, end in (("x", "other", ""), ("other", "x", "_other")):
        teacher = CurrentStudent(view=other)
        terms["label" + end] = supervised(view)
        terms["kl" + end] = Term(teacher, KL(temperature), view=view, weight=weight)
        terms["feature" + end] = Term(teacher, MeanDistance(), view=view, head="feature", weight=mmd)
    return Method(terms, views=two(), wrap_model=Features(("feature",), maps=False))
