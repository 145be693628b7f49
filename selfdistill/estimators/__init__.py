"""Self-distillation of scikit-learn estimators."""

from __future__ import annotations

from .defaults import usual_learner, usual_peers
from .io import load, save
from .network import NetworkClassifier, NetworkRegressor
from .peer_taught import PeerTaughtRegressor
from .resume import keeping
from .self_distilled import SelfDistilledClassifier, SelfDistilledRegressor
from .self_trained import SelfTrainedClassifier

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
