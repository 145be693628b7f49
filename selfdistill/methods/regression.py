"""Methods that were made for values, with few labels and many rows without."""

from __future__ import annotations

from ..core import Method, Term
from ..heads import GaussianPair, Ranked
from ..losses import Absolute, GaussianNLL, LogVariances, MeanNLL, PairCrossEntropy, Squared
from ..schedules import Rise
from ..teachers import Aligned, Itself, Labels, Peers, Sampled
from ..views import Look, Views, weak_strong


def ucvme(weight: float = 10.0, passes: int = 5, ratio: float = 1.0) -> Method:
    """UCVME: two networks agree on the variance, and learn the mean of several passes of both where there is no label.

    Equation::

        L = mean sum_k { [(y - m_k)^2 exp(-z) + z] / 2 + (z_k - sg z_l)^2 },  z = (z_a + z_b) / 2,  l the other one
          + w mean_u sum_k { [(m_k - m~)^2 exp(-z~) + z~] / 2 + (z_k - z~)^2 }
        m~, z~ = means of m, z = log s^2 over T passes of both networks with dropout on, no gradient

    The sum of (z_k - sg z_l)^2 has the gradient of (z_a - z_b)^2. z~ is a constant: it weighs. The shared z is that of
    the authors' code. Needs dropout (theirs is 0.05): without it the passes are equal. The product is the mixture of
    both networks; it speaks with dropout off, where the authors average passes.

    Source: Dai, Li and Cheng, Semi-Supervised Deep Regression with Uncertainty Consistency and Variational Model
    Ensembling via Bayesian Neural Networks, AAAI 2023.

    Needs: unlabelled rows, and a model with dropout: --model 'mlp(dropout=0.05)'.

    >>> ucvme().terms["mean"].teacher
    Sampled(passes=5)
    """
    head, taught = "peer_gaussians", Sampled(passes)
    return Method(
        {
            "label": Term(Labels(), GaussianNLL(shared=True), "labelled", head, mean_over="rows"),
            "agree": Term(Peers(), LogVariances(), "labelled", head, mean_over="rows"),
            "mean": Term(taught, MeanNLL(), "unlabelled", head, weight=weight, mean_over="rows"),
            "variance": Term(taught, LogVariances(), "unlabelled", head, weight=weight, mean_over="rows"),
        },
        views=Views((Look("labelled"), Look("unlabelled", "unlabelled")), ratio),
        prepare=GaussianPair(),
    )


def rankup(weight: float = 0.2, confidence: float = 0.95, ratio: float = 7.0, rda: float = 0.0) -> Method:
    """RankUp: beside the value, which of two rows has the larger one? Of that, FixMatch makes sense without labels.

    Equation::

        L = mean abs(y - f) + w { mean_ij CE(r_ij, p_ij) + mean_uv 1[max q_uv >= c] CE(argmax q_uv, p(strong)_uv) }
          + rda min(1, t / 0.4) mean_u (f(weak u) - A(f(weak u)))^2
        p_ij = softmax(a_i - a_j), a of two logits;  r_ij: is y_i above y_j?  q = sg p(weak);  all ordered pairs
        A: rank r of N among what was said of all rows in the last epoch -> quantile r / (N - 1) of the labels

    ``rda`` is the weight of distribution alignment (theirs, where used, is 1), from the second epoch on; it supposes
    that labelled and unlabelled rows share one distribution. The authors predict with an average of the weights; here
    the last ones do. Their code puts A anew every 1024 steps, which is their epoch.

    Source: Huang, Fu and Tsao, RankUp: Boosting Semi-Supervised Regression with an Auxiliary Ranking Classifier,
    NeurIPS 2024.

    Needs: unlabelled rows.

    >>> list(rankup(rda=1.0).terms)
    ['label', 'order', 'pairs', 'aligned']
    """
    terms = {
        "label": Term(Labels(), Absolute(), "labelled", "values"),
        "order": Term(Labels(), PairCrossEntropy(), "labelled", "ranks", weight=weight),
        "pairs": Term(Itself(view="weak"), PairCrossEntropy(confidence), "strong", "ranks", weight=weight),
    }
    if rda:
        terms["aligned"] = Term(Aligned(), Squared(mean=True), "weak", "values", weight=Rise(rda, 0.4))
    return Method(terms, views=weak_strong(ratio), prepare=Ranked())
