"""Gates: each says how far a target is trusted, as a number in [0, 1] for every element, never reduced."""

from __future__ import annotations

from ..core.parts import Always
from .adaptive import ClassProgress, SelfAdaptive, TruncatedGaussian
from .committee import LowVariance, Unanimous
from .confidence import Agreement, Confidence, Confident, Correct, Precision, SmallLoss
from .labels import Annealed, Bagged, FallingLoss, LabelledShare, Shard, Singleton, Spared

__all__ = [
    "Agreement",
    "Always",
    "Annealed",
    "Bagged",
    "ClassProgress",
    "Confidence",
    "Confident",
    "Correct",
    "FallingLoss",
    "LabelledShare",
    "LowVariance",
    "Precision",
    "SelfAdaptive",
    "Shard",
    "Singleton",
    "SmallLoss",
    "Spared",
    "TruncatedGaussian",
    "Unanimous",
]
