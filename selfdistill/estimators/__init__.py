"""Self-distillation of scikit-learn estimators."""

from .distilled import SelfDistilledClassifier, SelfDistilledRegressor
from .network import NetworkClassifier, NetworkRegressor
from .peers import PeerTaughtRegressor
from .selftrained import SelfTrainedClassifier

__all__ = [
    "NetworkClassifier", "NetworkRegressor", "PeerTaughtRegressor", "SelfDistilledClassifier",
    "SelfDistilledRegressor", "SelfTrainedClassifier",
]  # fmt: skip
