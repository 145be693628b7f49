"""Gates: the trust in each element of a target, a number in [0, 1], never reduced."""

from __future__ import annotations

from ..core.parts import Always
from .adaptive import ClassProgress, SelfAdaptive, TruncatedGaussian
from .confidence import (
    Agreement,
    Confidence,
    Confident,
    Correct,
    ErrorBound,
    LowVariance,
    Precision,
    SmallLoss,
    Unanimous,
)
from .labels import Annealed, Bagged, CleanGradient, FallingLoss, LabelledShare, PeerShard, Singleton, Spared

__all__ = [
    "Agreement",
    "Always",
    "Annealed",
    "Bagged",
    "ClassProgress",
    "CleanGradient",
    "Confidence",
    "Confident",
    "Correct",
    "ErrorBound",
    "FallingLoss",
    "LabelledShare",
    "LowVariance",
    "PeerShard",
    "Precision",
    "SelfAdaptive",
    "Singleton",
    "SmallLoss",
    "Spared",
    "TruncatedGaussian",
    "Unanimous",
]
