"""The model folder of a policy: ``policy.safetensors`` and ``config.json``; it is loaded without the training code.

``to_sb3`` makes a model of stable-baselines3 of it again. There is no zip, since a zip of stable-baselines3 holds
pickles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor, nn

from ..errors import CheckpointError, DataError
from ..io.expressions import Range, one_line
from ..io.files import FORMAT, check_format
from ..io.schema import read_json, refuse_misfits
from ..io.tensors import read_tensors, write_json, write_tensors
from ..models.store import POLICY
from .environments import OWN, Environment

ENGINES: dict[str, type[PPO] | type[A2C]] = {"ppo": PPO, "a2c": A2C}
TENSORS, CONFIG = POLICY, "config.json"
NORMALIZER = "normalizer."  # what the names of a normaliser's statistics begin with
CLASSES: dict[str, type[ActorCriticPolicy]] = {
    "MlpPolicy": ActorCriticPolicy,
    "CnnPolicy": ActorCriticCnnPolicy,
    "MultiInputPolicy": MultiInputActorCriticPolicy,
}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Tanh, nn.ReLU, nn.ELU, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.Sigmoid)
}

_CONFIG = {
    "format": Any,
    "kind": frozenset({"policy"}),
    "engine": frozenset({*ENGINES}),
    "policy": frozenset({*CLASSES}),
    "observation": dict,
    "action": dict,
    "net": ([Range(1, 2**20)], {str: [Range(1, 2**20)]}),
    "activation": frozenset({*ACTIVATIONS}),
    "hidden": [str],
    "environment": {"module": str, "id": str, "sees": (str, None), "kwargs": dict},
    "versions": {str: str},
    "normalizer": ({"clip": float, "epsilon": float}, None),
}


class VisibleExtractor(CombinedExtractor):
    """SB3's extractor of Dict observations that leaves keys out, so that a rollout may hold what the policy never sees.

    Its weights are those of a policy whose observations lack these keys.

    Args:
        observation_space: with all keys.
        hidden: the keys that are left out.
        cnn_output_dim, normalized_image: as of SB3's.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        hidden: Sequence[str] = (),
        cnn_output_dim: int = 256,
        normalized_image: bool = False,
    ) -> None:
        super().__init__(visible(observation_space, hidden), cnn_output_dim, normalized_image)
        self.hidden = tuple(hidden)


def visible(space: spaces.Dict, hidden: Sequence[str]) -> spaces.Dict:
    """The space of an observation without some keys."""
    return spaces.Dict({key: part for key, part in space.spaces.items() if key not in hidden})


def policy_arguments(
    space: spaces.Space[Any], hidden: Sequence[str] = (), net: Sequence[int] | None = None
) -> tuple[str, dict[str, Any]]:
    """The name of the policy class of stable-baselines3 for an observation, and its arguments.

    Args:
        space: of the observation.
        hidden: keys that the policy does not see.
        net: sizes of the hidden layers; None for the usual ones.
    """
    options: dict[str, Any] = {} if net is None else {"net_arch": list(net)}
    if isinstance(space, spaces.Dict):
        if hidden:
            options |= {"features_extractor_class": VisibleExtractor, "features_extractor_kwargs": {"hidden": hidden}}
        return "MultiInputPolicy", options
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy", options


def describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space as JSON.

    >>> describe_space(spaces.Discrete(2))
    {'kind': 'Discrete', 'n': 2}

    Raises:
        DataError: it is of a kind that no policy is trained on.
    """
    match space:
        case spaces.Dict():
            return {"kind": "Dict", "parts": [[key, describe_space(part)] for key, part in space.spaces.items()]}
        case spaces.Box():
            bounds = {"low": _numbers(space.low), "high": _numbers(space.high)}
            return {"kind": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
        case spaces.Discrete():
            return {"kind": "Discrete", "n": int(space.n)}
        case spaces.MultiDiscrete():
            return {"kind": "MultiDiscrete", "n": [int(n) for n in space.nvec]}
        case spaces.MultiBinary():
            return {"kind": "MultiBinary", "n": int(space.shape[0])}
    raise DataError(f"{one_line(space, 80)} is no space that a policy is trained on")


def _numbers(bound: Any) -> list[float | str]:
    """The bounds of a Box, one where all are equal; infinite ones as text, since JSON has none."""
    flat = np.unique(bound) if len(np.unique(bound)) == 1 else bound.ravel()
    return [float(value) if math.isfinite(value) else str(float(value)) for value in flat]


def read_space(described: Mapping[str, Any]) -> spaces.Space[Any]:
    """The space of a description.

    >>> read_space(describe_space(spaces.Discrete(2)))
    Discrete(2)
    """
    kind = described["kind"]
    if kind == "Dict":
        return spaces.Dict({key: read_space(part) for key, part in described["parts"]})
    if kind == "Box":
        shape, dtype = tuple(described["shape"]), np.dtype(described["dtype"])
        if dtype.kind not in "fiub":
            raise ValueError(f"dtype {dtype}")
        low, high = (_bound(described[end], shape, dtype) for end in ("low", "high"))
        return spaces.Box(low, high, dtype=dtype.type)
    kinds: dict[str, Callable[[Any], spaces.Space[Any]]] = {
        "Discrete": spaces.Discrete,
        "MultiDiscrete": spaces.MultiDiscrete,
        "MultiBinary": spaces.MultiBinary,
    }
    return kinds[kind](described["n"])


def _bound(numbers: Sequence[float | str], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The bound of a Box from `_numbers`."""
    values = np.array([float(value) for value in numbers])
    return np.broadcast_to(values.reshape(shape if len(values) > 1 else ()), shape).astype(dtype)


def save_policy(
    folder: Path, model: OnPolicyAlgorithm, environment: Environment | None = None, hidden: Sequence[str] = ()
) -> None:
    """Write the policy of a model, with the statistics of its normaliser if it has one.

    Args:
        folder: the model folder; it is made.
        model: of stable-baselines3.
        environment: what it was trained on; without it the one that the model has.
        hidden: keys of the observation that the policy does not see.

    Raises:
        CheckpointError: the folder cannot be written.
        DataError: the policy is of a kind that cannot be saved, such as a recurrent one.
    """
    policy, space = model.policy, model.observation_space
    kind = next((name for name, one in CLASSES.items() if type(policy) is one), None)
    engine = next((name for name, one in ENGINES.items() if type(model) is one), None)
    activation = policy.activation_fn.__name__
    if kind is None or engine is None or ACTIVATIONS.get(activation) is not policy.activation_fn:
        raise DataError(
            f"a {type(policy).__name__} of {type(model).__name__} with {activation} cannot be saved; give PPO or A2C "
            f"with {', '.join(CLASSES)} and {', '.join(ACTIVATIONS)}"
        )
    spec = None if model.env is None or environment else model.env.get_attr("spec")[0]
    source = environment or Environment("", "" if spec is None else spec.id)
    seen = visible(space, hidden) if isinstance(space, spaces.Dict) else space
    statistics, normalizer = _statistics(model.get_vec_normalize_env(), hidden)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, {**_weights(policy), **statistics})
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "kind": "policy",
            "engine": engine,
            "policy": kind,
            "observation": describe_space(seen),
            "action": describe_space(model.action_space),
            "net": policy.net_arch,
            "activation": activation,
            "hidden": list(hidden),
            "environment": {
                "module": source.module,
                "id": source.id,
                "sees": source.sees,
                "kwargs": registered_options(source.id),
            },
            "versions": {name: version(name) for name in ("gymnasium", "stable-baselines3", "torch")},
            "normalizer": normalizer,
        },
    )


def _weights(policy: ActorCriticPolicy) -> dict[str, Tensor]:
    """The weights, each once: a shared extractor has several names."""
    names = [name for name, _ in policy.named_parameters()] + [name for name, _ in policy.named_buffers()]
    state = policy.state_dict()
    return {name: state[name].detach().cpu().clone() for name in names if name in state}


def registered_options(name: str) -> dict[str, Any]:
    """The arguments that an environment is registered with, as far as JSON holds them."""
    spec = gym.registry.get(name)
    given = {} if spec is None else spec.kwargs
    return {name: value for name, value in given.items() if isinstance(value, bool | int | float | str)}


def _statistics(normalizer: VecNormalize | None, hidden: Sequence[str]) -> tuple[dict[str, Tensor], Any]:
    """The running mean and variance of observations as tensors, and the numbers beside them."""
    if normalizer is None or not normalizer.norm_obs:
        return {}, None
    means = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {OWN: normalizer.obs_rms}
    tensors = {
        f"{NORMALIZER}{key}.{name}": torch.as_tensor(np.array(value))
        for key, rms in means.items()
        if key not in hidden
        for name, value in (("mean", rms.mean), ("var", rms.var))
    }
    return tensors, {"clip": float(normalizer.clip_obs), "epsilon": float(normalizer.epsilon)}


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of a model folder's config.json.

    Raises:
        CheckpointError: there is none, or it is damaged or foreign.
    """
    path = folder / CONFIG
    if not (folder / TENSORS).exists():
        raise CheckpointError(f"{folder} holds no policy ({TENSORS}); give the folder of a finished run of gym:ID")
    try:
        config: dict[str, Any] = read_json(path, _CONFIG)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or foreign ({one_line(error, 120)}); run it again") from error
    check_format(path, config["format"])
    return config


def model_folder(folder: Path | str) -> Path:
    """The folder of a policy, given itself or the run folder around it."""
    path = Path(folder)
    return path / "model" if (path / "model" / TENSORS).exists() else path


def load_policy(folder: Path | str) -> ActorCriticPolicy:
    """The policy of a run or model folder, on the CPU and in eval mode; it reads what the student saw.

    Args:
        folder: the folder of a run, or the ``model`` in it.

    Raises:
        CheckpointError: it holds no policy, or something damaged or foreign.
    """
    place = model_folder(folder)
    config, tensors = read_config(place), read_tensors(place / TENSORS)
    with refuse_misfits(place, "run it again"):
        options = {"net_arch": config["net"], "activation_fn": ACTIVATIONS[config["activation"]]}
        with torch.random.fork_rng(devices=[]):
            policy = CLASSES[config["policy"]](
                read_space(config["observation"]), read_space(config["action"]), lambda _: 0.0, **options
            )
        _load(policy, tensors)
    return policy.eval()


def _load(policy: ActorCriticPolicy, tensors: Mapping[str, Tensor]) -> None:
    """Put saved weights into a policy; a shared extractor gets them by its first name."""
    weights = {name: value for name, value in tensors.items() if not name.startswith(NORMALIZER)}
    missing, unexpected = policy.load_state_dict(weights, strict=False)
    own = {name for name, _ in policy.named_parameters()}
    if not all(bool(torch.isfinite(weight).all()) for weight in policy.parameters()):
        raise ValueError("a weight is nan or infinite")
    if unexpected or own & set(missing):
        raise ValueError(f"its weights do not fit: {', '.join([*unexpected, *(own & set(missing))][:3])}")


def to_sb3(folder: Path | str, env: gym.Env[Any, Any] | VecEnv) -> OnPolicyAlgorithm:
    """A model of stable-baselines3 with a saved policy, to go on with or to deploy.

    Args:
        folder: the folder of a run, or the ``model`` in it.
        env: what the model shall act in. A Dict may have keys that the policy does not see; an observation that is no
            Dict is taken for the one that the student saw beside the teacher's view.

    Returns:
        The model; where the policy was trained on normalised observations, its environment normalises by the saved
        statistics.

    Raises:
        CheckpointError: the folder holds no policy, or something damaged or foreign.
        DataError: the environment has other observations or actions.
    """
    place = model_folder(folder)
    config, tensors = read_config(place), read_tensors(place / TENSORS)
    with refuse_misfits(place, "run it again"):
        observation, action = read_space(config["observation"]), read_space(config["action"])
    if not isinstance(env, VecEnv):
        single = _as_dict(env) if isinstance(observation, spaces.Dict) else env
        env = DummyVecEnv([lambda: single])
    env = PPO._wrap_env(env)  # images with their channels first
    space = env.observation_space
    hidden: list[str] = []
    if isinstance(observation, spaces.Dict) and isinstance(space, spaces.Dict):
        hidden = [key for key in space.spaces if key not in observation.spaces]
        space = visible(space, hidden)
    for what, ours, theirs in (("observations", observation, space), ("actions", action, env.action_space)):
        if describe_space(theirs) != describe_space(ours):
            raise DataError(
                f"the policy of {folder} was trained on {what} of {one_line(ours, 120)}, and the environment has "
                f"{one_line(theirs, 120)}; give the environment that it was trained on"
            )
    if config["normalizer"] is not None:
        env = _normalized(env, tensors, config["normalizer"])
    policy, options = policy_arguments(env.observation_space, hidden)
    options |= {"net_arch": config["net"], "activation_fn": ACTIVATIONS[config["activation"]]}
    model = ENGINES[config["engine"]](policy, env, policy_kwargs=options, device="cpu")
    with refuse_misfits(place, "run it again"):
        _load(model.policy, tensors)
    return model


class _Named(gym.ObservationWrapper[Any, Any, Any]):
    """An observation as the own key of a Dict."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({OWN: env.observation_space})

    def observation(self, observation: Any) -> Any:
        return {OWN: observation}


def _as_dict(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return env if isinstance(env.observation_space, spaces.Dict) else _Named(env)


def _normalized(env: VecEnv, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> VecNormalize:
    """The environment with the saved statistics, which no longer change."""
    keys = list(env.observation_space.spaces) if isinstance(env.observation_space, spaces.Dict) else None
    known = keys and [key for key in keys if f"{NORMALIZER}{key}.mean" in tensors]
    wrapped = VecNormalize(
        env,
        training=False,
        norm_reward=False,
        clip_obs=numbers["clip"],
        epsilon=numbers["epsilon"],
        norm_obs_keys=known,
    )
    means = wrapped.obs_rms if isinstance(wrapped.obs_rms, dict) else {OWN: wrapped.obs_rms}
    for key, rms in means.items():
        rms.mean, rms.var = (tensors[f"{NORMALIZER}{key}.{name}"].numpy() for name in ("mean", "var"))
    return wrapped
