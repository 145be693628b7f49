"""Semi-supervised learning: unlabelled rows are learnt by consistency between views and by pseudo-labels."""

from __future__ import annotations

from ..core.objective import LeastSteps, Method
from ..core.parts import Always, Gate, Loss, PerTrust, PerView, Schedule, Teacher, Term
from ..gates import Annealed, Confident, ErrorBound, LabelledShare
from ..io.expressions import Count, Extras, NonNegative, Positive, Ratio, Share
from ..losses import CrossEntropy, Entropy, Excluding, Sharpened, Squared
from ..models.peers import Paired
from ..schedules import After, Ramp, Rise, RunDecay, ShortRun, Until
from ..teachers import CertainLabels, ClassAligned, CurrentStudent, Ema, Labels, PseudoLabels
from ..terms import Feedback, Perturbed
from ..views import BudgetRatio, View, Views, two, weak_strong
from .controls import supervised

MEAN_TEACHER, VAT, UDA, META = 150_000, 48_000, 500_000, 300_000  # steps of the papers' runs, where not 2^20


def risen(weight: float, ramp: float, steps: int = 2**20) -> Schedule:
    """A weight that a paper holds constant: in runs shorter than its ``steps`` it rises from 0 first.

    Args:
        weight: The weight after the rise, 0 or more.
        ramp: Share of a short run in which it rises, in [0, 1].
        steps: The paper's steps, from which on it does not rise.

    Returns:
        The schedule.

    >>> risen(1.0, 0.4).share
    0.4
    """
    return ShortRun(Rise(weight, 0.0), ramp, steps)


def threshold(confidence: float, max_error: float | None) -> Gate:
    """The gate of pseudo-labels: by a confidence, or by the error rate that validation rows show.

    >>> threshold(0.95, None), threshold(0.95, 0.1)
    (Confident(threshold=0.95), ErrorBound(max_error=0.1, level=0.05))
    """
    return Confident(confidence) if max_error is None else ErrorBound(max_error)


def balanced(teacher: Teacher, balance: str) -> Teacher:
    """A teacher whose classes are as frequent as ``balance`` says: 'uniform', as the 'labels', or '' for as they come.

    >>> balanced(CurrentStudent(), "labels").to
    'labels'
    """
    return ClassAligned(teacher, RunDecay(0.999, 2**20), balance) if balance else teacher


def weak_to_strong(loss: Loss, gate: Gate, weight: float | Schedule, balance: str = "") -> Term:
    """The prediction for the weak view of an unlabelled row as the target of its strong view.

    Args:
        loss: The loss between target and student.
        gate: How far each target is trusted.
        weight: The term's weight, 0 or more.
        balance: The class shares of the targets; see `balanced`.

    Returns:
        The term.

    >>> weak_to_strong(CrossEntropy(hard=True), Confident(0.95), 1.0).view
    'strong'
    """
    return Term(balanced(CurrentStudent(view="weak"), balance), loss, view="strong", gate=gate, weight=weight)


def matching(gate: Gate, weight: float | Schedule, balance: str = "") -> dict[str, Term]:
    """The terms of FixMatch and of those that differ from it by their gate.

    Args:
        gate: How far each pseudo-label is trusted.
        weight: Weight of the pseudo-labels, 0 or more.
        balance: The class shares of the pseudo-labels; see `balanced`.

    Returns:
        ``label`` on labelled rows, and ``pseudo``: the best class of the weak view for the strong one.

    >>> list(matching(Confident(0.95), 1.0))
    ['label', 'pseudo']
    """
    return {"label": supervised("labelled"), "pseudo": weak_to_strong(CrossEntropy(hard=True), gate, weight, balance)}


def mean_teacher(
    weight: NonNegative = 100.0, decay: Share | None = None, ramp: Share = 0.4, labelled: Share = 0.25,
    augment: str = "default",
) -> Method:  # fmt: skip
    """Mean Teacher: the student agrees with the moving average of its own weights on another view of a row.

    Equation::

        L = CE(y, p(x)) + w(t) mean_c (p_c(x') - p'_c(x))^2,  w(t) = weight exp(-5 (1 - t / ramp)^2)
        theta' <- d theta' + (1 - d) theta,  d = min(1 - 1 / (step + 1), decay)

    Labelled rows have both parts, unlabelled ones the second.

    Args:
        weight: Weight of the consistency after the ramp, 0 or more.
        decay: Decay d of the averaged weights, in [0, 1]; left open, .999 in a run of 150,000 steps, and in a shorter
            one that of as large a share of it, but at least the .97 of the authors' shorter runs.
        ramp: Share of a short run in which the weight rises, in [0, 1]; 5 / 180 in a run of 150,000 steps.
        labelled: Least share of labelled rows in a batch, in [0, 1), repeated where they are few.
        augment: Augmentation of x: 'default' (as the data), 'none', 'weak', 'strong', 'crop' or 'local'; that of x' is
            'weak'.

    Returns:
        The method, with the terms ``label`` and ``consistency``.

    Departs: Labels are learnt on x and agreement on x', one augmentation each; the paper's two are alike. The teacher
    is in eval mode; the paper's has noise of its own (train mode). The cross-entropy is a mean over labelled rows; the
    authors' code divides it by all rows of a batch, a quarter of which is labelled.

    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017 (decay); weight and ramp are those
    of the authors' code for CIFAR-10.

    >>> mean_teacher(decay=0.99).terms["consistency"].teacher.decay
    0.99
    """
    return Method(
        {
            "label": supervised(),
            "consistency": Term(
                Ema(RunDecay(0.999, MEAN_TEACHER, 0.97) if decay is None else decay, view="x"),
                Squared(mean=True),
                view="other",
                weight=ShortRun(Ramp(weight, 5 / 180), ramp, MEAN_TEACHER),
            ),
        },
        views=two("all", augment, "weak", labelled),
    )


def ups(
    generations: Count = 5,
    positive: float = 0.7,
    spread: float = 0.05,
    negative: float = 0.05,
    negative_spread: float = 0.005,
    passes: Count = 10,
    balanced: Extras = 6,
    fewest: Extras = 25,
    augment: str = "default",
) -> Method:
    """Uncertainty-aware pseudo-labels: dropout passes decide which classes a row certainly has or has not.

    Equation::

        L = mean CE(t, p) over rows with a label or a certain class (t) + mean -sum_c m_c log(1 - p_c) / sum_c m_c
        t: best class of q where q >= a and s <= k;  m_c = 1[q_c <= b and s_c <= l] in rows without t
        q, s = mean and deviation of T passes of the last generation, dropout on

    Each generation is initialised anew and chooses again from the whole pool; generation 0 learns from labels alone.

    Args:
        generations: Number of trainings, the first included, 1 or more.
        positive: Probability a from which a class is a pseudo-label, in [0, 1].
        spread: Largest deviation k of such a probability, 0 or more.
        negative: Probability b up to which a class is excluded, in [0, 1].
        negative_spread: Largest deviation l of such a probability, 0 or more.
        passes: Number T of passes with dropout, 2 or more.
        balanced: Number of generations, from the first with pseudo-labels on, in which every class has as many as the
            smallest one, 0 or more.
        fewest: Number of pseudo-labels that a class keeps however few another one has, 0 or more.
        augment: Augmentation of all rows: 'default' (as the data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label`` and ``excluded``.

    Departs: The authors' code trains 20 generations; fewer are the default here for their cost. It softens what it
    excludes by a temperature of 2; the equations have none, nor has this.

    Needs: unlabelled rows, and a model with dropout: --model 'cnn(dropout=0.3)'.

    Source: Rizve et al., In Defense of Pseudo-Labeling, ICLR 2021, equations 5 to 8.

    >>> ups(generations=2).terms["excluded"].loss
    Excluding()
    """
    thresholds = (positive, spread, negative, negative_spread, passes, balanced, fewest)
    return Method(
        {
            "label": Term(CertainLabels(*thresholds), CrossEntropy()),
            "excluded": Term(CertainLabels(*thresholds, excludes=True), Excluding()),
        },
        views=Views((View("x", "union", augment),)),
        generations=generations,
    )


def pi_model(
    weight: NonNegative = 100.0, ramp: Share = 80 / 300, labelled: Share = 0.5, augment: str = "default"
) -> Method:
    """Pi-model: two passes of a row, with other augmentation and other dropout, agree; with or without a label.

    Equation::

        L = sum over labelled rows of CE(y, p(x)) / B
          + w(t) mean over the B rows and C classes of [(p(x) - sg p(x'))^2 + (sg p(x) - p(x'))^2]
        w(t) = weight M / N exp(-5 (1 - t / ramp)^2);  M of N rows have a label

    The two squares have together the gradient of the paper's one, (p(x) - p(x'))^2, which runs through both passes; the
    reported loss is twice that. Each pass is a forward pass of its own.

    Args:
        weight: Weight of the consistency after the ramp, before the factor M / N; 0 or more.
        ramp: Share of the training in which the weight rises, in [0, 1].
        labelled: Least share of labelled rows in a batch, in [0, 1), repeated where they are few.
        augment: Augmentation of x: 'default' (as the data), 'none', 'weak', 'strong', 'crop' or 'local'; that of x' is
            'weak'.

    Returns:
        The method, with the terms ``label``, ``here`` and ``there``.

    Departs: Half of a batch is labelled, and x is augmented as the data are. The authors' code ramps by whole epochs,
    from 0 in the first, where this has exp(-5).

    Source: Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017, algorithm 1.

    >>> pi_model().forward
    'separate'
    """
    squared, share, ramp_up = Squared(mean=True), LabelledShare(), Ramp(weight, ramp)
    return Method(
        {
            "label": supervised(reduction=PerView()),
            "here": Term(CurrentStudent("other"), squared, gate=share, weight=ramp_up, reduction=PerView()),
            "there": Term(CurrentStudent("x"), squared, "other", gate=share, weight=ramp_up, reduction=PerView()),
        },
        views=two("all", augment, "weak", labelled),
        forward="separate",
    )


def vat(
    size: float = 8.0, weight: NonNegative = 1.0, iterations: Count = 1, entropy: float = 0.0,
    ratio: Ratio | None = None, ramp: Share = 0.4, labelled: str = "default", unlabelled: str = "default",
) -> Method:  # fmt: skip
    """Virtual adversarial training: predictions stay the same under the small perturbation that changes them most.

    Equation::

        L = CE(y, p(x)) + w(t) mean_u KL(sg p(u) || p(u + r)) + e(t) mean_u H(p(u))
        r = size x the unit vector in which KL(sg p(u) || p(u + r)) grows most, by power iteration: see `Perturbed`

    ``size`` is to be tuned; 8 is the authors' for augmented CIFAR-10.

    Args:
        size: Length of the perturbation of a row, in the units of the inputs, above 0.
        weight: Weight of the perturbed rows, 0 or more.
        iterations: Number of power iterations, 1 or more.
        entropy: Weight e of the entropy, 0 or more; 1 is the paper's VAT+EntMin.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 4 in a run of
            48,000 steps and fewer in a shorter one.
        ramp: Share of a short run in which the weight rises, in [0, 1]; it shrinks to 0 at 48,000 steps.
        labelled, unlabelled: Augmentation of labelled and of unlabelled rows: 'default' (as the data), 'none', 'weak',
            'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label`` and ``adversarial``.

    Departs: A short run has fewer unlabelled rows and a weight that rises. The paper perturbs labelled rows too, in
    proportion; here unlabelled rows alone are perturbed.

    Needs: unlabelled rows, and inputs that can be moved.

    Source: Miyato et al., Virtual Adversarial Training, IEEE TPAMI 2019, equations 5 to 8; batches of 32 and 128.

    >>> vat(size=2.0).terms["adversarial"].size
    2.0
    """
    terms = {
        "label": supervised("labelled"),
        "adversarial": Perturbed(view="unlabelled", weight=risen(weight, ramp, VAT), size=size, iterations=iterations),
    }
    if entropy:
        terms["entropy"] = Term(CurrentStudent(), Entropy(), view="unlabelled", weight=risen(entropy, ramp, VAT))
    several = BudgetRatio(4.0, VAT) if ratio is None else ratio
    rows = View("labelled", "labelled", labelled), View("unlabelled", "unlabelled", unlabelled)
    return Method(terms, views=Views(rows, several))


def uda(
    confidence: Share = 0.8, temperature: Positive = 0.4, weight: NonNegative = 1.0, annealing: str = "",
    ratio: Ratio | None = None, ramp: Share = 0.4, labelled: str = "default", weak: str = "default",
    strong: str = "strong", max_error: Share | None = None, balance: str = "",
) -> Method:  # fmt: skip
    """Unsupervised data augmentation: the sharpened prediction for the weak view is the target of the strong one.

    Equation::

        L = CE(y, p(x)) + w(t) mean_u 1[max q >= c] CE(q^(1/T) / sum, p(strong u)),  q = sg p(weak u)

    The gate judges q before it is sharpened, and rows that fail it count as zero. All views share one forward pass.

    Args:
        confidence: Probability c of the best class above which a pseudo-label counts, in [0, 1].
        temperature: Temperature T that sharpens targets, above 0.
        weight: Weight of the unlabelled rows, 0 or more.
        annealing: Schedule by which labels learnt too soon are dropped: 'linear', 'log', 'exp', or '' for none; see
            `Annealed`.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            500,000 steps and fewer in a shorter one.
        ramp: Share of a short run in which the weight rises, in [0, 1]; it shrinks to 0 at 500,000 steps.
        labelled, weak, strong: Augmentation of labelled rows and of both views of unlabelled ones: 'default' (as the
            data), 'none', 'weak', 'strong', 'crop' or 'local'.
        max_error: Largest error rate of the pseudo-labels, in (0, 1), bounded on validation rows after each epoch: it
            sets the threshold in place of ``confidence``, see `ErrorBound`; left open, ``confidence`` does.
        balance: Class shares that the pseudo-labels keep, so that they do not become one class: 'uniform', those of the
            'labels', or '' for as they come; see `ClassAligned`.

    Returns:
        The method, with the terms ``label`` and ``consistency``.

    Departs: Short runs and weak views differ as in `fixmatch`. The authors' code has a KL in the place of CE(q, p),
    with the same gradient.

    Needs: unlabelled rows.

    Source: Xie et al., Unsupervised Data Augmentation for Consistency Training, NeurIPS 2020 (images: c .8, T .4).

    >>> uda(annealing="log").terms["label"].gate
    Annealed(schedule='log')
    """
    label_gate = Annealed(annealing) if annealing else Always()
    sharpened, gate = Sharpened(CrossEntropy(), temperature), threshold(confidence, max_error)
    label = supervised("labelled", gate=label_gate, reduction=PerTrust())
    consistency = weak_to_strong(sharpened, gate, risen(weight, ramp, UDA), balance)
    views = weak_strong(ratio, labelled, weak, strong, UDA)
    return Method({"label": label, "consistency": consistency}, views=views)


def untuned(value: float, tune: float) -> Schedule:
    """A weight until the student of meta pseudo-labels is tuned, in the last share ``tune`` of a short run."""
    return ShortRun(Until(value, 0.9), 1.0 - tune, META)


def meta_pseudo_labels(
    meta: float = 1.0, rate: float = 0.1, weight: NonNegative = 1.0, ramp: Share = 0.4, temperature: Positive = 0.7,
    confidence: Share = 0.6, smoothing: Share = 0.15, tune: Share = 0.75, ratio: Ratio | None = None,
    labelled: str = "default", weak: str = "default", strong: str = "strong",
) -> Method:  # fmt: skip
    """Meta pseudo-labels: a student learns a teacher's labels, the teacher from the student's loss after a step.

    Equation::

        L = CE(sg q, p_S(u)) + CE(y, p_T(x)) + w(t) UDA_T(u, weak u) + m CE(y, p_S'(x)),  q = p_T(u)
        S' = S - rate grad_S CE(q, p_S(u)), of which the teacher alone learns: see `Feedback`;  UDA_T: see `uda`

    u are strong views. The student sees no label before it is tuned. The student is the final model;
    each view is a forward pass of its own. ``meta=0`` is the control to compare with.

    Args:
        meta: Weight m of the feedback, 0 or more; 0 leaves it out.
        rate: Learning rate of the student's trial step, above 0.
        weight: Weight of UDA after the ramp, 0 or more.
        ramp: Share of a short run in which that weight rises, in [0, 1]; 1 / 60 in a run of 300,000 steps.
        temperature: Temperature that sharpens UDA's targets, above 0.
        confidence: Threshold of UDA's targets, in [0, 1].
        smoothing: Label smoothing of the first two terms, in [0, 1].
        tune: Share of a short run, at its end, in which the student learns labels alone, in [0, 1]; .1 in a run of
            300,000 steps.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            300,000 steps and fewer in a shorter one.
        labelled, weak, strong: Augmentation of labelled rows and of both views of unlabelled ones: 'default' (as the
            data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label``, ``pseudo``, ``consistency``, ``tuned`` and ``meta``.

    Departs: Short runs and weak views differ as in `fixmatch`. The paper fine-tunes in a training of its own, at a rate
    of 1e-5. Here the trial step is plain gradient descent with soft labels: its derivative is exact; the paper's hard
    labels are sampled, and estimate it. The feedback of the released code is along CE(sg q, q), which is flat, so it is
    near to ``meta=0``. The code's weight of UDA is 8 in place of 1, which in runs a thousand times shorter lets the
    teacher collapse to one class.

    Needs: unlabelled rows.

    Source: Pham et al., Meta Pseudo Labels, CVPR 2021, section 2; defaults of its code for CIFAR-10, but for ``rate``,
    ``tune`` and ``weight``.

    >>> list(meta_pseudo_labels(meta=0).terms)
    ['label', 'pseudo', 'consistency', 'tuned']
    """
    label_loss, sharpened = CrossEntropy(smoothing=smoothing), Sharpened(CrossEntropy(), temperature)
    teacher, gate = CurrentStudent("weak", "teacher"), Confident(confidence)
    ramp_up = ShortRun(Rise(weight, 1 / 60), ramp, META)
    terms = {
        "label": Term(Labels(), label_loss, "labelled", "teacher"),
        "pseudo": Term(CurrentStudent(head="teacher"), label_loss, "strong", weight=untuned(1.0, tune)),
        "consistency": Term(teacher, sharpened, "strong", "teacher", gate, ramp_up),
        "tuned": supervised("labelled", weight=ShortRun(After(1.0, 0.9), 1.0 - tune, META)),
    }
    if meta:
        terms["meta"] = Feedback(loss=label_loss, rate=rate, weight=untuned(meta, tune))
    views, least = weak_strong(ratio, labelled, weak, strong, META), LeastSteps("meta_pseudo_labels", 500)
    return Method(terms, views, Paired(), forward="separate", least=least)


def pseudo_label(
    weight: NonNegative = 3.0, start: float = 0.1, end: float = 0.6, ratio: Ratio | None = None,
    confidence: Share = 0.0, labelled: str = "default", unlabelled: str = "default", max_error: Share | None = None,
    balance: str = "",
) -> Method:  # fmt: skip
    """Pseudo-label: the model's own best class is the label of an unlabelled row, with a weight that rises.

    Equation::

        L = CE(y, p(x)) + a(t) mean_u 1[max p >= c] CE(argmax p(u), p(u)),  both from the same forward
        a(t) = 0 until ``start`` of the training, then a line up to ``weight``, reached at ``end`` of it

    Args:
        weight: Weight of the pseudo-labels after the rise, 0 or more.
        start: Share of the training before they count, in [0, 1].
        end: Share of the training when their weight is full, in [0, 1].
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 8 in a run of
            2^20 steps and fewer in a shorter one.
        confidence: Threshold c of the pseudo-labels, in [0, 1]; 0 takes all.
        labelled, unlabelled: Augmentation of labelled and of unlabelled rows: 'default' (as the data), 'none', 'weak',
            'strong', 'crop' or 'local'.
        max_error: Largest error rate of the pseudo-labels, in (0, 1), bounded on validation rows after each epoch: it
            sets the threshold in place of ``confidence``, see `ErrorBound`; left open, ``confidence`` does.
        balance: Class shares that the pseudo-labels keep, so that they do not become one class: 'uniform', those of the
            'labels', or '' for as they come; see `ClassAligned`.

    Returns:
        The method, with the terms ``label`` and ``pseudo``.

    Departs: A short run has fewer unlabelled rows. The paper's outputs are sigmoids with a cross-entropy each, where
    this takes softmax. Its a(t) rises from step 100 to step 600; the shares here are those of 1,000 steps. Its batches
    are 32 and 256. It has no threshold (c = 0); common code adds c = .95 and an early ramp.

    Needs: unlabelled rows.

    Source: Lee, Pseudo-Label, ICML 2013 workshop on Challenges in Representation Learning, equations 15 and 16.

    >>> pseudo_label().terms["pseudo"].weight
    Rise(peak=3.0, share=0.6, start=0.1)
    """
    gate, hard, teacher = threshold(confidence, max_error), CrossEntropy(hard=True), balanced(CurrentStudent(), balance)
    rows = View("labelled", "labelled", labelled), View("unlabelled", "unlabelled", unlabelled)
    return Method(
        {
            "label": supervised("labelled"),
            "pseudo": Term(teacher, hard, view="unlabelled", gate=gate, weight=Rise(weight, end, start)),
        },
        views=Views(rows, BudgetRatio(8.0) if ratio is None else ratio),
        least=LeastSteps("pseudo_label", 1000),
    )


def fixmatch(
    confidence: Share = 0.95, weight: NonNegative = 1.0, ratio: Ratio | None = None, ramp: Share = 0.4,
    labelled: str = "default", weak: str = "default", strong: str = "strong", max_error: Share | None = None,
    balance: str = "",
) -> Method:  # fmt: skip
    """FixMatch: the confident best class of the weak view is the target of the strong one.

    Equation::

        L = CE(y, p(x)) + w(t) mean_u 1[max q >= c] CE(argmax q, p(strong u)),  q = sg p(weak u)

    u runs over all unlabelled rows of the batch; those that fail the gate count as zero. All views share one forward
    pass.

    Args:
        confidence: Probability c of the best class above which a pseudo-label counts, in [0, 1].
        weight: Weight of the pseudo-labels, 0 or more.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            2^20 steps and fewer in a shorter one.
        ramp: Share of a short run in which the weight rises, in [0, 1]; it shrinks to 0 at 2^20 steps.
        labelled, weak, strong: Augmentation of labelled rows and of both views of unlabelled ones: 'default' (as the
            data), 'none', 'weak', 'strong', 'crop' or 'local'.
        max_error: Largest error rate of the pseudo-labels, in (0, 1), bounded on validation rows after each epoch: it
            sets the threshold in place of ``confidence``, see `ErrorBound`; left open, ``confidence`` does.
        balance: Class shares that the pseudo-labels keep, so that they do not become one class: 'uniform', those of the
            'labels', or '' for as they come; see `ClassAligned`.

    Returns:
        The method, with the terms ``label`` and ``pseudo``.

    Departs: A short run has fewer unlabelled rows and a weight that rises, and weak views are augmented as the data
    are.

    Needs: unlabelled rows.

    Source: Sohn et al., FixMatch, NeurIPS 2020, equations 3 and 4 (c = .95, 7 unlabelled rows per labelled one).

    >>> fixmatch(confidence=0.8).terms["pseudo"].gate
    Confident(threshold=0.8)
    """
    terms = matching(threshold(confidence, max_error), risen(weight, ramp), balance)
    return Method(terms, views=weak_strong(ratio, labelled, weak, strong))


def noisy_student(
    generations: Count = 4, ratio: Ratio = 1.0, min_confidence: Share = 0.3, hard: bool = False, smoothing: Share = 0.1,
    labelled: str = "default", unlabelled: str = "strong",
) -> Method:  # fmt: skip
    """Noisy Student: the last generation labels clean unlabelled rows; a fresh student learns them under noise.

    Equation::

        L = CE_e(y, p(x)) + r mean CE(t, p(strong u)),  t = last generation on the clean row, eval mode

    Every predicted class gets as many rows, the most confident ones, repeated where there are too few. e is
    `label_smoothing`'s. The noise is the strong view of unlabelled rows and the model's dropout.

    Args:
        generations: Number of trainings, the first included, 1 or more.
        ratio: Weight r of the second part, and pseudo-labelled rows for each labelled row of a batch; above 0 and at
            most 100.
        min_confidence: Least probability of a pseudo-label's class, in [0, 1].
        hard: Whether a pseudo-label is the best class; otherwise the probabilities.
        smoothing: Label smoothing of the labelled rows, in [0, 1].
        labelled, unlabelled: Augmentation of labelled and of unlabelled rows: 'default' (as the data), 'none', 'weak',
            'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label`` and ``pseudo``.

    Departs: Labelled rows are augmented as the data are; the paper's are in strong views. Pseudo-labels, hard ones too,
    are not smoothed; the authors smooth hard ones.

    Needs: unlabelled rows.

    Source: Xie et al., Self-training with Noisy Student improves ImageNet classification, CVPR 2020, algorithm 1.

    >>> noisy_student().terms["pseudo"].weight
    1.0
    """
    teacher = PseudoLabels(hard=hard, min_confidence=min_confidence, fill=True)
    return Method(
        {
            "label": supervised("labelled", smoothing=smoothing),
            "pseudo": Term(teacher, CrossEntropy(), view="unlabelled", weight=ratio),
        },
        views=Views((View("labelled", "labelled", labelled), View("unlabelled", "unlabelled", unlabelled)), ratio),
        generations=generations,
    )


def curriculum(
    stages: Count = 5, balanced: bool = True, hard: bool = True, confidence: Share = 0.0, augment: str = "default"
) -> Method:
    """Curriculum labelling: each stage starts afresh with more of the pseudo-labels, the most confident first.

    Equation::

        L = CE(t, p) over labelled rows (t = y) and the chosen ones (t = best class of the last stage's model)
        stage s of S takes the most confident s / S of the pool, as many of each class, of confidence c or more

    Generation 0 learns from labels alone; each stage labels the whole pool again. The paper's comparison with a fixed
    threshold is ``stages=1`` with ``confidence``.

    Args:
        stages: Number S of stages after generation 0, 1 or more.
        balanced: Whether as many rows of each class are chosen.
        hard: Whether a pseudo-label is the best class; otherwise the probabilities.
        confidence: Least probability c of a pseudo-label's class, in [0, 1].
        augment: Augmentation of all rows: 'default' (as the data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the term ``label``.

    Departs: The class balance is this package's; ``balanced=False`` is the paper's percentile over all classes
    together.

    Needs: unlabelled rows.

    Source: Cascante-Bonilla et al., Curriculum Labeling, AAAI 2021, algorithm 1 (S = 5).

    >>> curriculum(stages=2).terms["label"].teacher.shares
    (0.5, 1.0)
    """
    shares = tuple((s + 1) / stages for s in range(stages))
    teacher = PseudoLabels(hard=hard, shares=shares, min_confidence=confidence, balanced=balanced)
    return Method(
        {"label": Term(teacher, CrossEntropy())},
        views=Views((View("x", "union", augment),)),
        generations=stages + 1,
    )
