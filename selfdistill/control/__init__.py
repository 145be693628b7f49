"""Policies that teach policies: reinforcement learning by stable-baselines3, self-distillation beside it.

``PPO("MlpPolicy", env).learn(200_000, callback=SelfDistil(kickstart("teacher.zip")))``; or ``kickstart().bind(actor)``
in a training loop of one's own. What needs stable-baselines3 is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .actors import Actor, ModuleActor, ObservationLayout, PolicyEnsemble
from .recipes import (
    PolicyMethod,
    PolicyTraining,
    born_again_policy,
    continued,
    dagger,
    iter_policy,
    kickstart,
    policy_distillation,
    policy_peers,
    privileged,
    read_recipe,
    restarted,
    self_imitation,
)

if TYPE_CHECKING:
    from .callback import SelfDistil
    from .store import load_policy, to_sb3
    from .teachers import export_normaliser, hide, read_teacher

_LATER = {
    "SelfDistil": "callback",
    "export_normaliser": "teachers",
    "hide": "teachers",
    "load_policy": "store",
    "read_teacher": "teachers",
    "to_sb3": "store",
}

__all__ = [
    "Actor",
    "ModuleActor",
    "ObservationLayout",
    "PolicyEnsemble",
    "PolicyMethod",
    "PolicyTraining",
    "SelfDistil",
    "born_again_policy",
    "continued",
    "dagger",
    "export_normaliser",
    "hide",
    "iter_policy",
    "kickstart",
    "load_policy",
    "policy_distillation",
    "policy_peers",
    "privileged",
    "read_recipe",
    "read_teacher",
    "restarted",
    "self_imitation",
    "to_sb3",
]


def __getattr__(name: str) -> Any:
    """What needs stable-baselines3.

    Raises:
        DataError: it is not installed.
    """
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..errors import DataError

    try:
        return vars(importlib.import_module(f".{_LATER[name]}", __name__))[name]
    except ModuleNotFoundError as error:
        raise DataError(f"{name} needs {error.name}; pip install 'selfdistill[control]'") from error
