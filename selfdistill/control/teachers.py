"""Teachers of policies: read from a zip of stable-baselines3 without unpickling, a run folder, a model or a module.

A zip holds pickles beside its weights. Only ``policy.pth`` is read, as tensors, and three plain facts of ``data``: the
activation function, gSDE and the normalisation of images. The network is inferred from the shapes of its weights, and
the observation from the keys and shapes that the environment has.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium import ObservationWrapper, spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import get_obs_shape, is_image_space
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from torch import Tensor, nn

from ..errors import DataError
from ..io.expressions import one_line
from ..io.tensors import read_tensors, write_tensors
from .actors import Actor, ModuleActor, ObservationLayout, SelectedColumns
from .store import ACTIVATIONS, VisibleExtractor, load_policy

LARGEST = 1 << 32  # bytes that the weights of a zip may have


def hide(*keys: str) -> dict[str, Any]:
    """The ``policy_kwargs`` of an SB3 model that does not see these keys of a Dict observation.

    >>> sorted(hide("state"))
    ['features_extractor_class', 'features_extractor_kwargs']
    """
    return {"features_extractor_class": VisibleExtractor, "features_extractor_kwargs": {"hidden": keys}}


def hidden_keys(sees: Any, space: spaces.Space[Any]) -> tuple[str, ...]:
    """The keys that the teacher alone sees, from what a recipe says of them.

    Args:
        sees: keys, parted by commas; an ObservationWrapper, by which the environment has the key ``teacher``; or None.
        space: the observation space.

    Raises:
        DataError: the space has no such key.
    """
    if sees is None:
        return ()
    wrapper = isinstance(sees, type) and issubclass(sees, ObservationWrapper)
    keys = ("teacher",) if wrapper or ":" in str(sees) else tuple(key.strip() for key in str(sees).split(","))
    ObservationLayout.of(space, keys)
    return keys


def refuse_visible(policy: ActorCriticPolicy, hidden: Sequence[str]) -> None:
    """Refuse a student that sees what its teacher alone is to see.

    Raises:
        DataError: it does.
    """
    extractor = policy.features_extractor
    shown = [key for key in hidden if not (isinstance(extractor, VisibleExtractor) and key in extractor.hidden)]
    if shown:
        keys = ", ".join(repr(key) for key in hidden)
        raise DataError(
            f"the student sees the key {shown[0]!r}, which its teacher alone is to see; make it with "
            f"policy_kwargs=selfdistill.control.hide({keys})"
        )


# ---- normalisers ----------------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """A teacher that reads normalised observations, with the statistics that it was trained with.

    Args:
        actor: reads normalised rows.
        mean, deviation: of each column, (width,).
        clip: largest absolute value of a normalised number.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, actor: nn.Module, mean: Tensor, deviation: Tensor, clip: float) -> None:
        super().__init__()
        self.actor, self.clip = actor, clip
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, rows: Tensor) -> Any:
        """The actor's heads of raw rows."""
        return self.actor(((rows - self.mean) / self.deviation).clamp(-self.clip, self.clip))


class Unnormalised(nn.Module):
    """A teacher that reads raw observations, beside a student whose environments are normalised.

    Rows are taken back by the statistics of now, which differ from those of their collection as long as these settle.

    Args:
        actor: reads raw rows.
        normaliser: of the student's environments.
        layout: of the rows.
    """

    def __init__(self, actor: nn.Module, normaliser: VecNormalize, layout: ObservationLayout) -> None:
        super().__init__()
        self.actor, self.layout = actor, layout
        self.normaliser = (normaliser,)  # in a tuple: nothing of it is copied or saved

    def forward(self, rows: Tensor) -> Any:
        """The actor's heads of normalised rows."""
        statistics = normaliser_statistics(self.normaliser[0], self.layout)
        return self.actor(rows * statistics["deviation"].to(rows.device) + statistics["mean"].to(rows.device))


def normaliser_statistics(normaliser: VecNormalize, layout: ObservationLayout) -> dict[str, Tensor]:
    """Mean and deviation of each column of flat rows, and the clip.

    Args:
        normaliser: SB3's normaliser of observations.
        layout: of the rows; parts that are not normalised have mean 0 and deviation 1.
    """
    mean, deviation = torch.zeros(layout.width), torch.ones(layout.width)
    statistics = normaliser.obs_rms if isinstance(normaliser.obs_rms, dict) else {"": normaliser.obs_rms}
    place = 0
    for name, shape in layout.parts:
        size = torch.Size(shape).numel()
        running = statistics.get(name)
        if running is not None and normaliser.norm_obs:
            mean[place : place + size] = torch.as_tensor(running.mean, dtype=torch.float32).flatten()
            variance = torch.as_tensor(running.var, dtype=torch.float32).flatten()
            deviation[place : place + size] = (variance + normaliser.epsilon).sqrt()
        place += size
    return {"mean": mean, "deviation": deviation, "clip": torch.tensor(float(normaliser.clip_obs))}


def export_normaliser(normaliser: VecNormalize, path: str | Path) -> None:
    """Write the statistics of a `VecNormalize` as safetensors: ``teacher.safetensors`` beside ``teacher.zip``.

    Args:
        normaliser: the environments as they are after the teacher's training.
        path: the file to write.
    """
    write_tensors(Path(path), normaliser_statistics(normaliser, ObservationLayout.of(normaliser.observation_space)))


def normalised(actor: nn.Module, statistics: Mapping[str, Tensor], width: int, place: str) -> nn.Module:
    """The teacher behind a normaliser.

    Raises:
        DataError: the statistics are of another width.
    """
    if set(statistics) != {"mean", "deviation", "clip"} or statistics["mean"].shape != (width,):
        raise DataError(
            f"{place} holds no statistics of {width} numbers; write it by selfdistill.control.export_normaliser"
        )
    return Normalised(actor, statistics["mean"], statistics["deviation"], float(statistics["clip"]))


# ---- reading ----------------------------------------------------------------------------------------------------


def read_teacher(
    source: Any, space: spaces.Space[Any], actions: spaces.Space[Any], hidden: Sequence[str] = ()
) -> nn.Module:
    """A teacher as a frozen module from flat rows to heads.

    Args:
        source: an SB3 model or policy, a module from observations to logits (or a mapping of heads), the path of an SB3
            zip, or a run folder.
        space: what a row holds: all that the environment shows.
        actions: the action space of the environment.
        hidden: the keys that the student does not see; a teacher of one of these alone is served.

    Raises:
        DataError: it cannot be read, or needs other observations or actions.
    """
    if isinstance(source, BaseAlgorithm):
        teacher = _of_policy(copied(source.policy), space, actions, hidden)  # a teacher is frozen
        normaliser = source.get_vec_normalize_env()
        if normaliser is not None and normaliser.norm_obs:
            statistics = normaliser_statistics(normaliser, ObservationLayout.of(source.observation_space))
            return _behind(teacher, statistics, "the teacher's VecNormalize")
        return teacher
    if isinstance(source, BasePolicy):
        return _of_policy(copied(source), space, actions, hidden)
    if isinstance(source, nn.Module):
        return ModuleActor(source.eval(), ObservationLayout.of(space), isinstance(actions, spaces.Box))
    path = Path(str(source))
    if path.suffix == ".pkl":
        raise DataError(
            f"{path} is a pickle, which is never read; export the statistics of the normaliser by "
            "selfdistill.control.export_normaliser(env, 'teacher.safetensors'), and give teacher.zip beside it"
        )
    if path.is_dir():
        return _of_policy(load_policy(path), space, actions, hidden)
    if not path.exists():
        raise DataError(f"{path} does not exist; give an SB3 zip, or the folder of a run of a policy")
    teacher = _of_policy(read_zip(path, space, actions, hidden), space, actions, hidden)
    beside = path.with_suffix(".safetensors")
    return _behind(teacher, read_tensors(beside), str(beside)) if beside.exists() else teacher


def copied(policy: Any) -> Any:
    """A copy of a policy; the distribution that it made last is left behind, whose tensors allow no copy."""
    policy.action_dist.distribution = None
    return copy.deepcopy(policy)


def _behind(teacher: nn.Module, statistics: Mapping[str, Tensor], place: str) -> nn.Module:
    """The teacher behind its normaliser, whose columns are those that it reads."""
    if isinstance(teacher, SelectedColumns):
        teacher.actor = normalised(teacher.actor, statistics, teacher.layout.width, place)
        return teacher
    assert isinstance(teacher, Actor)
    return normalised(teacher, statistics, teacher.layout.width, place)


def _of_policy(policy: Any, space: spaces.Space[Any], actions: spaces.Space[Any], hidden: Sequence[str]) -> nn.Module:
    """An actor-critic policy as a module from rows of ``space``.

    Raises:
        DataError: it is of another kind, or has other actions or observations.
    """
    if isinstance(policy, RecurrentActorCriticPolicy):
        raise DataError("a recurrent policy answers by its memory and cannot teach single states; give another teacher")
    if not isinstance(policy, ActorCriticPolicy):
        raise DataError(f"a {type(policy).__name__} is no actor-critic policy; give one of PPO, A2C or their kin")
    if not _alike(policy.action_space, actions):
        raise DataError(
            f"the teacher acts in {policy.action_space}, the environment in {actions}; give another teacher"
        )
    policy.set_training_mode(False)
    rows, own = ObservationLayout.of(space), ObservationLayout.of(policy.observation_space)
    if own.parts == rows.parts:
        return Actor(policy, own)
    if own.keys and dict(own.parts).items() <= dict(rows.parts).items():
        return SelectedColumns(Actor(policy, own), rows, own)
    if not own.keys and rows.keys:
        shape = own.parts[0][1]
        fits = [key for key, part in rows.parts if part == shape]
        fits = [key for key in fits if key in hidden] or fits
        if len(fits) == 1:
            return SelectedColumns(Actor(policy, own), rows, ObservationLayout(((fits[0], shape),)))
    raise DataError(f"the teacher reads {own.describe()}, and the environment shows {rows.describe()}; {_REMEDY}")


_REMEDY = "wrap the environment so that it shows what the teacher was trained on, as a key of a Dict"


def _alike(ours: spaces.Space[Any], theirs: spaces.Space[Any]) -> bool:
    """Whether two action spaces have the same actions; the bounds of continuous ones may differ."""
    if isinstance(ours, spaces.Box) and isinstance(theirs, spaces.Box):
        return ours.shape == theirs.shape
    return bool(ours == theirs)


def read_zip(
    path: Path, space: spaces.Space[Any], actions: spaces.Space[Any], hidden: Sequence[str] = ()
) -> ActorCriticPolicy:
    """The policy of an SB3 zip; nothing in it is unpickled.

    Args:
        path: the zip.
        space, actions: of the environment.
        hidden: keys that the student does not see.

    Raises:
        DataError: it is no such zip, or its weights fit no policy on these observations and actions.
    """
    weights, facts = _contents(path)
    if any(name.startswith("lstm") for name in weights):
        raise DataError(f"{path} holds a recurrent policy, which cannot teach single states; give another teacher")
    if "action_net.weight" not in weights:
        raise DataError(f"{path} holds no actor-critic policy; give one of PPO, A2C or their kin")
    for candidate in itertools.islice(_candidates(space, hidden), 256):
        policy = _build(candidate, actions, weights, facts)
        if policy is not None:
            return policy
    first = next(
        (v for n, v in weights.items() if n.startswith("mlp_extractor.policy_net")), weights["action_net.weight"]
    )
    raise DataError(
        f"{path}: its network reads {first.shape[-1]} numbers and chooses by {len(weights['action_net.weight'])}; the "
        f"environment shows {ObservationLayout.of(space).describe()} and acts in {actions}; {_REMEDY}"
    )


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a zip, and what its ``data`` says in plain JSON."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if "policy.pth" not in sizes or sum(sizes.get(name, 0) for name in ("policy.pth", "data")) > LARGEST:
                raise ValueError("it has no policy.pth, or one that is too large")
            weights = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
            data = json.loads(archive.read("data")) if "data" in sizes else {}
    except Exception as error:  # what zipfile, torch and json raise of a foreign file is of many kinds
        reason = one_line(error, 100)
        raise DataError(f"{path} is no zip of stable-baselines3 ({reason}); give one that `save` wrote") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f"{path}: its policy.pth holds no weights; give a zip that `save` wrote")
    options = data.get("policy_kwargs") if isinstance(data, dict) else None
    return weights, options if isinstance(options, dict) else {}


def _candidates(space: spaces.Space[Any], hidden: Sequence[str]) -> Iterator[spaces.Space[Any]]:
    """The observations that a teacher may have been trained on, the likeliest first."""
    yield space
    if isinstance(space, spaces.Dict):
        keys = [*hidden, *(key for key in space.spaces if key not in hidden)]
        for count in range(len(keys) - 1, 0, -1):
            for chosen in itertools.combinations(keys, count):
                yield spaces.Dict({key: space.spaces[key] for key in chosen})
        for key in keys:
            yield space.spaces[key]


def _build(
    space: spaces.Space[Any], actions: spaces.Space[Any], weights: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> ActorCriticPolicy | None:
    """The policy on these observations that the weights fit; None if they fit none."""
    name = re.search(r"(\w+)'>", str(facts.get("activation_fn", "")))
    options: dict[str, Any] = {
        "net_arch": {part: _widths(weights, net) for part, net in (("pi", "policy_net"), ("vf", "value_net"))},
        "use_sde": weights.get("log_std", torch.zeros(1)).dim() == 2,
        "share_features_extractor": all(
            torch.equal(value, weights.get(key.replace("vf_", "", 1), value))
            for key, value in weights.items()
            if key.startswith("vf_features_extractor.")
        ),
    }
    if name is not None:
        if name[1] not in ACTIVATIONS:
            raise DataError(f"the teacher's activation function {name[1]} is unknown; give the model itself as teacher")
        options["activation_fn"] = ACTIVATIONS[name[1]]
    kind: type[ActorCriticPolicy] = ActorCriticPolicy
    if isinstance(space, spaces.Dict):
        kind = MultiInputActorCriticPolicy
    elif is_image_space(space) and len(get_obs_shape(space)) == 3 and any("cnn" in key for key in weights):
        kind = ActorCriticCnnPolicy
    try:
        policy = kind(space, actions, lambda _: 0.0, **options)
    except (AssertionError, ValueError, TypeError):
        return None
    expected = {key: tuple(value.shape) for key, value in policy.state_dict().items()}
    if expected != {key: tuple(value.shape) for key, value in weights.items()}:
        return None
    policy.load_state_dict(dict(weights))
    return policy


def _widths(weights: Mapping[str, Tensor], net: str) -> list[int]:
    """The widths of the layers of a network, in order."""
    layers = {
        int(match[1]): len(value)
        for key, value in weights.items()
        if (match := re.fullmatch(rf"mlp_extractor\.{net}\.(\d+)\.weight", key))
    }
    return [width for _, width in sorted(layers.items())]


def own_normaliser(environments: Any) -> VecNormalize | None:
    """The normaliser of observations around an algorithm's environments, if there is one."""
    normaliser = unwrap_vec_normalize(environments)
    return normaliser if normaliser is not None and normaliser.norm_obs else None
