"""Models that say a mean and a variance, and teach both."""

from __future__ import annotations

from ..core import Method, Term
from ..errors import RecipeError
from ..gates import Precision
from ..heads import Gaussian, GaussianGroup
from ..losses import GaussianKL, GaussianNLL
from ..schedules import ByGeneration
from ..teachers import Generation, Labels, Peers
from ..views import Look, Views


def gaussian(beta: float = 0.5) -> Method:
    """Likelihood of the labels under a mean and a variance: no distillation, the control of the others.

    Equation::

        L = sg(s^(2 beta)) [(y - m)^2 / s^2 + log s^2 + log 2 pi] / 2,  log s^2 = 10 tanh(raw / 10)

    Source: Seitzer et al., On the Pitfalls of Heteroscedastic Uncertainty Estimation, ICLR 2022
    (beta = 0: the plain likelihood); the bound of the log variance is ours.

    >>> gaussian().terms["label"].loss
    GaussianNLL(beta=0.5, shared=False)
    """
    return Method({"label": Term(Labels(), GaussianNLL(beta), head="gaussian")}, prepare=Gaussian())


def gaussian_born_again(generations: int = 2, xi: float = 1.0, beta: float = 0.5) -> Method:
    """Born-again networks of values: every generation imitates mean and variance of the one before it.

    Equation::

        generation 0:  L = NLL_beta(y; m, s)
        generation k:  L = (1 - xi) NLL_beta(y; m, s) + xi KL(N(m_t, s_t^2) || N(m, s^2)),  t = generation k - 1

    xi lies in [0, 1]: at m = xi m_t + (1 - xi) y what stands over 2 s^2 is xi [(1 - xi) (y - m_t)^2 + s_t^2], which for
    xi < 0 is below 0 always, and for xi > 1 wherever abs(y - m_t) > s_t / sqrt(xi - 1); there the loss falls without
    bound as s goes to 0 (beta = 0). Within (0, 1] the teacher's variance bounds it, which labels alone do not.

    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018, with the divergence of two normal distributions.

    >>> gaussian_born_again(xi=0.5).terms["past"].loss
    GaussianKL()
    """
    if not 0.0 <= xi <= 1.0:
        raise RecipeError(f"xi lies in [0, 1], where the loss is bounded for every label, not {xi}; mixed() takes any")
    label = Term(Labels(), GaussianNLL(beta), head="gaussian", weight=ByGeneration(1.0, 1.0 - xi))
    past = Term(Generation(), GaussianKL(), head="gaussian", weight=ByGeneration(0.0, xi))
    return Method({"label": label, "past": past}, prepare=Gaussian(), generations=generations)


def gaussian_mutual(peers: int = 2, weight: float = 1.0, beta: float = 0.5) -> Method:
    """Deep mutual learning of values: each of K peers learns the normal distribution that matches the others' mixture.

    Equation::

        L = sum_k [NLL_beta(y; m_k, s_k) + w KL(N(m~_k, s~_k^2) || N(m_k, s_k^2))]
        m~_k = mean_{l != k} m_l,  s~_k^2 = mean_{l != k} s_l^2 + mean_{l != k} (m_l - m~_k)^2,  no gradient

    So a peer is unsure where the others see noise, and where they disagree. The first peer is the product.

    Source: Zhang et al., Deep Mutual Learning, CVPR 2018, for values; the moments are those of Lakshminarayanan et al.,
    Deep Ensembles, NeurIPS 2017, section 2.4.

    >>> gaussian_mutual(peers=3).prepare
    GaussianGroup(peers=3)
    """
    head = "peer_gaussians"
    return Method(
        {
            "label": Term(Labels(), GaussianNLL(beta), head=head, mean_over="rows"),
            "peers": Term(Peers(), GaussianKL(), head=head, weight=weight, mean_over="rows"),
        },
        prepare=GaussianGroup(peers),
    )


def heteroscedastic(
    generations: int = 2, weight: float = 1.0, ratio: float = 1.0, variance: float = 1.0, beta: float = 0.5
) -> Method:
    """Pseudo-labels with a variance: the last generation's normal distributions, trusted as far as they are precise.

    Equation::

        L = NLL_beta(y; m, s) + w mean_u v / (v + s_t^2) KL(N(m_t, s_t^2) || N(m, s^2)),  t = the last generation on u

    v is ``variance``, in units of the labels' variance. Generation 0 learns labels alone. This is the form of one
    level: the variance is what the likelihood has taught. In the paper an uncertainty network is taught by what a step
    on the pseudo-labels does to the labelled loss (two levels), which this is not; the trust and v are ours.

    Source: after Sun et al., Semi-Supervised Regression with Heteroscedastic Pseudo-Labels, NeurIPS 2025, without its
    second level.

    Needs: unlabelled rows.

    >>> heteroscedastic().terms["pseudo"].gate
    Precision(variance=1.0)
    """
    pseudo = Term(Generation(), GaussianKL(), "unlabelled", "gaussian", Precision(variance), ByGeneration(0.0, weight))
    return Method(
        {"label": Term(Labels(), GaussianNLL(beta), "labelled", "gaussian"), "pseudo": pseudo},
        views=Views((Look("labelled"), Look("unlabelled", "unlabelled")), ratio),
        prepare=Gaussian(),
        generations=generations,
    )
