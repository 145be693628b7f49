"""Gates: how far is this target trusted? Each returns trust in [0, 1] for every element, never a reduced number."""

from .adaptive import ClassProgress, SelfAdaptive, TruncatedGaussian
from .common import Agreement, Always, Confidence, Confident, Correct, Precision
from .labelled import Annealed, FallingLoss, Singleton, Spared
from .shares import Bagged, LabelledShare, Shard
from .small_loss import SmallLoss
from .voices import Steady, Unanimous

__all__ = [
    "Agreement", "Always", "Annealed", "Bagged", "ClassProgress", "Confidence", "Confident", "Correct", "FallingLoss",
    "LabelledShare", "Precision", "SelfAdaptive", "Shard", "Singleton", "SmallLoss", "Spared", "Steady",
    "TruncatedGaussian", "Unanimous",
]  # fmt: skip
