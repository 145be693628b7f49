"""Self-distillation of scikit-learn estimators."""

from .distilled import SelfDistilledClassifier, SelfDistilledRegressor
from .peers import PeerTaughtRegressor

__all__ = ["PeerTaughtRegressor", "SelfDistilledClassifier", "SelfDistilledRegressor"]
