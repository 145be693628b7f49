"""Self-distillation of scikit-learn estimators."""

from __future__ import annotations

from .base_learners import usual_learner, usual_peers
from .io import load, save
from .network import NetworkClassifier, NetworkRegressor
from .resume import keeping
from .self_distillation import (
    PeerTaughtRegressor,
    SelfDistilledClassifier,
    SelfDistilledRegressor,
    SelfTrainedClassifier,
)

__all__ = [
    "NetworkClassifier",
    "NetworkRegressor",
    "PeerTaughtRegressor",
    "SelfDistilledClassifier",
    "SelfDistilledRegressor",
    "SelfTrainedClassifier",
    "keeping",
    "load",
    "save",
    "usual_learner",
    "usual_peers",
]
