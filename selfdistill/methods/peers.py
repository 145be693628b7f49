"""Peers: networks or branches that train together and teach each other."""

from __future__ import annotations

from dataclasses import replace

from ..core.objective import LeastSteps, Method
from ..core.parts import PerRow, PerTrust, Schedule, Term
from ..gates import Bagged, Confident, PeerShard, Unanimous
from ..io.expressions import Count, NonNegative, Positive, Ratio, Share, Size
from ..losses import KL, CrossEntropy, KLFromStudent
from ..models.peers import Apart, Attending, Gated, Group
from ..schedules import After, EpochRamp, Rise
from ..teachers import Combined, CurrentStudent, Labels, OtherPeers, Stale
from ..views import BudgetRatio, View, Views
from .controls import supervised


def co_training(
    confidence: Share = 0.95, weight: NonNegative = 1.0, share: float = 0.632, ratio: Ratio | None = None,
    ramp: Share = 0.4, labelled: str = "default", unlabelled: str = "default",
) -> Method:  # fmt: skip
    """Co-training: each of two networks learns the labels that the other one gives with confidence.

    Equation::

        L = K mean over drawn (row, k) of CE(y, p_k) + w sum_k mean_u 1[max q_l >= c] CE(argmax q_l, p_k(u))

    l is the other network and q_l its prediction, without gradient. Rows that fail the gate count as zero. The first
    network is the final model.

    Args:
        confidence: Probability c from which the other network's best class counts, in [0, 1].
        weight: Weight w of the unlabelled rows, 0 or more.
        share: Share of the labelled rows that each network sees, in (0, 1].
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            2^20 steps and fewer in a shorter one.
        ramp: Share of the training in which the weight rises from 0, in [0, 1].
        labelled, unlabelled: Augmentation of labelled and of unlabelled rows: 'default' (as the data), 'none', 'weak',
            'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label`` and ``other``.

    Departs: The weight rises, and a short run has fewer unlabelled rows. The paper has two sets of features each of
    which suffices; here the two differ by their first weights and by the labelled rows that each sees. The paper moves
    the most confident rows into the labelled set, round by round; here the labels are given anew at every step.

    Needs: unlabelled rows.

    Source: Blum and Mitchell, Combining Labeled and Unlabeled Data with Co-Training, COLT 1998.

    >>> co_training(confidence=0.8).terms["other"].gate
    Confident(threshold=0.8)
    """
    method = _each_other(2, Confident(confidence), Rise(weight, ramp), share, ratio, (labelled, unlabelled))
    return replace(method, least=LeastSteps("co_training", 500))


def tri_training(
    weight: NonNegative = 1.0, share: float = 0.632, ratio: Ratio | None = None, ramp: Share = 0.4,
    labelled: str = "default", unlabelled: str = "default",
) -> Method:  # fmt: skip
    """Tri-training: each of three networks learns the labels on which the other two agree.

    Equation::

        L = K mean over drawn (row, k) of CE(y, p_k) + w sum_k mean_u 1[argmax p_i = argmax p_j] CE(argmax p_i, p_k(u))

    i and j are the other two, without gradient. Rows on which they differ count as zero. The first network is the final
    model.

    Args:
        weight: Weight w of the unlabelled rows, 0 or more.
        share: Share of the labelled rows that each network sees, in (0, 1].
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            2^20 steps and fewer in a shorter one.
        ramp: Share of the training in which the weight rises from 0, in [0, 1].
        labelled, unlabelled: Augmentation of labelled and of unlabelled rows: 'default' (as the data), 'none', 'weak',
            'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label`` and ``other``.

    Departs: The weight rises, and a short run has fewer unlabelled rows. In the paper each of the three draws a
    bootstrap of the labels; here it has the share of rows that a bootstrap would have, fixed for each. The paper refits
    whole classifiers in rounds and takes a round only where the error that it estimates falls; here each step is taken,
    and the audit judges the whole.

    Needs: unlabelled rows.

    Source: Zhou and Li, Tri-Training: Exploiting Unlabeled Data Using Three Classifiers, IEEE TKDE 2005.

    >>> tri_training().wrap_model
    Group(peers=3)
    """
    method = _each_other(3, Unanimous(), Rise(weight, ramp), share, ratio, (labelled, unlabelled))
    return replace(method, least=LeastSteps("tri_training", 500))


def _each_other(
    peers: int, gate: Confident | Unanimous, weight: Schedule, share: float, ratio: float | None,
    augment: tuple[str, str],
) -> Method:  # fmt: skip
    """Labels on the rows that each has drawn, and of the others on unlabelled rows; a sum over the peers."""
    bag, hard = Bagged(share), CrossEntropy(hard=True)
    rows = View("labelled", "labelled", augment[0]), View("unlabelled", "unlabelled", augment[1])
    return Method(
        {
            "label": supervised("labelled", "peers", gate=bag, weight=float(peers), reduction=PerTrust()),
            "other": Term(OtherPeers(), hard, "unlabelled", "peers", gate, weight=weight, reduction=PerRow()),
        },
        views=Views(rows, BudgetRatio(7.0) if ratio is None else ratio),
        wrap_model=Group(peers),
    )


def one(branches: Count = 3, temperature: Positive = 3.0, weight: NonNegative = 1.0, ramp: Share = 80 / 300) -> Method:
    """ONE: branches on a shared trunk learn from their weighted sum, whose weights a gate computes from the trunk.

    Equation::

        L = sum_k CE(y, p_k) + CE(y, p_e) + w(e) sum_k T^2 KL(sg p_e^T || p_k^T)
        z_e = sum_k g_k z_k,  g = softmax(relu(BN(linear(trunk, pooled)))),  w(e) = weight exp(-5 (1 - e / ramp)^2)

    The gate learns from the second part alone. The first branch, with the trunk, is the final model. Passes are counted
    as if each branch were a whole model. Ramp and T are those of the authors' code.

    Args:
        branches: Number of branches, 2 or more.
        temperature: Temperature of both sides, above 0.
        weight: Weight after the ramp, 0 or more.
        ramp: Share of the epochs in which the weight rises, in [0, 1].

    Returns:
        The method, with the terms ``label``, ``gate`` and ``sum``.

    Needs: a model with stages (the default models have them).

    Source: Lan, Zhu and Gong, Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018.

    >>> one().wrap_model
    Gated(peers=3)
    """
    teacher, schedule = CurrentStudent(head="gated"), EpochRamp(weight, ramp)
    return Method(
        {
            "label": supervised(head="peers", reduction=PerRow()),
            "gate": supervised(head="gated"),
            "sum": Term(teacher, KL(temperature), head="peers", weight=schedule, reduction=PerRow()),
        },
        wrap_model=Gated(branches),
    )


def okddip(
    branches: Count = 4, temperature: Positive = 3.0, weight: NonNegative = 1.0, ramp: Share = 80 / 300
) -> Method:
    """OKDDip: each peer learns a mean of the others that it weighs itself, and a leader learns from the plain mean.

    Equation::

        L = sum_k CE(y, p_k) + CE(y, p_l) + w(e) T^2 [sum_k KL(t_k^T || p_k^T) + KL(m^T || p_l^T)]
        t_k = sum_j a_kj z_j,  a_k = softmax over j of <W_q f_k, W_k f_j>,  m = mean_j z_j,  w(e) as in `one`

    Targets learn too, or the attention would not. Of KL(t || p) each side's half is a term of its own here, so that a
    loss shows both: KL with t held constant, and reverse KL with p held constant. The leader is the final model.

    Args:
        branches: Number of branches with the leader, 3 or more.
        temperature: Temperature of both sides, above 0.
        weight: Weight after the ramp, 0 or more.
        ramp: Share of the epochs in which the weight rises, in [0, 1].

    Returns:
        The method, with the terms ``label``, ``leader``, ``peers``, ``attention``, ``group`` and ``pull``.

    Needs: a model with stages (the default models have them).

    Source: Chen et al., Online Knowledge Distillation with Diverse Peers, AAAI 2020; ramp and T of the authors' code.

    >>> okddip().terms["attention"].head
    'attended'
    """
    schedule, kl, reverse_kl = EpochRamp(weight, ramp), KL(temperature), KLFromStudent(temperature)
    return Method(
        {
            "label": supervised(head="peers", reduction=PerRow()),
            "leader": supervised(),
            "peers": Term(CurrentStudent(head="attended"), kl, head="peers", weight=schedule, reduction=PerRow()),
            "attention": Term(
                CurrentStudent(head="peers"), reverse_kl, head="attended", weight=schedule, reduction=PerRow()
            ),
            "group": Term(CurrentStudent(head="mean"), kl, weight=schedule),
            "pull": Term(CurrentStudent(head="logits"), reverse_kl, head="mean", weight=schedule),
        },
        wrap_model=Attending(branches),
    )


def kdcl(
    combination: str = "naive", peers: Count = 2, weight: NonNegative = 1.0, temperature: Positive = 2.0
) -> Method:
    """KDCL: peers see a sample each in an augmentation of its own, and learn one target combined from all of them.

    Equation::

        L = sum_k [CE(y, p_k) + w T^2 KL(sg t^T || p_k^T)],  p_k of the k-th view, t from all z_k by ``combination``:
            "naive"    the z_k with the smallest CE(y, p_k)
            "linear"   sum_k a_k z_k, the convex combination with the smallest CE to y
            "minlogit" of each class c the smallest z_kc - z_ky
            "general"  sum_k w_k z_k, w_k = sum_j (C^-1)_kj / sum_ij (C^-1)_ij, C of the peers' errors, after each epoch

    C is estimated on training rows without augmentation, never on the audit split. The first peer is the final model.

    Args:
        combination: How peers are combined: 'naive', 'linear', 'minlogit' or 'general'.
        peers: Number K of networks, 2 or more.
        weight: Weight of the second part, 0 or more.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``label0``, ``label1``, ``peers0`` and ``peers1``.

    Source: Guo et al., Online Knowledge Distillation via Collaborative Learning, CVPR 2020; there is no public code.

    >>> kdcl("minlogit").terms["peers0"].teacher
    Combined(how='minlogit', views=('x0', 'x1'))
    """
    views = tuple(f"x{k}" for k in range(peers))
    teacher, loss = Combined(combination, views), KL(temperature)
    labels = {f"label{k}": supervised(view) for k, view in enumerate(views)}
    peer_terms = {f"peers{k}": Term(teacher, loss, view, weight=weight) for k, view in enumerate(views)}
    augmented = tuple(View(view, "labelled", "weak") for view in views)
    return Method({**labels, **peer_terms}, views=Views(augmented), wrap_model=Apart(peers))


def codistillation(peers: Count = 2, weight: NonNegative = 1.0, every: Size = 50, burn_in: float = 0.1) -> Method:
    """Codistillation: peers with data of their own learn from old copies of each other.

    Equation::

        L = sum_k mean over the rows of peer k of [CE(y, p_k) + w(t) CE(mean_{l != k} sg p'_l, p_k)]
        p' by weights that are copied every ``every`` steps;  w(t) = 0 until ``burn_in`` of the training is over

    Each peer has a K-th of the samples, by a hash of their ids, and forwards the whole batch. The first peer is the
    final model.

    Args:
        peers: Number K of networks, 2 or more.
        weight: Weight of the second part, 0 or more.
        every: Steps between two exchanges of weights, 1 or more.
        burn_in: Share of the training before the second part begins, in [0, 1].

    Returns:
        The method, with the terms ``label`` and ``peers``.

    Departs: Burn-in and exchange are this package's; the paper's were set per data set.

    Source: Anil et al., Large Scale Distributed Neural Network Training through Online Distillation, ICLR 2018,
    algorithm 1.

    >>> codistillation().terms["peers"].teacher
    Stale(every=50)
    """
    shard, loss, w = (
        PeerShard(),
        CrossEntropy(),
        float(peers),
    )  # the mean is over the rows of all peers
    return Method(
        {
            "label": Term(Labels(), loss, head="peers", gate=shard, weight=w, reduction=PerTrust()),
            "peers": Term(Stale(every), loss, "x", "peers", shard, After(w * weight, burn_in), PerTrust()),
        },
        wrap_model=Group(peers),
    )


def mutual(peers: Count = 2, weight: NonNegative = 1.0) -> Method:
    """Deep mutual learning: K networks train together, each taught by the mean of the others.

    Equation::

        L = sum_k [CE(y, p_k) + w KL(mean_{l != k} sg p_l || p_k)]

    The gradient is that of the paper's (1 / (K - 1)) sum_l KL(p_l || p_k): the KL's derivative is linear in its target.
    All peers see the same batch, one forward pass each. The first peer is the final model; head ``ensemble`` is the
    mean of all.

    Args:
        peers: Number K of networks, 2 or more.
        weight: Weight of the second part, 0 or more.

    Returns:
        The method, with the terms ``label`` and ``peers``.

    Source: Zhang et al., Deep Mutual Learning, CVPR 2018, equations 4 and 7.

    >>> mutual(peers=3).wrap_model
    Group(peers=3)
    """
    return Method(
        {
            "label": supervised(head="peers", reduction=PerRow()),
            "peers": Term(OtherPeers(), KL(), head="peers", weight=weight, reduction=PerRow()),
        },
        wrap_model=Group(peers),
    )
