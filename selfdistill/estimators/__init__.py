"""Self-distillation of scikit-learn estimators."""

from .distilled import SelfDistilledClassifier, SelfDistilledRegressor
from .ledger import keeping
from .network import NetworkClassifier, NetworkRegressor
from .peers import PeerTaughtRegressor
from .selftrained import SelfTrainedClassifier
from .storing import load, save
from .usual import usual_learner, usual_peers

__all__ = [
    "NetworkClassifier", "NetworkRegressor", "PeerTaughtRegressor", "SelfDistilledClassifier",
    "SelfDistilledRegressor", "SelfTrainedClassifier", "keeping", "load", "save", "usual_learner", "usual_peers",
]  # fmt: skip
