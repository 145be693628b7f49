"""FixMatch with another answer to the question which targets to trust."""

from __future__ import annotations

from dataclasses import replace

from ..core.objective import Method
from ..core.parts import Gate, PerTrust, Term
from ..gates import ClassProgress, FallingLoss, SelfAdaptive, TruncatedGaussian
from ..losses import CrossEntropy, Sharpened
from ..teachers import Itself, Labels
from ..terms import Fairness
from ..views import weak_strong


def _matching(gate: Gate, weight: float) -> dict[str, Term]:
    """A label, and the best class of the weak view for the strong one."""
    return {
        "label": Term(Labels(), CrossEntropy(), view="labelled"),
        "pseudo": Term(Itself(view="weak"), CrossEntropy(hard=True), view="strong", gate=gate, weight=weight),
    }


def flexmatch(
    confidence: float = 0.95, weight: float = 1.0, mapping: str = "convex", warm_up: bool = True, ratio: float = 7.0
) -> Method:
    """FlexMatch: a lower threshold for the classes of which few rows are sure yet.

    Equation::

        L = CE(y, p(weak x)) + w mean_u 1[max q > c M(b_k)] CE(k, p(strong u)),  q = sg p(weak u),  k = argmax q
        b_k = s_k / max(max s, rows never sure),  s_k = rows last sure (above c) of class k,  M(b) = b / (2 - b)

    s is as the batch before left it; see `ClassProgress` for the choices. All views share one forward.

    Source: Zhang et al., FlexMatch, NeurIPS 2021, algorithm 1 (c = .95, 7 unlabelled rows per labelled one).

    Needs: unlabelled rows.

    >>> flexmatch(warm_up=False).terms["pseudo"].gate
    ClassProgress(threshold=0.95, mapping='convex', warm_up=False)
    """
    return Method(_matching(ClassProgress(confidence, mapping, warm_up), weight), views=weak_strong(ratio))


def freematch(weight: float = 1.0, fairness: float = 0.05, decay: float = 0.999, ratio: float = 7.0) -> Method:
    """FreeMatch: thresholds that follow the confidence, class by class, and answers that are to be diverse.

    Equation::

        L = CE(y, p(weak x)) + w mean_u 1[max q >= t_k] CE(k, p(strong u)) + f L_fair,  q = sg p(weak u),  k = argmax q
        t_k = t m_k / max m,  t <- d t + (1 - d) mean max q,  m <- d m + (1 - d) mean q,  both from 1 / C

    L_fair is in `Fairness`. The means count the batch at hand. The paper's f is .05, and .01 for the fewest labels;
    the authors' configurations have .001. All views share one forward.

    Source: Wang et al., FreeMatch, ICLR 2023.

    Needs: unlabelled rows.

    >>> freematch(decay=0.99).terms["pseudo"].gate
    SelfAdaptive(decay=0.99)
    """
    gate = SelfAdaptive(decay)
    fair = Fairness(Itself(view="weak"), view="strong", gate=gate, weight=fairness)
    return Method({**_matching(gate, weight), "fair": fair}, views=weak_strong(ratio))


def softmatch(
    weight: float = 1.0, decay: float = 0.999, narrow: float = 1.0, aligned: bool = True, ratio: float = 7.0
) -> Method:
    """SoftMatch: trust a target the less, the farther its confidence is below the mean.

    Equation::

        L = CE(y, p(weak x)) + w mean_u v_u CE(argmax q, p(strong u)),  q = sg p(weak u)
        v_u = exp(-min(c_u - m, 0)^2 / (2 (s / narrow)^2)),  c = max of q_k / mean q_k, normalised (uniform alignment)

    m and s^2 are running mean and variance of c, with the batch at hand: see `TruncatedGaussian`. The aligned q weighs
    and does not teach. The paper's equation has s itself; the authors' code halves it (narrow = 2). All views share one
    forward.

    Source: Chen et al., SoftMatch, ICLR 2023.

    Needs: unlabelled rows.

    >>> softmatch(narrow=2.0).terms["pseudo"].gate
    TruncatedGaussian(decay=0.999, narrow=2.0, aligned=True)
    """
    return Method(_matching(TruncatedGaussian(decay, narrow, aligned), weight), views=weak_strong(ratio))


def dash(
    weight: float = 1.0,
    base: float = 1.27,
    floor: float = 0.05,
    warm_up: float = 10 / 1024,
    period: float = 9 / 1024,
    temperature: float = 0.5,
    ratio: float = 7.0,
) -> Method:
    """Dash: trust targets whose own loss is below a threshold that falls from the labels' loss on.

    Equation::

        L = CE(y, p(weak x)) + w sum_u 1[-log max q <= r_t] CE(t_u, p(strong u)) / sum_u 1[...],  q = sg p(weak u)
        r_t = max(1.0001 r / base^k, floor),  t_u = q^(1/T) / sum while r_t > floor, then the best class

    k counts periods of the training after the warm-up, which learns from labels alone; r is the labels' loss at its
    end. The authors' code takes the strong views' loss for r, trains on all of them before, and weighs by .9; shares
    of the training are those of its script.

    Source: Xu et al., Dash: Semi-Supervised Learning with Dynamic Thresholding, ICML 2021, algorithm 1.

    Needs: unlabelled rows.

    >>> list(dash().terms)
    ['label', 'soft', 'hard']
    """
    terms = _matching(FallingLoss(base, 1.0001, floor, warm_up, period, "floor"), weight)
    gate, taught = FallingLoss(base, 1.0001, floor, warm_up, period, "falling"), Sharpened(CrossEntropy(), temperature)
    soft = Term(Itself(view="weak"), taught, view="strong", gate=gate, weight=weight, reduction=PerTrust())
    hard = replace(terms["pseudo"], reduction=PerTrust())
    return Method({"label": terms["label"], "soft": soft, "hard": hard}, views=weak_strong(ratio))
