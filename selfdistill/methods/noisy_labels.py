"""Learning with wrong labels: the model's own predictions, remembered or peers', correct or select the labels."""

from __future__ import annotations

from ..core.objective import Method
from ..core.parts import PerTrust, PerView, Term
from ..gates import CleanGradient, Confidence, LabelledShare, SmallLoss
from ..io.expressions import Count, NonNegative, Positive, Share, Size
from ..losses import KL, ClassPrior, CrossEntropy, Entropy, LogOneMinusInner, Squared
from ..models.peers import Group
from ..schedules import ByGeneration, EpochRamp, Linear
from ..teachers import CurrentStudent, Ensembled, History, LastBatch, LastEpoch, Refurbished, Relabelled
from ..views import View, Views, overlapping
from .controls import supervised


def soft_bootstrapping(beta: float = 0.95) -> Method:
    """Soft bootstrapping: the target mixes the label with the current prediction.

    Equation::

        L = CE(b y + (1 - b) p, p) = b CE(y, p) + (1 - b) H(p)

    The prediction in the target has a gradient too: without it the second part would have none at all.

    Args:
        beta: Share b of the label in the target, in [0, 1].

    Returns:
        The method, with the terms ``label`` and ``sure``.

    Source: Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2015.

    >>> soft_bootstrapping(0.9).terms["label"].weight
    0.9
    """
    return Method(
        {
            "label": supervised(weight=beta),
            "sure": Term(CurrentStudent(), Entropy(), weight=1.0 - beta),
        }
    )


def hard_bootstrapping(beta: float = 0.8) -> Method:
    """Hard bootstrapping: the target mixes the label with the currently best class.

    Equation::

        L = b CE(y, p) + (1 - b) CE(argmax p, p)

    Args:
        beta: Share b of the label in the target, in [0, 1].

    Returns:
        The method, with the terms ``label`` and ``best``.

    Source: Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2015.

    >>> hard_bootstrapping().terms["best"].loss.hard
    True
    """
    return Method(
        {
            "label": supervised(weight=beta),
            "best": Term(CurrentStudent(), CrossEntropy(hard=True), weight=1.0 - beta),
        }
    )


def elr(weight: NonNegative = 3.0, decay: Share = 0.7) -> Method:
    """Early-learning regularisation: predictions stay close to their running average, which wrong labels enter late.

    Equation::

        L = CE(y, p) + w mean log(1 - <p, t_i>),  t_i <- d t_i + (1 - d) sg p_i  before it is used; t_i = 0 at first

    The second part is negative; minimising it raises the agreement. p is clamped to [1e-4, 1 - 1e-4] in it, and clamped
    and normalised again before it enters the average.

    Args:
        weight: Weight of the second part, 0 or more.
        decay: Decay d of the running average of predictions, in [0, 1].

    Returns:
        The method, with the terms ``label`` and ``history``.

    Source: Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, NeurIPS 2020, equation 6;
    defaults of CIFAR-10 with symmetric noise.

    >>> elr().terms["history"].teacher.decay
    0.7
    """
    return Method(
        {
            "label": supervised(),
            "history": Term(History(decay, clamp=1e-4), LogOneMinusInner(1e-4), weight=weight),
        }
    )


def self_adaptive(decay: Share = 0.9, wait: Share = 0.3) -> Method:
    """Self-adaptive training: after a while the running average of a sample's predictions replaces its label.

    Equation::

        L = - sum_i w_i sum_c t_ic log p_ic / sum_i w_i,  w_i = max_c t_ic
        t_i = y_i in epochs e < wait x epochs (from 0), then  t_i <- d t_i + (1 - d) sg p_i  before it is used

    Args:
        decay: Decay d of the running average of predictions, in [0, 1].
        wait: Share of the epochs that learn from labels alone, in [0, 1].

    Returns:
        The method, with the term ``history``.

    Source: Huang et al., Self-Adaptive Training, NeurIPS 2020, algorithm 1 (60 of 200 epochs of waiting).

    >>> self_adaptive().terms["history"].reduction
    PerTrust()
    """
    teacher = History(decay, start_from="labels", wait=wait)
    return Method({"history": Term(teacher, CrossEntropy(), gate=Confidence(), reduction=PerTrust())})


def selc(decay: Share = 0.9, wait: Share = 0.15) -> Method:
    """SELC: from a turning point on, the running average of a sample's predictions corrects its label.

    Equation::

        L = CE(t_i, p),  t_i = y_i in epochs e < wait x epochs (from 0), then  t_i <- d t_i + (1 - d) sg p_i  before use

    It is `self_adaptive` without weights. ``wait`` is the authors' for CIFAR-10 with 40 % of symmetric noise, 30 of 200
    epochs; they had 30 to 40 for it and 20 to 40 for CIFAR-100.

    Args:
        decay: Decay d of the running average of predictions, in [0, 1].
        wait: Share of the epochs before the turning point, in [0, 1].

    Returns:
        The method, with the term ``history``.

    Departs: The paper estimates the turning point while it trains; the authors' code fixes it, and so does this.

    Source: Lu and He, SELC: Self-Ensemble Label Correction Improves Learning with Noisy Labels, IJCAI 2022.

    >>> selc().terms["history"].teacher.wait
    0.15
    """
    return Method({"history": Term(History(decay, start_from="labels", wait=wait), CrossEntropy())})


def ps_kd(alpha: Share = 0.8) -> Method:
    """Progressive self-knowledge distillation: the prediction of the last epoch replaces the label more and more.

    Equation::

        L = CE((1 - a_t) y + a_t m_i, p),  a_t = alpha (t + 1) / epochs,  m_i <- p_i after each visit; m_i = y before

    The cross-entropy is linear in its target, so the two parts are separate terms here.

    Args:
        alpha: Share of the past prediction at the end of the training, in [0, 1].

    Returns:
        The method, with the terms ``label`` and ``past``.

    Source: Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021, equations 4, 5.

    >>> ps_kd(alpha=0.5).terms["past"].weight
    Linear(start=0.0, end=0.5)
    """
    return Method(
        {
            "label": supervised(weight=Linear(1.0, 1.0 - alpha)),
            "past": Term(LastEpoch(), CrossEntropy(), weight=Linear(0.0, alpha)),
        }
    )


def reweight(clean: Positive | None = None) -> Method:
    """Learning to reweight: a row counts as far as a virtual step on it lowers the loss of rows with clean labels.

    Equation::

        L = sum_i w_i CE(y_i, p_i) / sum_i w_i,  w_i = max(0, -d/de_i mean_j CE(y_j, p_j(theta'))) at e = 0
        theta' = theta - grad sum_i e_i CE(y_i, p_i),  j: rows with clean labels, as many as the batch has

    Where all w_i are 0, none teaches. The clean rows weigh; they teach only if they are training rows as well.

    Args:
        clean: How many validation rows, or which share of them, have the clean labels, and judge no more; above 0. Left
            open, rows that teach and whose label a person decided (``--labels FILE``), or half of the validation rows
            where there are none.

    Returns:
        The method, with the term ``label``.

    Departs: The step is of plain gradient descent from the current weights, whatever the optimizer. ``--label-noise``
    makes validation labels wrong too; those of clean rows are put right, as if a person had checked them.

    Needs: rows with clean labels, of classes.

    Source: Ren et al., Learning to Reweight Examples for Robust Deep Learning, ICML 2018, algorithm 1.

    >>> reweight(clean=100).terms["label"].gate
    CleanGradient(clean='clean')
    """
    label = supervised(gate=CleanGradient(), reduction=PerTrust())
    return Method({"label": label}, views=Views((View("x"), View("clean", "clean")), clean=clean))


def dlb(alpha: Share = 1.0, temperature: Positive = 3.0) -> Method:
    """Self-distillation from the last mini-batch: half of each batch was in the one before, which teaches it.

    Equation::

        L = mean over the batch of CE(y, p) + a T^2 mean over its old half of KL(t^T || p^T)
        t = logits of the same sample one step ago, before the last update, under another augmentation

    An epoch forwards each sample twice. A row is old if it was in the last batch, by sample id; where a shuffle brings
    a sample back at once it counts too.

    Args:
        alpha: Weight a of the last batch's predictions, 0 or more.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``label`` and ``last``.

    Departs: The authors' code uses whole old and new batches in two forward passes; this is the paper's form.

    Source: Shen et al., Self-Distillation from the Last Mini-Batch for Consistency Regularization, CVPR 2022.

    >>> dlb().views.overlap
    True
    """
    return Method(
        {
            "label": supervised(),
            "last": Term(LastBatch(), KL(temperature), weight=alpha),
        },
        views=overlapping(),
    )


def temporal_ensembling(
    weight: NonNegative = 30.0, decay: Share = 0.6, ramp: Share = 80 / 300, labelled: Share = 0.5,
    augment: str = "default",
) -> Method:  # fmt: skip
    """Temporal ensembling: predictions agree with the average of those of earlier epochs, with or without a label.

    Equation::

        L = sum over labelled rows of CE(y, p) / B + w(e) mean over the B rows and C classes of (p - t_i)^2
        t_i = Z_i / (1 - d^e),  Z_i <- d Z_i + (1 - d) p_i after each epoch,  Z_i = 0 at first
        w(e) = weight M / N exp(-5 (1 - e / (ramp x epochs))^2), and 0 in epoch 0;  M of N rows have a label

    Args:
        weight: Weight of the past predictions after the ramp, before the factor M / N; 0 or more.
        decay: Decay d of the accumulated predictions, in [0, 1].
        ramp: Share of the epochs in which the weight rises, in [0, 1].
        labelled: Least share of labelled rows in a batch, in [0, 1), repeated where they are few.
        augment: Augmentation of the rows: 'default' (as the data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label`` and ``past``.

    Departs: Half of a batch is labelled, and rows are augmented as the data are.

    Source: Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017, algorithm 2 (80 of 300 epochs).

    >>> temporal_ensembling().terms["past"].teacher
    Ensembled(decay=0.6)
    """
    squared = Squared(mean=True)
    return Method(
        {
            "label": supervised(reduction=PerView()),
            "past": Term(
                Ensembled(decay), squared, gate=LabelledShare(), weight=EpochRamp(weight, ramp), reduction=PerView()
            ),
        },
        views=Views((View("x", "all", augment),), labelled=labelled),
    )


def selfie(
    noise: float = 0.2, generations: Count = 3, history: Size = 15, threshold: float = 0.05, wait: Share = 0.25
) -> Method:
    """SELFIE: a class that is predicted steadily replaces the label; of other samples those with a small loss teach.

    Equation::

        L = mean over R and S of CE(y~, p),  y~ = the refurbished label in R, else y
        R: rows whose last q predictions had a frequency entropy of at most threshold x log C, now or once before
        S: the ceil((1 - noise) n) of n rows with the smallest CE(y, p)
        in epochs e < wait x epochs (from 0) CE(y, p) over all rows; each generation begins so, and keeps R and y~

    The authors take the true noise, 0.1 to 0.4. ``generations`` is one and their two restarts (their command line makes
    three).

    Args:
        noise: Share of wrong labels, in [0, 1).
        generations: Number of trainings, the first included, 1 or more.
        history: Number q of predictions that a sample's history holds, 1 or more.
        threshold: Largest entropy of a certain history, as a share of log C, in [0, 1].
        wait: Share of the epochs that learn from all labels as they are, in [0, 1].

    Returns:
        The method, with the term ``label``.

    Departs: The authors' code fills a history that is still short with class 0; here such a history is not certain.

    Source: Song, Kim and Lee, SELFIE: Refurbishing Unclean Samples for Robust Deep Learning, ICML 2019, algorithm 1.

    >>> selfie(generations=1).terms["label"].teacher.history
    15
    """
    return Method(
        {"label": Term(Refurbished(noise, history, threshold, wait), CrossEntropy())}, generations=generations
    )


def joint_optimisation(prior: float = 1.2, entropy: float = 0.8, window: Size = 10, wait: Share = 0.35) -> Method:
    """Joint optimisation: a first training learns weights and labels in turn, a second one learns the final labels.

    Equation::

        generation 0:  L = KL(s_i || p) + prior KL(uniform || mean over the batch of p) + entropy H(p)
                       s_i = y_i in epochs e < wait x epochs (from 0), then the mean of the last ``window`` epochs' p_i
        generation 1:  L = KL(s_i || p),  s_i as it stood at the end

    The last two parts keep the labels from becoming one class, and flat. Their weights are those of symmetric noise
    (the code's defaults are 1 and 0.5); the wait is 70 of 200 epochs.

    Args:
        prior: Weight of the term that keeps the classes equally frequent, 0 or more.
        entropy: Weight of the entropy of predictions, 0 or more.
        window: Number of epochs whose predictions are averaged into a label, 1 or more.
        wait: Share of the epochs before labels are replaced, in [0, 1].

    Returns:
        The method, with the terms ``label``, ``prior`` and ``sure``.

    Departs: The authors' second training is shorter (120 epochs) and has another learning rate; here both take the same
    settings.

    Source: Tanaka et al., Joint Optimization Framework for Learning with Noisy Labels, CVPR 2018.

    >>> joint_optimisation().generations
    2
    """
    return Method(
        {
            "label": Term(Relabelled(window, wait), KL()),
            "prior": Term(CurrentStudent(), ClassPrior(), weight=ByGeneration(prior, 0.0)),
            "sure": Term(CurrentStudent(), Entropy(), weight=ByGeneration(entropy, 0.0)),
        },
        generations=2,
    )


def co_teaching(noise: float = 0.4, ramp: Share = 0.05) -> Method:
    """Co-teaching: each of two networks learns the rows on which the other one has a small loss.

    Equation::

        L = sum_k mean over S_l of CE(y, p_k),  l the other network
        S_l = the int((1 - F) n) of the n rows of the batch with the smallest CE(y, p_l)
        F = noise x min(e / (ramp x epochs), 1) in epoch e (from 0)

    The authors take the true noise, 0.2 to 0.5; `selfdistill label-errors` of a run of `elr`, say, estimates it.
    The ramp is 10 of 200 epochs. The first network is the final model.

    Args:
        noise: Share of wrong labels, in [0, 1).
        ramp: Share of the epochs in which the share of dropped rows rises, in [0, 1].

    Returns:
        The method, with the term ``label``.

    Departs: The authors' code ends its ramp one epoch earlier, and divides by the number of rows twice.

    Source: Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels, NeurIPS 2018,
    algorithm 1.

    >>> co_teaching(noise=0.3).terms["label"].gate
    SmallLoss(noise=0.3, ramp=0.05, crossed=True)
    """
    gate = SmallLoss(noise, ramp, crossed=True)  # the mean is over both networks' rows, and the sum twice that
    return Method(
        {"label": supervised(head="peers", gate=gate, weight=2.0, reduction=PerTrust())},
        wrap_model=Group(2),
    )
