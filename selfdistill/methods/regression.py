"""Regression: means and variances that teach each other, and methods made for few labels with values."""

from __future__ import annotations

from ..core.objective import Method
from ..core.parts import PerRow, Term
from ..errors import RecipeError
from ..gates import Precision
from ..io.expressions import Count, NonNegative, Ratio, Share
from ..losses import Absolute, GaussianKL, GaussianNLL, LogVariances, MeanNLL, PairCrossEntropy, Squared
from ..models.peers import Gaussian, GaussianGroup, GaussianPair, Ranked
from ..schedules import ByGeneration, Rise
from ..teachers import Aligned, CurrentStudent, Generation, Labels, OtherPeers, Sampled
from ..views import View, Views, weak_strong
from .semi_supervised import risen

RANKUP, UCVME = 2**18, 10_000  # steps from which on weights are constant: RankUp's, and about 30 epochs as UCVME's


def gaussian(beta: float = 0.5) -> Method:
    """Likelihood of the labels under a predicted mean and variance: the control of methods for normal distributions.

    Equation::

        L = sg(s^(2 beta)) [(y - m)^2 / s^2 + log s^2 + log 2 pi] / 2,  log s^2 = 10 tanh(raw / 10)

    Args:
        beta: Power beta of the variance that weighs the likelihood, in [0, 1]; 0 is the plain likelihood.

    Returns:
        The method, with the term ``label``.

    Departs: The bound on the log variance is this package's.

    Source: Seitzer et al., On the Pitfalls of Heteroscedastic Uncertainty Estimation, ICLR 2022.

    >>> gaussian().terms["label"].loss
    GaussianNLL(beta=0.5, shared=False)
    """
    return Method({"label": Term(Labels(), GaussianNLL(beta), head="gaussian")}, wrap_model=Gaussian())


def gaussian_born_again(generations: Count = 2, xi: float = 1.0, beta: float = 0.5) -> Method:
    """Born-again networks for values: every generation imitates mean and variance of the one before it.

    Equation::

        generation 0:  L = NLL_beta(y; m, s)
        generation k:  L = (1 - xi) NLL_beta(y; m, s) + xi KL(N(m_t, s_t^2) || N(m, s^2)),  t = generation k - 1

    xi lies in [0, 1]: at m = xi m_t + (1 - xi) y what stands over 2 s^2 is xi [(1 - xi) (y - m_t)^2 + s_t^2], which for
    xi < 0 is below 0 always, and for xi > 1 wherever abs(y - m_t) > s_t / sqrt(xi - 1); there the loss falls without
    bound as s goes to 0 (beta = 0). Within (0, 1] the teacher's variance bounds it, which labels alone do not.

    Args:
        generations: Number of trainings, the first included, 1 or more.
        xi: Share of the last generation's prediction in the target, in [0, 1]; the label has the rest.
        beta: Power beta of the variance that weighs the likelihood, in [0, 1]; 0 is the plain likelihood.

    Returns:
        The method, with the terms ``label`` and ``past``.

    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018, with the divergence of two normal distributions.

    >>> gaussian_born_again(xi=0.5).terms["past"].loss
    GaussianKL()
    """
    if not 0.0 <= xi <= 1.0:
        raise RecipeError(f"xi lies in [0, 1], where the loss is bounded for every label, not {xi}; mixed() takes any")
    label = Term(Labels(), GaussianNLL(beta), head="gaussian", weight=ByGeneration(1.0, 1.0 - xi))
    teacher = Term(Generation(), GaussianKL(), head="gaussian", weight=ByGeneration(0.0, xi))
    return Method({"label": label, "past": teacher}, wrap_model=Gaussian(), generations=generations)


def gaussian_mutual(peers: Count = 2, weight: NonNegative = 1.0, beta: float = 0.5) -> Method:
    """Deep mutual learning for values: each peer learns the normal distribution that matches the others' mixture.

    Equation::

        L = sum_k [NLL_beta(y; m_k, s_k) + w KL(N(m~_k, s~_k^2) || N(m_k, s_k^2))]
        m~_k = mean_{l != k} m_l,  s~_k^2 = mean_{l != k} s_l^2 + mean_{l != k} (m_l - m~_k)^2,  no gradient

    A peer's variance grows where the others see noise, and where they disagree. The first peer is the final model.

    Args:
        peers: Number K of networks, 2 or more.
        weight: Weight w of the peers' mixture, 0 or more.
        beta: Power beta of the variance that weighs the likelihood, in [0, 1]; 0 is the plain likelihood.

    Returns:
        The method, with the terms ``label`` and ``peers``.

    Source: Zhang et al., Deep Mutual Learning, CVPR 2018, for values; the moments are those of Lakshminarayanan et al.,
    Deep Ensembles, NeurIPS 2017, section 2.4.

    >>> gaussian_mutual(peers=3).wrap_model
    GaussianGroup(peers=3)
    """
    head = "peer_gaussians"
    return Method(
        {
            "label": Term(Labels(), GaussianNLL(beta), head=head, reduction=PerRow()),
            "peers": Term(OtherPeers(), GaussianKL(), head=head, weight=weight, reduction=PerRow()),
        },
        wrap_model=GaussianGroup(peers),
    )


def heteroscedastic(
    generations: Count = 2, weight: NonNegative = 1.0, ratio: Ratio = 1.0, variance: float = 1.0, beta: float = 0.5
) -> Method:
    """Pseudo-labels with a variance: the normal distributions of the last generation, weighed by their precision.

    Equation::

        L = NLL_beta(y; m, s) + w mean_u v / (v + s_t^2) KL(N(m_t, s_t^2) || N(m, s^2)),  t = the last generation on u

    Generation 0 learns from labels alone.

    Args:
        generations: Number of trainings, the first included, 1 or more.
        weight: Weight w of the pseudo-labels, 0 or more.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100.
        variance: Variance v at which a pseudo-label has half its weight, in units of the labels' variance, above 0.
        beta: Power beta of the variance that weighs the likelihood, in [0, 1]; 0 is the plain likelihood.

    Returns:
        The method, with the terms ``label`` and ``pseudo``.

    Departs: This is the form of one level: the variance is learnt by the likelihood. In the paper an uncertainty
    network learns from what a step on the pseudo-labels does to the labelled loss (two levels). The weight and v are
    this package's.

    Needs: unlabelled rows.

    Source: after Sun et al., Semi-Supervised Regression with Heteroscedastic Pseudo-Labels, NeurIPS 2025, without its
    second level.

    >>> heteroscedastic().terms["pseudo"].gate
    Precision(variance=1.0)
    """
    pseudo = Term(Generation(), GaussianKL(), "unlabelled", "gaussian", Precision(variance), ByGeneration(0.0, weight))
    return Method(
        {"label": Term(Labels(), GaussianNLL(beta), "labelled", "gaussian"), "pseudo": pseudo},
        views=Views((View("labelled"), View("unlabelled", "unlabelled")), ratio),
        wrap_model=Gaussian(),
        generations=generations,
    )


def ucvme(weight: NonNegative = 10.0, passes: Count = 5, ratio: Ratio = 1.0, ramp: Share = 0.4) -> Method:
    """UCVME: two networks agree on the variance, and learn the mean of dropout passes of both on unlabelled rows.

    Equation::

        L = mean sum_k { [(y - m_k)^2 exp(-z) + z] / 2 + (z_k - sg z_l)^2 },  z = (z_a + z_b) / 2,  l the other one
          + w(t) mean_u sum_k { [(m_k - m~)^2 exp(-z~) + z~] / 2 + (z_k - z~)^2 }
        m~, z~ = means of m, z = log s^2 over T passes of both networks with dropout on, no gradient

    The sum of (z_k - sg z_l)^2 has the gradient of (z_a - z_b)^2. z~ is a constant that weighs. Without dropout (the
    authors' is 0.05) the passes are equal. The final model is the mixture of both networks.

    Args:
        weight: Weight w of the unlabelled rows, 0 or more.
        passes: Number T of passes with dropout, 1 or more.
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100.
        ramp: Share of a short run in which w rises, in [0, 1]; it shrinks to 0 at 10,000 steps.

    Returns:
        The method, with the terms ``label``, ``agree``, ``mean`` and ``variance``.

    Departs: In a short run w rises. The shared z is that of the authors' code. The final model predicts with dropout
    off, where the authors average passes.

    Needs: unlabelled rows, and a model with dropout: --model 'mlp(dropout=0.05)'.

    Source: Dai, Li and Cheng, Semi-Supervised Deep Regression with Uncertainty Consistency and Variational Model
    Ensembling via Bayesian Neural Networks, AAAI 2023.

    >>> ucvme().terms["mean"].teacher
    Sampled(passes=5)
    """
    head, sampled, rise = "peer_gaussians", Sampled(passes), risen(weight, ramp, UCVME)
    return Method(
        {
            "label": Term(Labels(), GaussianNLL(shared=True), "labelled", head, reduction=PerRow()),
            "agree": Term(OtherPeers(), LogVariances(), "labelled", head, reduction=PerRow()),
            "mean": Term(sampled, MeanNLL(), "unlabelled", head, weight=rise, reduction=PerRow()),
            "variance": Term(sampled, LogVariances(), "unlabelled", head, weight=rise, reduction=PerRow()),
        },
        views=Views((View("labelled"), View("unlabelled", "unlabelled")), ratio),
        wrap_model=GaussianPair(),
    )


def rankup(
    weight: NonNegative = 0.2, confidence: Share = 0.95, ratio: Ratio | None = None, rda: float = 0.0,
    ramp: Share = 0.4, labelled: str = "default", weak: str = "default", strong: str = "strong",
) -> Method:  # fmt: skip
    """RankUp: a second head learns which of two rows has the larger value, by FixMatch on unlabelled pairs.

    Equation::

        L = mean abs(y - f) + w { mean_ij CE(r_ij, p_ij) + a(t) mean_uv 1[max q_uv >= c] CE(argmax q_uv, p(strong)_uv) }
          + rda min(1, t / 0.4) mean_u (f(weak u) - A(f(weak u)))^2
        p_ij = softmax(a_i - a_j), a of two logits;  r_ij: is y_i above y_j?  q = sg p(weak);  all ordered pairs
        A: rank r of N among what was said of all rows in the last epoch -> quantile r / (N - 1) of the labels

    Distribution alignment begins in the second epoch; it supposes that labelled and unlabelled rows share one
    distribution.

    Args:
        weight: Weight w of the ranking, 0 or more.
        confidence: Probability c above which a pair's order counts, in [0, 1].
        ratio: Unlabelled rows for each labelled row of a batch, above 0 and at most 100; left open, 7 in a run of
            2^18 steps and fewer in a shorter one.
        rda: Weight of the distribution alignment, 0 or more; the authors' is 1 where they use it.
        ramp: Share of a short run in which the weight of unlabelled pairs rises, in [0, 1]; none at 2^18 steps.
        labelled, weak, strong: Augmentation of labelled rows and of both views of unlabelled ones: 'default' (as the
            data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label``, ``order`` and ``pairs``.

    Departs: A short run has fewer unlabelled rows and a weight that rises, and weak views are augmented as the data
    are. The authors predict with an average of the weights; here the last ones predict. Their code renews A every 1024
    steps, which is their epoch.

    Needs: unlabelled rows.

    Source: Huang, Fu and Tsao, RankUp: Boosting Semi-Supervised Regression with an Auxiliary Ranking Classifier,
    NeurIPS 2024.

    >>> list(rankup(rda=1.0).terms)
    ['label', 'order', 'pairs', 'aligned']
    """
    terms = {
        "label": Term(Labels(), Absolute(), "labelled", "values"),
        "order": Term(Labels(), PairCrossEntropy(), "labelled", "ranks", weight=weight),
        "pairs": Term(
            CurrentStudent(view="weak"),
            PairCrossEntropy(confidence),
            "strong",
            "ranks",
            weight=risen(weight, ramp, RANKUP),
        ),
    }
    if rda:
        terms["aligned"] = Term(Aligned(), Squared(mean=True), "weak", "values", weight=Rise(rda, 0.4))
    return Method(terms, weak_strong(ratio, labelled, weak, strong, RANKUP), Ranked())
