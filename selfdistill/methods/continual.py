"""Learning from a stream of tasks: rows of earlier tasks are replayed, or the earlier model teaches.

A task of a stream is a generation that goes on from the weights of the one before.
"""

from __future__ import annotations

from ..core.objective import Method
from ..core.parts import Term
from ..io.expressions import Count, NonNegative, Positive, Share, Size
from ..losses import CrossEntropy, KnownKL, SquaredLogits
from ..teachers import EarlierTasks, Ema, Stored, StoredLabels
from .controls import supervised


def er(memory: Size = 200, count: Size = 32, weight: NonNegative = 1.0) -> Method:
    """Experience replay: labelled rows of earlier tasks, from a reservoir, are learnt again beside the new ones.

    Equation::

        L = CE(y, p) + w CE(y_r, p(x_r)),  (x_r, y_r) drawn from a uniform sample of all rows so far

    Args:
        memory: Rows that the reservoir holds.
        count: Rows that are drawn from it for each step.
        weight: Weight w of the replayed rows, 0 or more.

    Returns:
        The method, with the terms ``label`` and ``replay``.

    Needs: labelled rows in tasks, one after another.

    Source: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, with reservoir sampling.

    Departs: rows are kept as they were augmented when they came.

    >>> er(50).terms["replay"].teacher.memory
    50
    """
    replay = Term(StoredLabels(memory, count), CrossEntropy(), "replay", weight=weight)
    return Method({"label": supervised(), "replay": replay}, forward="separate")


def der(memory: Size = 200, count: Size = 32, alpha: NonNegative = 1.0) -> Method:
    """Dark experience replay: the student keeps the logits that it gave earlier rows when they came.

    Equation::

        L = CE(y, p) + a mean_c (z_c(x_r) - z_rc)^2,  z_r = the logits of x_r when it entered the reservoir

    Args:
        memory: Rows that the reservoir holds.
        count: Rows that are drawn from it for each step.
        alpha: Weight a of the stored logits, 0 or more.

    Returns:
        The method, with the terms ``label`` and ``stored``.

    Needs: labelled rows in tasks, one after another.

    Source: Buzzega et al., Dark Experience for General Continual Learning: a Strong, Simple Baseline, NeurIPS 2020.

    Departs: rows are kept as they were augmented when they came; each is offered once, in the first epoch.

    >>> list(der().terms)
    ['label', 'stored']
    """
    stored = Term(Stored(memory, count), SquaredLogits(), "stored", weight=alpha)
    return Method({"label": supervised(), "stored": stored}, forward="separate")


def der_pp(
    memory: Size = 200, count: Size = 32, alpha: NonNegative = 1.0, beta: NonNegative = 1.0, refresh: bool = True
) -> Method:
    """Dark experience replay with labels too, whose logits are renewed when a task begins.

    Equation::

        L = CE(y, p) + a mean_c (z_c(x_r) - z_rc)^2 + b CE(y_r', p(x_r')),  two independent draws r and r'

    Args:
        memory: Rows that the reservoir holds.
        count: Rows that are drawn from it for each step, twice.
        alpha: Weight a of the stored logits, 0 or more.
        beta: Weight b of the stored labels, 0 or more.
        refresh: Whether the logits of all stored rows are computed anew by the model that ended the last task.

    Returns:
        The method, with the terms ``label``, ``stored`` and ``replay``.

    Needs: labelled rows in tasks, one after another.

    Source: Buzzega et al., Dark Experience for General Continual Learning: a Strong, Simple Baseline, NeurIPS 2020,
    section 3 (DER++).

    Departs: the paper keeps the logits of the day a row came; ``refresh=False`` does so. Rows are kept as they were
    augmented, and offered once, in the first epoch.

    >>> der_pp(memory=50).terms["stored"].teacher.refresh
    True
    """
    stored = Term(Stored(memory, count, refresh), SquaredLogits(), "stored", weight=alpha)
    replay = Term(StoredLabels(memory, count, refresh), CrossEntropy(), "replay", weight=beta)
    return Method({"label": supervised(), "stored": stored, "replay": replay}, forward="separate")


def er_ema(
    memory: Size = 200, count: Size = 32, weight: NonNegative = 1.0, alpha: NonNegative = 1.0, decay: Share = 0.99
) -> Method:
    """Experience replay with a moving average of the weights, whose logits on replayed rows the student keeps.

    Equation::

        L = CE(y, p) + w CE(y_r, p(x_r)) + a mean_c (z_c(x_r) - z'_c(x_r))^2,  theta' <- d theta' + (1 - d) theta

    Args:
        memory: Rows that the reservoir holds.
        count: Rows that are drawn from it for each step.
        weight: Weight w of the replayed labels, 0 or more.
        alpha: Weight a of the average's logits, 0 or more.
        decay: Decay d of the average, in [0, 1].

    Returns:
        The method, with the terms ``label``, ``replay`` and ``average``.

    Needs: labelled rows in tasks, one after another.

    Source: Arani, Sarfraz and Zonooz, Learning Fast, Learning Slow: A General Continual Learning Method based on
    Complementary Learning System, ICLR 2022, with one average.

    Departs: the paper has two averages, updated at random steps; the average starts anew from the weights of each task.

    >>> er_ema().terms["average"].view
    'replay'
    """
    replay = Term(StoredLabels(memory, count), CrossEntropy(), "replay", weight=weight)
    average = Term(Ema(decay, warm_up=False), SquaredLogits(), "replay", weight=alpha)
    return Method({"label": supervised(), "replay": replay, "average": average}, forward="separate")


def lwf(weight: NonNegative = 1.0, temperature: Positive = 2.0, generations: Count = 2) -> Method:
    """Learning without forgetting: the model of the last task teaches its classes, on the new rows alone.

    Equation::

        L = CE(y, p) + w T^2 KL(t^T || p^T),  both over the classes of earlier tasks; t = the model of the last task

    Args:
        weight: Weight w of the earlier model, 0 or more.
        temperature: Temperature T of both sides, above 0.
        generations: Number of tasks, 2 or more; a stream counts its own.

    Returns:
        The method, with the terms ``label`` and ``earlier``.

    Needs: labelled rows in tasks, one after another.

    Source: Li and Hoiem, Learning without Forgetting, ECCV 2016.

    Departs: one head over all classes instead of one for each task; all layers train at once.

    >>> lwf().generations
    2
    """
    earlier = Term(EarlierTasks(), KnownKL(temperature), weight=weight)
    return Method({"label": supervised(), "earlier": earlier}, generations=generations)
