"""Gates: how far is this target trusted? Each returns trust in [0, 1] for every element, never a reduced number."""

from .common import Agreement, Always, Confidence, Confident, Correct, Precision
from .shares import LabelledShare, Shard
from .small_loss import SmallLoss

__all__ = [
    "Agreement",
    "Always",
    "Confidence",
    "Confident",
    "Correct",
    "LabelledShare",
    "Precision",
    "Shard",
    "SmallLoss",
]
