"""Losses: how far is the student from the target? Each returns one number per element and never reduces.

A loss is called as ``loss(student, target)`` with the student's raw output (rows, ..., components) and a `Target`,
and returns (rows, ...). ``student_spaces`` and ``target_spaces`` say what it can compare; a method is checked against
them before step 0. A loss on distributions that may be negative says ``signed = True``, and one that is 0 where the two
differ says ``flat = True``; of others the vitals expect a divergence. All arithmetic is in the student's float32.
"""

from .common import (
    KL,
    Absolute,
    CrossEntropy,
    GaussianKL,
    GaussianNLL,
    LogOneMinusInner,
    LogVariances,
    MeanNLL,
    PairCrossEntropy,
    Squared,
    check_spaces,
)  # fmt: skip
from .ensembles import DirichletNLL, ReverseKL
from .noise import ClassPrior, Entropy

__all__ = [
    "KL", "Absolute", "ClassPrior", "CrossEntropy", "DirichletNLL", "Entropy", "GaussianKL", "GaussianNLL",
    "LogOneMinusInner", "LogVariances", "MeanNLL", "PairCrossEntropy", "ReverseKL", "Squared", "check_spaces",
]  # fmt: skip
