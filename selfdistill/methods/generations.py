"""Generations and ensembles: trainings one after another, of which the earlier ones teach the later ones."""

from __future__ import annotations

from dataclasses import replace

from ..core.objective import Method
from ..core.parts import Loss, PerView, Term
from ..errors import RecipeError
from ..io.expressions import Count, NonNegative, Positive, Share, Size
from ..losses import KL, CrossEntropy, DirichletNLL, Squared
from ..models.peers import JointGenerations, WarmGenerations
from ..schedules import AtLast, ByCycle, ByGeneration
from ..teachers import Extrapolated, Generation, GenerationEnsemble, Labels, Members, Snapshot
from ..teachers.self_training import InheritedPseudoLabels
from ..terms import Cooling
from ..views import View, Views
from .controls import supervised


def snapshot_distillation(cycles: Count = 4, temperature: Positive = 2.0, weight: NonNegative = 1.0) -> Method:
    """Snapshot distillation: within one training, the model at the end of a cycle teaches the next cycle.

    Equation::

        cycle 1:  L = CE(y, p)
        cycle k:  L = (1 + 1 / T) CE(y, p) + w KL(t^T || p),  t = the model at the end of cycle k - 1, frozen

    Under the cosine schedule (the default) each cycle starts at the full learning rate.

    Args:
        cycles: Number of cycles of the learning rate, 2 or more.
        temperature: Temperature T of the teacher alone, above 0.
        weight: Weight of the second part, 0 or more.

    Returns:
        The method, with the terms ``label`` and ``past``.

    Departs: No code was published; 4 cycles and T = 2 are this package's, from the range that the paper tries.

    Source: Yang et al., Snapshot Distillation: Teacher-Student Optimization in One Generation, CVPR 2019.

    >>> snapshot_distillation().terms["label"].weight
    ByCycle(cycles=4, first=1.0, later=1.5)
    """
    return Method(
        {
            "label": supervised(weight=ByCycle(cycles, 1.0, 1.0 + 1.0 / temperature)),
            "past": Term(Snapshot(cycles, temperature), KL(), weight=weight),
        }
    )


def born_again_ensemble(generations: Count = 3, xi: float = 1.0, temperature: Positive = 1.0) -> Method:
    """Born-again ensemble: every generation imitates the mean of all before it; the mean of all predicts.

    Equation::

        generation 0:  L = CE(y, p)
        generation k:  L = (1 - xi) CE(y, p) + xi T^2 KL(t^T || p^T),  t = mean of the generations before k, frozen
        prediction:    the mean probability of the generations

    A generation that the audit rolls back neither teaches nor predicts.

    Args:
        generations: Number of trainings, the first included, 1 or more.
        xi: Share of the ensemble's prediction in the target, in [0, 1]; the label has the rest.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``label`` and ``past``.

    Departs: In the paper each generation learns from the last one alone (`born_again`), and the mean of all is the
    ensemble.

    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018, section 3.1.

    >>> born_again_ensemble().terms["past"].teacher
    GenerationEnsemble(view=None, at_last=False)
    """
    return Method(
        {
            "label": supervised(weight=ByGeneration(1.0, 1.0 - xi)),
            "past": Term(GenerationEnsemble(), KL(temperature), weight=ByGeneration(0.0, xi)),
        },
        wrap_model=JointGenerations(),
        generations=generations,
    )


def ensemble_distil(members: Count = 4, alpha: Share = 1.0, temperature: Positive = 1.0) -> Method:
    """Ensemble distillation: several networks learn the labels, then one network learns their mean prediction.

    Equation::

        generations 0 to M - 1:  L = CE(y, p), each from its own start
        generation M:            L = (1 - a) CE(y, p) + a T^2 KL(t^T || p^T),  t = mean of the M, frozen

    The run reports how much of the ensemble's gain over a plain model the single one keeps. The mean is taken before
    the temperature is applied.

    Args:
        members: Number M of members, 1 or more.
        alpha: Share of the teacher's term in the loss, in [0, 1]; the label has the rest.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``label`` and ``ensemble``.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2; the ensemble of
    Lakshminarayanan, Pritzel and Blundell, Deep Ensembles, NeurIPS 2017.

    >>> ensemble_distil(members=3).generations
    4
    """
    return Method(
        {
            "label": supervised(weight=AtLast(1.0, 1.0 - alpha)),
            "ensemble": Term(GenerationEnsemble(at_last=True), KL(temperature), weight=AtLast(0.0, alpha)),
        },
        generations=members + 1,
    )


def end2(members: Count = 4, start: float = 10.0, share: float = 0.5, smoothing: Share = 1e-4) -> Method:
    """Ensemble distribution distillation: one network learns the members' predictions and their disagreement.

    Equation::

        generations 0 to M - 1:  L = CE(y, p), each from its own start
        generation M:            L = - mean_m log Dirichlet(p_m; a),  a = exp(z / T),  p_m = softmax(z_m / T)
        T falls on a line from ``start`` to 1 over ``share`` of the training

    The mean of the Dirichlet distribution is softmax(z), as of any model; the sum of a says how certain it is.

    Args:
        members: Number M of members, 1 or more.
        start: Temperature at the start of the last training, 1 or more.
        share: Share of that training in which it falls to 1, in [0, 1].
        smoothing: Share of the uniform distribution mixed into each member, in [0, 1].

    Returns:
        The method, with the terms ``label`` and ``members``.

    Departs: The paper has ensembles of 100.

    Source: Malinin, Mlodozeniec and Gales, Ensemble Distribution Distillation, ICLR 2020.

    >>> end2().terms["members"].loss
    DirichletNLL(temperature=1.0, smoothing=0.0001)
    """
    members_term = Cooling(
        Members(at_last=True), DirichletNLL(1.0, smoothing), weight=AtLast(0.0, 1.0), start=start, share=share
    )
    return Method(
        {"label": supervised(weight=AtLast(1.0, 0.0)), "members": members_term},
        generations=members + 1,
    )


def beyond(xi: float = 1.5, generations: Count = 2, loss: str = "ce") -> Method:
    """Self-distillation with any weight of the teacher: with label noise the best weight may exceed 1.

    Equation::

        generation 0:  L = l(y, p)
        generation k:  L = l(xi t + (1 - xi) y, p),  t = generation k - 1, frozen, eval mode
        loss="ce":       l = CE, and of the mixed target what is below 0 is cut off, the rest normalised
        loss="squared":  l = ||. - p||^2, as (1 - xi) ||y - p||^2 + xi ||t - p||^2, which is the same but for a constant

    Squared distances of probabilities are bounded for every xi.

    Args:
        xi: Weight of the teacher in the target, any number.
        generations: Number of trainings, the first included, 1 or more.
        loss: Distance from the target, 'ce' or 'squared'.

    Returns:
        The method, with the term ``past``.

    Departs: A cross-entropy with a negative weight has no minimum, so the paper's xi CE(t, p) + (1 - xi) CE(y, p) is
    kept where the target is a distribution (always for xi in [0, 1]; above 1 where t_y >= 1 - 1 / xi), and the cut
    elsewhere is this package's.

    Source: Das and Sanghavi, Understanding Self-Distillation in the Presence of Label Noise, ICML 2023.

    >>> beyond(2.0).terms["past"].teacher.xi
    2.0
    """
    if loss not in ("ce", "squared"):
        raise RecipeError(f"beyond compares by loss='ce' or loss='squared', not {loss!r}")
    if loss == "ce":
        return Method({"past": Term(Extrapolated(xi=xi), CrossEntropy())}, generations=generations)
    label = Term(Labels(), Squared(), weight=ByGeneration(1.0, 1.0 - xi))
    teacher = Term(Generation(), Squared(), weight=ByGeneration(0.0, xi))
    return Method({"label": label, "past": teacher}, generations=generations)


def _generations(generations: int, xi: float, loss: Loss) -> Method:
    """Generation 0 on labels; later ones on (1 - xi) label + xi last generation. xi outside [0, 1] has no minimum."""
    if not 0.0 <= xi <= 1.0:
        raise RecipeError(
            f"the last generation's weight lies in [0, 1], not {xi}: outside, one cross-entropy has a negative weight, "
            "and -log p grows without bound, so the loss has no minimum; for values mixed(xi=...) takes any number"
        )
    return Method(
        {
            "label": supervised(weight=ByGeneration(1.0, 1.0 - xi)),
            "past": Term(Generation(), loss, weight=ByGeneration(0.0, xi)),
        },
        generations=generations,
    )


def born_again(
    generations: Count = 2, xi: float = 1.0, temperature: Positive = 1.0, loss: str = "kl", warm: bool = False
) -> Method:
    """Born-again networks: every generation is initialised anew and imitates the one before it.

    Equation::

        generation 0:  L = CE(y, p)
        generation k:  L = (1 - xi) CE(y, p) + xi T^2 KL(t^T || p^T),  t = generation k-1, frozen, eval mode

    ``loss="ce"`` puts CE(t^T, p^T), without T^2, in the place of the KL; at T = 1 the gradient is the same.

    Args:
        generations: Number of trainings, the first included, 1 or more.
        xi: Share of the last generation's prediction in the target, in [0, 1]; the label has the rest.
        temperature: Temperature of both sides, above 0.
        loss: Distance from the last generation, 'kl' or 'ce'.
        warm: Begin a generation with the weights of the last one, not with new ones. It then begins in agreement with
            its teacher, so that with xi = 1 there is nothing to learn; give xi below 1.

    Returns:
        The method, with the terms ``label`` and ``past``.

    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018, equation 5 (xi = 1, T = 1: no labels).

    >>> born_again(generations=3, xi=0.5).generations
    3
    """
    losses: dict[str, Loss] = {"kl": KL(temperature), "ce": CrossEntropy(temperature)}
    if loss not in losses:
        raise RecipeError(f"born_again compares by loss='kl' or loss='ce', not {loss!r}")
    method = _generations(generations, xi, losses[loss])
    return replace(method, wrap_model=WarmGenerations()) if warm else method


def tf_kd(alpha: Share = 0.95, temperature: Positive = 6.0) -> Method:
    """Teacher-free distillation (self-training form): a trained copy of the model teaches a freshly initialised one.

    Equation::

        L = (1 - a) CE(y, p) + a T^2 KL(t^T || p^T),  t = the pretrained copy, frozen

    Args:
        alpha: Share of the teacher's term in the loss, in [0, 1]; the label has the rest.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``label`` and ``past``.

    Departs: The authors' code averages the KL over classes too and multiplies by 50 (a factor 0.5 at 100 classes); the
    paper's equation has neither.

    Source: Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020, equation 8.

    >>> tf_kd().generations
    2
    """
    return _generations(2, alpha, KL(temperature))


def mixed(xi: float = 0.5, generations: Count = 2) -> Method:
    """Self-distillation for values: the target is a mixture of label and last generation, with any weight.

    Equation::

        generation 0:  L = (y - f)^2
        generation k:  L = (1 - xi) (y - f)^2 + xi (t - f)^2 = (xi t + (1 - xi) y - f)^2 + xi (1 - xi) (t - y)^2

    It is a squared error from the mixed target, and bounded, for xi below 0 and above 1 too; t is generation k - 1,
    frozen, in eval mode.

    Args:
        xi: Weight of the last generation's value in the target, any number.
        generations: Number of trainings, the first included, 1 or more.

    Returns:
        The method, with the terms ``label`` and ``past``.

    Source: Borup and Andersen, Even your Teacher Needs Guidance, NeurIPS 2021 (xi in [0, 1]); Pareek, Du and Oh,
    Understanding the Gains from Repeated Self-Distillation, NeurIPS 2024 (any xi).

    >>> mixed(xi=1.5).terms["label"].weight
    ByGeneration(first=1.0, later=-0.5)
    """
    return Method(
        {
            "label": Term(Labels(), Squared(mean=True), head="values", weight=ByGeneration(1.0, 1.0 - xi)),
            "past": Term(Generation(), Squared(mean=True), head="values", weight=ByGeneration(0.0, xi)),
        },
        generations=generations,
    )


def self_training(
    generations: Count = 11, keep: str = "accumulate", hard: bool = False, fresh: Size = 120, weight: NonNegative = 1.0,
    augment: str = "default",
) -> Method:  # fmt: skip
    """Repeated self-training: each generation starts afresh and learns pseudo-labels of the last accepted one.

    Equation::

        L = mean over rows of [CE(y, p) where labelled, w CE(t, p) where pseudo-labelled]
        t = last accepted generation on the clean row, eval mode; ``fresh`` new rows are labelled each time
        rows of generation 0: labelled; of later ones, by ``keep``:
            "accumulate"  labelled rows and every pseudo-labelled set so far, as first labelled
            "replace"     the newest set alone, which collapses
            "anchor"      the newest set, and labelled rows repeated to the weight (sqrt(k^2 + 4k) - k) / 2
                          for k labelled rows per new one (0.618 at k = 1)

    Sets share no row; when the pool is exhausted it is used again from the start.

    Args:
        generations: Number of trainings, the first included, 1 or more.
        keep: Which rows a generation learns from: 'accumulate', 'replace' or 'anchor'.
        hard: Whether a pseudo-label is the best class; otherwise the probabilities.
        fresh: Number of new rows that each generation labels, 1 or more.
        weight: Weight w of pseudo-labelled rows, 0 or more.
        augment: Augmentation of all rows: 'default' (as the data), 'none', 'weak', 'strong', 'crop' or 'local'.

    Returns:
        The method, with the terms ``label`` and ``pseudo``.

    Needs: unlabelled rows.

    Source: Gerstgrasser et al., Is Model Collapse Inevitable?, arXiv 2404.01413, 2024 (accumulate, replace); He, Xu &
    Cheng, Golden Ratio Weighting Prevents Model Collapse, arXiv 2502.18049, 2025 (anchor).

    >>> self_training(keep="anchor").terms["pseudo"].teacher
    InheritedPseudoLabels(keep='anchor', hard=False, fresh=120)
    """
    label_weight = ByGeneration(1.0, 0.0) if keep == "replace" else 1.0  # no labelled row is drawn later: say so
    return Method(
        {
            "label": supervised(weight=label_weight, reduction=PerView()),
            "pseudo": Term(
                InheritedPseudoLabels(keep, hard, fresh), CrossEntropy(), weight=weight, reduction=PerView()
            ),
        },
        views=Views((View("x", "chosen", augment),)),
        generations=generations,
    )
