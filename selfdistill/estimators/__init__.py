"""Self-distillation of scikit-learn estimators."""

from .distilled import SelfDistilledClassifier, SelfDistilledRegressor

__all__ = ["SelfDistilledClassifier", "SelfDistilledRegressor"]
