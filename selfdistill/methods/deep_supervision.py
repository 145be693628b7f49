"""Deep supervision: exits, attention maps and feature maps inside one model teach each other."""

from __future__ import annotations

from itertools import pairwise

from ..core.objective import Method
from ..core.parts import PerRow, Term
from ..errors import RecipeError
from ..io.expressions import NonNegative, Positive, Share, Size
from ..losses import KL, CrossEntropy, Squared
from ..models.feature_heads import Levels
from ..models.feature_pyramid import SelfTeacher
from ..models.feature_taps import Features
from ..models.heads import Exits
from ..schedules import From
from ..teachers import CurrentStudent
from .controls import supervised

STAGES = ("stages.0", "stages.1", "stages.2")  # of the default models of images


def sad(weight: NonNegative = 0.1, wait: Share = 0.5, layers: tuple[str, ...] = STAGES) -> Method:
    """Self attention distillation: each layer's attention map learns from that of the next deeper layer.

    Equation::

        L = CE(y, p) + w 1[t >= wait] sum_l ||A(f_l) - sg A(f_{l+1})||^2
        A(f) = softmax over positions of B(sum_c f_c^2),  B = bilinear to the size of f_l

    t is the share of the training that is over.

    Args:
        weight: Weight of each pair of layers, 0 or more.
        wait: Share of the training before the second part begins, in [0, 1].
        layers: Names of the model's layers, shallow to deep, at least two.

    Returns:
        The method, with the terms ``label``, ``attention_0`` and ``attention_1``.

    Departs: The cross-entropy stands for the paper's losses of lanes. A public reproduction for images has the weight
    1000 on the mean over positions and channels, and enlarges the feature before it is squared; this is the paper's
    order, sum and weight.

    Needs: a model whose layers say maps (cnn, resnet).

    Source: Hou et al., Learning Lightweight Lane Detection CNNs by Self Attention Distillation, ICCV 2019.

    >>> sad(layers=("layer3", "layer4")).terms["attention_0"].head
    'attention:layer3'
    """
    if len(layers) < 2:
        raise RecipeError(f"a layer teaches the one before it: at least two are needed, not {layers!r}")
    terms, heads = {"label": supervised()}, list[str]()
    for number, (layer, deeper) in enumerate(pairwise(layers)):
        student, target = f"attention:{layer}", f"attention:{deeper}@{layer}"
        terms[f"attention_{number}"] = Term(
            CurrentStudent(head=target), Squared(), head=student, weight=From(wait, weight)
        )
        heads += [student, target]
    return Method(terms, wrap_model=Features(tuple(heads)))


def frskd(
    weight: NonNegative = 2.0, feature: NonNegative = 100.0, temperature: Positive = 4.0, width: Size = 2,
    layers: tuple[str, ...] = STAGES,
) -> Method:  # fmt: skip
    """Feature refinement: a pyramid fuses the model's feature maps, learns the labels, and teaches the model.

    Equation::

        L = CE(y, p) + CE(y, p_T) + w T^2 KL(sg p_T^T || p^T) + f sum_l mean over positions of (A(F_l) - sg A(T_l))^2
        A(F) = mean_c F_c^2 over positions, of unit length;  T_l the pyramid's map at layer l, p_T its classifier

    The pyramid's cross-entropy trains the model too.

    Args:
        weight: Weight of the pyramid's predictions, 0 or more.
        feature: Weight f of the pyramid's maps, 0 or more.
        temperature: Temperature of both sides, above 0.
        width: Width of the pyramid as a multiple of the model's, 1 or more.
        layers: Names of the model's layers, shallow to deep.

    Returns:
        The method, with the terms ``label``, ``taught``, ``teacher``, ``map_0``, ``map_1`` and ``map_2``.

    Departs: The paper writes a norm where its code, to which the weight 100 belongs, has the mean of squares, as here.
    The code's second set of lateral convolutions, which the paper does not have, is left out.

    Needs: a model whose layers say maps (cnn, resnet).

    Source: Ji et al., Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation, CVPR 2021.

    >>> frskd().terms["teacher"].teacher
    CurrentStudent(view=None, head='taught')
    """
    terms = {
        "label": supervised(),
        "taught": supervised(head="taught"),
        "teacher": Term(CurrentStudent(head="taught"), KL(temperature), weight=weight),
    }
    for number, layer in enumerate(layers):
        teacher = CurrentStudent(head=f"pyramid:{layer}")
        terms[f"map_{number}"] = Term(teacher, Squared(mean=True), head=f"energy:{layer}", weight=feature)
    return Method(terms, wrap_model=SelfTeacher(tuple(layers), width))


def byot(alpha: Share = 0.3, temperature: Positive = 3.0, feature: NonNegative = 0.03) -> Method:
    """Be your own teacher: early exits learn from the label, from the last classifier, and from its feature.

    Equation::

        L = CE(y, p) + sum_i [(1 - a) CE(y, p_i) + a CE(sg p^T, p_i^T) + l ||F_i - sg F||^2]

    i runs over the shallow exits; there is no factor T^2. Prediction works at every exit (`predict --exit N`).

    Args:
        alpha: Share of the deepest exit's prediction, in [0, 1]; the label has the rest.
        temperature: Temperature of both sides, above 0.
        feature: Weight l of the squared distance of features, 0 or more.

    Returns:
        The method, with the terms ``label``, ``exits``, ``deep`` and ``feature``.

    Needs: a model with exits (the default models have them).

    Source: Zhang et al., Be Your Own Teacher, ICCV 2019, equation 5; the weights are those of a public reproduction.

    >>> byot().terms["deep"].head
    'exits'
    """
    return Method(
        {
            "label": supervised(),
            "exits": supervised(head="exits", weight=1.0 - alpha, reduction=PerRow()),
            "deep": Term(
                CurrentStudent(head="logits"), CrossEntropy(temperature), head="exits", weight=alpha, reduction=PerRow()
            ),
            "feature": Term(
                CurrentStudent(head="feature"), Squared(), head="features", weight=feature, reduction=PerRow()
            ),
        },
        wrap_model=Exits(),
    )


def dks(weight: NonNegative = 1.0, temperature: Positive = 1.0) -> Method:
    """Deeply-supervised knowledge synergy: early exits and the last classifier all learn from each other, pair by pair.

    Equation::

        L = sum_i CE(y, p_i) + w T^2 sum_{i != j} KL(sg p_j^T || p_i^T)

    i and j run over the exits and the last classifier.

    Args:
        weight: Weight w of the pairs, 0 or more.
        temperature: Temperature of both sides, above 0.

    Returns:
        The method, with the terms ``label`` and ``synergy``.

    Departs: All weights are 1 and T is 1, as in the authors' code; a public reproduction takes T = 4.

    Needs: a model with exits (the default models have them).

    Source: Sun et al., Deeply-supervised Knowledge Synergy, CVPR 2019.

    >>> dks().terms["synergy"].teacher
    CurrentStudent(view=None, head='tutors')
    """
    return Method(
        {
            "label": supervised(head="classifiers", reduction=PerRow()),
            "synergy": Term(
                CurrentStudent(head="tutors"), KL(temperature), head="pupils", weight=weight, reduction=PerRow()
            ),
        },
        wrap_model=Levels(),
    )
