"""Losses: each is the distance of the student from a target, one number per element, never reduced.

A loss is called as ``loss(student, target)`` with the student's raw output (rows, ..., components) and a `Target`, and
returns (rows, ...). ``student_spaces`` and ``target_spaces`` say what it can compare; a method is checked against them
before step 0. A loss on distributions that may be negative says ``signed = True``, and one that is 0 where the two
differ says ``flat = True``; of others the vitals expect a divergence. All arithmetic is in the student's float32.
"""

from __future__ import annotations

from .batch_level import MeanDistance
from .distributions import (
    KL,
    Absolute,
    ClassPrior,
    CrossEntropy,
    Entropy,
    Excluding,
    GaussianKL,
    GaussianNLL,
    LogOneMinusInner,
    LogVariances,
    MeanNLL,
    PairCrossEntropy,
    Sharpened,
    Squared,
    check_spaces,
)
from .ensembles import DirichletNLL, KLFromStudent
from .ranking import AmongOthers, SelfWeighted
from .self_supervised import CosineDistance, PrototypeCrossEntropy

__all__ = [
    "KL",
    "Absolute",
    "AmongOthers",
    "ClassPrior",
    "CosineDistance",
    "CrossEntropy",
    "DirichletNLL",
    "Entropy",
    "Excluding",
    "GaussianKL",
    "GaussianNLL",
    "KLFromStudent",
    "LogOneMinusInner",
    "LogVariances",
    "MeanDistance",
    "MeanNLL",
    "PairCrossEntropy",
    "PrototypeCrossEntropy",
    "SelfWeighted",
    "Sharpened",
    "Squared",
    "check_spaces",
]
