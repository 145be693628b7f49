"""Losses: distances of the student from a target, one number per element, never reduced.

A loss is called as ``loss(student, target)`` with the student's raw output (rows, ..., components) and a `Target`, and
returns (rows, ...). ``student_spaces`` and ``target_spaces`` list what it can compare; a method is checked against them
before step 0. A loss on distributions that may be negative declares ``signed = True``, and one that is 0 where the two
differ ``flat = True``; the vitals treat any other as a divergence. All arithmetic is in the student's float32.
"""

from __future__ import annotations

from .distributions import (
    KL,
    Absolute,
    AmongOthers,
    ClassPrior,
    CrossEntropy,
    DirichletNLL,
    Entropy,
    Excluding,
    GaussianKL,
    GaussianNLL,
    KLFromStudent,
    KnownKL,
    LogOneMinusInner,
    LogVariances,
    MeanNLL,
    PairCrossEntropy,
    SelfWeighted,
    Sharpened,
    Squared,
    SquaredLogits,
    check_spaces,
)
from .features import CosineDistance, MeanDistance, PrototypeCrossEntropy

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
    "KnownKL",
    "LogOneMinusInner",
    "LogVariances",
    "MeanDistance",
    "MeanNLL",
    "PairCrossEntropy",
    "PrototypeCrossEntropy",
    "SelfWeighted",
    "Sharpened",
    "Squared",
    "SquaredLogits",
    "check_spaces",
]
