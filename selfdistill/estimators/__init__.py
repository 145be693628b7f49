"""Self-distillation of scikit-learn estimators."""

from .distilled import SelfDistilledClassifier, SelfDistilledRegressor
from .peers import PeerTaughtRegressor
from .selftrained import SelfTrainedClassifier

__all__ = ["PeerTaughtRegressor", "SelfDistilledClassifier", "SelfDistilledRegressor", "SelfTrainedClassifier"]
