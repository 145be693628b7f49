"""The label, and what the model makes of it at the moment.

The model's own history corrects wrong labels.

What the model said before, of the same sample, is its teacher now.

Labels are replaced, for good, by what the model came to say of the sample.

Samples with a small loss are probably labelled right.
"""

from __future__ import annotations

from ..core.objective import Method
from ..core.parts import PerTrust, PerView, Term
from ..gates import Confidence, LabelledShare, SmallLoss
from ..losses import KL, ClassPrior, CrossEntropy, Entropy, LogOneMinusInner, Squared
from ..models.peers import Group
from ..schedules import ByGeneration, EpochRamp, Linear
from ..teachers import Ensembled, History, Itself, Labels, LastBatch, LastEpoch, Refurbished, Relabelled
from ..views import View, Views, overlapping


def soft_bootstrapping(beta: float = 0.95) -> Method:
    """Soft bootstrapping: the label mixed with your prediction of now, which is to be sure.

    Equation::

        L = CE(b y + (1 - b) p, p) = b CE(y, p) + (1 - b) H(p)

    The prediction in the target has a gradient too: without it the second part would have none at all.

    Source: Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2015.

    >>> soft_bootstrapping(0.9).terms["label"].weight
    0.9
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=beta),
            "sure": Term(Itself(), Entropy(), weight=1.0 - beta),
        }
    )


def hard_bootstrapping(beta: float = 0.8) -> Method:
    """Hard bootstrapping: the label mixed with your best class of now.

    Equation::

        L = b CE(y, p) + (1 - b) CE(argmax p, p)

    Source: Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2015.

    >>> hard_bootstrapping().terms["best"].loss.hard
    True
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=beta),
            "best": Term(Itself(), CrossEntropy(hard=True), weight=1.0 - beta),
        }
    )


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

    >>> self_adaptive().terms["history"].reduction
    PerTrust()
    """
    teacher = History(decay, start_from="labels", wait=wait)
    return Method({"history": Term(teacher, CrossEntropy(), gate=Confidence(), reduction=PerTrust())})


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


def ps_kd(alpha: float = 0.8) -> Method:
    """Progressive self-knowledge distillation: trust your prediction of the last epoch more and more.

    Equation::

        L = CE((1 - a_t) y + a_t m_i, p),  a_t = alpha (t + 1) / epochs,  m_i <- p_i after each visit; m_i = y before

    The cross-entropy is linear in its target, so the two parts are separate terms here.

    Source: Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021, equations 4, 5.

    >>> ps_kd(alpha=0.5).terms["past"].weight
    Linear(start=0.0, end=0.5)
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=Linear(1.0, 1.0 - alpha)),
            "past": Term(LastEpoch(), CrossEntropy(), weight=Linear(0.0, alpha)),
        }
    )


def dlb(alpha: float = 1.0, temperature: float = 3.0) -> Method:
    """Self-distillation from the last mini-batch: half of each batch was in the one before, and says the same again.

    Equation::

        L = mean over the batch of CE(y, p) + a T^2 mean over its old half of KL(t^T || p^T)
        t = logits of the same sample one step ago, before the last update, under another augmentation

    Batches are half old, half new, so an epoch forwards each sample twice. "Old" is whatever was in the last batch, by
    sample id; where a shuffle brings a sample back at once it counts too. The authors' code uses whole old and new
    batches in two forwards; this is the paper's form.

    Source: Shen et al., Self-Distillation from the Last Mini-Batch for Consistency Regularization, CVPR 2022.

    >>> dlb().views.overlap
    True
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "last": Term(LastBatch(), KL(temperature), weight=alpha),
        },
        views=overlapping(),
    )


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
            "label": Term(Labels(), CrossEntropy(), reduction=PerView()),
            "past": Term(
                Ensembled(decay), past, gate=LabelledShare(), weight=EpochRamp(weight, ramp), reduction=PerView()
            ),
        },
        views=Views((View("x", "all", "weak"),)),
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


def co_teaching(noise: float = 0.4, ramp: float = 0.05) -> Method:
    """Co-teaching: two networks, and each learns the labels that the other one finds easy.

    Equation::

        L = sum_k mean over S_l of CE(y, p_k),  l the other network
        S_l = the int((1 - F) n) of the n rows of the batch with the smallest CE(y, p_l)
        F = noise x min(e / (ramp x epochs), 1) in epoch e (from 0)

    ``noise`` is the share of wrong labels, which the authors know (0.2 to 0.5); estimate it by `selfdistill doubts` of
    an `elr` run, say. The ramp is 10 of 200 epochs; their code is through with it one epoch earlier, and divides by the
    rows twice. The first network is the product.

    Source: Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels, NeurIPS 2018,
    algorithm 1.

    >>> co_teaching(noise=0.3).terms["label"].gate
    SmallLoss(noise=0.3, ramp=0.05, crossed=True)
    """
    easy = SmallLoss(noise, ramp, crossed=True)  # the mean is over both networks' rows, and the sum twice that
    return Method(
        {"label": Term(Labels(), CrossEntropy(), head="peers", gate=easy, weight=2.0, reduction=PerTrust())},
        wrap_model=Group(2),
    )
