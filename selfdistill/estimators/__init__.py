"""Self-distillation of scikit-learn estimators."""

from .distilled import SelfDistilledClassifier, SelfDistilledRegressor
from .network import NetworkClassifier, NetworkRegressor
from .peers import PeerTaughtRegressor
from .selftrained import SelfTrainedClassifier
from .storing import load, save

__all__ = [
    "NetworkClassifier", "NetworkRegressor", "PeerTaughtRegressor", "SelfDistilledClassifier",
    "SelfDistilledRegressor", "SelfTrainedClassifier", "load", "save",
]  # fmt: skip
