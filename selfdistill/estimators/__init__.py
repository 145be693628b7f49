"""Self-distillation of scikit-learn estimators.

The names below are loaded when they are first used: every command asks whether tables are what it is given, and only
those that learn one need scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .auto import AutoClassifier, AutoRegressor
    from .base_learners import usual_learner, usual_peers
    from .io import load, save
    from .label_errors import LabelErrors
    from .network import NetworkClassifier, NetworkRegressor
    from .resume import keeping
    from .self_distillation import (
        PeerTaughtRegressor,
        SelfDistilledClassifier,
        SelfDistilledRegressor,
        SelfTrainedClassifier,
    )

__all__ = [
    "AutoClassifier",
    "AutoRegressor",
    "LabelErrors",
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

#: the module that defines each public name
_HOMES = {
    "AutoClassifier": "auto",
    "AutoRegressor": "auto",
    "LabelErrors": "label_errors",
    "NetworkClassifier": "network",
    "NetworkRegressor": "network",
    "PeerTaughtRegressor": "self_distillation",
    "SelfDistilledClassifier": "self_distillation",
    "SelfDistilledRegressor": "self_distillation",
    "SelfTrainedClassifier": "self_distillation",
    "keeping": "resume",
    "load": "io",
    "save": "io",
    "usual_learner": "base_learners",
    "usual_peers": "base_learners",
}

if not TYPE_CHECKING:  # a type checker reads the imports above, and knows a name that does not exist

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
