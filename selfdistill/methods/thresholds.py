"""FixMatch with other thresholds: each method weighs its pseudo-labels by a gate of its own."""

from __future__ import annotations

from dataclasses import replace

from ..core.objective import Method
from ..core.parts import PerTrust, Term
from ..gates import ClassProgress, FallingLoss, SelfAdaptive, TruncatedGaussian
from ..io.expressions import NonNegative, Positive, Ratio, Share
from ..losses import CrossEntropy, Sharpened
from ..schedules import RunDecay, RunShare
from ..teachers import CurrentStudent
from ..terms import Fairness
from ..views import weak_strong
from .semi_supervised import matching, risen


def flexmatch(
    confidence: Share = 0.95,
    weight: NonNegative = 1.0,
    mapping: str = "convex",
    warm_up: bool = True,
    ratio: Ratio | None = None,
    ramp: Share = 0.4,
    labelled: str = "default",
    weak: str = "default",
    strong: str = "strong",
) -> Method:
    """FlexMatch: FixMatch with a lower threshold for classes of which few rows are predicted with confidence.

    Equation::

        L = CE(y, p(x)) + w(t) mean_u 1[max q > c M(b_k)] CE(k, p(strong u)),  q = sg p(weak u),  k = argmax q
        b_k = s_k / max(max s, rows never sure),  s_k = rows last sure (above c) of class k,  M(b) = b / (2 - b)

    s is as the batch before left it; see `ClassProgress`. All views share one forward pass.

    Args:
        confidence: Threshold c of the class learnt best, in [0, 1].
        weight: Weight of the pseudo-labels, 0 or more.
        mapping: The function M: 'convex', 'linear' or 'concave'; see `ClassProgress`.
        warm_up: Whether rows that were never sure count in the denominator of b.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            2^20 steps and fewer in a shorter one.
        ramp: Share of a short run in which the weight rises, in [0, 1]; it shrinks to 0 at 2^20 steps.
        labelled, weak, strong: Augmentation of labelled rows and of both views of unlabelled ones: 'default' (as the
            data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label`` and ``pseudo``.

    Departs: A short run has fewer unlabelled rows and a weight that rises, and weak views are augmented as the data
    are.

    Needs: unlabelled rows.

    Source: Zhang et al., FlexMatch, NeurIPS 2021, algorithm 1 (c = .95, 7 unlabelled rows per labelled one).

    >>> flexmatch(warm_up=False).terms["pseudo"].gate
    ClassProgress(threshold=0.95, mapping='convex', warm_up=False)
    """
    terms = matching(ClassProgress(confidence, mapping, warm_up), risen(weight, ramp))
    return Method(terms, views=weak_strong(ratio, labelled, weak, strong))


def freematch(
    weight: NonNegative = 1.0,
    fairness: float = 0.05,
    decay: Share | None = None,
    ratio: Ratio | None = None,
    ramp: Share = 0.4,
    labelled: str = "default",
    weak: str = "default",
    strong: str = "strong",
) -> Method:
    """FreeMatch: FixMatch with thresholds that follow the confidence in each class, and a fairness term.

    Equation::

        L = CE(y, p(x)) + w(t) mean_u 1[max q >= t_k] CE(k, p(strong u)) + f(t) L_fair
        q = sg p(weak u),  k = argmax q
        t_k = t m_k / max m,  t <- d t + (1 - d) mean max q,  m <- d m + (1 - d) mean q,  both from 1 / C

    L_fair is in `Fairness`. The means count the batch at hand. All views share one forward pass.

    Args:
        weight: Weight of the pseudo-labels, 0 or more.
        fairness: Weight f of the fairness term, 0 or more.
        decay: Decay d of the running means, in [0, 1); left open, .999 in a run of 2^20 steps, and in a shorter one
            that of as large a share of it, but at least .9.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            2^20 steps and fewer in a shorter one.
        ramp: Share of a short run in which the weight rises, in [0, 1]; it shrinks to 0 at 2^20 steps.
        labelled, weak, strong: Augmentation of labelled rows and of both views of unlabelled ones: 'default' (as the
            data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label``, ``pseudo`` and ``fair``.

    Departs: A short run has fewer unlabelled rows, a weight that rises, and means of fewer steps, and weak views are
    augmented as the data are. The paper's f is .05, and .01 for the fewest labels; the authors' configurations have
    .001.

    Needs: unlabelled rows.

    Source: Wang et al., FreeMatch, ICLR 2023.

    >>> freematch(decay=0.99).terms["pseudo"].gate
    SelfAdaptive(decay=0.99)
    """
    gate = SelfAdaptive(RunDecay(0.999, 2**20) if decay is None else decay)
    fair = Fairness(CurrentStudent(view="weak"), view="strong", gate=gate, weight=risen(fairness, ramp))
    terms = {**matching(gate, risen(weight, ramp)), "fair": fair}
    return Method(terms, views=weak_strong(ratio, labelled, weak, strong))


def softmatch(
    weight: NonNegative = 1.0,
    decay: Share | None = None,
    narrow: float = 1.0,
    aligned: bool = True,
    ratio: Ratio | None = None,
    ramp: Share = 0.4,
    labelled: str = "default",
    weak: str = "default",
    strong: str = "strong",
) -> Method:
    """SoftMatch: FixMatch with weights that fall off as a Gaussian below the mean confidence, in place of a threshold.

    Equation::

        L = CE(y, p(x)) + w(t) mean_u v_u CE(argmax q, p(strong u)),  q = sg p(weak u)
        v_u = exp(-min(c_u - m, 0)^2 / (2 (s / narrow)^2)),  c = max of q_k / mean q_k, normalised (uniform alignment)

    m and s^2 are running mean and variance of c, with the batch at hand: see `TruncatedGaussian`. The aligned q weighs
    and does not teach. All views share one forward pass.

    Args:
        weight: Weight of the pseudo-labels, 0 or more.
        decay: Decay of the running mean m and variance s^2, in [0, 1); left open, as that of `freematch`.
        narrow: Number that divides the deviation s, above 0.
        aligned: Whether confidences are aligned to uniform class frequencies.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            2^20 steps and fewer in a shorter one.
        ramp: Share of a short run in which the weight rises, in [0, 1]; it shrinks to 0 at 2^20 steps.
        labelled, weak, strong: Augmentation of labelled rows and of both views of unlabelled ones: 'default' (as the
            data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label`` and ``pseudo``.

    Departs: Short runs and weak views differ as in `freematch`. The paper's equation has s itself, as here; the
    authors' code halves it (``narrow=2``).

    Needs: unlabelled rows.

    Source: Chen et al., SoftMatch, ICLR 2023.

    >>> softmatch(decay=0.99, narrow=2.0).terms["pseudo"].gate
    TruncatedGaussian(decay=0.99, narrow=2.0, aligned=True)
    """
    gate = TruncatedGaussian(RunDecay(0.999, 2**20) if decay is None else decay, narrow, aligned)
    return Method(matching(gate, risen(weight, ramp)), views=weak_strong(ratio, labelled, weak, strong))


def dash(
    weight: NonNegative = 1.0, base: float = 1.27, floor: float = 0.05, warm_up: float | None = None, period: float |
    None = None, temperature: Positive = 0.5, ratio: Ratio | None = None, ramp: Share = 1.0, labelled: str = "default",
    weak: str = "default", strong: str = "strong",
) -> Method:  # fmt: skip
    """Dash: FixMatch that trusts pseudo-labels whose own loss is below a threshold, which falls over time.

    Equation::

        L = CE(y, p(x)) + w(t) sum_u 1[-log max q <= r_t] CE(t_u, p(strong u)) / sum_u 1[...],  q = sg p(weak u)
        r_t = max(1.0001 r / base^k, floor),  t_u = q^(1/T) / sum while r_t > floor, then the best class

    k counts periods of the training after the warm-up; r is the labels' loss at its end.

    Args:
        weight: Weight of the pseudo-labels, 0 or more.
        base: Base of the threshold's decay, 1 or more.
        floor: Least threshold on the loss, above 0.
        warm_up: Share of the training that learns from labels alone, in [0, 1]; left open, 10 / 1024 in a run of 2^20
            steps and up to .4 in a shorter one.
        period: Share of the training after which the threshold falls by one factor ``base``, above 0; left open,
            9 / 1024 in a run of 2^20 steps and up to .08 in a shorter one.
        temperature: Temperature T that sharpens targets while the threshold falls, above 0.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            2^20 steps and fewer in a shorter one.
        ramp: Share of a short run in which the weight rises, in [0, 1]; it shrinks to 0 at 2^20 steps.
        labelled, weak, strong: Augmentation of labelled rows and of both views of unlabelled ones: 'default' (as the
            data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label``, ``soft`` and ``hard``.

    Departs: Short runs and weak views differ as in `freematch`. The authors' code takes the strong views' loss for r,
    trains on all of them before, and weighs by .9. The shares of the training are those of its script.

    Needs: unlabelled rows.

    Source: Xu et al., Dash: Semi-Supervised Learning with Dynamic Thresholding, ICML 2021, algorithm 1.

    >>> list(dash().terms)
    ['label', 'soft', 'hard']
    """
    waits = RunShare(10 / 1024, 0.4) if warm_up is None else warm_up
    each = RunShare(9 / 1024, 0.08) if period is None else period
    terms = matching(FallingLoss(base, 1.0001, floor, waits, each, "floor"), risen(weight, ramp))
    gate = FallingLoss(base, 1.0001, floor, waits, each, "falling")
    sharp = Sharpened(CrossEntropy(), temperature)
    soft = Term(
        CurrentStudent(view="weak"), sharp, view="strong", gate=gate, weight=risen(weight, ramp), reduction=PerTrust()
    )
    hard = replace(terms["pseudo"], reduction=PerTrust())
    return Method({"label": terms["label"], "soft": soft, "hard": hard}, weak_strong(ratio, labelled, weak, strong))
