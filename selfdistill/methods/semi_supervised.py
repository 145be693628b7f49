"""The average of the student's weights as its teacher.

Pseudo-labels that are certain, not only probable.

Say the same of a row that was changed: by noise, by an adversary, by strong augmentation.

A teacher that learns to teach.

Labels that the model gives to unlabelled rows.
"""

from __future__ import annotations

from ..core.objective import Method
from ..core.parts import Always, PerTrust, PerView, Term
from ..gates import Annealed, Confident, LabelledShare
from ..losses import CrossEntropy, Entropy, Excluding, Sharpened, Squared
from ..models.peers import Paired
from ..schedules import After, Ramp, Rise, Until
from ..teachers import CertainLabels, Ema, Itself, Labels, PseudoLabels
from ..terms import Feedback, Perturbed
from ..views import View, Views, two, weak_strong


def mean_teacher(weight: float = 100.0, decay: float = 0.999, ramp: float = 5 / 180) -> Method:
    """Mean Teacher: agree with the moving average of your own weights, on another view, labelled or not.

    Equation::

        L = CE(y, p(x)) + w(t) mean_c (p_c(x) - p'_c(x'))^2,  w(t) = weight exp(-5 (1 - t / ramp)^2)
        theta' <- d theta' + (1 - d) theta,  d = min(1 - 1 / (step + 1), decay)

    Labelled rows have both parts, unlabelled ones the second. The teacher is in eval mode; the paper's has noise of its
    own (train mode). The cross-entropy is a mean over labelled rows; the authors' code divides it by all rows of a
    batch, of which it labels about a quarter.

    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017 (decay); weight and ramp are those
    of the authors' code for CIFAR-10.

    >>> mean_teacher().terms["consistency"].teacher.decay
    0.999
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "consistency": Term(Ema(decay, view="other"), Squared(mean=True), weight=Ramp(weight, ramp)),
        },
        views=two("all"),
    )


def ups(
    generations: int = 5,
    positive: float = 0.7,
    spread: float = 0.05,
    negative: float = 0.05,
    negative_spread: float = 0.005,
    passes: int = 10,
) -> Method:
    """Uncertainty-aware pseudo-labels: what rows surely are, and what they surely are not, by passes with dropout.

    Equation::

        L = mean CE(t, p) over rows with a label or a certain class (t) + mean -sum_c m_c log(1 - p_c) / sum_c m_c
        t: best class of q where q >= a and s <= k;  m_c = 1[q_c <= b and s_c <= l] in rows without t
        q, s = mean and deviation of T passes of the last generation, dropout on

    Each generation starts afresh and chooses again from the whole pool; ``generations`` counts the first, on labels
    alone (the authors' code trains 20; fewer are the default here for their cost). That code balances the classes of t
    in its first rounds and softens what it excludes by a temperature of 2; the equations have neither.

    Source: Rizve et al., In Defense of Pseudo-Labeling, ICLR 2021, equations 5 to 8.

    Needs: unlabelled rows, and a model with dropout: --model 'cnn(dropout=0.3)'.

    >>> ups(generations=2).terms["excluded"].loss
    Excluding()
    """
    chosen = (positive, spread, negative, negative_spread, passes)
    return Method(
        {
            "label": Term(CertainLabels(*chosen), CrossEntropy()),
            "excluded": Term(CertainLabels(*chosen, excludes=True), Excluding()),
        },
        views=Views((View("x", "union"),)),
        generations=generations,
    )


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
            "label": Term(Labels(), CrossEntropy(), reduction=PerView()),
            "here": Term(Itself("other"), taught, gate=share, weight=rise, reduction=PerView()),
            "there": Term(Itself("x"), taught, "other", gate=share, weight=rise, reduction=PerView()),
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
    return Method(terms, views=Views((View("labelled"), View("unlabelled", "unlabelled")), ratio))


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
            "label": Term(Labels(), CrossEntropy(), view="labelled", gate=label, reduction=PerTrust()),
            "consistency": Term(Itself(view="weak"), taught, view="strong", gate=gate, weight=weight),
        },
        views=weak_strong(ratio),
    )


def meta_pseudo_labels(
    meta: float = 1.0,
    rate: float = 0.1,
    weight: float = 1.0,
    ramp: float = 1 / 60,
    temperature: float = 0.7,
    confidence: float = 0.6,
    smoothing: float = 0.15,
    tune: float = 0.1,
    ratio: float = 7.0,
) -> Method:
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


def pseudo_label(
    weight: float = 3.0, start: float = 0.1, end: float = 0.6, ratio: float = 8.0, confidence: float = 0.0
) -> Method:
    """Pseudo-label: take your own best class for the label, the more so the longer you have learnt.

    Equation::

        L = CE(y, p(x)) + a(t) mean_u 1[max p >= c] CE(argmax p(u), p(u)),  both from the same forward
        a(t) = 0 until ``start`` of the training, then a line up to ``weight``, reached at ``end`` of it

    The paper has no threshold (c = 0), a(t) from step 100 to 600 (here of 1,000), batches of 32 and 256, and sigmoid
    outputs with a cross-entropy each, where this takes softmax. Common code adds c = .95 and an early ramp.

    Source: Lee, Pseudo-Label, ICML 2013 workshop on Challenges in Representation Learning, equations 15 and 16.

    Needs: unlabelled rows.

    >>> pseudo_label().terms["pseudo"].weight
    Rise(peak=3.0, share=0.6, start=0.1)
    """
    gate, taught = Confident(confidence), CrossEntropy(hard=True)
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), view="labelled"),
            "pseudo": Term(Itself(), taught, view="unlabelled", gate=gate, weight=Rise(weight, end, start)),
        },
        views=Views((View("labelled"), View("unlabelled", "unlabelled")), ratio),
    )


def fixmatch(confidence: float = 0.95, weight: float = 1.0, ratio: float = 7.0) -> Method:
    """FixMatch: the confident label of the weak view is the target of the strong one.

    Equation::

        L = CE(y, p(weak x)) + w mean_u 1[max q >= c] CE(argmax q, p(strong u)),  q = sg p(weak u)

    u runs over all unlabelled rows of the batch; those that fail the gate count as zero. All views share one forward.

    Source: Sohn et al., FixMatch, NeurIPS 2020, equations 3 and 4 (c = .95, 7 unlabelled rows per labelled one).

    Needs: unlabelled rows.

    >>> fixmatch(confidence=0.8).terms["pseudo"].gate
    Confident(threshold=0.8)
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), view="labelled"),
            "pseudo": Term(
                Itself(view="weak"), CrossEntropy(hard=True), view="strong", gate=Confident(confidence), weight=weight
            ),
        },
        views=weak_strong(ratio),
    )


def noisy_student(
    generations: int = 4, ratio: float = 1.0, min_confidence: float = 0.3, hard: bool = False, smoothing: float = 0.1
) -> Method:
    """Noisy Student: the last generation labels clean unlabelled rows, a noised fresh student learns them.

    Equation::

        L = CE_e(y, p(strong x)) + r mean CE(t, p(strong u)),  t = last generation on the clean row, eval mode

    Rows below ``min_confidence`` are dropped; every predicted class gets as many rows, the most confident ones,
    repeated where there are too few; ``ratio`` x batch size of them join each batch. e is `label_smoothing`'s;
    pseudo-labels, ``hard`` ones too, are not smoothed (the authors smooth hard ones). ``generations`` counts the
    first teacher. The noise is the strong view and the model's dropout.

    Source: Xie et al., Self-training with Noisy Student improves ImageNet classification, CVPR 2020, algorithm 1.

    Needs: unlabelled rows.

    >>> noisy_student().terms["pseudo"].weight
    1.0
    """
    chosen = PseudoLabels(hard=hard, min_confidence=min_confidence, fill=True)
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(smoothing=smoothing), view="labelled"),
            "pseudo": Term(chosen, CrossEntropy(), view="unlabelled", weight=ratio),
        },
        views=Views((View("labelled", "labelled", "strong"), View("unlabelled", "unlabelled", "strong")), ratio),
        generations=generations,
    )


def curriculum(stages: int = 5, balanced: bool = True, hard: bool = True, confidence: float = 0.0) -> Method:
    """Curriculum labelling: take the surest pseudo-labels first, class by class, and start afresh at every stage.

    Equation::

        L = CE(t, p) over labelled rows (t = y) and the chosen ones (t = best class of the last stage's model)
        stage s of S takes the most confident s / S of the pool, as many of each class, of confidence c or more

    Generation 0 learns from labels alone; each stage re-initialises and labels the whole pool again. ``balanced=False``
    is the paper's percentile, over all classes together; the class balance is ours. The paper's comparison with a
    fixed threshold is ``stages=1`` with ``confidence``; ``hard=False`` learns probabilities.

    Source: Cascante-Bonilla et al., Curriculum Labeling, AAAI 2021, algorithm 1 (S = 5).

    Needs: unlabelled rows.

    >>> curriculum(stages=2).terms["label"].teacher.shares
    (0.5, 1.0)
    """
    shares = tuple((s + 1) / stages for s in range(stages))
    chosen = PseudoLabels(hard=hard, shares=shares, min_confidence=confidence, balanced=balanced)
    return Method(
        {"label": Term(chosen, CrossEntropy())},
        views=Views((View("x", "union"),)),
        generations=stages + 1,
    )
