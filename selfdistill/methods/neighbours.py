"""The batch as an ensemble of teachers."""

from __future__ import annotations

from ..core import Method, Term
from ..features import Features
from ..losses import KL, CrossEntropy
from ..teachers import Labels, Neighbours
from ..views import Views


def bake(weight: float = 1.0, omega: float = 0.5, temperature: float = 4.0, mates: int = 3) -> Method:
    """BAKE: rows of a batch that look alike agree, by a random walk along the likeness of their features.

    Equation::

        L = CE(y, p) + w T^2 KL(sg Q || p^T),  Q = (1 - omega) (I - omega A)^-1 softmax(z / T)
        A_ij = softmax over j != i of cos(f_i, f_j),  f what the last linear layer sits on

    Of each batch one row in 1 + ``mates`` is drawn, the others are of its class: so neighbours are near. An epoch has
    as many steps as a plain one. Defaults are those of CIFAR-100; the authors take omega 0.9 and one mate for finer
    classes.

    Source: Ge et al., Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification, arXiv
    2104.13298, 2021.

    >>> bake().views.mates
    3
    """
    batch = Term(Neighbours(omega, temperature), KL(temperature), weight=weight)
    terms = {"label": Term(Labels(), CrossEntropy()), "batch": batch}
    return Method(terms, Views(mates=mates), Features(("feature",), maps=False))
