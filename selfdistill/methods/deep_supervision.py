"""Attention maps of layers as teachers of other layers.

The deepest classifier teaches the shallow ones.

Every classifier of a model teaches every other.
"""

from __future__ import annotations

from itertools import pairwise

from ..core.objective import Method
from ..core.parts import PerRow, Term
from ..errors import RecipeError
from ..losses import KL, CrossEntropy, Squared
from ..models.feature_heads import Levels
from ..models.feature_pyramid import SelfTeacher
from ..models.feature_taps import Features
from ..models.heads import Exits
from ..schedules import From
from ..teachers import Itself, Labels

STAGES = ("stages.0", "stages.1", "stages.2")  # of the default models of images


def sad(weight: float = 0.1, wait: float = 0.5, layers: tuple[str, ...] = STAGES) -> Method:
    """Self attention distillation: where a layer looks is taught by where the next one looks.

    Equation::

        L = CE(y, p) + w 1[t >= wait] sum_l ||A(f_l) - sg A(f_{l+1})||^2
        A(f) = softmax over positions of B(sum_c f_c^2),  B = bilinear to the size of f_l

    ``layers`` are names of the model's own, shallow to deep; t is the share of the training, of which the paper leaves
    a first part out, until the model is half trained. The cross-entropy stands for the paper's losses of lanes. A
    public reproduction for images has the weight 1000 on the mean over positions and channels, and enlarges the feature
    before it is squared; this is the paper's order, sum and weight.

    Source: Hou et al., Learning Lightweight Lane Detection CNNs by Self Attention Distillation, ICCV 2019.

    Needs: a model whose layers say maps (cnn, resnet).

    >>> sad(layers=("layer3", "layer4")).terms["attention_0"].head
    'attention:layer3'
    """
    if len(layers) < 2:
        raise RecipeError(f"a layer teaches the one before it: at least two are needed, not {layers!r}")
    terms, heads = {"label": Term(Labels(), CrossEntropy())}, list[str]()
    for number, (here, deeper) in enumerate(pairwise(layers)):
        mine, theirs = f"attention:{here}", f"attention:{deeper}@{here}"
        terms[f"attention_{number}"] = Term(Itself(head=theirs), Squared(), head=mine, weight=From(wait, weight))
        heads += [mine, theirs]
    return Method(terms, wrap_model=Features(tuple(heads)))


def frskd(
    weight: float = 2.0,
    feature: float = 100.0,
    temperature: float = 4.0,
    width: int = 2,
    layers: tuple[str, ...] = STAGES,
) -> Method:
    """Feature refinement: a pyramid fuses the model's own maps, learns the labels, and teaches the model its own maps.

    Equation::

        L = CE(y, p) + CE(y, p_T) + w T^2 KL(sg p_T^T || p^T) + f sum_l mean over positions of (A(F_l) - sg A(T_l))^2
        A(F) = mean_c F_c^2 over positions, of unit length;  T_l the pyramid's map at layer l, p_T its classifier

    ``layers`` are names of the model's own, shallow to deep; the pyramid is ``width`` times as wide. Its cross-entropy
    trains the model too. The paper writes a norm where its code, to which the weight 100 belongs, has the mean of
    squares; the code's second set of lateral convolutions, which the paper has not, is left out.

    Source: Ji et al., Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation, CVPR 2021.

    Needs: a model whose layers say maps (cnn, resnet).

    >>> frskd().terms["teacher"].teacher
    Itself(view=None, head='taught')
    """
    terms = {
        "label": Term(Labels(), CrossEntropy()),
        "taught": Term(Labels(), CrossEntropy(), head="taught"),
        "teacher": Term(Itself(head="taught"), KL(temperature), weight=weight),
    }
    for number, layer in enumerate(layers):
        told = Itself(head=f"pyramid:{layer}")
        terms[f"map_{number}"] = Term(told, Squared(mean=True), head=f"energy:{layer}", weight=feature)
    return Method(terms, wrap_model=SelfTeacher(tuple(layers), width))


def byot(alpha: float = 0.3, temperature: float = 3.0, feature: float = 0.03) -> Method:
    """Be your own teacher: early exits learn from the label, from the deepest exit, and from its feature.

    Equation::

        L = CE(y, p) + sum_i [(1 - a) CE(y, p_i) + a CE(sg p^T, p_i^T) + l ||F_i - sg F||^2]

    i runs over the shallow exits; there is no factor T^2. Prediction works at every exit (`predict --exit N`).

    Source: Zhang et al., Be Your Own Teacher, ICCV 2019, equation 5; the weights are those of a public reproduction.

    Needs: a model with exits (the default models have them).

    >>> byot().terms["deep"].head
    'exits'
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "exits": Term(Labels(), CrossEntropy(), head="exits", weight=1.0 - alpha, reduction=PerRow()),
            "deep": Term(
                Itself(head="logits"), CrossEntropy(temperature), head="exits", weight=alpha, reduction=PerRow()
            ),
            "feature": Term(Itself(head="feature"), Squared(), head="features", weight=feature, reduction=PerRow()),
        },
        wrap_model=Exits(),
    )


def dks(weight: float = 1.0, temperature: float = 1.0) -> Method:
    """Deeply-supervised knowledge synergy: early exits and the last classifier learn from each other, pair by pair.

    Equation::

        L = sum_i CE(y, p_i) + w T^2 sum_{i != j} KL(sg p_j^T || p_i^T)

    i and j run over the exits and the last classifier; all weights are 1, and T is 1, as in the authors' code. A public
    reproduction takes T = 4.

    Source: Sun et al., Deeply-supervised Knowledge Synergy, CVPR 2019.

    Needs: a model with exits (the default models have them).

    >>> dks().terms["synergy"].teacher
    Itself(view=None, head='tutors')
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), head="classifiers", reduction=PerRow()),
            "synergy": Term(Itself(head="tutors"), KL(temperature), head="pupils", weight=weight, reduction=PerRow()),
        },
        wrap_model=Levels(),
    )
